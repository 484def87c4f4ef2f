"""A scan on a Ray cluster: tasks decode files, actors run the network, this process collects the chunks."""

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

os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray reads it on import

ROUND = 64  # chunks that are submitted to the cluster at once
LARGEST = 256  # most images per chunk, which is sent decoded
NETWORKS = 2  # actors with one network each, by default
USER_MODULES = "opsin_user_"  # the user's own files: workers cannot import them, so they are pickled by value


def on_ray(job: Job, entries: Iterator[Entry], address: str | None = None) -> Chunks:
    """Chunks as they come back, in any order. Ray restarts processes that die and repeats their chunks.

    Without an address it uses the cluster that this process belongs to, else starts one on this machine.
    """
    ours = not ray.is_initialized()
    if ours:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "lance is not fork-safe"
            )  # the processes that Ray forks do not use it
            ray.init(address=address, log_to_driver=False, logging_level="error", include_dashboard=False)
    networks = job.workers or NETWORKS
    size = min(job.size, LARGEST, -(-job.total // (2 * networks)))  # so that each network gets some chunks
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        for name, module in list(sys.modules.items()):
            if name.startswith(USER_MODULES):
                cloudpickle.register_pickle_by_value(module)
        actor_arguments = {
            "model": ray.put(cloudpickle.dumps(job.model)),
            "layers": job.layers,
            "top": job.top,
        }
        resources = {"num_gpus": 1} if job.model.device.type == "cuda" else {"num_cpus": 1}
        pool = ray.data.ActorPoolStrategy(size=networks)
        done = 0
        while blocks := _blocks(entries, size):
            dataset = (
                ray.data.from_items(blocks, override_num_blocks=len(blocks))
                .map(_decoded, fn_args=(job.source, Cut.of(job.model)))
                .map(_Look, fn_constructor_kwargs=actor_arguments, compute=pool, **resources)
            )
            for row in dataset.iter_rows():
                chunk: Chunk = pickle.loads(row["chunk"])
                yield chunk  # before `tell`: a listener that raises does not lose the chunk
                done += chunk.files
                tell("scan", done, job.total)
    finally:
        if ours:
            ray.shutdown()


def _blocks(entries: Iterator[Entry], size: int) -> list[dict[str, bytes]]:
    """The entries of the next round's chunks."""
    blocks: list[dict[str, bytes]] = []
    while len(blocks) < ROUND and (batch := list(islice(entries, size))):
        blocks.append({"entries": pickle.dumps(batch)})
    return blocks


def _decoded(row: dict[str, Any], source: Source, cut: Cut) -> dict[str, bytes]:
    """The first stage: a chunk's files, decoded."""
    return {"decoded": pickle.dumps(decode(source, pickle.loads(row["entries"]), cut))}


class _Look:
    """The second stage: the network's results for the files of a chunk."""

    def __init__(self, model: Any, layers: tuple[str, ...], top: int) -> None:
        self.growing = Growing(pickle.loads(ray.get(model)), layers, top)

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        for group in self.growing.groups(pickle.loads(row["decoded"])):
            self.growing.take(group)
        return {"chunk": pickle.dumps(self.growing.cut())}
