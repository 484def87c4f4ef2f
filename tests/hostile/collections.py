"""Collections that are damaged, contradict themselves or were made to be opened by somebody else.

`REFUSED` and `UNRECOGNISED` are told when the collection is opened, `TOLD` and `BESIDE` by what reads them;
`SILENT` ones may be noticed.
"""

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from PIL import Image

import nets
import opsin
from opsin.base.records import LARGEST

Damage = Callable[[Path], object]
LAYERS = ("conv2", "flat")  # six channels each, on maps of 8 x 8 and of one position
LABELS = ("tabby", "beagle")  # classes of `nets.LABELS`
TABLES = ("images.lance", "tallies.lance", "labels.lance")
MODEL = nets.model(nets.plain())


def make(folder: Path) -> Path:
    """A sound collection of twelve photos, which lie beside it."""
    draw = np.random.default_rng(0)
    for number in range(12):
        path = folder / "photos" / LABELS[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 26, 3), np.uint8)).save(path)
    (folder / "photos/broken.png").write_text("no")
    opsin.scan(folder / "photos", MODEL, folder / "made", layers=LAYERS, top=3, workers=0)
    return folder / "made"


def _facts(edit: Callable[[dict[str, Any]], object]) -> Damage:
    """A record whose facts `edit` changes."""

    def damage(folder: Path) -> None:
        record = json.loads((folder / "record.json").read_text())
        edit(record["about"])
        (folder / "record.json").write_text(json.dumps(record))

    return damage


def _layer(**facts: object) -> Damage:
    return _facts(lambda about: about["layers"][0].update(facts))


def _model(**facts: object) -> Damage:
    return _facts(lambda about: about["model"].update(facts))


def _table(name: str, edit: Callable[[pa.Table], pa.Table]) -> Damage:
    """A table written anew by whoever edits it."""

    def damage(folder: Path) -> None:
        table = lance.dataset(folder / name).to_table()
        shutil.rmtree(folder / name)
        lance.write_dataset(edit(table), folder / name)

    return damage


def _values(name: str, column: str, edit: Callable[[list[Any]], list[Any]]) -> Damage:
    """A column whose values are replaced, of the same type."""

    def replaced(table: pa.Table) -> pa.Table:
        field = table.schema.field(column)
        values = pa.array(edit(table.column(column).to_pylist()), field.type)
        return table.set_column(table.schema.get_field_index(column), field, values)

    return _table(name, replaced)


def _first(value: object) -> Callable[[list[Any]], list[Any]]:
    """The first value of a column replaced."""
    return lambda values: [value, *values[1:]]


def _in_lists(value: object) -> Callable[[list[Any]], list[Any]]:
    """The first number of each list replaced."""
    return lambda lists: [[value, *numbers[1:]] for numbers in lists]


def _longer(lists: list[Any]) -> list[Any]:
    return [[*numbers, numbers[0]] for numbers in lists]


def _typed(name: str, column: str, kind: pa.DataType) -> Damage:
    """A column of missing values of another type."""

    def replaced(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(column)
        return table.set_column(index, pa.field(column, kind), pa.nulls(len(table), kind))

    return _table(name, replaced)


def _files(pattern: str, change: Callable[[bytes], bytes] | None) -> Damage:
    """Files whose bytes are changed, or that are missing."""

    def damage(folder: Path) -> None:
        found = list(folder.glob(pattern))
        assert found
        for path in found:
            if change is None:
                path.unlink()
            else:
                path.write_bytes(change(path.read_bytes()))

    return damage


def _instead(name: str, put: Callable[[Path], object]) -> Damage:
    """Something else in the place of a file or a table."""

    def damage(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        put(path)

    return damage


def _moved_out(path: Path) -> None:
    """A link to a folder that lies beside the collection and holds what a table of this name holds."""
    outside = path.parent.parent / f"outside-{path.name}"
    outside.mkdir(exist_ok=True)
    path.symlink_to(outside)


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)


def _picture(kind: str, size: tuple[int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size).save(data, kind)
    return data.getvalue()


def random_bytes(folder: Path, seed: int) -> Path:
    """Some bytes changed in one of the files of the tables; which one."""
    draw = random.Random(seed)
    path = draw.choice(
        sorted(path for name in TABLES for path in (folder / name).rglob("*") if path.is_file())
    )
    data = bytearray(path.read_bytes())
    start = draw.randrange(len(data))
    match draw.choice(("bits", "bytes", "cut", "inserted")):
        case "bits":
            for _ in range(draw.choice((1, 3, 20))):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        case "bytes":
            end = min(len(data), start + draw.choice((1, 4, 16, 200)))
            data[start:end] = draw.choice((draw.randbytes(end - start), bytes(end - start)))
        case "cut":
            del data[start:]
        case "inserted":
            data[start:start] = draw.randbytes(draw.choice((1, 8, 100)))
    path.write_bytes(bytes(data))
    return path


# Told when the collection is opened.
REFUSED: dict[str, Damage] = {
    "fewer channels than stored": _layer(channels=3),
    "more channels than stored": _layer(channels=16),
    "no channels": _layer(channels=0),
    "negative channels": _layer(channels=-6),
    "channels beyond all memory": _layer(channels=2**40),
    "channels as a text": _layer(channels="6"),
    "channels as a fraction": _layer(channels=6.0),
    "a negative extent": _layer(extent=[8, -8]),
    "an extent of one side": _layer(extent=[8]),
    "an extent that is a mapping": _layer(extent={"rows": 8, "columns": 8}),
    "a layer without a name": _layer(name=None),
    "a layer listed twice": _facts(lambda about: about["layers"].append(about["layers"][0])),
    "a layer more than stored": _facts(
        lambda about: about["layers"].append({"name": "fc", "channels": 5, "extent": [1, 1]})
    ),
    "no layers": _facts(lambda about: about.update(layers=[])),
    "layers that are a mapping": _facts(lambda about: about.update(layers={})),
    "top 0": _facts(lambda about: about.update(top=0)),
    "top beyond all memory": _facts(lambda about: about.update(top=10**12)),
    "top as true": _facts(lambda about: about.update(top=True)),
    "labels that are a text": _facts(lambda about: about.update(labels="tabby")),
    "labels that are numbers": _facts(lambda about: about.update(labels=[1, 2])),
    "a root that is a list": _facts(lambda about: about.update(root=["/"])),
    "no root": _facts(lambda about: about.pop("root")),
    "no model": _facts(lambda about: about.update(model=None)),
    "a model without its preprocessing": _facts(lambda about: about["model"].pop("std")),
    "a mean that is not finite": _model(mean=[float("nan")] * 3),
    "a size of one side": _model(size=[16]),
    "a hash that is a number": _model(sha256=1),
    "a hash that is none": _model(sha256="../../.."),
    "a network that is a text": _model(load="file.py:f"),
    "facts that are a list": _instead(
        "record.json", lambda path: path.write_text('{"kind": "Collection", "format": 1, "about": []}')
    ),
    "a table of labels as images": _instead(
        "images.lance", lambda path: shutil.copytree(path.parent / "labels.lance", path)
    ),
    "a table of images as tallies": _instead(
        "tallies.lance", lambda path: shutil.copytree(path.parent / "images.lance", path)
    ),
    "images without a column": _table("images.lance", lambda table: table.drop_columns(["sha256"])),
    "features of another width": _typed("images.lance", "features_1", pa.list_(pa.float32(), 7)),
    "features of any width": _typed("images.lance", "features_1", pa.list_(pa.float32())),
    "paths that are numbers": _typed("images.lance", "path", pa.int64()),
    "tallies without a column": _table("tallies.lance", lambda table: table.drop_columns(["ids"])),
    "places that are texts": _typed("tallies.lance", "places", pa.string()),
    "labels that are lists": _typed("labels.lance", "label", pa.list_(pa.string())),
    **{
        f"a damaged manifest of {name}": _files(f"{name}/_versions/*", lambda data: data[:40])
        for name in TABLES
    },
    **{f"{name} is a file": _instead(name, lambda path: path.write_text("no")) for name in TABLES},
    **{f"{name} is a pipe": _instead(name, os.mkfifo) for name in TABLES},
    **{
        f"{name} is a link in a circle": _instead(name, lambda path: path.symlink_to(path)) for name in TABLES
    },
    **{f"{name} is a link out of the folder": _instead(name, _moved_out) for name in TABLES},
    **{
        f"the {part} of {name} is a link out of the folder": _instead(
            f"{name}/{part}", lambda path: path.symlink_to("/tmp")
        )
        for name in TABLES
        for part in ("data", "_versions")
    },
}

# Told when the folder is opened as a collection; nothing else says that it is one.
UNRECOGNISED: dict[str, Damage] = {
    "a record cut off": _files("record.json", lambda data: data[: len(data) // 2]),
    "an empty record": _files("record.json", lambda data: b""),
    "a record of brackets": _files("record.json", lambda data: b"[" * 100_000),
    "a record with a number without end": _files(
        "record.json", lambda data: data.replace(b'"top": 3', b'"top": ' + b"9" * 5000)
    ),
    "a record that is a link to nowhere": _instead("record.json", lambda path: path.symlink_to(path)),
    "a record that is a link out of the folder": _instead(
        "record.json", lambda path: path.symlink_to("/etc/hostname")
    ),
}

# Told by what reads it.
TOLD: dict[str, Damage] = {
    "a path out of the folder": _values("images.lance", "path", _first(b"../../../../etc/hostname")),
    "an absolute path": _values("images.lance", "path", _first(b"/etc/hostname")),
    "a path with a zero byte": _values("images.lance", "path", _first(b"a\0b.png")),
    "an empty path": _values("images.lance", "path", _first(b"")),
    "a missing path": _values("images.lance", "path", _first(None)),
    "a missing id": _values("images.lance", "id", _first(None)),
    "a missing chunk": _values("images.lance", "chunk", _first(None)),
    "other ids": _values("images.lance", "id", lambda ids: [number + 1 for number in ids]),
    "missing features": _values("images.lance", "features_0", _first(None)),
    "a missing feature": _values("images.lance", "features_0", _in_lists(None)),
    "negative classes": _values("images.lance", "classes", _in_lists(-1)),
    "missing classes": _values("images.lance", "classes", _in_lists(None)),
    "classes that the network does not have": _values("images.lance", "classes", _in_lists(10**6)),
    "classes without probabilities": _values(
        "images.lance", "probabilities", lambda lists: [[]] * len(lists)
    ),
    "an empty thumbnail": _values("images.lance", "thumbnail", _first(b"")),
    "a text as thumbnail": _values("images.lance", "thumbnail", lambda all_: [b"<script>"] * len(all_)),
    "a PNG as thumbnail": _values(
        "images.lance", "thumbnail", lambda all_: [_picture("PNG", (8, 8))] * len(all_)
    ),
    "a giant thumbnail": _values(
        "images.lance", "thumbnail", lambda all_: [_picture("JPEG", (9000, 10))] * len(all_)
    ),
    "tallies that are too long": _values("tallies.lance", "ids", _longer),
    "sums that are too long": _values("tallies.lance", "sums", _longer),
    "empty tallies": _values("tallies.lance", "values", lambda lists: [[]] * len(lists)),
    "missing tallies": _values("tallies.lance", "values", lambda lists: [None] * len(lists)),
    "tallies of images that are not there": _values("tallies.lance", "ids", _in_lists(7)),
    "places beyond the maps": _values("tallies.lance", "places", _in_lists(64)),
    "negative places": _values("tallies.lance", "places", _in_lists(-2)),
    "places of no image": _values("tallies.lance", "places", _in_lists(-1)),
    "values that are not numbers": _values("tallies.lance", "values", _in_lists(float("nan"))),
    "a negative number of positions": _values("tallies.lance", "count", lambda all_: [-1] * len(all_)),
    "tallies of more images": _values("tallies.lance", "images", lambda all_: [100] * len(all_)),
    "tallies of one layer alone": _table("tallies.lance", lambda table: table.slice(1, 1)),
    "tallies twice": _table("tallies.lance", lambda table: pa.concat_tables([table, table])),
    "tallies of other chunks": _values("tallies.lance", "chunk", lambda all_: [1] * len(all_)),
    "a missing label": _values("labels.lance", "label", _first(None)),
    "a label of a missing id": _values("labels.lance", "id", _first(None)),
    **{f"no data of {name}": _files(f"{name}/data/*", None) for name in TABLES},
    **{f"empty data of {name}": _files(f"{name}/data/*", lambda data: b"") for name in TABLES},
    **{f"half of the data of {name}": _files(f"{name}/data/*", lambda data: data[::2]) for name in TABLES},
}

# Files beside the tables, which a scan reads.
BESIDE: dict[str, Damage] = {
    **{
        f"{name} {what}": _instead(f"{name}.json", put)
        for name in ("labels", "unread")
        for what, put in {
            "cut off": lambda path: path.write_text('{"a": '),
            "of brackets": lambda path: path.write_text("[" * 100_000),
            "that is a list": lambda path: path.write_text('["a"]'),
            "that is a number": lambda path: path.write_text("3"),
            "with lists as texts": lambda path: path.write_text('{"a.png": ["b"]}'),
            "that is too large": _large,
            "that is a pipe": os.mkfifo,
            "that is a folder": Path.mkdir,
            "that is a link out of the folder": lambda path: path.symlink_to("/etc/hostname"),
            "that is a link to an endless file": lambda path: path.symlink_to("/dev/zero"),
            "that is a link in a circle": lambda path: path.symlink_to(path),
        }.items()
    },
}

# No damage that could be told, or none that has to be.
SILENT: dict[str, Damage] = {
    "features that are not finite": _values(
        "images.lance", "features_0", lambda lists: [[float("nan")] * 6, [float("inf")] * 6, *lists[2:]]
    ),
    "features that are nowhere finite": _values(
        "images.lance", "features_0", lambda lists: [[float("nan")] * 6] * len(lists)
    ),
    "probabilities that are not finite": _values("images.lance", "probabilities", _in_lists(float("nan"))),
    "the same id for all": _values("images.lance", "id", lambda ids: [ids[0]] * len(ids)),
    "sides that no photo has": _values("images.lance", "width", lambda all_: [-1] * len(all_)),
    "a label of a number without end": _values("labels.lance", "label", _first("9" * 5000)),
    "labels of images that are not there": _values("labels.lance", "id", lambda ids: list(range(len(ids)))),
    "a label of markup": _values("labels.lance", "label", _first("<script>alert(1)</script>\n\0\ud7ff")),
    "no tables": lambda folder: [shutil.rmtree(folder / name) for name in TABLES],
    "tables without a version": lambda folder: [
        shutil.rmtree(folder / name / "_versions") for name in TABLES
    ],
    "a root that is gone": _facts(lambda about: about.update(root="/nowhere")),
    "a root with a zero byte": _facts(lambda about: about.update(root="a\0b")),
    "a root at an address": _facts(lambda about: about.update(root="nosuch://bucket")),
    "a wrong cache": lambda folder: [
        (folder / "cache" / "features_0-cosine-1").mkdir(parents=True),
        (folder / "cache" / "features_0-cosine-1" / "rows.bf16").write_bytes(b""),
        (folder / "cache" / "features_0-cosine-1" / "facts.json").write_text("{"),
    ],
}
