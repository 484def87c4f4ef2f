"""Time and peak memory of Opsin's attributions beside the floor and the peers, in one run.

    python benchmarks/attribution.py                       # about 40 minutes on two cores
    python benchmarks/attribution.py --techniques saliency # this part anew, the rest as it was measured
    python benchmarks/attribution.py --quick               # a smoke test, its numbers mean little

Contenders take turns (A, B, C, A, B, C, ...), so that whatever else the machine does meets all of
them alike. Times are medians over the rounds; a ratio is the median of the rounds' own ratios.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median

os.environ["TQDM_DISABLE"] = "1"  # pytorch-grad-cam draws a progress bar on every image

import torch
from contenders import (
    CAPTUM,
    CAPTUM_TRAINABLE,
    NETWORKS,
    PYTORCH_GRAD_CAM,
    STRIDE,
    TECHNIQUES,
    TORCHCAM,
    ZENNIT,
    Case,
    Contender,
    Run,
    make_case,
)
from torch import Tensor
from torch.nn.functional import interpolate

OUTPUT = Path(__file__).with_suffix(".md")
PACKAGES = ("torch", "torchvision", "timm", "captum", "grad-cam", "torchcam", "zennit")
IMPORTED = [
    "contenders",
    "torchvision",
    "timm",
    "captum.attr",
    "pytorch_grad_cam",
    "torchcam.methods",
    "zennit",
]
PEERS = (CAPTUM, PYTORCH_GRAD_CAM, TORCHCAM, ZENNIT)
SMALL = "efficientnet_lite0"
SIZES = (4, 8, 16, 32)  # of the forwards of what is tuned
UNTUNED = 8
FORWARD_SIZES = (1, 4, 8, 16, 32, 64)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
FEW_CHANNELS = 32  # of Score-CAM's layer
WIDE_STRIDE = 32  # of occlusion: 49 squares instead of 169
EDGE = 16  # pixels; zennit's last squares wrap around the edge, so it is left out of the comparison
AGREEMENT = 0.9  # correlation; peers round, upsample and normalise in other places
PLAIN_GRADIENT = "Gives the plain gradient: it does not see ReLU6."
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)
DIFFERENT = {
    (technique, SMALL, peer): PLAIN_GRADIENT
    for technique in ("guided_backprop", "guided_grad_cam")
    for peer in PEERS
}


@dataclass(frozen=True)
class Job:
    """One row of the tables; `channels` None means the whole layer."""

    technique: str
    network: str
    batch: int
    channels: int | None = None
    stride: int = STRIDE

    def __str__(self) -> str:
        return f"{self.technique}, {self.what}, batch {self.batch}"

    @property
    def what(self) -> str:
        """The network, and what of the work was left out."""
        channels = f", first {self.channels} channels" if self.channels else ""
        stride = f", stride {self.stride}" if self.technique == "occlusion" and self.stride != STRIDE else ""
        return self.network + channels + stride

    @property
    def contenders(self) -> list[Contender]:
        """Who has the technique."""
        return TECHNIQUES[self.technique]

    def case(self) -> Case:
        """Its problem."""
        return make_case(self.network, self.batch, channels=self.channels, stride=self.stride)

    def part(self) -> "Job":
        """Less of the same, for a look at how it goes."""
        return replace(
            self, channels=FEW_CHANNELS if self.technique == "score_cam" else None, stride=WIDE_STRIDE
        )


@dataclass(frozen=True)
class Row:
    """What was measured of a job, by contender: seconds a round, and peak memory in MiB."""

    job: Job
    seconds: dict[str, list[float]]
    first: float
    sizes: dict[str, int]
    correlations: dict[str, float]
    memory: dict[str, float] = field(default_factory=dict)

    @property
    def differing(self) -> dict[str, str]:
        """Whose answer is another than Opsin's, and why as far as that is known."""
        return {
            name: DIFFERENT.get(
                (self.job.technique, self.job.network, name), f"Correlates with Opsin by {r:.2f}."
            )
            for name, r in self.correlations.items()
            if r < AGREEMENT
        }

    def ratio(self, rival: str) -> float:
        """Opsin's time as a share of the rival's."""
        rounds = zip(self.seconds["Opsin"], self.seconds[rival], strict=True)
        return median(own / other for own, other in rounds)


@dataclass(frozen=True)
class Goal:
    """Something promised: none of the figures of any row is above the limit."""

    text: str
    limit: float
    figures: Callable[[Row], list[float]]

    def cells(self, rows: list[Row]) -> list[str]:
        """The goal, its worst case and whether it is met."""
        found = [(figure, str(row.job)) for row in rows for figure in self.figures(row)]
        worst, where = max(found, default=(0.0, ""))
        met = "met" if round(worst, 2) <= self.limit else "**not met**"
        return [self.text, *((f"{worst:.2f} ({where})", met) if found else ("not measured", ""))]


def share_of(rival: str, *techniques: str) -> Callable[[Row], list[float]]:
    """Opsin's share of the rival's time in rows of these techniques."""
    return lambda row: [row.ratio(rival)] if row.job.technique in techniques else []


def share_of_peers(row: Row) -> list[float]:
    """Opsin's share of every peer's time."""
    return [row.ratio(name) for name in row.seconds if name not in ("Opsin", "floor")]


def memory_share_of(rival: str) -> Callable[[Row], list[float]]:
    """Opsin's share of the rival's peak memory in Grad-CAM on resnet50 at batch 16."""
    job = Job("grad_cam", "resnet50", 16)
    return lambda row: [row.memory["Opsin"] / row.memory[rival]] if row.job == job and row.memory else []


GOALS = (
    Goal("gradients: at most 1.10 of the floor", 1.10, share_of("floor", "saliency", "guided_backprop")),
    Goal("Grad-CAM: at most 1.10 of its floor", 1.10, share_of("floor", "grad_cam")),
    Goal("Grad-CAM: at most a third of captum's peak memory", 1 / 3, memory_share_of(CAPTUM_TRAINABLE)),
    Goal("guided Grad-CAM: at most 1.25 of the gradient floor", 1.25, share_of("floor", "guided_grad_cam")),
    Goal("occlusion: at most 0.75 of captum's best-tuned time", 0.75, share_of(CAPTUM, "occlusion")),
    Goal("never slower than a peer, to within 5 %", 1.05, share_of_peers),
)


@dataclass(frozen=True)
class Rounds:
    """How often a job is repeated: as often as the seconds allow, within bounds."""

    least: int
    most: int
    seconds: float

    def fitting(self, one: float) -> range:
        """The rounds of a job of which one round takes `one` second."""
        return range(int(min(self.most, max(self.least, self.seconds // one))))


def jobs(technique: str, networks: list[str], quick: bool) -> Iterator[Job]:
    """What is run of a technique; the dear ones in part, and at batch 16 on the smallest network only."""
    for network in networks:
        if technique not in ("score_cam", "occlusion"):
            yield from (Job(technique, network, batch) for batch in (1, 16)[: 1 if quick else 2])
            continue
        whole = Job(technique, network, 1)
        dear = network == "vgg16" or (technique == "score_cam" and network != SMALL)
        yield whole.part() if quick or dear else whole
        if network == SMALL and not quick:
            yield replace(whole, batch=16).part()


def measure(job: Job, rounds: Rounds, *, tune: bool) -> Row:
    """Time a job, and compare the contenders' answers."""
    case = job.case()
    sizes = {c.name: best_size(job, c) if tune else UNTUNED for c in job.contenders if c.tuned}
    runs = {c.name: c.build(case, sizes.get(c.name, 0)) for c in job.contenders}
    first, answers = {}, {}
    for contender in job.contenders:  # the first round warms up, and is compared
        answer, first[contender.name] = timed(runs[contender.name])
        if contender.convert:
            answers[contender.name] = contender.convert(answer, case)
    correlations = {name: agreement(answer, answers["Opsin"]) for name, answer in answers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in rounds.fitting(sum(first.values())):
        gc.collect()
        for name, run in runs.items():
            seconds[name].append(timed(run)[1])
    return Row(job, seconds, first["Opsin"], sizes, correlations)


def best_size(job: Job, contender: Contender) -> int:
    """The fastest of `SIZES` on a part of the job."""
    job = replace(job.part(), batch=1) if job.technique == "score_cam" else job.part()
    runs = {size: contender.build(job.case(), size) for size in SIZES if size >= job.batch}
    return min(runs, key=lambda size: timed(runs[size])[1])


def hold_on_to_memory() -> None:
    """Have glibc keep what is freed.

    Else it hands large blocks back and has them faulted in again, or not, as the heap happens to lie:
    0 to 20 ms of the 90 ms of a forward of resnet50, by turns, which has nothing to do with a contender.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def timed(run: Run) -> tuple[Tensor, float]:
    """What it returns, and its seconds."""
    start = time.perf_counter()
    answer = run()
    return answer, time.perf_counter() - start


def agreement(one: Tensor, other: Tensor) -> float:
    """The least correlation of two answers over the images, at the image's resolution."""
    wide = [interpolate(answer.detach().float(), (224, 224), mode="bilinear") for answer in (one, other)]
    flat = [answer[..., EDGE:-EDGE, EDGE:-EDGE].flatten(1) for answer in wide]  # (n, c, h, w) -> (n, k)
    return min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(*flat, strict=True))


def peaks(job: Job, sizes: dict[str, int]) -> dict[str, float]:
    """Peak memory of every contender in MiB, each in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)  # once, and not by every child
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        asked = {c.name: pool.submit(peak, job, c.name, sizes.get(c.name, 0)) for c in job.contenders}
        return {name: future.result() for name, future in asked.items()}


def peak(job: Job, name: str, size: int) -> float:
    """Peak resident memory of one call above what this process held before, in MiB."""
    case = (job.part() if job.technique == "occlusion" else job).case()  # a batch is as large in any part
    build = next(contender.build for contender in job.contenders if contender.name == name)
    build(case.smaller(), size)()
    run = build(case, size)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = high_water()
    run()
    return high_water() - before


def high_water() -> float:
    """The peak resident memory of this process in MiB."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def forward_times(network: str, rounds: Rounds) -> list[list[str]]:
    """Milliseconds an image of Opsin's forward: a line a memory format, a cell a batch size."""
    case = make_case(network, 16)
    images, model = case.images.repeat(4, 1, 1, 1), case.model

    def forward(name: str, size: int) -> float:
        model._forward.memory_format = FORMATS[name]
        return timed(lambda: model.run(images[:size])["output"])[1]

    taken: dict[tuple[str, int], list[float]] = {(n, s): [] for n in FORMATS for s in FORWARD_SIZES}
    for _ in rounds.fitting(sum(forward(*key) for key in taken)):
        for key, times in taken.items():
            times.append(forward(*key))
    return [
        [network, name, *(f"{median(taken[name, size]) / size * 1000:.1f}" for size in FORWARD_SIZES)]
        for name in FORMATS
    ]


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table; all columns but the first stand right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines)) + "\n"


def section(technique: str, rows: list[Row]) -> str:
    """The tables of one technique."""
    names = [contender.name for contender in TECHNIQUES[technique]]
    rivals = [name for name in names if name != "Opsin"]
    times, ratios, memory = [], [], []
    for row in rows:
        head = [row.job.what, str(row.job.batch)]
        marks = {n: f" ({size})" for n, size in row.sizes.items()}
        daggers = dict.fromkeys(row.differing, " †")
        shown = [f"{median(row.seconds[n]) * 1000:,.0f}{marks.get(n, '')}{daggers.get(n, '')}" for n in names]
        times.append([*head, *shown, f"{row.first * 1000:,.0f}", str(len(row.seconds["Opsin"]))])
        ratios.append([*head, *(f"{row.ratio(n):.2f}" for n in rivals)])
        if row.memory:
            memory.append([*head, *(f"{row.memory[n]:,.0f}" for n in names)])
    about = ["network", "batch"]
    notes = {f"{name}: {why}" for row in rows for name, why in row.differing.items()}
    sizes = " In brackets, the batch size of its forwards." if rows[0].sizes else ""
    parts = [
        f"## {technique}\n",
        f"Milliseconds a call.{sizes}\n",
        table([*about, *names, "Opsin's first call", "rounds"], times),
        *(f"† {note}\n" for note in sorted(notes)),
        "Opsin's time as a share of the other's.\n",
        table([*about, *(f"÷ {n}" for n in rivals)], ratios),
    ]
    if memory:
        parts += ["Peak memory, MiB.\n", table([*about, *names], memory)]
    return "\n".join(parts)


HOW = f"""\
`resnet50` and `vgg16` have random weights, which changes no time. Photos are 224 x 224, each with the class
that the network predicts, given to all alike. Peers get images that are normalised already and weights that
are frozen, set up beforehand; only the call is timed. Opsin normalises, checks and hashes the images and
writes its record inside the call, and its network is as loaded: not frozen. Its first call also traces the
network and hashes its weights. Contenders take turns; times are medians, ratios the median of each round's.
The allocator keeps what is freed, which spares all contenders page faults that come and go.
All answers were compared first: correlation above {AGREEMENT} for every image, but for those marked †. Each
row was measured in one run.

The floor is what the answer cannot do without, in plain torch, contiguous, images normalised and weights
frozen. Of `saliency`, `guided_backprop` and `guided_grad_cam`: one forward, one backward to the input. Of
`grad_cam`: a forward whose graph starts at the layer, a backward through the head. Of `score_cam` a forward a
channel, of `occlusion` (patch 32, stride {STRIDE}) a forward a square, both without a graph. Their batch size
is the best of {", ".join(map(str, SIZES))}, as it is for captum, pytorch-grad-cam and torchcam; Opsin's is
its own choice, zennit has none. Where a row says so, Score-CAM ran over the first {FEW_CHANNELS} channels of
its layer, or occlusion at stride {WIDE_STRIDE}, for all alike; at batch 16 they ran on {SMALL} only.

In Grad-CAM, captum starts its graph at the layer if the weights are frozen by hand, else at the first weight;
both are here. pytorch-grad-cam and torchcam, with frozen weights, need a gradient to the input.
pytorch-grad-cam's guided backpropagation takes one image a call.

Peak memory is that of one call above what the process held before it: network, images and a small warm-up.
Each is measured in a process of its own; occlusion at stride {WIDE_STRIDE}, which needs as much as any.
"""


def report(rows: list[Row], forwards: list[list[list[str]]], quick: bool) -> str:
    """The page."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    machine = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    simd = torch.backends.cpu.get_cpu_capability()
    parts = [
        "# Attribution: Opsin beside the floor and the peers\n",
        *(["**A smoke test: too few rounds for these numbers to mean much.**\n"] if quick else []),
        f"CPU, {machine}, {simd}, float32. {packages}. Made by `benchmarks/attribution.py`.\n",
        HOW,
        "## Goals\n",
        table(["goal", "worst case", ""], [goal.cells(rows) for goal in GOALS]),
    ]
    for technique in dict.fromkeys(row.job.technique for row in rows):
        parts.append(section(technique, [row for row in rows if row.job.technique == technique]))
    if forwards:
        parts.append("## Forward passes\n\nOpsin's, without a graph: milliseconds an image, by batch size.\n")
        parts.append(
            table(
                ["network", "memory format", *map(str, FORWARD_SIZES)],
                [line for lines in forwards for line in lines],
            )
        )
    return "\n".join(parts)


def main() -> None:
    """Run what the options ask for; the page is written anew after every row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*TECHNIQUES, "forwards"]
    parser.add_argument("--quick", action="store_true", help="batch 1, two rounds, nothing tuned")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--techniques", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=15, help="at most so many of each row")
    parser.add_argument("--seconds", type=float, default=12, help="for each row, but at least two rounds")
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    rounds = Rounds(2, 2, 0) if options.quick else Rounds(2, options.rounds, options.seconds)
    stored = options.output.with_suffix(".json")
    rows, forwards = load(stored) if stored.exists() and not options.quick else ({}, {})
    begun = time.perf_counter()
    hold_on_to_memory()

    def done(what: object) -> None:
        options.output.write_text(
            report(list(rows.values()), list(forwards.values()), options.quick), "utf-8"
        )
        raw = {"rows": [asdict(row) for row in rows.values()], "forwards": forwards}
        stored.write_text(json.dumps(raw) + "\n", "utf-8")
        print(f"{time.perf_counter() - begun:6.0f} s  {what}", file=sys.stderr)

    for technique in options.techniques:
        for job in jobs(technique, options.networks, options.quick) if technique in TECHNIQUES else ():
            row = measure(job, rounds, tune=not options.quick)
            rows[str(job)] = row if options.no_memory else replace(row, memory=peaks(job, row.sizes))
            done(f"{job}: {row.ratio('floor'):.2f} of the floor")
    for network in options.networks if "forwards" in options.techniques else ():
        forwards[network] = forward_times(network, rounds)
        done(f"forwards, {network}")


def load(path: Path) -> tuple[dict[str, Row], dict[str, list[list[str]]]]:
    """What earlier runs measured: a part may be measured anew."""
    raw = json.loads(path.read_text("utf-8"))
    rows = [Row(**{**row, "job": Job(**row["job"])}) for row in raw["rows"]]
    order = list(TECHNIQUES)
    rows.sort(key=lambda row: order.index(row.job.technique))
    return {str(row.job): row for row in rows}, raw["forwards"]


if __name__ == "__main__":
    main()
