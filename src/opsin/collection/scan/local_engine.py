"""Decoding processes and a network on this machine."""

import os
import time
from collections.abc import Iterator

from opsin.base.job import tell
from opsin.collection.files.decoding import Cut, decoding
from opsin.collection.files.source import Entry
from opsin.collection.scan.chunks import Chunks, Growing, Job

CHUNK_SECONDS, CHUNK_SHARE = 30.0, 0.05  # share of the time so far: a kill loses at most the longer of these
WORKERS = 8  # most decoding processes by default


def local(job: Job, entries: Iterator[Entry]) -> Chunks:
    """Files decoded by processes; the network runs in this process.

    On an interrupt or an error the unfinished chunk is yielded before the exception goes on.
    """
    workers = min(WORKERS, os.cpu_count() or 1) if job.workers is None else job.workers
    stream = decoding(job.source, entries, Cut.of(job.model), workers)
    growing, done = Growing(job.model, job.layers, job.top), 0
    began = handed_on = time.monotonic()
    try:
        for group in growing.groups(stream):
            growing.take(group)
            done += len(group)
            tell("scan", done, job.total)
            now = time.monotonic()
            is_old = now - handed_on > max(CHUNK_SECONDS, CHUNK_SHARE * (now - began))
            if growing.size and (is_old or growing.size >= job.size):
                yield growing.cut()
                handed_on = now
    except GeneratorExit:
        raise
    except BaseException:
        if growing.size:
            yield growing.cut()
        raise
    finally:
        stream.close()
    if growing.size:
        yield growing.cut()
