"""Attacks on photos side by side: what the network sees before and after, and where the change grows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError, OpsinError
from opsin.base.folders import FACTS, PAGE, RECORD, storing, writing
from opsin.base.headings import headings
from opsin.base.job import CAUTION, steps, within
from opsin.base.records import as_json
from opsin.base.slugs import first_name
from opsin.images import colour, tensors
from opsin.images.photos import Source
from opsin.network.model import Model
from opsin.objectives.parsing import named_classes
from opsin.pages.fooled import Fooled, fooled
from opsin.registry import catalogue
from opsin.registry.kinds import Technique, checked
from opsin.results.attack import LEVELS, Attack, size
from opsin.results.html import escaped, page, webp_uri

SECTION = "fooling"  # the folder of the attacks
ORDER = ("random_noise", "fgsm", "pgd", "apgd", "square", "deepfool", "lbfgs_attack")
MAPS = ("maps", "gradients", "covering")  # folders of techniques that give maps for a class
SIDE = 320  # pixels of a picture on the page


@dataclass(frozen=True, repr=False)
class FoolingReport:
    """Attacks on photos. `left_out` says of each attack or map that could not be made why."""

    model: Model
    epsilon: float
    sections: tuple[Fooled, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        lines = [f"FoolingReport: {len(self.sections)} photos on {self.model.name}, ε {self.radius}"]
        for name, row in self.facts()["attacks"].items():
            lines.append(f"  {name}: {row['success']} of {row['right']}")
        return "\n".join([*lines[:12], "  .save(folder) writes the page"])

    @property
    def radius(self) -> str:
        """ε in 255ths."""
        return f"{self.epsilon * LEVELS:g}/{LEVELS}"

    def facts(self) -> dict[str, Any]:
        """For each attack, on how many photos it succeeded and how large its changes are; all by photo."""
        rows: dict[str, dict[str, Any]] = {}
        for section in self.sections:
            for technique, attack in section.attacks:
                row = rows.setdefault(technique.name, {"right": 0, "success": 0, "rounded": 0, "l2": []})
                outcome = attack.outcomes[0]
                row["right"] += outcome.right
                row["success"] += outcome.success
                row["rounded"] += outcome.survives
                row["l2"].append(float(attack.length[0]))
        for row in rows.values():
            row["median_l2"] = float(torch.tensor(row.pop("l2")).median())
        photos = {s.name: s.distances for s in self.sections}
        return {
            "epsilon": self.epsilon,
            "attacks": rows,
            "distances": photos,
            "left_out": dict(self.left_out),
        }

    def save(self, folder: str | Path) -> Path:
        """Write `index.html`, `facts.json`, and a folder for each photo with each attack's pictures.

        Returns the page's path. Raises `InputError` where the folder cannot be written.
        """
        with writing(folder) as place:
            self.write_into(place)
        return Path(folder) / PAGE

    def write_into(self, place: Path) -> None:
        """Write the files of `save` into an existing folder."""
        for section in self.sections:
            for technique, attack in section.attacks:
                with storing():
                    (place / section.name / technique.name).mkdir(parents=True)
                attack.write_into(place / section.name / technique.name)
        names = [section.name for section in self.sections]
        with storing():
            (place / PAGE).write_text(self.html(), "utf-8")
            (place / FACTS).write_text(as_json(self.facts()), "utf-8")
            (place / RECORD).write_text(as_json({"kind": "Fooling page", "photos": names}), "utf-8")

    def html(self) -> str:
        """The page."""
        sections = [(s, webp_uri(colour.photo(s.image[0]), SIDE), self._rows(s)) for s in self.sections]
        return page("fooling.html", report=self, sections=sections, caution=CAUTION, first_name=first_name)

    def _rows(self, section: Fooled) -> list[dict[str, Any]]:
        rows = []
        for technique, attack in section.attacks:
            change, factor = attack.magnified(0)
            assert attack.record is not None
            rows.append(
                {
                    "technique": technique,
                    "outcome": attack.outcomes[0],
                    "factor": factor,
                    "change": webp_uri(colour.photo(change), SIDE),
                    "attacked": webp_uri(colour.photo(attack.attacked[0]), SIDE),
                    "largest": size(float(attack.largest[0])),
                    "length": f"{float(attack.length[0]):.3g}",
                    "cautions": [
                        n.removeprefix(CAUTION) for n in attack.record.notes if n.startswith(CAUTION)
                    ],
                    "maps": [
                        (name, [(caption, webp_uri(drawn, SIDE)) for caption, drawn in pictures])
                        for own, name, pictures in section.maps
                        if own is technique
                    ],
                }
            )
        return rows

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escaped(self.html())}" style="width:100%;height:80vh;border:0"></iframe>'


def fool(
    model: Model,
    photos: Float[Tensor, "n 3 h w"] | Source | Sequence[Source],
    *,
    epsilon: float | str = "4/255",
    attacks: str | Sequence[str] | None = None,
    label: object = None,
    towards: object = None,
    maps: str | Sequence[str] = (),
    names: Sequence[str] | None = None,
) -> FoolingReport:
    """Run attacks on photos at one ε, and show them side by side, beside noise of the same size.

    By default all that take single photos. `label` is the true class of each photo, by default what the
    network sees; `towards` the class that it shall be taken for; both may be a list, one for each photo. With
    `maps`, the names of techniques that give maps, these are shown of the photo and of each photo that fools,
    for the old and the new class. The page also holds the label's probability over ε, and the distance
    between the features of the photo and the attacked photo at every layer.

    An attack or map that does not fit is left out, and the report says why. Raises `InputError` on bad
    settings, and if no attack could be made.
    """
    chosen = [_technique(name, (SECTION,), "an attack") for name in _several(attacks or ORDER)]
    drawn = [_technique(name, MAPS, "a technique of maps") for name in _several(maps)]
    radius = float(checked("fool", catalogue.get("fgsm").parameters["epsilon"], epsilon))
    images = _images(photos, model)
    labels, wanted = (_classes(given, model, len(images)) for given in (label, towards))
    titles = headings(names or [f"photo {i}" for i in range(len(images))])
    if len(titles) != len(images):
        raise InputError(f"{len(titles)} names for {len(images)} photos")
    left_out: dict[str, str] = {}
    made: list[list[tuple[Technique, Attack]]] = [[] for _ in images]
    sections: list[Fooled] = []
    work = [(row, technique) for row in range(len(images)) for technique in (*chosen, None)]
    for row, technique in steps(work, len(work), "fool"):
        with within(listener=None):
            if technique is None:  # all attacks on this photo are made
                if made[row]:
                    about = (titles[row], images[row], made[row], drawn, labels[row], left_out)
                    sections.append(fooled(model, *about))
                continue
            given = {"epsilon": radius, "label": labels[row], "towards": wanted[row]}
            known = {key: value for key, value in given.items() if key in technique.parameters}
            try:
                made[row].append((technique, technique.run(model, images[row], **known)))
            except OpsinError as error:
                left_out.setdefault(technique.name, str(error))
    if not sections:
        raise InputError("; ".join(dict.fromkeys(left_out.values())))
    return FoolingReport(model, radius, tuple(sections), tuple(left_out.items()))


def _several(names: str | Sequence[str]) -> list[str]:
    words = names.split(",") if isinstance(names, str) else list(names)
    return list(dict.fromkeys(word.strip().replace("-", "_") for word in words))


def _technique(name: str, folders: tuple[str, ...], kind: str) -> Technique:
    """The technique of this name in one of the folders. Raises `InputError` where it is another kind."""
    technique = catalogue.get(name)
    if technique.run.__module__.split(".")[-2] not in folders:
        raise InputError(f"{name} is not {kind}")
    if technique.photos != "each" or not technique.takes_images:
        raise InputError(f"{name} takes no single photo: use `opsin {name}`")
    return technique


def _images(photos: Tensor | Source | Sequence[Source], model: Model) -> list[Float[Tensor, "1 3 h w"]]:
    """Each photo as the network sees it."""
    if isinstance(photos, Tensor):
        tensors.check(photos)
        return list(photos.split(1))
    return list(tensors.read(photos, model).split(1))


def _classes(given: object, model: Model, n: int) -> list[int | None]:
    """The class of each photo; `None` where none was given."""
    return [None] * n if given is None else [index for index, _ in named_classes(given, model, n)]
