"""A scan on a Ray cluster: files are decoded by tasks, seen by networks in actors, gathered here."""

import logging
import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import ray
import ray.data
from ray import cloudpickle

from opsin.base.job import tell
from opsin.collection.files.decoding import Cut, decode
from opsin.collection.files.source import Entry, Source
from opsin.collection.scan.chunks import Chunk, Chunks, Growing, Job

os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray reads it when it is imported

ROUND = 64  # chunks that the cluster is given at once
LARGEST = 256  # images of a chunk, which travels decoded
NETWORKS = 2  # actors with a network each, unless more are asked for
USER_MODULES = "opsin_user_"  # files of the user's own: workers cannot import them, so they travel by value


def on_ray(job: Job, entries: Iterator[Entry], address: str | None = None) -> Chunks:
    """Chunks as they come back, in any order. What dies is started again by Ray, and its chunks done anew.

    Without an address the cluster that this process is in, else a new one of this machine.
    """
    ours = not ray.is_initialized()
    if ours:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "lance is not fork-safe")  # no process that Ray forks uses it
            ray.init(address=address, log_to_driver=False, logging_level="error", include_dashboard=False)
    networks = job.workers or NETWORKS
    size = min(job.size, LARGEST, -(-job.total // (2 * networks)))  # so that each has something to do
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        for name, module in list(sys.modules.items()):
            if name.startswith(USER_MODULES):
                cloudpickle.register_pickle_by_value(module)
        given = {"model": ray.put(cloudpickle.dumps(job.model)), "layers": job.layers, "top": job.top}
        place = {"num_gpus": 1} if job.model.device.type == "cuda" else {"num_cpus": 1}
        pool = ray.data.ActorPoolStrategy(size=networks)
        done = 0
        while blocks := _blocks(entries, size):
            found = (
                ray.data.from_items(blocks, override_num_blocks=len(blocks))
                .map(_decoded, fn_args=(job.source, Cut.of(job.model)))
                .map(_Look, fn_constructor_kwargs=given, compute=pool, **place)
            )
            for row in found.iter_rows():
                chunk: Chunk = pickle.loads(row["chunk"])
                yield chunk  # and then tell: a listener that raises does not lose it
                done += chunk.files
                tell("scan", done, job.total)
    finally:
        if ours:
            ray.shutdown()


def _blocks(entries: Iterator[Entry], size: int) -> list[dict[str, bytes]]:
    """The next round's entries, some to a chunk."""
    blocks: list[dict[str, bytes]] = []
    while len(blocks) < ROUND and (some := list(islice(entries, size))):
        blocks.append({"entries": pickle.dumps(some)})
    return blocks


def _decoded(row: dict[str, Any], source: Source, cut: Cut) -> dict[str, bytes]:
    """The first stage: a chunk's files, decoded."""
    return {"decoded": pickle.dumps(decode(source, pickle.loads(row["entries"]), cut))}


class _Look:
    """The second stage: what the network makes of them."""

    def __init__(self, model: Any, layers: tuple[str, ...], top: int) -> None:
        self.growing = Growing(pickle.loads(ray.get(model)), layers, top)

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        for group in self.growing.groups(pickle.loads(row["decoded"])):
            self.growing.take(group)
        return {"chunk": pickle.dumps(self.growing.cut())}
