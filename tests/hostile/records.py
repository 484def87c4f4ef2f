"""Results that somebody damaged, or made to be loaded by somebody else."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import opsin
from opsin.base.records import Record, ScoredTarget
from opsin.images import colour
from opsin.results.findings import Findings, Shot, Table
from opsin.results.gallery import Gallery, Panel
from opsin.results.heatmap import Heatmap
from opsin.results.map import Map, Spot
from opsin.results.pictures import Picture, Pictures
from opsin.results.units import PHOTOS, Units

RECORD = Record(
    "saliency",
    "a paper, 2013",
    {"target": "1"},
    {"name": "n", "sha256": "0"},
    {"torch": "2"},
    targets=(ScoredTarget("tabby", 3.5, 0.25),),
)


def results() -> dict[str, opsin.Result]:
    """A small result of every kind."""
    picture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = colour.photo(picture)
    shot = Shot.of("group", "caption", drawn)
    table = Table("t", ("a",), ((1,),))
    spots = tuple(Spot(f"{name}.jpg", None, "cat", 0.5, shot.data) for name in "ab")
    photo = Shot.of(PHOTOS, "a.jpg", drawn)
    places = {"row": 1, "column": 2, "at_edge": False, "patch": (0, 0, 4, 4)}
    names = {"label": "1", "label_name": "cat", "class_name": None, "probability": None}
    parts = {"in_photo": (0.0, 0.0, 0.5, 0.5), "seen": (0.0, 0.0, 1.0, 1.0), "photo": 1}
    peak = {"path": "a.jpg", "value": 0.5, **places, **names, **parts}
    moments = {"mean": 0.25, "deviation": 0.5, "sparsity": 0.75, "mostly_at_edge": False}
    asked = {"layer": "conv", "channels": [3], "projection": "none", "inside": False}
    units = {**asked, "field": (4, 4), "edge": 0.25, "units": [{"channel": 3, **moments, "top": [peak]}]}
    state = {"class model/number": torch.tensor(1), "class model/parameters": picture[None]}
    return {
        "Heatmap": Heatmap(picture[None], picture[None], signed=True, overlay=False, record=RECORD),
        "Gallery": Gallery((Panel("g", "t", "c", picture[None]),), record=RECORD),
        "Pictures": Pictures((Picture("g", "c", picture),), state=state, record=RECORD),
        "Findings": Findings("title", "intro", (shot,), (table,), {"k": 1}, record=RECORD),
        "Units": Units("title", "intro", (shot, photo), (), units, record=RECORD),
        "Map": Map("title", "intro", torch.tensor([[0.0, 0.0], [1.0, 1.0]]), spots, record=RECORD),
    }


def _edited(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A record.json whose content `edit` changes, or replaces."""

    def damage(folder: Path) -> None:
        path = folder / "record.json"
        about = json.loads(path.read_text())
        path.write_text(json.dumps(edit(about) or about))

    return damage


def _peak(**changes: Any) -> Callable[[Path], None]:
    """Units whose only peak has these changes."""
    return _edited(lambda about: about["facts"]["units"][0]["top"][0].update(changes))


def _written(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def _cut(name: str, share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return damage


def _npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _claiming(size: int) -> bytes:
    """An archive whose only array says that it holds so many numbers."""
    buffer, header = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (size,)})
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("values.npy", header.getvalue())
    return buffer.getvalue()


def _array(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Every array of values.npz as `change` makes it."""

    def damage(folder: Path) -> None:
        with np.load(folder / "values.npz") as stored:
            arrays = {name: change(stored[name]) for name in stored.files}
        np.savez(folder / "values.npz", **arrays)

    return damage


def _link(name: str, to: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(to)

    return damage


def _removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


# How a folder of a saved result is damaged. None of these can be loaded.
DAMAGES: dict[str, Callable[[Path], None]] = {
    "record cut": _cut("record.json", 0.5),
    "record empty": _written("record.json", b""),
    "record random": _written("record.json", bytes(range(256))),
    "record a list": _written("record.json", b"[1, 2]"),
    "record a number": _written("record.json", b"7"),
    "record null": _written("record.json", b"null"),
    "record nested": _written("record.json", b"[" * 100_000),
    "record a mapping of mappings": _written("record.json", b'{"kind": ' * 5000),
    "record without an end": _link("record.json", "/dev/zero"),
    "record removed": _removed("record.json"),
    "no kind": _edited(lambda about: about.pop("kind") and None),
    "another kind": _edited(lambda about: about.update(kind="Thesis")),
    "kind a list": _edited(lambda about: about.update(kind=["Heatmap"])),
    "kind null": _edited(lambda about: about.update(kind=None)),
    "record of a string": _edited(lambda about: about.update(record="yes")),
    "record of a list": _edited(lambda about: about.update(record=[1])),
    "record without keys": _edited(lambda about: about.update(record={})),
    "notes a string": _edited(lambda about: about["record"].update(notes="Caution")),
    "notes of numbers": _edited(lambda about: about["record"].update(notes=[1])),
    "arguments a list": _edited(lambda about: about["record"].update(arguments=[])),
    "technique a list": _edited(lambda about: about["record"].update(technique=["a"])),
    "targets null": _edited(lambda about: about["record"].update(targets=None)),
    "targets of texts": _edited(lambda about: about["record"].update(targets=["tabby"])),
    "a target without its score": _edited(lambda about: about["record"]["targets"][0].pop("score") and None),
    "a target named by a number": _edited(lambda about: about["record"]["targets"][0].update(name=7)),
    "a score that is a text": _edited(lambda about: about["record"]["targets"][0].update(score="high")),
    "a probability that is a list": _edited(
        lambda about: about["record"]["targets"][0].update(probability=[0.5])
    ),
    "versions of numbers": _edited(lambda about: about["record"].update(versions={"torch": 2})),
    "values cut": _cut("values.npz", 0.6),
    "values cut at the start": _cut("values.npz", 0.05),
    "values empty": _written("values.npz", b""),
    "values random": _written("values.npz", bytes(range(256)) * 8),
    "values removed": _removed("values.npz"),
    "values without an end": _link("values.npz", "/dev/zero"),
    "values a pickle": _written("values.npz", b"\x80\x04cos\nsystem\n(S'touch executed'\ntR."),
    "values one array": _written("values.npz", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'shape': (1,)}"),
    "values of another result": _written("values.npz", _npz(strange=np.zeros((2, 2), np.float32))),
    "values larger than memory": _written("values.npz", _claiming(10**15)),
    "objects": _array(lambda values: np.array([{}, values], object)),
    "texts": _array(lambda values: np.array(["a", "b"])),
    "times": _array(lambda values: np.zeros(3, "datetime64[s]")),
    "one side less": _array(lambda values: values[0] if values.ndim else values[None]),
    "no numbers": _array(lambda values: values[:0] if values.ndim else values[None][:0]),
    "complex numbers": _array(lambda values: values.astype(np.complex64)),
}
# What only some kinds of results have.
OWN_DAMAGES: dict[tuple[str, str], Callable[[Path], None]] = {
    ("Heatmap", "signed a text"): _edited(lambda about: about.update(signed="yes")),
    ("Heatmap", "more targets than images"): _edited(
        lambda about: about["record"]["targets"].append({"name": "a", "score": 1.0, "probability": None})
    ),
    ("Heatmap", "no overlay"): _edited(lambda about: about.pop("overlay") and None),
    ("Gallery", "panels of two texts"): _edited(lambda about: about.update(panels=[["g", "t"]])),
    ("Gallery", "more panels than arrays"): _edited(lambda about: about["panels"].append(["g", "t", "c"])),
    ("Gallery", "panels a mapping"): _edited(lambda about: about.update(panels={})),
    ("Pictures", "panels of numbers"): _edited(lambda about: about.update(panels=[[1, 2, True]])),
    ("Pictures", "film a number"): _edited(lambda about: about.update(film=7)),
    ("Findings", "shots a text"): _edited(lambda about: about.update(shots="abc")),
    ("Findings", "tables of texts"): _edited(lambda about: about.update(tables=["a"])),
    ("Findings", "facts a list"): _edited(lambda about: about.update(facts=[])),
    ("Units", "facts of something else"): _edited(lambda about: about.update(facts={"k": 1})),
    ("Units", "a photo that there is not"): _peak(photo=2),
    ("Units", "a photo before the first"): _peak(photo=-1),
    ("Units", "a sheet as a photo"): _peak(photo=0),
    ("Units", "a place in words"): _peak(in_photo=["0;background:url(//evil)", 0.0, 1.0, 1.0]),
    ("Units", "a patch of three sides"): _peak(patch=[0, 0, 4]),
    ("Map", "a spot less"): _edited(lambda about: about["spots"].pop() and None),
    ("Map", "spots without places"): _edited(lambda about: about.update(spots=[["a.jpg", None, None, 0.5]])),
}
