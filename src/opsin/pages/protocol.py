"""The honest protocol of an evaluation: what is run, and which signs say that a number flatters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError, NetworkError, unknown
from opsin.network.activations import is_distribution
from opsin.network.model import Model
from opsin.optimise.defended import defended
from opsin.registry import catalogue
from opsin.results.attack import Attack

# attacks, with what an evaluation needs of them: an image that is fooled is done
ATTACKS: dict[str, dict[str, Any]] = {
    "random_noise": {"samples": 1},
    "fgsm": {},
    "pgd": {"stop": True},
    "apgd": {},
    "square": {"steps": 200},
}
DEFAULT = ("random_noise", "fgsm", "pgd", "square")
WITH_GRADIENT = ("fgsm", "pgd", "apgd")
LARGE = 0.5  # ε at which every picture can be made grey: no classifier can be right on more than one class
NONE = "none"
MARGIN = 0.002  # of the accuracy, by which AutoAttack lets a black box beat the gradient
SETTINGS = ("noise", "samples", "strength")


@dataclass(frozen=True)
class Contender:
    """A model behind a defence, or behind none; `unaware` attacks are made on the plain model."""

    name: str
    model: Model
    plain: Model


def contenders(model: Model, defences: Sequence[str]) -> list[Contender]:
    """The plain model, and one behind each defence.

    A defence is a text: a smoothing, noise=0.1, or several settings with commas, as
    `blur,strength=2,noise=0.1,samples=8`. Raises `InputError` on another one.
    """
    found = [Contender(NONE, model, model)]
    for text in dict.fromkeys(defences):
        given: dict[str, Any] = {}
        for part in (word.strip() for word in text.split(",")):
            key, equals, value = part.partition("=")
            if not equals:
                given["smooth"] = part
            elif key not in SETTINGS:
                raise unknown("setting of a defence", key, SETTINGS)
            else:
                try:
                    given[key] = int(value) if key == "samples" else float(value)
                except ValueError as error:
                    raise InputError(f"defence {text!r}: {key} is a number, not {value!r}") from error
        found.append(Contender(text, defended(model, **given), model))
    return found


def attacks_of(names: Sequence[str]) -> list[str]:
    """The attacks of these names. Raises `InputError` on one that an evaluation does not make."""
    for name in names:
        if name.replace("-", "_") not in ATTACKS:
            raise unknown("attack of an evaluation", name, ATTACKS)
    return list(dict.fromkeys(name.replace("-", "_") for name in names))


def attacked(
    name: str,
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    labels: list[int],
    epsilon: float,
    steps: int | None,
) -> Attack:
    """The attack's result on images with their labels."""
    settings = dict(ATTACKS[name])
    if steps is not None and "steps" in catalogue.get(name).parameters:
        settings["steps"] = steps
    result: Attack = catalogue.get(name).run(model, images, epsilon=epsilon, label=labels, **settings)
    return result


def warnings(
    contender: Contender,
    accuracy: Mapping[tuple[str, str, float], float],
    images: Float[Tensor, "n 3 h w"],
    labels: list[int],
) -> list[str]:
    """The signs that the numbers of a contender flatter it; `accuracy` is by kind, attack and ε."""
    found, name = [], contender.name
    aware = {(a, e): v for (kind, a, e), v in accuracy.items() if kind == "aware"}
    unaware = {(a, e): v for (kind, a, e), v in accuracy.items() if kind == "unaware"}
    for epsilon in sorted({e for _, e in aware}):
        gradient = [aware[a, epsilon] for a in WITH_GRADIENT if (a, epsilon) in aware]
        for blind in ("random_noise", "square"):
            if gradient and aware.get((blind, epsilon), 1.0) < min(gradient) - MARGIN:
                found.append(
                    f"{name}: {blind}, without a gradient, leaves less at ε {epsilon:.4g} than attacks with "
                    "one: the gradient is masked"
                )
        for attack in WITH_GRADIENT:
            both = (attack, epsilon)
            if both in unaware and aware.get(both, 0.0) > unaware[both] + MARGIN:
                found.append(
                    f"{name}: {attack} on the undefended network, tried on this one, leaves less at ε "
                    f"{epsilon:.4g} than on this one itself: the attack that knows the defence is too weak"
                )
    found += _of_large(contender, images, labels)
    first, again = (contender.model.run(images)["output"] for _ in range(2))
    if not torch.equal(first.argmax(1), again.argmax(1)):
        found.append(f"{name}: two runs see different classes: give more samples, over which attacks average")
    if name == NONE and is_distribution(first):
        found.append(f"{name}: the output holds probabilities, whose gradient vanishes where they are sure")
    return found


def _of_large(contender: Contender, images: Float[Tensor, "n 3 h w"], labels: list[int]) -> list[str]:
    """The signs at an ε that is so large that an attack with the gradient must succeed."""
    name = contender.name
    try:
        large = attacked("pgd", contender.model, images, labels, LARGE, None)
    except NetworkError as error:
        return [
            f"{name}: no attack with a gradient can be made, so that only those without one count: {error}"
        ]
    found = []
    left = sum(o.right for o in large.outcomes) - sum(large.success)
    if left:
        found.append(
            f"{name}: pgd at ε {LARGE} leaves {left} of {len(labels)} photos right, although every picture "
            "can be made the same grey: the attack fails, so smaller ε prove nothing"
        )
    if large.record is not None and any("exactly zero" in note for note in large.record.notes):
        found.append(f"{name}: the gradient of the cross-entropy is exactly zero on some photos")
    return found
