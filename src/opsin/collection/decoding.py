"""Files to images for the network, in processes that never import torch."""

import hashlib
import io
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from opsin.collection.source import Entry, Source
from opsin.errors import InputError
from opsin.photos import Frame, decoded, fitted

THUMBNAIL = 160  # pixels, of the longer side
QUALITY = 82  # of thumbnails, JPEG
TASK = 8  # files that a worker decodes in one go
AHEAD = 3  # tasks a worker that may lie decoded, waiting for the network
RESTARTS = 3  # of workers that die; a file that kills one each time is given up


class Cut(NamedTuple):
    """How photos are cut for a network: a `Frame` that travels to other processes."""

    size: tuple[int, int]
    crop: float
    interpolation: str
    squash: bool

    @classmethod
    def of(cls, frame: Frame) -> "Cut":
        """The same cut as a model's."""
        return cls(frame.size, frame.crop, frame.interpolation, frame.squash)


class Decoded(NamedTuple):
    """An image as the network takes it, (h, w, 3) bytes, and what is kept of the file."""

    entry: Entry
    sha256: str
    width: int
    height: int
    thumbnail: bytes
    pixels: NDArray[np.uint8]


class Unread(NamedTuple):
    """A file that could not be read, and why."""

    path: str
    why: str


def decode(source: Source, entries: Sequence[Entry], cut: Cut) -> list[Decoded | Unread]:
    """Read and cut files."""
    return [_decode(source, entry, cut) for entry in entries]


def _decode(source: Source, entry: Entry, cut: Cut) -> Decoded | Unread:
    try:
        data = source.read(entry.path)
        photo = decoded(data, entry.path)
    except InputError as error:
        return Unread(entry.path, str(error))
    except MemoryError:
        return Unread(entry.path, f"{entry.path} is too large for the memory")
    except Exception as error:  # Pillow lets struct.error, RuntimeError, TypeError and others through
        return Unread(entry.path, f"{entry.path} cannot be read: {error}")
    pixels = fitted(photo, cut)
    width, height = photo.size
    photo.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, reducing_gap=2.0)
    small = io.BytesIO()
    photo.save(small, "JPEG", quality=QUALITY)
    return Decoded(entry, hashlib.sha256(data).hexdigest(), width, height, small.getvalue(), pixels)


def decoding(
    source: Source, entries: Iterator[Entry], cut: Cut, workers: int
) -> Generator[Decoded | Unread, None, None]:
    """The entries decoded, in their order, by so many processes; never more than a few ahead.

    With no workers they are decoded here. Workers that die are started again, and their files taken anew.
    """
    if not workers:
        for entry in entries:
            yield _decode(source, entry, cut)
        return
    waiting: list[tuple[tuple[Entry, ...], Future[list[Decoded | Unread]]]] = []
    pool = _pool(workers)
    restarts = 0
    try:
        while True:
            while len(waiting) < workers * AHEAD and (task := tuple(islice(entries, TASK))):
                waiting.append((task, _given(pool, source, task, cut)))
            if not waiting:
                return
            task, future = waiting[0]
            try:
                found = future.result()
            except BrokenProcessPool:
                pool.shutdown(cancel_futures=True)
                restarts += 1
                if restarts <= RESTARTS:
                    pool = _pool(workers)
                    waiting = [(one, _given(pool, source, one, cut)) for one, _ in waiting]
                    continue
                found = list(_one_by_one(source, task, cut))  # it may be another task's file that kills
                pool = _pool(workers)
                waiting = [waiting[0], *((one, _given(pool, source, one, cut)) for one, _ in waiting[1:])]
            restarts = 0
            waiting.pop(0)
            yield from found
    finally:
        pool.shutdown(cancel_futures=True)


def _given(
    pool: ProcessPoolExecutor, source: Source, task: tuple[Entry, ...], cut: Cut
) -> Future[list[Decoded | Unread]]:
    """A task handed to the pool; where that is broken already, its error as the result."""
    try:
        return pool.submit(decode, source, task, cut)
    except BrokenProcessPool as error:
        broken: Future[list[Decoded | Unread]] = Future()
        broken.set_exception(error)
        return broken


def _one_by_one(source: Source, task: tuple[Entry, ...], cut: Cut) -> Iterator[Decoded | Unread]:
    """Files of which one may kill the process that decodes it, each in a process that no other needs."""
    for entry in task:
        with _pool(1) as pool:
            try:
                yield from _given(pool, source, (entry,), cut).result()
            except BrokenProcessPool:
                yield Unread(entry.path, f"{entry.path} cannot be read: the process that decodes it dies")


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """A worker leaves interrupts to its parent, and ends when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
