"""Photos that were changed so that a network sees something else in them."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from opsin.base.arrays import array
from opsin.base.errors import InputError
from opsin.base.slugs import first_name
from opsin.images import colour
from opsin.results.cells import Cell
from opsin.results.indexing import chosen
from opsin.results.result import Result, plain

LEVELS = 255  # of a colour in a file
MIDDLE = 0.5  # the grey that stands for no change


@dataclass(frozen=True)
class Seen:
    """A class with its probability."""

    class_index: int
    name: str
    probability: float

    def __str__(self) -> str:
        return f"{first_name(self.name)} {100 * self.probability:.1f} %"


@dataclass(frozen=True)
class Outcome:
    """What a network sees in one photo before and after an attack, the most probable class first.

    `label` is the class that it was to leave and `towards` the one that it was to take on, both with their
    probability before. It was `right` if it saw the label before; only then the attack may be a `success`.
    `survives` is the success of the attacked photo as it is in a file, rounded to 8 bits.
    """

    label: Seen
    towards: Seen | None
    before: tuple[Seen, ...]
    after: tuple[Seen, ...]
    right: bool
    success: bool
    survives: bool

    def verdict(self) -> str:
        """Whether the attack succeeded, in words."""
        if not self.right:
            return f"no success: seen as {first_name(self.before[0].name)} before, not the label"
        if not self.success:
            return "no success"
        return "success" if self.survives else "success, lost by rounding to 8 bits"

    def compared(self) -> list[tuple[str, "Share", "Share"]]:
        """The classes that lead before or after, each with its probability before and after."""
        before, after = ({s.name: s.probability for s in seen} for seen in (self.before, self.after))
        names = sorted({**before, **after}, key=lambda n: -max(before.get(n, 0), after.get(n, 0)))
        return [(name, Share(before.get(name)), Share(after.get(name))) for name in names]


@dataclass(frozen=True)
class Share:
    """A probability, or `None` where the class is not among those that lead."""

    probability: float | None

    @property
    def known(self) -> bool:
        """Whether the class is among those that lead."""
        return self.probability is not None

    @property
    def percent(self) -> float:
        """The probability in per cent."""
        return 100 * (self.probability or 0)

    @property
    def text(self) -> str:
        """The probability in words."""
        return f"{self.percent:.1f} %" if self.known else "not in the first 5"


class AttackFacts(TypedDict):
    """The outcomes in `record.json`, one for each photo."""

    outcomes: list[Outcome]


@dataclass(frozen=True, eq=False, repr=False)
class Attack(Result):
    """Photos, the attacked photos, and what the network sees in both.

    `numbers` are further measurements, a row for each photo, `shared` arrays of all photos together.
    `len(attack)` is the number of photos, `attack[i]` the attack on one of them (a slice: on several), and
    `np.asarray(attack)` are the attacked photos.
    """

    stored_as = AttackFacts
    indexed = True
    images: Float[Tensor, "n 3 h w"]
    attacked: Float[Tensor, "n 3 h w"]
    outcomes: tuple[Outcome, ...]
    numbers: Mapping[str, Tensor] = field(default_factory=dict)
    shared: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", plain(self.images))
        object.__setattr__(self, "attacked", plain(self.attacked))
        for kind in ("numbers", "shared"):
            object.__setattr__(self, kind, {k: plain(v) for k, v in getattr(self, kind).items()})

    def sharing(self, **arrays: Tensor) -> "Attack":
        """The same attack with arrays that belong to all photos together."""
        return replace(self, shared={**self.shared, **arrays})

    @property
    def change(self) -> Float[Tensor, "n 3 h w"]:
        """The attacked photos less the photos."""
        return self.attacked - self.images

    @property
    def largest(self) -> Float[Tensor, " n"]:
        """The L∞ norm of every change: the largest change of a colour value, in units of [0, 1]."""
        return self.change.flatten(1).abs().amax(1)

    @property
    def length(self) -> Float[Tensor, " n"]:
        """The L2 norm of every change."""
        lengths: Float[Tensor, " n"] = self.change.flatten(1).norm(dim=1)
        return lengths

    @property
    def success(self) -> tuple[bool, ...]:
        """Whether each photo that was seen rightly before now is not."""
        return tuple(outcome.success for outcome in self.outcomes)

    def summary(self) -> str:
        """How many photos were fooled, of those seen rightly before, and how many still are in a file."""
        right, total = sum(outcome.right for outcome in self.outcomes), len(self)
        fooled, kept = sum(self.success), sum(outcome.survives for outcome in self.outcomes)
        wrong = f"; {total - right} were seen as another class before" if right < total else ""
        return f"fooled on {fooled} of {right} photos, on {kept} when rounded to 8 bits{wrong}"

    def __len__(self) -> int:
        return len(self.outcomes)

    def __getitem__(self, index: SupportsIndex | slice) -> "Attack":
        numbers = chosen(index, len(self), "photos")
        return replace(
            self,
            images=self.images[numbers],
            attacked=self.attacked[numbers],
            outcomes=tuple(self.outcomes[number] for number in numbers),
            numbers={name: value[numbers] for name, value in self.numbers.items()},
        )

    def __iter__(self) -> Iterator["Attack"]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.attacked.numpy(), dtype=dtype, copy=copy)

    def magnified(self, index: int) -> tuple[Float[Tensor, "3 h w"], int]:
        """One change around a middle grey, and the whole number that it is multiplied by to be seen."""
        change = self.change[index].float()
        factor = max(1, int(MIDDLE / max(float(change.abs().max()), MIDDLE / LEVELS**2)))
        return (MIDDLE + factor * change).clamp(0, 1), factor

    def pictures(self) -> list[tuple[str, Image.Image]]:
        """The photo, its magnified change and the attacked photo, for each photo."""
        cells, _ = self.cells(3 * len(self))
        return [(f"{cell.title}: {cell.caption}", cell.picture) for cell in cells]

    def contents(self) -> tuple[str, str]:
        """How many photos were fooled, and the sizes of the changes."""
        return "attack", f"{self.summary()}; L∞ at most {size(float(self.largest.max()))}"

    def cells(self, most: int) -> tuple[list[Cell], int]:
        """The photo with its class, the change with its norms, the attacked photo with its class."""
        cells: list[Cell] = []
        for index in range(min(len(self), -(-most // 3))):
            change, factor = self.magnified(index)
            drawn = colour.photo(self.attacked[index])
            norms = f"L∞ {size(float(self.largest[index]))}, L2 {float(self.length[index]):.3g}"
            outcome = self.outcomes[index]
            cells += [
                Cell("photo", str(outcome.before[0]), colour.photo(self.images[index])),
                Cell(f"change × {factor}", norms, colour.photo(change)),
                Cell("attacked", f"{outcome.after[0]}; {outcome.verdict()}", drawn),
            ]
        return cells[:most], 3 * len(self)

    def files(self) -> list[tuple[str, Image.Image]]:
        """Three pictures of each photo, named after what they are and the class that it was to leave."""
        kinds = ("photo", "change", "attacked")
        return self._named([(kind, first_name(o.label.name)) for o in self.outcomes for kind in kinds])

    def _made_pictures(self) -> list[Image.Image]:
        return [colour.photo(image) for image in self.attacked]

    def _arrays(self) -> dict[str, Tensor]:
        return {"the attacked photos": self.attacked, **self.numbers, **self.shared}

    def _to_arrays(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        kept = {f"{kind}.{k}": v for kind in ("numbers", "shared") for k, v in getattr(self, kind).items()}
        facts = {"outcomes": [asdict(outcome) for outcome in self.outcomes]}
        return {"images": self.images, "attacked": self.attacked, **kept}, facts

    @classmethod
    def _from_arrays(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Attack":
        outcomes = tuple(facts.pop("outcomes"))
        images = array(arrays, "images", len(outcomes), 3, None, None)
        attacked = array(arrays, "attacked", *images.shape)
        if not all(outcome.before and outcome.after for outcome in outcomes):
            raise InputError("an outcome names no class")
        numbers = {k.removeprefix("numbers."): v for k, v in arrays.items() if k.startswith("numbers.")}
        if wrong := [name for name, value in numbers.items() if value.shape[:1] != (len(outcomes),)]:
            raise InputError(f"{wrong[0]!r} has no number for each of {len(outcomes)} photos")
        shared = {k.removeprefix("shared."): v for k, v in arrays.items() if k.startswith("shared.")}
        return cls(images, attacked, outcomes, numbers, shared, **facts)


def size(number: float) -> str:
    """A change of a colour value, in 255ths."""
    return f"{LEVELS * number:.3g}/{LEVELS}"
