"""The results of techniques: frozen data that can draw, save and load itself."""

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NotRequired, cast

import numpy as np
import torch
from PIL import Image, ImageShow
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from opsin.base.arrays import read_arrays
from opsin.base.errors import InputError
from opsin.base.folders import PAGE_OF_PHOTOS, RECORD, VALUES, storing, writing
from opsin.base.records import Record, as_json, read_json
from opsin.base.slugs import stems
from opsin.results.cells import Cell
from opsin.results.describing import described
from opsin.results.notebook import notebook_html
from opsin.results.picture_file import is_picture_file, write_picture
from opsin.results.sheets import reduced, sheet

MOST_SHOWN = 9  # pictures that a notebook, a viewer or a plot shows at once
SHOWN_SIDE = 640  # pixels of a picture that is shown beside others


class Stored(TypedDict):
    """The fields of `record.json` that all results have."""

    kind: str
    record: NotRequired[Record | None]


@dataclass(frozen=True, eq=False, repr=False)
class Result(ABC):
    """Data with the record of how it was made.

    `stored_as` is the shape of a result's fields in `record.json` besides `kind` and `record`. An `indexed`
    result has its pictures as `result[0]`, `result[1]` ...
    """

    kinds: ClassVar[dict[str, type["Result"]]] = {}
    stored_as: ClassVar[type]
    indexed: ClassVar[bool] = False
    record: Record | None = field(default=None, kw_only=True)

    def __init_subclass__(cls) -> None:
        Result.kinds[cls.__name__] = cls

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return described(self)

    @abstractmethod
    def pictures(self) -> list[tuple[str, Image.Image]]:
        """The result as pictures, each with a caption."""

    def contents(self) -> tuple[str, str]:
        """What the result holds, in a word and a line."""
        return "holds", f"{len(self.pictures())} pictures"

    def cells(self, most: int) -> tuple[list[Cell], int]:
        """At most so many pictures, as they are shown, and how many there are."""
        pictures = self.pictures()
        return [Cell(caption, "", picture) for caption, picture in pictures[:most]], len(pictures)

    def files(self) -> list[tuple[str, Image.Image]]:
        """The pictures that `save` writes, each with the name of its file."""
        return self._named([(type(self).__name__,)] * len(self.pictures()))

    def show(self) -> None:
        """Open the pictures in the system's viewer; in a notebook, show them below the cell.

        Raises `InputError` if there is no viewer.
        """
        ipython = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython is not None else None
        if getattr(shell, "kernel", None) is not None:
            importlib.import_module("IPython.display").display(self)
            return
        shown, total = self.cells(MOST_SHOWN)
        if not shown:
            raise InputError("this result has no pictures to show")
        pictures = [(cell.title, cell.caption, reduced(cell.picture, SHOWN_SIDE)) for cell in shown]
        if not ImageShow.show(shown[0].picture if total == 1 else sheet(pictures)):
            raise InputError("no program that shows pictures was found: save() the result instead")

    def plot(self, ax: Any = None) -> Any:
        """Draw the pictures with matplotlib, maps with a colour bar; `ax` takes a single one.

        Returns the axes, of several pictures an array of them. Raises `InputError` if there are several
        pictures for one `ax`, and without matplotlib, the extra `opsin[plot]`.
        """
        from opsin.results.plotting import plotted  # noqa: PLC0415 (an extra)

        return plotted(*self.cells(MOST_SHOWN), ax)

    def not_finite(self) -> list[str]:
        """The names of its arrays that hold NaN or infinite numbers."""
        return [name for name, values in self._arrays().items() if not values.isfinite().all()]

    def _arrays(self) -> dict[str, Tensor]:
        """The computed arrays, by names for readers."""
        return self._to_arrays()[0]

    @abstractmethod
    def _to_arrays(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Arrays and JSON facts of the shape `stored_as`, from which `_from_arrays` makes it again."""

    @classmethod
    @abstractmethod
    def _from_arrays(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Result":
        """The inverse of `_to_arrays`. Raises `InputError` if the arrays do not fit."""

    def save(self, folder: str | Path) -> Path:
        """Write pictures, raw arrays (`values.npz`) and `record.json` into `folder`.

        If that is the name of a .png, .jpg or .webp file, the result's one picture is written there, and
        nothing else.

        Pictures are PNG, those of findings WebP or JPEG. All files are written or none. Raises `InputError`
        if the folder or file cannot be written, or holds something that Opsin did not write, and if several
        pictures were to go into one file.
        """
        if is_picture_file(Path(folder)):
            return write_picture(self._only_picture(folder), Path(folder))
        with writing(folder) as place:
            self.write_into(place)
        return Path(folder)

    def write_into(self, place: Path) -> None:
        """Write the files of `save` into an existing folder."""
        self.write_pictures(place)
        self.write_data(place)

    def write_pictures(self, place: Path) -> None:
        """Write the pictures and how they were made into an existing folder, without the arrays."""
        facts = {"kind": type(self).__name__, "record": asdict(self.record) if self.record else None}
        with storing():
            self._draw_into(place)
            (place / RECORD).write_text(as_json(facts), "utf-8")

    def write_data(self, place: Path, *, compress: bool = True) -> None:
        """Write the files that `load` reads into an existing folder, without pictures."""
        arrays, facts = self._to_arrays()
        record = {
            "kind": type(self).__name__,
            **facts,
            "record": asdict(self.record) if self.record else None,
        }
        save = np.savez_compressed if compress else np.savez
        with storing():
            save(place / VALUES, **cast("Any", {k: v.numpy() for k, v in arrays.items()}))
            (place / RECORD).write_text(as_json(record), "utf-8")

    def _draw_into(self, place: Path) -> None:
        for name, picture in self.files():
            picture.save(place / name)

    def _named(self, names: list[tuple[str, ...]]) -> list[tuple[str, Image.Image]]:
        """The pictures, each with a file name from the parts of its name."""
        technique = self.record.technique if self.record else type(self).__name__
        pictures = [picture for _, picture in self.pictures()]
        return [(f"{stem}.png", drawn) for stem, drawn in zip(stems(names, technique), pictures, strict=True)]

    def _made_pictures(self) -> list[Image.Image]:
        """The pictures that show the result itself, not what it was made from."""
        return [picture for _, picture in self.pictures()]

    def _only_picture(self, file: str | Path) -> Image.Image:
        """The one picture. Raises `InputError` if there are several or none."""
        pictures = self._made_pictures()
        if len(pictures) != 1:
            choose = f"choose one, as in result[0].save({str(file)!r}), or " if self.indexed else ""
            raise InputError(
                f"{len(pictures)} pictures do not fit into the file {file}: {choose}name a folder"
            )
        return pictures[0]

    @staticmethod
    def load(folder: str | Path) -> "Result":
        """The result that `save` wrote into `folder`, equal to it.

        The folder is untrusted and read as data only. Raises `InputError`, naming file and fault, if it
        holds no result or a damaged one.
        """
        path = Path(folder)
        if not (path / RECORD).exists():
            raise InputError(f"{path} holds no {RECORD}: not a saved result")
        kind = read_json(path / RECORD, Stored)["kind"]
        if kind not in Result.kinds:  # each kind is known once its module is imported
            from opsin.results import attack, cooccurrence, findings, gallery, heatmap, map, pictures, units  # noqa: F401, PLC0415
        if kind not in Result.kinds:
            inner = sorted(str(file.parent) for file in path.rglob(f"*/{VALUES}"))
            if not inner and kind == PAGE_OF_PHOTOS:
                raise InputError(f"{path} holds no {VALUES}: `opsin explain --values` writes them")
            if not inner:
                raise InputError(f"{path / RECORD} is damaged: {kind!r} is not a kind of result")
            raise InputError(f"{path} holds several results, load one of: {', '.join(inner[:6])}")
        if not (path / VALUES).exists():
            raise InputError(f"{path} holds pictures but no {VALUES}: `opsin explain --values` writes both")
        stored = read_json(path / RECORD, Stored)
        facts: dict[str, Any] = read_json(path / RECORD, Result.kinds[kind].stored_as)
        kept_facts = {name: fact for name, fact in facts.items() if name not in Stored.__annotations__}
        arrays = read_arrays(path / VALUES)
        try:
            return Result.kinds[kind]._from_arrays(arrays, {**kept_facts, "record": stored.get("record")})
        except InputError as error:
            raise InputError(f"{path / VALUES} does not fit its {RECORD}: {error}") from error

    def _repr_html_(self) -> str:
        return notebook_html(type(self).__name__, self.record, *self.cells(MOST_SHOWN))


def plain(values: Tensor) -> Tensor:
    """A copy on the CPU, without a graph, in a dtype that NumPy has."""
    values = values.detach().cpu().contiguous().clone()  # not shared with the network or the caller
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def equal(a: Any, b: Any) -> bool:
    """Whether two values are equal, numbers exactly and NaN equal to NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and np.array_equal(a.numpy(), b.numpy(), equal_nan=a.is_floating_point())
        )
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return bool(a == b)
