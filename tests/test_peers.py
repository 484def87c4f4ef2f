"""What other packages answer to the same question: equal to rounding where they are right.

Everything runs in float64, so that rounding is far below a difference, and on photos that stay clear of every
kink, so that rounding does not decide which units pass.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import captum.attr
import numpy as np
import pytest
import pytorch_grad_cam
import skimage.data
import torch
import torchcam.methods
import torchvision
import zennit.composites
from torch import Tensor, nn
from torch.nn import functional as F

import opsin
from margins import clear_of_kinks, without_copies
from oracle import Rectifiers

# Captum tells that it asks for gradients and that it sets hooks.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations:UserWarning"),
]

ROUNDING = 1e-10
FLOAT32 = 1e-6  # where a peer rounds to float32 on its way
CLASS = 3
SEEDS = 8  # of the photos' grain: the first that keeps the margin is taken
PATH = 8  # points of integrated gradients from the baseline to the photo, so few that none is added
BASELINE = 0.25
POINTS = [1e-4, *(k / (PATH - 1) for k in range(1, PATH))]  # as shares of its path


class Whole(nn.Module):
    """A network with its normalisation in front, so that a peer sees the same images in [0, 1] as Opsin."""

    def __init__(self, model: opsin.Model) -> None:
        super().__init__()
        self.network = model.network
        self.mean = torch.tensor(model.mean, dtype=torch.float64).view(-1, 1, 1)
        self.std = torch.tensor(model.std, dtype=torch.float64).view(-1, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


def model_of(network: nn.Module, size: int) -> opsin.Model:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return opsin.Model(network.double().eval(), mean=mean, std=std, size=size)


def small() -> opsin.Model:
    """Three convolutions, the first two at the image's resolution, each rectifier a module of its own."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )
    return model_of(network, 16)


def torchvision_model(name: str, size: int) -> opsin.Model:
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = getattr(torchvision.models, name)(num_classes=10, **options)
    return model_of(without_copies(network), size)


def lite0() -> opsin.Model:
    model = opsin.load("efficientnet_lite0")
    model.network.double().eval()
    return model


def photos(size: int, seed: int = 0) -> Tensor:
    """Two photos with grain: in their even patches all units of a window of a max pool would be equal."""
    sources = (skimage.data.astronaut(), skimage.data.cat())
    shown = [torch.from_numpy(source).permute(2, 0, 1)[None] / 255 for source in sources]
    smooth = torch.cat([F.interpolate(photo.double(), (size, size), mode="area") for photo in shown])
    grain = torch.rand(smooth.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.9 * smooth + 0.1 * grain


def clear_photos(
    whole: Whole, size: int, n: int = 2, shown: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    return clear_of_kinks(whole, (photos(size, seed)[:n] for seed in range(SEEDS)), shown=shown)


def path(images: Tensor) -> Tensor:
    """The images and where integrated gradients takes the gradient."""
    return torch.cat([images, *(BASELINE + share * (images - BASELINE) for share in POINTS)])


# name -> network, layer for Grad-CAM, side of the images
NETWORKS: dict[str, tuple[Callable[[], opsin.Model], str, int]] = {
    "small": (small, "3", 16),
    "alexnet": (lambda: torchvision_model("alexnet", 64), "features.8", 64),
    "resnet18": (lambda: torchvision_model("resnet18", 64), "layer3", 64),
    "lite0": (lite0, "blocks.5", 64),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors are small: on a busy machine threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def made(name: str) -> tuple[opsin.Model, Whole, Tensor, str]:
    make, layer, size = NETWORKS[name]
    model = make()
    whole = Whole(model)
    return model, whole, clear_photos(whole, size, shown=path), layer


@pytest.fixture(params=list(NETWORKS))
def case(request: pytest.FixtureRequest) -> tuple[opsin.Model, Whole, Tensor, str]:
    return made(request.param)


@pytest.fixture(params=[name for name in NETWORKS if name != "lite0"])
def relu_case(request: pytest.FixtureRequest) -> tuple[opsin.Model, Whole, Tensor, str]:
    """The networks whose every rectifier is an `nn.ReLU`, which captum finds."""
    return made(request.param)


def close(a: Tensor, b: Tensor, rounding: float = ROUNDING) -> bool:
    b = b.detach()
    return a.shape == b.shape and bool((a - b).norm() <= rounding * b.norm()) and bool(b.any())


# --- Where captum is right --------------------------------------------------------------------------


def test_saliency_equals_captum(case: Any) -> None:
    model, whole, images, _ = case
    ours = opsin.saliency(model, images, target=CLASS)
    peer = captum.attr.Saliency(whole)
    assert close(ours.extras["gradient"], peer.attribute(images, target=CLASS, abs=False))
    assert close(ours.values, peer.attribute(images, target=CLASS).amax(1, keepdim=True))


def test_integrated_gradients_equal_captums_trapezoids_and_know_their_error(case: Any) -> None:
    model, whole, images, _ = case
    ours = opsin.integrated_gradients(model, images, target=CLASS, samples=PATH, baseline=BASELINE)
    assert ours.extras["points"].tolist() == [PATH] * len(images)
    start = torch.full_like(images, BASELINE)
    # with the weights of trapezoids at our points: captum's own begin on the baseline itself, and sum to 7/8
    weights = [1 / (PATH - 1) / (2 if k in (0, PATH - 1) else 1) for k in range(PATH)]
    (theirs,) = captum.attr.IntegratedGradients(whole)._attribute(
        (images,), (start,), CLASS, n_steps=PATH, step_sizes_and_alphas=(weights, POINTS)
    )
    assert close(ours.values, theirs, FLOAT32)
    rise = whole(images)[:, CLASS] - whole(start)[:, CLASS]
    assert torch.allclose(ours.extras["error"], ours.values.sum((1, 2, 3)) - rise.detach())


def test_grad_cam_equals_captum(case: Any) -> None:
    model, whole, images, layer = case
    peer = captum.attr.LayerGradCam(whole, model.network.get_submodule(layer))
    ours = opsin.grad_cam(model, images, target=CLASS, layer=layer, relu=False)
    assert close(ours.values, peer.attribute(images, target=CLASS))


@pytest.mark.parametrize(("patch", "stride"), [(8, 8), (8, 4), (7, 5)])
def test_occlusion_equals_captum_which_means_over_the_windows_on_a_pixel(
    case: Any, patch: int, stride: int
) -> None:
    model, whole, images, _ = case
    if images.shape[-1] > 16:
        patch, stride = 4 * patch, 4 * stride
    ours = opsin.occlusion(model, images, target=CLASS, patch=patch, stride=stride, fill=0.5)
    theirs = captum.attr.Occlusion(whole).attribute(
        images, (3, patch, patch), (3, stride, stride), baselines=0.5, target=CLASS, perturbations_per_eval=8
    )
    assert close(ours.values.expand_as(theirs), theirs.double(), FLOAT32)


def test_guided_backprop_equals_captum(relu_case: Any) -> None:
    model, whole, images, _ = relu_case
    theirs = captum.attr.GuidedBackprop(whole).attribute(images, target=CLASS)
    assert close(opsin.guided_backprop(model, images, target=CLASS).values, theirs)


def test_deconvnet_is_captums_deconvolution_times_the_score(relu_case: Any) -> None:
    # Captum sends back 1; the paper sends back the unit's activation.
    model, whole, images, _ = relu_case
    classes = whole(images).argmax(1)
    scores = whole(images).amax(1).detach()
    theirs = captum.attr.Deconvolution(whole).attribute(images, target=classes)
    assert (scores > 0).all()
    assert close(
        opsin.deconvnet(model, images, target="predicted class").values, theirs * scores.view(-1, 1, 1, 1)
    )


def test_a_unit_equals_captums_neuron(relu_case: Any) -> None:
    model, whole, images, layer = relu_case
    module = model.network.get_submodule(layer)
    activation = captum.attr.LayerActivation(whole, module).attribute(images).detach()
    channel = int(activation[:, :, 1, 2].amin(0).argmax())
    fires = activation[:, channel, 1, 2]
    assert (fires > 0).all()
    guided = captum.attr.NeuronGuidedBackprop(whole, module).attribute(images, (channel, 1, 2))
    projected = captum.attr.NeuronDeconvolution(whole, module).attribute(images, (channel, 1, 2))
    target = f"{layer}:{channel}@1,2"
    assert close(opsin.guided_backprop(model, images, target=target).values, guided)
    assert close(opsin.deconvnet(model, images, target=target).values, projected * fires.view(-1, 1, 1, 1))


def test_guided_grad_cam_equals_captum_upsampling_bilinearly(relu_case: Any) -> None:
    # Captum's default is the nearest neighbour; the paper says bilinear.
    model, whole, images, layer = relu_case
    peer = captum.attr.GuidedGradCam(whole, model.network.get_submodule(layer))
    ours = opsin.guided_grad_cam(model, images, target=CLASS, layer=layer)
    assert close(ours.values, peer.attribute(images, target=CLASS, interpolate_mode="bilinear"))
    coarse = opsin.grad_cam(model, images, target=CLASS, layer=layer).values
    detail = opsin.guided_backprop(model, images, target=CLASS).values
    assert close(detail * F.interpolate(coarse, images.shape[-2:]), peer.attribute(images, target=CLASS))


# --- Where peers are not right ----------------------------------------------------------------------


def captums_guided(whole: nn.Module, image: Tensor) -> Tensor:
    return captum.attr.GuidedBackprop(whole).attribute(image, target=CLASS)


def zennits_guided(whole: nn.Module, image: Tensor) -> Tensor:
    x = image.clone().requires_grad_()
    with zennit.composites.GuidedBackprop().context(whole) as watched:
        (gradient,) = torch.autograd.grad(watched(x)[:, CLASS].sum(), x)
    return gradient


def pytorch_grad_cams_guided(whole: nn.Module, image: Tensor) -> Tensor:
    gradient = pytorch_grad_cam.GuidedBackpropReLUModel(whole)(image.clone(), target_category=CLASS)
    return torch.from_numpy(gradient).permute(2, 0, 1)[None]  # (h, w, 3) -> (1, 3, h, w)


PEERS = {"captum": captums_guided, "zennit": zennits_guided, "pytorch_grad_cam": pytorch_grad_cams_guided}


def plain_gradient(whole: nn.Module, image: Tensor) -> Tensor:
    x = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(whole(x)[:, CLASS].sum(), x)
    return gradient


def oracles_guided(whole: nn.Module, image: Tensor) -> Tensor:
    x = image.clone().requires_grad_()
    with Rectifiers() as watch:
        score = whole(x)[:, CLASS].sum()
    watch.rule = "guided"
    (gradient,) = torch.autograd.grad(score, x)
    return gradient


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("googlenet", 64),
        pytest.param("inception_v3", 107, marks=pytest.mark.thorough),
        ("mobilenet_v2", 64),
        pytest.param("lite0", 64, marks=pytest.mark.thorough),
    ],
)
def test_peers_give_the_plain_gradient_as_guided_backprop_where_rectifiers_are_no_relu_modules(
    name: str, size: int, peer: str
) -> None:
    # GoogLeNet and Inception-v3 call F.relu, MobileNet-v2 and EfficientNet-Lite hold nn.ReLU6.
    model = lite0() if name == "lite0" else torchvision_model(name, size)
    whole = Whole(model)
    image = clear_photos(whole, size, 1)
    plain = plain_gradient(whole, image)
    assert close(PEERS[peer](whole, image), plain)
    ours = opsin.guided_backprop(model, image, target=CLASS).values
    assert (ours - plain).norm() > 0.1 * plain.norm()
    assert close(ours, oracles_guided(whole, image))


@pytest.mark.thorough
@pytest.mark.parametrize("peer", PEERS)
def test_peers_miss_densenets_last_rectifier_which_is_no_module(peer: str) -> None:
    model = torchvision_model("densenet121", 64)
    whole = Whole(model)
    image = clear_photos(whole, 64, 1)
    ours = opsin.guided_backprop(model, image, target=CLASS).values
    expected = oracles_guided(whole, image)
    assert close(ours, expected)
    assert (PEERS[peer](whole, image) - expected).norm() > 0.01 * expected.norm()


def overwriting() -> tuple[opsin.Model, Whole, Tensor, Tensor]:
    """ResNet-18, whose `layer1.0.bn1` an in-place ReLU overwrites; photos; the maps before and after it."""
    model = torchvision_model("resnet18", 64)
    whole, images = Whole(model), photos(64)
    kept: list[Tensor] = []
    handle = model.network.layer1[0].bn1.register_forward_hook(
        lambda _m, _i, output: kept.append(output.clone())
    )
    with torch.no_grad():
        whole(images)
    handle.remove()
    assert (kept[0] < 0).any()
    return model, whole, images, kept[0]


def test_opsin_keeps_what_an_in_place_relu_overwrites() -> None:
    model, _, images, before = overwriting()
    assert close(model.run(images, ("layer1.0.bn1", "output"))["layer1.0.bn1"], before)


def test_pytorch_grad_cam_keeps_what_an_in_place_relu_wrote_over_the_layer() -> None:
    model, whole, images, before = overwriting()
    with pytorch_grad_cam.GradCAM(whole, [model.network.layer1[0].bn1]) as cam:
        cam(images, [pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget(CLASS)] * len(images))
        kept = cam.activations_and_grads.activations[0]
    assert close(kept, before.relu())
    assert not close(kept, before, 0.1)


def test_torchcam_keeps_what_an_in_place_relu_wrote_over_the_layer() -> None:
    _, whole, images, before = overwriting()
    with torchcam.methods.GradCAM(whole, "network.layer1.0.bn1") as cam:
        whole(images)
        kept = cam.hook_a[0]
    assert close(kept, before.relu())
    assert not close(kept, before, 0.1)


# --- pytorch-grad-cam and torchcam ------------------------------------------------------------------

LAYER = "3"  # at the image's resolution: no resizing, in which the peers differ, comes between


def normalised(maps: Tensor) -> Tensor:
    """The peers' last step: each map from 0 to 1."""
    maps = maps - maps.amin((2, 3), keepdim=True)
    return maps / maps.amax((2, 3), keepdim=True)


def pytorch_grad_cams(method: str, whole: Whole, images: Tensor) -> Tensor:
    with getattr(pytorch_grad_cam, method)(whole, [whole.network.get_submodule(LAYER)]) as cam:
        maps = cam(images, [pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget(CLASS)] * len(images))
    return torch.from_numpy(np.asarray(maps, np.float64))[:, None]  # (n, h, w) -> (n, 1, h, w)


def torchcams(method: str, whole: Whole, images: Tensor) -> Tensor:
    """Unlike pytorch-grad-cam, torchcam hands out its maps before their normalisation."""
    with getattr(torchcam.methods, method)(whole, f"network.{LAYER}") as cam:
        (maps,) = cam(CLASS, whole(images), normalized=False)
    return maps[:, None]


CAMS = {
    "GradCAM": opsin.grad_cam,
    "GradCAMPlusPlus": opsin.grad_cam_plus_plus,
    "LayerCAM": opsin.layer_cam,
}


def small_with_photos() -> tuple[opsin.Model, Tensor]:
    model = small()
    return model, clear_photos(Whole(model), 16)


def loud(model: opsin.Model) -> None:
    """Make gradients so large that the constants which peers add to denominators are nothing beside them."""
    with torch.no_grad():
        model.network[-1].weight.mul_(1e4)


@pytest.mark.parametrize("method", CAMS)
def test_cams_equal_pytorch_grad_cam_up_to_its_normalisation(method: str) -> None:
    model, images = small_with_photos()
    loud(model)
    ours = CAMS[method](model, images, target=CLASS, layer=LAYER).values
    assert close(normalised(ours), pytorch_grad_cams(method, Whole(model), images), FLOAT32)


def test_hires_cam_equals_pytorch_grad_cam_which_drops_what_is_negative() -> None:
    model, images = small_with_photos()
    ours = opsin.hires_cam(model, images, target=CLASS, layer=LAYER).values
    assert close(normalised(ours.relu()), pytorch_grad_cams("HiResCAM", Whole(model), images), FLOAT32)
    assert (ours < 0).any()


@pytest.mark.parametrize("method", ["GradCAM", "LayerCAM"])
def test_cams_equal_torchcam(method: str) -> None:
    model, images = small_with_photos()
    ours = CAMS[method](model, images, target=CLASS, layer=LAYER).values
    assert close(ours, torchcams(method, Whole(model), images))


def test_torchcams_grad_cam_plus_plus_is_not_the_papers_as_it_never_divides() -> None:
    # It divides a copy (`alpha[idx][mask].div_(...)`), so α stays g² where eq. 19 has a quotient; its
    # denominator, too, has g³ inside the sum over positions where eq. 19 has it outside.
    model, images = small_with_photos()
    maps, gradient = maps_and_gradient(model, images)
    undivided = ((gradient**2 * gradient.relu()).sum((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
    theirs = torchcams("GradCAMpp", Whole(model), images)
    ours = opsin.grad_cam_plus_plus(model, images, target=CLASS, layer=LAYER).values
    assert close(theirs, undivided)
    assert not close(normalised(ours), normalised(theirs), 0.01)


def maps_and_gradient(model: opsin.Model, images: Tensor) -> tuple[Tensor, Tensor]:
    kept: list[Tensor] = []
    handle = model.network.get_submodule(LAYER).register_forward_hook(
        lambda _m, _i, output: kept.append(output)
    )
    scores = Whole(model)(images)[:, CLASS]
    handle.remove()
    (gradient,) = torch.autograd.grad(scores.sum(), kept[0])
    return kept[0].detach(), gradient


@pytest.mark.parametrize("package", ["pytorch_grad_cam", "torchcam"])
def test_score_cam_equals_both_peers_on_masked_normalised_images(package: str) -> None:
    # The paper masks the normalised image: the peers get the network without its normalisation in front.
    # Below the image's resolution they differ: pytorch-grad-cam aligns the corners when it upsamples the
    # masks, torchcam scales the masks to [0, 1] before it upsamples them, which the paper does after.
    model, images = small_with_photos()
    ours = opsin.score_cam(model, images, target=CLASS, layer=LAYER).values
    whole = Whole(model)
    within, bare = (images - whole.mean) / whole.std, Whole(model)
    bare.mean, bare.std = torch.zeros_like(whole.mean), torch.ones_like(whole.std)
    if package == "torchcam":
        assert close(ours, torchcams("ScoreCAM", bare, within), FLOAT32)
    else:
        assert close(normalised(ours), pytorch_grad_cams("ScoreCAM", bare, within), 1e-5)
