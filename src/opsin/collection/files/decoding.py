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

THUMBNAIL = 160  # pixels of the longer side
QUALITY = 82  # JPEG quality of thumbnails
TASK = 8  # files that a worker decodes per request
AHEAD = 3  # decoded tasks per worker that may wait for the network
RESTARTS = 3  # of a worker that dies; a file that kills it every time is reported as unread


class Cut(NamedTuple):
    """How photos are cropped for a network: a `Frame` that can be sent to other processes."""

    size: tuple[int, int]
    crop: float
    interpolation: str
    squash: bool

    @classmethod
    def of(cls, frame: Frame) -> "Cut":
        """The crop of a model."""
        return cls(frame.size, frame.crop, frame.interpolation, frame.squash)


class Decoded(NamedTuple):
    """An image as the network takes it, (h, w, 3) bytes, and the data that is stored of its file."""

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
    """Read and crop files."""
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
    """The entries decoded in order by `workers` processes, only a few ahead of the consumer.

    With no workers they are decoded in this process. Workers that die are restarted, and their files retried.
    """
    if not workers:
        for entry in entries:
            yield _decode(source, entry, cut)
        return
    pending: list[Future[list[Decoded | Unread]]] = []
    processes = [_Worker(source, cut) for _ in range(workers)]
    free = SimpleQueue[_Worker]()
    for worker in processes:
        free.put(worker)

    def work(task: Sequence[Entry]) -> list[Decoded | Unread]:
        worker = free.get()
        try:
            return worker.decode(task)
        finally:
            free.put(worker)

    threads = ThreadPoolExecutor(workers, "decoding")
    try:
        while True:
            while len(pending) < workers * AHEAD and (task := tuple(islice(entries, TASK))):
                pending.append(threads.submit(work, task))
            if not pending:
                return
            yield from pending.pop(0).result()
    finally:
        threads.shutdown(cancel_futures=True)
        for worker in processes:
            worker.end()


class _Worker:
    """A decoding process, started on first use and restarted if it died.

    It has a pipe of its own, whose other end closes with it. In a `ProcessPoolExecutor` all processes share
    one pipe, and if one is killed while it writes, the executor waits forever.
    """

    starting = Lock()  # multiprocessing's list of children is shared by all threads

    def __init__(self, source: Source, cut: Cut) -> None:
        self.source, self.cut = source, cut
        self.process: SpawnProcess | None = None

    def decode(self, task: Sequence[Entry]) -> list[Decoded | Unread]:
        """Decode files; a file that kills the process every time is returned as `Unread`."""
        for _ in range(1 + RESTARTS):
            try:
                return self._ask(task)
            except (EOFError, OSError):
                self.end()
        if len(task) > 1:
            return [result for entry in task for result in self.decode([entry])]
        return [Unread(task[0].path, f"{task[0].path} cannot be read: the decoding process crashes on it")]

    def _ask(self, task: Sequence[Entry]) -> list[Decoded | Unread]:
        if self.process is None:
            context = get_context("spawn")
            self.pipe, child_pipe = context.Pipe()
            with child_pipe, self.starting, _without_main():
                self.process = context.Process(
                    target=_serve, args=(child_pipe, self.source, self.cut), daemon=True
                )
                self.process.start()
        self.pipe.send(task)
        results: list[Decoded | Unread] = self.pipe.recv()
        return results

    def end(self) -> None:
        """End the process."""
        if self.process is not None:
            self.pipe.close()
            with self.starting:
                self.process.join()
            self.process = None


def _serve(pipe: Connection, source: Source, cut: Cut) -> None:
    """The loop of a worker, until its parent is gone; interrupts are left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        while True:
            pipe.send(decode(source, pipe.recv(), cut))


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the user's main module, which a spawned process would otherwise import again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
