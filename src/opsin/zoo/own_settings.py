"""What own weights have in place of the published ones': another head, class names, preprocessing."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from opsin.base.errors import InputError, shown
from opsin.base.files import MIB, missing, read_regular
from opsin.network.checks import check_labels
from opsin.network.model import Model
from opsin.zoo.building import built
from opsin.zoo.checkpoints import fill

LARGEST_LABELS = 16 * MIB  # bytes of a file of class names


@dataclass(frozen=True)
class OwnSettings:
    """The settings of `opsin.load` that go with a user's own weights; `None` where the network's own hold."""

    classes: int | None = None
    labels: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None

    def given(self) -> dict[str, Any]:
        """The settings that were given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def check(self, name: str, weights: str | Path | None, *, fixed: bool) -> None:
        """Raise `InputError` on settings that the network of this name, with these weights, does not take.

        `fixed` says that it is one of the zoo's own. `labels` may name the classes of other published
        weights, too; the other settings would change what these were trained with.
        """
        needing = [setting for setting in self.given() if setting != "labels" or fixed]
        if weights is None and needing:
            listed = f"{', '.join(needing[:-1])} and {needing[-1]}" if len(needing) > 1 else needing[0]
            raise InputError(
                f"{name} has fixed weights: leave out {listed}"
                if fixed
                else f"{name} has its published weights: leave out {listed}, or name weights of your own"
            )
        if self.classes is not None and (fixed or name.startswith("hf:") or ".py:" in name):
            says = (
                "the function in it" if ".py:" in name else "its own form" if fixed else "its configuration"
            )
            raise InputError(f"{name} takes no number of classes: {says} says how many there are")

    def changed(self, model: Model) -> Model:
        """The model with these labels and this preprocessing.

        Raises `InputError` where there are not as many labels as classes.
        """
        given = {name: value for name, value in self.given().items() if name != "classes"}
        if not given:
            return model
        names = ("mean", "std", "size", "labels", "name", "crop", "interpolation", "squash", "layouts")
        settings: dict[str, Any] = {name: getattr(model, name) for name in names}
        changed = Model(model.network, **settings | given)
        if self.labels is not None:
            check_labels(self.labels, changed.classes, changed.name)
        return changed


PUBLISHED = OwnSettings()  # nothing of one's own


def own_settings(
    classes: int | None = None,
    labels: Sequence[str] | str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | Sequence[int] | None = None,
) -> OwnSettings:
    """The settings as they were given, checked; `labels` may be a file of class names.

    Raises `InputError` on one that is invalid, and where there are not as many labels as classes.
    """
    if classes is not None and not (_is_whole(classes) and classes > 0):
        raise InputError(f"classes must be a whole number of at least 1, not {shown(classes)}")
    if isinstance(labels, str | os.PathLike):
        labels = read_labels(Path(labels))
    if labels is not None and classes is not None:
        check_labels(labels, classes, "the network")
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and not (len(sides) == 2 and all(_is_whole(side) and side > 0 for side in sides)):
        raise InputError(f"size must be one or two whole numbers of at least 1, not {shown(size)}")
    return OwnSettings(
        classes,
        None if labels is None else tuple(labels),
        _statistics("mean", mean),
        _statistics("std", std),
        None if sides is None else (sides[0], sides[1]),
    )


def read_labels(path: Path) -> list[str]:
    """The class names in a file, in the output's order: one per line, or a JSON list.

    Raises `InputError` on a file that holds anything else, and on an empty line between names.
    """
    if not os.path.lexists(path):
        raise missing("file of class names", path)
    try:
        text = read_regular(path, LARGEST_LABELS).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8, so it holds no class names") from error
    if text.lstrip().startswith(("[", "{")):
        try:
            names = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} holds no valid JSON: {error}") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{path} must hold a JSON list of class names in the output's order")
    else:
        names = [line.strip() for line in text.rstrip().splitlines()] if text.strip() else []
    if empty := [number for number, name in enumerate(names, 1) if not name.strip()]:
        raise InputError(f"class name {empty[0]} in {path} is empty: each class needs a name")
    if not names:
        raise InputError(f"{path} holds no class names: write one per line, or a JSON list")
    return names


def built_with(
    name: str,
    build: Callable[[bool], nn.Module],
    weights: str | Path | None,
    classes: int | None,
) -> nn.Module:
    """The network with published, random or own weights, for `classes`, or its own `num_classes`.

    Raises `NetworkError` on weights that do not fit; where they have another number of classes, it says so.
    """
    if weights is None or weights == "random":
        return built(name, build, weights)
    network = built(name, build, "random")
    fill(network, weights, name, classes=classes or getattr(network, "num_classes", None))
    return network


def check_square(size: tuple[int, int], name: str) -> int:
    """The side of a square. Raises `InputError` on another shape, which the network cannot be built for."""
    if size[0] != size[1]:
        raise InputError(f"{name} takes square images: give one number as its size, not {size[0]},{size[1]}")
    return size[0]


def _statistics(name: str, values: Sequence[float] | None) -> tuple[float, ...] | None:
    """Three numbers for red, green and blue, in units of images in [0, 1]."""
    if values is None:
        return None
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if not (len(numbers) == len(values) == 3):
        raise InputError(f"{name} must be three numbers, for red, green and blue, not {shown(values)}")
    if not all(0 <= v <= 1 for v in numbers) or (name == "std" and 0 in numbers):
        least = "above 0 and at most 1" if name == "std" else "from 0 to 1"
        raise InputError(
            f"{name} must be three numbers {least}, for images in [0, 1], not {shown(values)}: divide "
            "numbers for bytes by 255"
        )
    return tuple(map(float, numbers))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
