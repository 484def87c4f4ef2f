"""Files to images for the network, in processes that never import torch."""

import hashlib
import io
import signal
import sys
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from queue import SimpleQueue
from threading import Lock
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from opsin.base.errors import InputError
from opsin.collection.files.source import Entry, Source
from opsin.images.photos import Frame, decoded, fitted

THUMBNAIL = 160  # pixels, of the longer side
QUALITY = 82  # of thumbnails, JPEG
TASK = 8  # files that a worker decodes in one go
AHEAD = 3  # tasks a worker that may lie decoded, waiting for the network
RESTARTS = 3  # of a worker that dies; a file that kills it each time is given up


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
    pixels = fitted(photo, cut)
    width, height = photo.size
    photo.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, reducing_gap=1.0)
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
    waiting: list[Future[list[Decoded | Unread]]] = []
    crew = [_Worker(source, cut) for _ in range(workers)]
    free = SimpleQueue[_Worker]()
    for one in crew:
        free.put(one)

    def work(task: Sequence[Entry]) -> list[Decoded | Unread]:
        one = free.get()
        try:
            return one.decode(task)
        finally:
            free.put(one)

    threads = ThreadPoolExecutor(workers, "decoding")
    try:
        while True:
            while len(waiting) < workers * AHEAD and (task := tuple(islice(entries, TASK))):
                waiting.append(threads.submit(work, task))
            if not waiting:
                return
            yield from waiting.pop(0).result()
    finally:
        threads.shutdown(cancel_futures=True)
        for one in crew:
            one.end()


class _Worker:
    """A process that decodes, started when it is first asked and again where it died.

    It has a pipe of its own, whose other end closes with it. In a `ProcessPoolExecutor` all write to one,
    and one that is killed while it writes is waited for without end.
    """

    starting = Lock()  # multiprocessing's list of children is no thread's own

    def __init__(self, source: Source, cut: Cut) -> None:
        self.source, self.cut = source, cut
        self.process: SpawnProcess | None = None

    def decode(self, task: Sequence[Entry]) -> list[Decoded | Unread]:
        """Files decoded; of those that kill the process each time it is said so."""
        for _ in range(1 + RESTARTS):
            try:
                return self._ask(task)
            except (EOFError, OSError):
                self.end()
        if len(task) > 1:
            return [found for entry in task for found in self.decode([entry])]
        return [Unread(task[0].path, f"{task[0].path} cannot be read: the process that decodes it dies")]

    def _ask(self, task: Sequence[Entry]) -> list[Decoded | Unread]:
        if self.process is None:
            context = get_context("spawn")
            self.pipe, theirs = context.Pipe()
            with theirs, self.starting, _without_main():
                self.process = context.Process(
                    target=_serve, args=(theirs, self.source, self.cut), daemon=True
                )
                self.process.start()
        self.pipe.send(task)
        found: list[Decoded | Unread] = self.pipe.recv()
        return found

    def end(self) -> None:
        """Let the process go."""
        if self.process is not None:
            self.pipe.close()
            with self.starting:
                self.process.join()
            self.process = None


def _serve(pipe: Connection, source: Source, cut: Cut) -> None:
    """What a worker does until its parent is gone; it leaves interrupts to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        while True:
            pipe.send(decode(source, pipe.recv(), cut))


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the user's program, which a process that starts would run again, with all that it imports."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
