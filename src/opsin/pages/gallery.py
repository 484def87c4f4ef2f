"""One page with a real picture of every technique, on sample photos and networks that anyone can get."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from opsin.base.choices import DEFAULT_NETWORK
from opsin.base.extras import extra
from opsin.base.folders import PAGE, RECORD, storing, writing
from opsin.base.job import Step, current, listening, steps
from opsin.base.records import as_json
from opsin.images import colour
from opsin.images.samples import sample
from opsin.images.tensors import fit, whole
from opsin.network.model import Model
from opsin.pages.figures import Figure, Node, figures, tree
from opsin.pages.views import Answer
from opsin.registry import catalogue
from opsin.registry.kinds import Technique
from opsin.results.heatmap import Heatmap
from opsin.results.html import file_uri, page, webp_uri
from opsin.results.result import Result
from opsin.zoo.by_name import load

with extra("gallery"):
    from skimage import data
    from sklearn.datasets import load_sample_image

CROPS = 24  # of the cat, for facets
SIDE = 384  # pixels, of whole photos
# Settings where the defaults would take long, or where there is no default
SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "class_model": lambda: {"target": "flamingo; hartebeest; ground beetle"},
    "feature_visualization": lambda: {
        "target": "flamingo; bald eagle; inception_4c:5; inception_4d:30",
        "steps": 256,
    },
    "facets": lambda: {"target": "tiger cat", "clusters": 3},
    "inversion": lambda: {"steps": 200},
    "texture": lambda: {"steps": 150},
    "efros_leung": lambda: {"size": 96, "source": 96},
    "portilla_simoncelli": lambda: {"steps": 30},
    "lbfgs_attack": lambda: {"searches": 4},
    "square": lambda: {"steps": 100},
    "universal": lambda: {"passes": 2, "candidates": 3, "steps": 3, "overshoot": 30.0},
    "unrecognisable": lambda: {"target": "king penguin; starfish", "way": "cppn"},
    "style_transfer": lambda: {"style": picture(data.immunohistochemistry()), "size": SIDE, "steps": 100},
}
FILMS = {
    "class_model": 10,
    "deepdream": 3,
}  # techniques that are also shown moving: steps from frame to frame
STEPS = "steps.webp"
NETWORKS: dict[str, str] = {}  # for techniques that another network shows better
PHOTO: dict[str, Callable[[], Any]] = {
    "texture": data.gravel,
    **dict.fromkeys(("glcm", "efros_leung", "quilting"), data.brick),
    **dict.fromkeys(("heeger_bergen", "portilla_simoncelli", "random_phase"), data.brick),
    "deepdream": lambda: load_sample_image("china.jpg"),
    "style_transfer": lambda: load_sample_image("china.jpg"),
}


def gallery(folder: str | Path) -> Path:
    """Run every technique on a sample photo and write the page, each result beside it.

    Returns the page's path. Raises `InputError` where the folder cannot be written, `NetworkError` where
    the weights of a network are unavailable.
    """
    with writing(folder) as place:
        known = catalogue.techniques()
        model = cache(load)
        results: list[tuple[Technique, Result]] = []
        for technique in steps(known.values(), len(known), "gallery"):
            network = NETWORKS.get(technique.name, technique.network)
            with _filming(FILMS.get(technique.name)) as frames:
                result = made(technique, model(network) if technique.takes_model else None)
            results.append((technique, result))
            with storing():
                (place / technique.name).mkdir()
                if frames:
                    colour.animate(frames, place / technique.name / STEPS)
            result.write_into(place / technique.name)
        shown: dict[str, Any] = {
            technique.name: _shown(technique, result, place / technique.name / STEPS)
            for technique, result in results
        }
        groups = [
            (title, [shown[name] for name in members]) for title, members in catalogue.sections().items()
        ]
        html = page(
            "gallery.html",
            groups=groups,
            count=len(known),
            networks=list(dict.fromkeys(t.network for t in known.values() if t.takes_model)),
            photos=[
                (
                    "sample",
                    webp_uri(colour.photo(fit(_photo("grad_cam"), model(DEFAULT_NETWORK))), SIDE),
                    1,
                    1,
                )
            ],
            scales=colour.SCALES,
        )
        about = {"kind": "Gallery page", "techniques": list(known)}
        with storing():
            (place / PAGE).write_text(html, "utf-8")
            (place / RECORD).write_text(as_json(about), "utf-8")
    return Path(folder) / PAGE


def made(technique: Technique, model: Model | None) -> Result:
    """The technique's result on its sample photo, with the network where it takes one."""
    settings = SETTINGS.get(technique.name, dict)()
    given = _given(technique, model) if technique.takes_images else None
    return technique.run(*technique.inputs(model, given), **settings)  # type: ignore[no-any-return]


def _given(technique: Technique, model: Model | None) -> Float[Tensor, "n 3 h w"]:
    """The sample photo as the technique takes it."""
    photo = _photo(technique.name)
    if model is None or technique.photos == "whole":
        return whole(photo, SIDE)
    return crops(photo, model) if technique.photos == "together" else fit(photo, model)[None]


def _photo(name: str) -> Image.Image:
    """The photo that a technique is shown on: the sample with two classes, unless `PHOTO` names another."""
    return Image.fromarray(PHOTO[name]()).convert("RGB") if name in PHOTO else sample()


@contextmanager
def _filming(every: int | None) -> Iterator[list[Float[Tensor, "3 _ _"]]]:
    """The pictures of every so many steps, side by side; none where it is not said how many."""
    frames: list[Float[Tensor, "3 _ _"]] = []
    outer = current().listener

    def keep(step: Step) -> None:
        if every and step.images is not None and step.done % every == 0:
            frames.append(step.images().cpu().permute(1, 2, 0, 3).flatten(2))
        if outer is not None:
            outer(step)

    with listening(keep):
        yield frames


def _shown(
    technique: Technique, result: Result, film: Path
) -> tuple[str, str, str, list[Figure], tuple[Node, ...]]:
    """A technique's title, the command that makes its result, the photo below its maps, and its figures."""
    nodes = tree(result) if technique.name == "layers" else ()
    count = len(result) if isinstance(result, Heatmap) else 1
    cards = [
        card
        for index in range(0 if nodes else count)
        for card in figures(Answer(technique, result), index, None, "")
    ]
    if film.is_file():
        cards.append(Figure(technique, "", file_uri(film.read_bytes()), "How it grows, step by step."))
    return technique.title, command(technique), "photo-sample", cards, nodes


def command(technique: Technique) -> str:
    """The command that makes the technique's result in the gallery from the sample photo."""
    settings = SETTINGS.get(technique.name, dict)()
    options = [
        f"--{name.replace('_', '-')} {'PICTURE' if isinstance(value, Tensor) else shlex.quote(str(value))}"
        for name, value in settings.items()
    ]
    network = NETWORKS.get(technique.name)
    if technique.name in FILMS:
        options.append(f"--every {FILMS[technique.name]}")
    photo = ["PHOTO"] if technique.takes_images else []
    return " ".join(["opsin", technique.name, *photo, *options, *([f"-m {network}"] if network else [])])


def picture(pixels: Any) -> Float[Tensor, "1 3 h w"]:
    """A sample photo as an image in [0, 1]."""
    return whole(Image.fromarray(pixels).convert("RGB"), SIDE)


def crops(photo: Image.Image, model: Model) -> Float[Tensor, "n 3 h w"]:
    """Random parts of a photo, some of the whole and some close up."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(CROPS):
        side = int(min(photo.size) * (0.4 + 0.6 * float(torch.rand((), generator=draw))))
        left, top = (int(torch.randint(0, s - side + 1, (), generator=draw)) for s in photo.size)
        found.append(fit(photo.crop((left, top, left + side, top + side)), model))
    return torch.stack(found)
