"""One photo under several attacks: their results, maps of both pictures, and two curves."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from opsin.base.errors import OpsinError
from opsin.base.slugs import first_name
from opsin.network.distances import feature_distances
from opsin.network.model import Model
from opsin.pages.curves import Curve, curve
from opsin.registry import catalogue
from opsin.registry.kinds import Technique
from opsin.results.attack import LEVELS, Attack, Seen

# the attacks of the curve over ε, with what makes them quick; and its ε in 255ths
CURVE: dict[str, dict[str, int]] = {"random_noise": {"samples": 3}, "fgsm": {}, "pgd": {"steps": 10}}
RADII = (0.25, 0.5, 1, 2, 4, 8, 16)
FOLLOWED = ("pgd", "apgd", "fgsm")  # whose change is followed through the layers: the first that was made
NOISE = "random_noise"
MapsOf = tuple[Technique, str, tuple[tuple[str, Image.Image], ...]]  # attack, kind of map, captions and maps


@dataclass(frozen=True)
class Fooled:
    """One photo: the results of the attacks on it, their maps, and the two curves."""

    name: str
    image: Float[Tensor, "1 3 h w"]
    attacks: tuple[tuple[Technique, Attack], ...]
    maps: tuple[MapsOf, ...]
    over_epsilon: Curve
    over_layers: Curve | None
    distances: dict[str, dict[str, float]]
    followed: str

    @property
    def label(self) -> Seen:
        """The class that the attacks led away from."""
        return self.attacks[0][1].outcomes[0].label

    @property
    def by_noise(self) -> float:
        """The share of draws in which random noise alone succeeds; zero where no noise was tried."""
        noise = next((attack for technique, attack in self.attacks if technique.name == NOISE), None)
        return 0.0 if noise is None or not noise.success[0] else float(noise.numbers["share"][0])


def fooled(
    model: Model,
    name: str,
    image: Float[Tensor, "1 3 h w"],
    attacks: list[tuple[Technique, Attack]],
    maps: list[Technique],
    label: int | None,
    left_out: dict[str, str],
) -> Fooled:
    """The section of a photo; what does not fit is said in `left_out`."""
    drawn: list[MapsOf] = []
    for own, attack in attacks:
        if attack.success[0]:
            drawn += [(own, m.title, found) for m in maps if (found := _maps(model, m, attack, left_out))]
    made = {technique.name: attack for technique, attack in attacks if technique.name != NOISE}
    followed = next((one for one in (*FOLLOWED, *made) if one in made), "")
    distances = _distances(model, image, made[followed]) if followed else {}
    over_layers = None
    if distances:
        lines = {kind: list(values.values()) for kind, values in distances.items()}
        over_layers = curve(
            "Distance of the features from the photo's, as a share of their length",
            "layers, from the photo to the output",
            list(next(iter(distances.values()))),
            lines,
            shown=4,
            logarithmic=True,
        )
    return Fooled(
        name,
        image,
        tuple(attacks),
        tuple(drawn),
        _over_epsilon(model, image, label, left_out),
        over_layers,
        distances,
        followed,
    )


def _maps(
    model: Model, technique: Technique, attack: Attack, left_out: dict[str, str]
) -> tuple[tuple[str, Image.Image], ...]:
    """A technique's maps of the photo and the attacked photo, each for the old and the new class."""
    outcome = attack.outcomes[0]
    classes = [outcome.label, outcome.after[0]]
    pictures = torch.cat([attack.images] * 2 + [attack.attacked] * 2)
    try:
        result = technique.run(model, pictures, target=[seen.class_index for seen in classes * 2])
    except OpsinError as error:
        left_out.setdefault(technique.name, str(error))
        return ()
    places = [f"{kind}, for {first_name(s.name)}" for kind in ("photo", "attacked") for s in classes]
    return tuple((place, drawn) for place, (_, drawn) in zip(places, result.pictures(), strict=True))


def _distances(model: Model, image: Tensor, attack: Attack) -> dict[str, dict[str, float]]:
    """At every layer: how far the attacked photo's features are from the photo's, and those of noise."""
    attacked = attack.attacked.to(image)
    drawn = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    noise = (image + drawn * (float(attack.length[0]) / float(drawn.norm()))).clamp(0, 1)
    kinds = {"attack": attacked, "random noise of the same length": noise}
    return {
        kind: {layer: float(d[0]) for layer, d in feature_distances(model, image, other).items()}
        for kind, other in kinds.items()
    }


def _over_epsilon(
    model: Model, image: Float[Tensor, "1 3 h w"], label: int | None, left_out: dict[str, str]
) -> Curve:
    """The label's probability under attacks of growing ε; an attack that does not fit has no line."""
    lines: dict[str, list[float]] = {}
    for name, quick in CURVE.items():
        technique = catalogue.get(name)
        for radius in RADII:
            try:
                attack = technique.run(model, image, epsilon=radius / LEVELS, label=label, **quick)
            except OpsinError as error:
                left_out.setdefault(name, str(error))
                break
            index = attack.outcomes[0].label.class_index
            share = model.probabilities(model.run(attack.attacked.to(image))["output"])[0, index]
            lines.setdefault(technique.title, [attack.outcomes[0].label.probability]).append(float(share))
    lines = {title: line for title, line in lines.items() if len(line) == len(RADII) + 1}
    names = ["0", *(f"{radius:g}/{LEVELS}" for radius in RADII)]
    return curve("Probability of the label over ε", "ε, the largest change of a colour value", names, lines)
