"""Exact search of features beside FAISS's flat scan and hnswlib, in one run.

    python benchmarks/search.py                    # a million vectors: about 25 minutes on two cores, 12 GB
    python benchmarks/search.py --count 50000      # a smoke test

The vectors are clustered and not negative, as features behind a rectifier and a mean are. Contenders
take turns; times are medians over the rounds; a ratio is the median of the rounds' own ratios.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import faiss
import hnswlib
import lance
import numpy as np
import pyarrow as pa
import torch

import opsin
from opsin.collection.ask.search import nearest
from opsin.collection.store import tables
from opsin.collection.store.about import About, LayerAbout, about_model
from opsin.collection.store.intake import writing
from opsin.collection.store.store import Collection

WIDTH, K = 512, 10
CLUSTERS = 2000
SPREAD = 0.35  # of a cluster's members around its centre, as a share of the centre's own spread
QUERIES = 64
PART = 50_000
M, EF_BUILD, EF_SEARCH = 16, 100, 128  # of hnswlib
GOAL = 1 / 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    faiss.omp_set_num_threads(torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        began = time.perf_counter()
        collection, queries = made(Path(folder) / "collection", given.count)
        say(f"collection written in {time.perf_counter() - began:.0f} s")
        report = measured(collection, queries, given.count, given.rounds)
    given.output.write_text(report, "utf-8")
    print(report)


def vectors(count: int, seed: int, centres: np.ndarray) -> np.ndarray:
    """Members of clusters, not negative."""
    draw = np.random.default_rng(seed)
    members = centres[draw.integers(len(centres), size=count)]
    return np.maximum(members + SPREAD * draw.standard_normal((count, WIDTH), np.float32), 0)


def made(place: Path, count: int) -> tuple[Collection, np.ndarray]:
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, WIDTH)).astype(np.float32)
    model = opsin.Model(torch.nn.Conv2d(3, 3, 1), mean=[0.5] * 3, std=[0.5] * 3, size=8, name="none")
    layers = (LayerAbout("features", WIDTH, (1, 1)),)
    with writing(place, About("/", about_model(model), None, layers, 1, {}), model) as collection:
        schema = tables.schema([WIDTH])

        def batches() -> "list[pa.RecordBatch]":
            for start in range(0, count, PART):
                part = vectors(min(PART, count - start), 1 + start // PART, centres)
                ids = pa.array(np.arange(start, start + len(part)))
                features = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), WIDTH)
                columns = {"id": ids, "version": ids, "chunk": ids, tables.feature_column(0): features}
                columns |= {"path": pa.array([b""] * len(part)), "thumbnail": pa.array([b""] * len(part))}
                empty = {f.name: pa.nulls(len(part), f.type) for f in schema if f.name not in columns}
                yield pa.record_batch([(columns | empty)[f.name] for f in schema], schema=schema)

        lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), place / tables.IMAGES)
    return collection, vectors(QUERIES, 0, centres)


def measured(collection: Collection, queries: np.ndarray, count: int, rounds: int) -> str:
    rows, builds, memory = [], {}, {}
    with watched() as peak:
        began = time.perf_counter()
        search(collection, queries[:1], "cosine")
        builds["Opsin"] = time.perf_counter() - began
    memory["Opsin, first search"] = peak[0]
    with watched() as peak:
        search(collection, queries, "cosine")
    memory["Opsin, 64 queries"] = peak[0]

    values = collection.features()
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    flat = faiss.IndexFlatIP(WIDTH)
    began = time.perf_counter()
    flat.add(values)
    builds["FAISS flat"] = time.perf_counter() - began
    say("FAISS is filled")
    graph = hnswlib.Index("ip", WIDTH)
    graph.init_index(len(values), M=M, ef_construction=EF_BUILD, random_seed=0)
    graph.set_num_threads(torch.get_num_threads())
    began = time.perf_counter()
    graph.add_items(values)
    builds["hnswlib"] = time.perf_counter() - began
    graph.set_ef(EF_SEARCH)
    say(f"hnswlib is built in {builds['hnswlib']:.0f} s")
    memory["FAISS flat"] = values.nbytes >> 20
    memory["hnswlib"] = (values.nbytes + len(values) * (2 * M + 2) * 4) >> 20

    truth = brute(values, unit)
    contenders = {
        "Opsin": lambda q: search(collection, q, "cosine"),
        "FAISS flat": lambda q: flat.search(q, K)[1],
        "hnswlib": lambda q: graph.knn_query(q, K)[0],
    }
    for many in (1, QUERIES):
        times = {name: [] for name in contenders}
        found = {}
        for _ in range(rounds):
            for name, ask in contenders.items():
                began = time.perf_counter()
                found[name] = ask(unit[:many])
                times[name].append(time.perf_counter() - began)
        medians = {name: 1000 * statistics.median(own) for name, own in times.items()}
        ratio = statistics.median(a / b for a, b in zip(times["Opsin"], times["FAISS flat"], strict=True))
        recall = {name: hits(own, truth[:many]) for name, own in found.items()}
        rows.append((many, medians, ratio, recall))
        say(f"{many} queries: {ratio:.2f} of FAISS flat's time, recall {recall}")
    return page(count, rows, builds, memory)


def search(collection: Collection, queries: np.ndarray, metric: str) -> np.ndarray:
    return nearest(collection, torch.from_numpy(queries), K, metric=metric).rows.numpy()


def brute(values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The nearest by products in float64."""
    best = np.full((len(queries), 0), 0)
    scores = np.zeros((len(queries), 0))
    for start in range(0, len(values), PART):
        part = queries.astype(np.float64) @ values[start : start + PART].astype(np.float64).T
        scores = np.concatenate([scores, part], 1)
        best = np.concatenate([best, np.tile(np.arange(start, start + part.shape[1]), (len(queries), 1))], 1)
        order = np.argsort(-scores, 1, kind="stable")[:, :K]
        scores, best = np.take_along_axis(scores, order, 1), np.take_along_axis(best, order, 1)
    return best


def hits(found: np.ndarray, truth: np.ndarray) -> float:
    return float(
        np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
    )


class watched:  # noqa: N801
    """The greatest resident memory inside the block above what it was before, MiB, file pages left out."""

    def __enter__(self) -> list[int]:
        self.before, self.peak, self.ended = anonymous(), [0], threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self.peak

    def watch(self) -> None:
        while not self.ended.wait(0.01):
            self.peak[0] = max(self.peak[0], anonymous() - self.before)

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


def anonymous() -> int:
    """Of this process, MiB, without pages of files that the system may drop."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) >> 10


def page(count: int, rows: list, builds: dict[str, float], memory: dict[str, int]) -> str:
    worst = max(ratio for _, _, ratio, _ in rows)
    recall = min(own["Opsin"] for *_, own in rows)
    mark = lambda good: "met" if good else "**not met**"  # noqa: E731
    names = list(builds)
    versions = [f"{one} {version(one)}" for one in ("torch", "pylance", "faiss-cpu", "hnswlib")]
    lines = [
        "# Search: exact neighbours beside FAISS and hnswlib",
        "",
        f"CPU, {torch.get_num_threads()} threads on {os.cpu_count()} cores. {', '.join(versions)}. Made by "
        "`benchmarks/search.py`.",
        "",
        f"{count:,} vectors of {WIDTH} numbers, in {CLUSTERS:,} clusters, not negative; the {K} nearest by",
        "cosine. Opsin searches a collection on disk, as `opsin neighbours` does, its matrix mapped into",
        "memory; the others hold all vectors in memory. Contenders take turns, times are medians.",
        f"hnswlib with M {M}, ef {EF_BUILD} to build and {EF_SEARCH} to search.",
        "",
        "| goal | worst case |  |",
        "| --- | ---: | ---: |",
        f"| recall@{K} of 1.0 | {recall:.3f} | {mark(recall == 1)} |",
        f"| at most a third of FAISS flat's time | {worst:.2f} | {mark(worst <= GOAL)} |",
        "",
        f"| queries | {', ms | '.join(names)}, ms | Opsin ÷ FAISS | recall: {' | '.join(names)} |",
        f"| ---: |{' ---: |' * (2 * len(names) + 1)}",
    ]
    for many, medians, ratio, found in rows:
        cells = [f"{medians[n]:,.1f}" for n in names] + [f"{ratio:.2f}"] + [f"{found[n]:.3f}" for n in names]
        lines.append(f"| {many} | {' | '.join(cells)} |")
    lines += ["", "| | seconds to build |", "| --- | ---: |"]
    lines += [f"| {name} | {seconds:,.0f} |" for name, seconds in builds.items()]
    lines += ["", "Opsin's is the first search, which rounds the features into the cache.", ""]
    lines += [
        "| memory | MiB |",
        "| --- | ---: |",
        *(f"| {name} | {mib:,} |" for name, mib in memory.items()),
    ]
    size = count * 544 * 2 >> 20
    lines += [
        "",
        f"Opsin maps {size:,} MiB of rounded rows besides, pages that the system may drop at any time.",
        "",
    ]
    return "\n".join(lines)


def say(text: str) -> None:
    print(f"{time.perf_counter():8.0f} s  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
