"""What is timed against what: for every technique the floor, Opsin, and the peers that have it.

A contender is built once (models wrapped, hooks set, rules registered) and then called: only the
call is timed. Peers get images that are already normalised, frozen weights and the same classes and
layer as Opsin, which normalises, checks and records inside its call and is given trainable weights.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn
from torch.nn.functional import one_hot

import opsin
from opsin.images.tensors import fit

NETWORKS = {
    "resnet50": ("torchvision:resnet50", "random"),
    "vgg16": ("torchvision:vgg16", "random"),
    "efficientnet_lite0": ("efficientnet_lite0", None),
}
PHOTOS = ("chelsea", "astronaut", "coffee", "rocket")
PATCH, STRIDE = 32, 16

Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """One problem, the same for every contender."""

    model: opsin.Model
    images: Tensor  # (n, 3, h, w) in [0, 1]
    classes: list[int]
    layer: str
    stride: int

    @property
    def inputs(self) -> Tensor:
        """The images as the network takes them."""
        return (self.images - _column(self.model.mean)) / _column(self.model.std)

    def network(self, *, trainable: bool = False) -> nn.Module:
        """The network with modules of its own, so that contenders may hook them, on shared weights."""
        return _twin(self.model.network, trainable=trainable).eval()

    def smaller(self) -> "Case":
        """The same for one image of 64 pixels: what warms a process up."""
        image = nn.functional.interpolate(self.images[:1], (64, 64), mode="bilinear")
        return replace(self, images=image, classes=self.classes[:1])


class Probed(nn.Module):
    """A network with one more layer, `probe`: the first channels of another; the output stays the same."""

    def __init__(self, network: nn.Module, layer: str, channels: int) -> None:
        super().__init__()
        self.network, self.layer, self.channels, self.probe = network, layer, channels, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The network's output."""

        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.probe(output[:, : self.channels])

        handle = self.network.get_submodule(self.layer).register_forward_hook(hook)
        try:
            return self.network(x)
        finally:
            handle.remove()


def make_case(network: str, batch: int, *, channels: int | None = None, stride: int = STRIDE) -> Case:
    """`batch` photos, each with the class that the network predicts; of a layer only the first channels."""
    name, weights = NETWORKS[network]
    loaded = opsin.load(name, weights=weights)
    layer = loaded.default_layer
    upright = torch.stack([fit(Image.fromarray(getattr(data, photo)()), loaded) for photo in PHOTOS])
    images = torch.cat([upright, upright.flip(3), upright.flip(2), upright.flip(2, 3)])[:batch]
    with torch.no_grad():
        classes = loaded.run(images)["output"].argmax(1).tolist()
    if channels:
        loaded, layer = _fresh(loaded, Probed(loaded.network, layer, channels)), "probe"
    return Case(_fresh(loaded, loaded.network), images, classes, layer, stride)


def _fresh(model: opsin.Model, network: nn.Module) -> opsin.Model:
    """A `Model` that was never called."""
    return opsin.Model(
        network, mean=model.mean, std=model.std, size=model.size, labels=model.labels, name=model.name
    )


def _twin(network: nn.Module, *, trainable: bool) -> nn.Module:
    weights = {
        id(p): nn.Parameter(p.detach().contiguous(), requires_grad=trainable) for p in network.parameters()
    }
    return copy.deepcopy(network, weights | {id(b): b for b in network.buffers()})


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


# The floors, in plain torch.


def gradient_floor(case: Case, _: int) -> Run:
    """One forward, one backward to the input."""
    network, x, score = case.network(), case.inputs.requires_grad_(), _score(case)
    return lambda: torch.autograd.grad(score(network(x)), x)[0]


def grad_cam_floor(case: Case, _: int) -> Run:
    """A forward with no graph up to the layer, a backward through the head."""
    network, x, score = case.network(), case.inputs, _score(case)
    maps: list[Tensor] = []

    def start(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        maps[:] = [output.detach().requires_grad_()]
        return maps[0]

    network.get_submodule(case.layer).register_forward_hook(start)

    def run() -> Tensor:
        (gradient,) = torch.autograd.grad(score(network(x)), maps)
        return (gradient.mean((2, 3), keepdim=True) * maps[0].detach()).sum(1, keepdim=True).relu()

    return run


def _score(case: Case) -> Callable[[Tensor], Tensor]:
    index = torch.tensor(case.classes)[:, None]
    return lambda output: output.gather(1, index).sum()


def forwards_floor(count: Callable[[Case], int]) -> Callable[[Case, int], Run]:
    """So many forwards an image and nothing else."""

    def build(case: Case, size: int) -> Run:
        network, total = case.network(), len(case.images) * count(case)
        x = case.inputs[:1].expand(size, -1, -1, -1).contiguous()

        @torch.no_grad()
        def run() -> Tensor:
            return torch.cat([network(x[: min(size, total - done)]) for done in range(0, total, size)])

        return run

    return build


def _windows(case: Case) -> int:
    across = -((PATCH - case.images.shape[-1]) // case.stride) + 1
    return across**2 + 1  # and the photo itself


def _channels(case: Case) -> int:
    return case.model.calls[case.layer].shape[1] + 1


# Opsin, as a user calls it.


def of_opsin(technique: str) -> Callable[[Case, int], Run]:
    """Opsin's technique of this name; its batches are its own choice."""

    def build(case: Case, _: int) -> Run:
        function = getattr(opsin, technique)
        accepted = function.technique.parameters
        settings = {"layer": case.layer, "patch": PATCH, "stride": case.stride}
        given = {name: value for name, value in settings.items() if name in accepted}
        return lambda: function(case.model, case.images, target=case.classes, **given).values

    return build


# captum


def captum_gradient(method: str, case: Case, _: int) -> Run:
    """Captum's Saliency or GuidedBackprop."""
    from captum import attr

    x, explain = case.inputs.requires_grad_(), getattr(attr, method)(case.network())
    settings = {"abs": False} if method == "Saliency" else {}
    return lambda: explain.attribute(x, case.classes, **settings)


def captum_grad_cam(case: Case, _: int, *, trainable: bool = False) -> Run:
    """Captum's LayerGradCam."""
    from captum.attr import LayerGradCam

    network, x = case.network(trainable=trainable), case.inputs
    explain = LayerGradCam(network, network.get_submodule(case.layer))
    return lambda: explain.attribute(x, case.classes, relu_attributions=True).detach()


def captum_guided_grad_cam(case: Case, _: int) -> Run:
    """Captum's GuidedGradCam."""
    from captum.attr import GuidedGradCam

    network, x = case.network(), case.inputs.requires_grad_()
    explain = GuidedGradCam(network, network.get_submodule(case.layer))
    return lambda: explain.attribute(x, case.classes, interpolate_mode="bilinear")


def captum_occlusion(case: Case, size: int) -> Run:
    """Captum's Occlusion, its forwards of about `size` images."""
    from captum.attr import Occlusion

    x, explain, grey = case.inputs, Occlusion(case.network()), _grey(case)
    settings = {
        "sliding_window_shapes": (3, PATCH, PATCH),
        "strides": (3, case.stride, case.stride),
        "perturbations_per_eval": max(1, size // len(x)),
    }
    return lambda: explain.attribute(x, target=case.classes, baselines=grey, **settings)


def _grey(case: Case) -> Tensor:
    """Opsin's fill, as the network takes it."""
    return ((0.5 - _column(case.model.mean)) / _column(case.model.std)).expand_as(case.images)


# pytorch-grad-cam


def grad_cam_cam(method: str, case: Case, size: int) -> Run:
    """pytorch-grad-cam's GradCAM or ScoreCAM.

    Frozen weights need its `compute_input_gradient`, or there is no gradient at all.
    """
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network, x = case.network(), case.inputs
    explain = getattr(pytorch_grad_cam, method)(network, [network.get_submodule(case.layer)])
    explain.compute_input_gradient = method == "GradCAM"
    explain.batch_size = size
    targets = [ClassifierOutputTarget(index) for index in case.classes]
    return lambda: torch.from_numpy(explain(x, targets))[:, None]


def grad_cam_guided(case: Case, _: int) -> Run:
    """pytorch-grad-cam's guided backpropagation, which takes one image a call."""
    from pytorch_grad_cam import GuidedBackpropReLUModel

    explain, x = GuidedBackpropReLUModel(case.network()), case.inputs

    def run() -> Tensor:  # clones, because the gradient piles up in .grad
        pictures = [explain(one[None].clone(), index) for one, index in zip(x, case.classes, strict=True)]
        return torch.stack([torch.from_numpy(picture) for picture in pictures]).permute(0, 3, 1, 2)

    return run


def grad_cam_guided_cam(case: Case, _: int) -> Run:
    """The product of pytorch-grad-cam's two, as its documentation has it."""
    guided, cam = grad_cam_guided(case, 0), grad_cam_cam("GradCAM", case, 0)
    return lambda: guided() * cam()


# torchcam


def torchcam_grad_cam(case: Case, _: int) -> Run:
    """torchcam's GradCAM; frozen weights need an input with a gradient."""
    from torchcam.methods import GradCAM

    network, x = case.network(), case.inputs.requires_grad_()
    explain = GradCAM(network, case.layer)
    return lambda: explain(case.classes, network(x))[0][:, None]


def torchcam_score_cam(case: Case, size: int) -> Run:
    """torchcam's ScoreCAM."""
    from torchcam.methods import ScoreCAM

    network, x = case.network(), case.inputs
    explain = ScoreCAM(network, case.layer, batch_size=size)

    @torch.no_grad()
    def run() -> Tensor:
        network(x)
        return explain(case.classes)[0][:, None]

    return run


# zennit


def zennit_gradient(case: Case, _: int, *, guided: bool = False) -> Run:
    """zennit's Gradient, its GuidedBackprop composite registered beforehand."""
    from zennit.attribution import Gradient
    from zennit.composites import GuidedBackprop

    network, x, weights = case.network(), case.inputs, _weights(case)
    if guided:
        GuidedBackprop().register(network)
    explain = Gradient(network, attr_output=weights)
    return lambda: explain(x)[1]


def zennit_occlusion(case: Case, _: int) -> Run:
    """zennit's Occlusion: one square a forward; the last squares wrap around the edge."""
    from zennit.attribution import Occlusion, occlude_independent

    grey, weights, side = _grey(case), _weights(case), (PATCH, PATCH)
    explain = Occlusion(
        case.network(),
        attr_output=lambda output: output * weights,
        occlusion_fn=partial(occlude_independent, fill_fn=lambda _: grey, invert=True),
        window=side,
        stride=(case.stride, case.stride),
    )
    x = case.inputs
    return lambda: explain(x)[1]


def _weights(case: Case) -> Tensor:
    return one_hot(torch.tensor(case.classes), case.model.classes or 0).float()


# Their answers as Opsin's: same sign, per [0, 1] of a pixel, up to a positive factor an image.


def per_pixel(answer: Tensor, case: Case) -> Tensor:
    """A gradient by the normalised image as one by the image."""
    return answer / _column(case.model.std)


def magnitude(answer: Tensor, case: Case) -> Tensor:
    """Saliency of a gradient by the normalised image."""
    return per_pixel(answer, case).abs().amax(1, keepdim=True)


def one_channel(answer: Tensor, _: Case) -> Tensor:
    """Occlusion's colour channels are all the same."""
    return answer[:, :1]


def drop(answer: Tensor, _: Case) -> Tensor:
    """Scores summed over the squares on a pixel, as their drop."""
    return -answer[:, :1]


@dataclass(frozen=True)
class Contender:
    """One way to get a technique's answer: `build(case, size)` gives the call that is timed.

    `tuned` ones get the `size` of their forwards that is best here. `convert` brings the answer to
    Opsin's unit; a floor that has no answer to compare has `None`.
    """

    name: str
    build: Callable[[Case, int], Run]
    convert: Callable[[Tensor, Case], Tensor] | None = lambda answer, _: answer
    tuned: bool = False


CAPTUM, PYTORCH_GRAD_CAM, TORCHCAM, ZENNIT = "captum", "pytorch-grad-cam", "torchcam", "zennit"
CAPTUM_TRAINABLE = "captum, not frozen"

TECHNIQUES = {
    "saliency": [
        Contender("floor", gradient_floor, magnitude),
        Contender("Opsin", of_opsin("saliency")),
        Contender(CAPTUM, partial(captum_gradient, "Saliency"), magnitude),
        Contender(ZENNIT, zennit_gradient, magnitude),
    ],
    "guided_backprop": [
        Contender("floor", gradient_floor, None),
        Contender("Opsin", of_opsin("guided_backprop")),
        Contender(CAPTUM, partial(captum_gradient, "GuidedBackprop"), per_pixel),
        Contender(PYTORCH_GRAD_CAM, grad_cam_guided, per_pixel),
        Contender(ZENNIT, partial(zennit_gradient, guided=True), per_pixel),
    ],
    "grad_cam": [
        Contender("floor", grad_cam_floor),
        Contender("Opsin", of_opsin("grad_cam")),
        Contender(CAPTUM, captum_grad_cam),
        Contender(CAPTUM_TRAINABLE, partial(captum_grad_cam, trainable=True)),
        Contender(PYTORCH_GRAD_CAM, partial(grad_cam_cam, "GradCAM")),
        Contender(TORCHCAM, torchcam_grad_cam),
    ],
    "guided_grad_cam": [
        Contender("floor", gradient_floor, None),
        Contender("Opsin", of_opsin("guided_grad_cam")),
        Contender(CAPTUM, captum_guided_grad_cam, per_pixel),
        Contender(PYTORCH_GRAD_CAM, grad_cam_guided_cam, per_pixel),
    ],
    "score_cam": [
        Contender("floor", forwards_floor(_channels), None, tuned=True),
        Contender("Opsin", of_opsin("score_cam")),
        Contender(PYTORCH_GRAD_CAM, partial(grad_cam_cam, "ScoreCAM"), tuned=True),
        Contender(TORCHCAM, torchcam_score_cam, tuned=True),
    ],
    "occlusion": [
        Contender("floor", forwards_floor(_windows), None, tuned=True),
        Contender("Opsin", of_opsin("occlusion")),
        Contender(CAPTUM, captum_occlusion, one_channel, tuned=True),
        Contender(ZENNIT, zennit_occlusion, drop),
    ],
}

warnings.filterwarnings("ignore")  # captum and zennit warn of every hook they set
