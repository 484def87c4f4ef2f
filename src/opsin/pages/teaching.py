"""The order in which a page explains: where, which details, what is inside."""

from collections.abc import Iterable
from dataclasses import dataclass

from opsin.registry.kinds import Technique


@dataclass(frozen=True)
class Part:
    """A part of the page: its question, what answers it, and the techniques in the order of teaching."""

    question: str
    about: str
    order: tuple[str, ...]
    folders: tuple[str, ...]


STRIP = ("grad_cam", "guided_backprop", "deconvnet", "saliency")  # beside the photo, at the top
PARTS = (
    Part(
        "Where does it look?",
        "Coarse answers from the last maps, and a slow one without gradients: cover a place and see what "
        "happens.",
        ("grad_cam", "cam", "hires_cam", "grad_cam_plus_plus", "layer_cam", "score_cam", "ablation_cam"),
        ("maps", "covering"),
    ),
    Part(
        "Which details?",
        "Three rules for going back through a rectifier. The gradient (saliency) passes where the "
        "rectifier was open on the way up; deconvnet passes what is positive on the way back, and is shown "
        "for the strongest unit, as in its paper; guided backprop asks for both: it is the sharpest, and "
        "depends least on the class.",
        (
            "saliency",
            "deconvnet",
            "guided_backprop",
            "guided_grad_cam",
            "smooth_grad",
            "integrated_gradients",
        ),
        ("gradients",),
    ),
    Part(
        "What is made of it?",
        "Pictures that were computed step by step.",
        (),
        ("optimised", "texture"),
    ),
    Part(
        "How easily is it fooled?",
        "Changes that we hardly see, and that change what the network sees, beside noise of the same size.",
        (
            "random_noise",
            "fgsm",
            "pgd",
            "apgd",
            "square",
            "deepfool",
            "lbfgs_attack",
            "universal",
            "unrecognisable",
        ),
        ("fooling",),
    ),
    Part(
        "What is inside?",
        "The filters, and every layer's activations and weights with the gradients of both.",
        ("filters", "layers"),
        ("inside",),
    ),
)


def arranged(techniques: Iterable[Technique]) -> list[tuple[Part, list[Technique]]]:
    """The techniques in the parts of a page, in the order of teaching; parts without any are left out."""
    known = list(techniques)
    parts = [(part, [t for t in known if _folder(t) in part.folders]) for part in PARTS]
    return [(part, sorted(own, key=lambda t: _rank(part, t))) for part, own in parts if own]


def _folder(technique: Technique) -> str:
    return technique.run.__module__.split(".")[-2]


def _rank(part: Part, technique: Technique) -> tuple[int, str]:
    order = part.order
    return order.index(technique.name) if technique.name in order else len(order), technique.name
