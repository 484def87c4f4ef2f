"""Every family of torchvision's classifiers and a spread of timm's, each against plain autograd.

The networks have random weights and run in float64: a random deep network is chaotic, and one gate that
flips by rounding would blur what is compared. The images therefore keep every gate's margin.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import opsin
from margins import clear_of_kinks, without_copies
from oracle import Rectifiers

MEAN, STD = 0.5, 0.25
CLASSES = 10
ROUNDING = 1e-6  # the gradient is handed back in the images' float32
NARROW = 64  # width of the fully connected layers of AlexNet and VGG, 4096 in the papers


# --- How a layer lies -------------------------------------------------------------------------------


def maps(values: Tensor) -> Tensor:
    return values


def maps_last(values: Tensor) -> Tensor:
    return values.permute(0, 3, 1, 2)  # (n, h, w, c) -> (n, c, h, w)


def tokens(prefix: int) -> Callable[[Tensor], Tensor]:
    def square(values: Tensor) -> Tensor:
        side = math.isqrt(values.shape[1] - prefix)
        patches = values[:, prefix:].transpose(1, 2)  # (n, prefix + h*w, c) -> (n, c, h*w)
        return patches.unflatten(2, (side, side))  # (n, c, h*w) -> (n, c, h, w)

    return square


# --- The census -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A network, the side of its images, and what is expected of it.

    `layer` is the default layer of Grad-CAM, and `layout` how it lies. `overwritten` is the last layer with
    weights whose result an in-place operation overwrites.
    """

    name: str
    size: int
    layer: str
    overwritten: str | None = None
    layout: Callable[[Tensor], Tensor] = maps
    options: dict[str, Any] = field(default_factory=dict)


SMALL_VIT = {
    "image_size": 64,
    "patch_size": 16,
    "num_layers": 3,
    "num_heads": 4,
    "hidden_dim": 64,
    "mlp_dim": 128,
}
SMALL_MAXVIT = {
    "input_size": (64, 64),
    "stem_channels": 16,
    "partition_size": 2,
    "block_channels": [16, 32, 64, 128],
    "block_layers": [1, 1, 1, 1],
    "head_dim": 16,
    "stochastic_depth_prob": 0.2,
}
DEFAULT_WEIGHTS = {"init_weights": False}
SIDE_64 = {"img_size": 64}
SHALLOW = {"img_size": 64, "depth": 3}
SHALLOW_SWIN = {"img_size": 64, "depths": (1, 1, 2, 1)}

MEMBERS = [
    Member("torchvision:alexnet", 64, "features.11", "features.10"),
    Member("torchvision:convnext_tiny", 64, "features"),
    Member("torchvision:densenet121", 64, "features", "features.norm5"),
    Member("torchvision:efficientnet_b0", 64, "features", "features.8.1"),
    Member("torchvision:efficientnet_v2_s", 64, "features", "features.7.1"),
    Member("torchvision:googlenet", 64, "inception5b", "inception5b.branch4.1.bn", options=DEFAULT_WEIGHTS),
    Member("torchvision:inception_v3", 107, "Mixed_7c", "Mixed_7c.branch_pool.bn", options=DEFAULT_WEIGHTS),
    Member("torchvision:MaxVit", 64, "blocks.3", options=SMALL_MAXVIT),
    Member("torchvision:mnasnet0_5", 64, "layers", "layers.15"),
    Member("torchvision:mobilenet_v2", 64, "features", "features.18.1"),
    Member("torchvision:mobilenet_v3_small", 64, "features", "features.12.1"),
    Member("torchvision:regnet_x_400mf", 64, "trunk_output", "trunk_output.block4.block4-11.f.b.1"),
    Member("torchvision:regnet_y_400mf", 64, "trunk_output", "trunk_output.block4.block4-5.f.b.1"),
    Member("torchvision:resnet18", 64, "layer4", "layer4.1.bn2"),
    Member("torchvision:resnext50_32x4d", 64, "layer4", "layer4.2.bn3"),
    Member("torchvision:wide_resnet50_2", 64, "layer4", "layer4.2.bn3"),
    Member("torchvision:shufflenet_v2_x0_5", 64, "conv5", "conv5.1"),
    Member("torchvision:squeezenet1_1", 64, "classifier.2", "classifier.1"),
    Member("torchvision:swin_t", 64, "permute"),
    Member("torchvision:swin_v2_t", 64, "permute"),
    Member("torchvision:vgg11", 64, "features.19", "features.18"),
    Member("torchvision:vgg11_bn", 64, "features.27", "features.26"),
    Member(
        "torchvision:VisionTransformer", 64, "encoder.layers.encoder_layer_2.ln_1", None, tokens(1), SMALL_VIT
    ),
    Member("timm:resnet10t", 64, "layer4", "layer4.0.bn2"),
    Member("timm:resnetv2_18", 64, "norm"),
    Member("timm:tf_efficientnet_lite0", 64, "bn2"),
    Member("timm:tinynet_e", 64, "bn2"),
    Member("timm:mobilenetv3_small_050", 64, "blocks"),
    Member("timm:hardcorenas_a", 64, "blocks"),
    Member("timm:ghostnet_050", 64, "blocks", "blocks.8.3.ghost1.cheap_operation.1"),
    Member("timm:mobileone_s0", 64, "stages", "stages.3.0.conv_scale.bn"),
    Member("timm:repvgg_a0", 64, "stages"),
    Member("timm:rexnet_100", 64, "features"),
    Member("timm:dla46_c", 64, "level5", "level5.root.bn"),
    Member("timm:dpn48b", 64, "features"),
    Member("timm:hrnet_w18_small", 64, "final_layer", "final_layer.1"),
    Member("timm:res2net50_48w_2s", 64, "layer4", "layer4.2.bn3"),
    Member("timm:resnest14d", 64, "layer4", "layer4.0.bn3"),
    Member("timm:skresnet18", 64, "layer4", "layer4.1.conv2.bn"),
    Member("timm:selecsls42", 64, "head.1", "head.1.1"),
    Member("timm:tresnet_m", 64, "body"),
    Member("timm:darknet17", 64, "stages"),
    Member("timm:legacy_xception", 64, "act4", "bn4"),
    Member("timm:nf_regnet_b0", 64, "final_act", "stages.3.5.conv1"),
    Member("timm:fastvit_t8", 64, "final_conv"),
    Member("timm:mobilevitv2_050", 64, "stages"),
    Member("timm:poolformerv2_s12", 64, "stages"),
    Member("timm:efficientformer_l1", 224, "norm", layout=tokens(0)),
    Member("timm:volo_d1_224", 64, "norm", "patch_embed.conv.7", layout=tokens(1), options=SIDE_64),
    Member("timm:convnextv2_atto", 64, "stages"),
    Member("timm:inception_next_atto", 64, "stages"),
    Member("timm:edgenext_xx_small", 64, "stages"),
    Member("timm:vit_tiny_patch16_224", 64, "blocks.2.norm1", layout=tokens(1), options=SHALLOW),
    Member("timm:deit_tiny_distilled_patch16_224", 64, "blocks.2.norm1", layout=tokens(2), options=SHALLOW),
    Member(
        "timm:eva02_tiny_patch14_224", 56, "blocks.2", layout=tokens(1), options={"img_size": 56, "depth": 3}
    ),
    Member("timm:swin_tiny_patch4_window7_224", 64, "norm", layout=maps_last, options=SHALLOW_SWIN),
    Member("timm:swinv2_tiny_window8_256", 64, "norm", layout=maps_last, options=SHALLOW_SWIN),
    Member("timm:pvt_v2_b0", 64, "stages"),
    Member("timm:mixer_s32_224", 64, "norm", layout=tokens(0), options=SIDE_64),
    Member("timm:xcit_nano_12_p16_224", 64, "cls_attn_blocks.1.norm1", layout=tokens(1), options=SIDE_64),
    Member("timm:cait_xxs24_224", 64, "blocks_token_only.1.norm1", layout=tokens(1), options=SHALLOW),
    Member("timm:coat_lite_tiny", 64, "serial_blocks4.1.norm1", layout=tokens(1), options=SIDE_64),
    Member("timm:crossvit_9_240", 240, "blocks.2.fusion.1.norm1", layout=tokens(1)),
    Member("timm:levit_128s", 128, "stages", layout=tokens(0), options={"img_size": 128}),
]


def build(member: Member) -> nn.Module:
    library, _, name = member.name.partition(":")
    if library == "timm":
        return timm.create_model(name, num_classes=CLASSES, **member.options)
    network = getattr(torchvision.models, name)(num_classes=CLASSES, **member.options)
    if name in ("alexnet", "vgg11", "vgg11_bn"):
        linears = [i for i, module in enumerate(network.classifier) if isinstance(module, nn.Linear)]
        widths = [network.classifier[linears[0]].in_features, NARROW, NARROW, CLASSES]
        for i, inside, outside in zip(linears, widths, widths[1:], strict=False):
            network.classifier[i] = nn.Linear(inside, outside)
    return network


def normalised(images: Tensor) -> Tensor:
    return (images.double() - MEAN) / STD


def wake(network: nn.Module, images: Tensor) -> None:
    """Give a network without training signals of a healthy size, so that no comparison is of nothing.

    Parameters that start at zero (last scales of residual branches, classifiers) get random values;
    batch normalisation gets the statistics of a batch.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in norms]
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(0, 0.2)
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        network(normalised(images))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum


# --- A network with what is asked of it, each answer once -------------------------------------------


class Subject:
    def __init__(self, member: Member) -> None:
        self.member = member
        side = member.size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = without_copies(build(member)).double().eval()
            photos = torch.rand(6, 3, side, side)
            wake(self.network, photos)
        self.images = clear_of_kinks(lambda images: self.network(normalised(images)), photos.split(2))
        self.found = state(self.network)
        self.model = opsin.Model(self.network, mean=(MEAN,) * 3, std=(STD,) * 3, size=side, name=member.name)

    @cached_property
    def plain(self) -> Tensor:
        """The gradient of the predicted class, by nothing but autograd."""
        x = self.images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.network(normalised(x)).amax(1).sum(), x)
        return gradient

    @cached_property
    def scores(self) -> Tensor:
        with torch.no_grad():
            return self.network(normalised(self.images)).amax(1)

    @cached_property
    def oracle(self) -> tuple[int, dict[str, Tensor]]:
        """How many rectifiers lie between the predicted class and the image, and both rules' answers."""
        x = self.images.clone().requires_grad_()
        watch = Rectifiers()
        with watch:
            scores = self.network(normalised(x)).amax(1)
        (plain,) = torch.autograd.grad(scores.sum(), x, retain_graph=True)
        assert close(plain, self.plain), "the replaced forward is another function"
        passed = watch.passed
        watch.rule = "guided"
        (guided,) = torch.autograd.grad(scores.sum(), x, retain_graph=True)
        watch.rule = "deconvnet"
        (projected,) = torch.autograd.grad(scores, x, scores.detach())
        return passed, {"guided_backprop": guided, "deconvnet": projected}

    @cached_property
    def answers(self) -> dict[str, Tensor | opsin.NetworkError]:
        return {
            "guided_backprop": self._answer(opsin.guided_backprop),
            "deconvnet": self._answer(opsin.deconvnet),
        }

    def _answer(self, technique: Callable[..., Any]) -> Tensor | opsin.NetworkError:
        try:
            return technique(self.model, self.images, target="predicted class").values
        except opsin.NetworkError as error:
            return error

    @cached_property
    def cam(self) -> opsin.Heatmap:
        return opsin.grad_cam(self.model, self.images, relu=False)

    @cached_property
    def overwritten(self) -> str | None:
        """The last layer with weights and a spatial extent whose result is overwritten in the forward."""
        seen: list[tuple[str, Tensor, Tensor]] = []
        times: dict[str, int] = {}

        def hook(name: str) -> Callable[..., None]:
            def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
                times[name] = times.get(name, 0) + 1
                if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3] > 1:
                    seen.append((f"{name}#{times[name]}", output, output.clone()))

            return record

        weighing = [
            (n, m) for n, m in self.network.named_modules() if any(True for _ in m.parameters(recurse=False))
        ]
        hooks = [module.register_forward_hook(hook(name)) for name, module in weighing]
        with torch.no_grad():
            self.network(normalised(self.images))
        for handle in hooks:
            handle.remove()
        changed = [name for name, now, then in seen if not torch.equal(now, then)]
        if not changed:
            return None
        layer = changed[-1].split("#")[0]
        return changed[-1] if times[layer] > 1 else layer


def plain_grad_cam(subject: Subject, call: str, layout: Callable[[Tensor], Tensor]) -> Tensor:
    """Grad-CAM before its last rectification; the hook hands on a clone, which nothing else can write to."""
    layer, _, number = call.partition("#")
    kept: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()

    handle = subject.network.get_submodule(layer).register_forward_hook(hook)
    scores = subject.network(normalised(subject.images.clone().requires_grad_())).amax(1)
    handle.remove()
    at = kept[int(number or 1) - 1]
    (gradient,) = torch.autograd.grad(scores.sum(), at)
    weights = layout(gradient).mean((2, 3), keepdim=True)
    return (weights * layout(at)).sum(1, keepdim=True).detach()


def state(network: nn.Module) -> dict[str, Any]:
    """All that a technique could leave behind: bits, versions, flags, hooks, classes of modules."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {
        "bits": {n: t.detach().clone() for n, t in tensors.items()},
        "identity": {n: (id(t), t.data_ptr(), t._version) for n, t in tensors.items()},
        "flags": {n: (t.requires_grad, t.grad is None) for n, t in tensors.items()},
        "modules": {
            n: (
                type(m),
                m.training,
                *sorted(vars(m)),
                *(len(v) for k, v in vars(m).items() if k.endswith("_hooks")),
            )
            for n, m in network.named_modules()
        },
    }


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= ROUNDING * b.norm()) and bool(b.any())


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors are small: on a busy machine threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


ALWAYS = [  # one of every trait; the others are for `make test-all`
    *("alexnet", "mobilenet_v2", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "MaxVit"),
    *("VisionTransformer", "resnet10t", "tf_efficientnet_lite0", "mobilenetv3_small_050", "ghostnet_050"),
    *("dla46_c", "nf_regnet_b0", "convnextv2_atto", "vit_tiny_patch16_224", "mixer_s32_224"),
    *("deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "levit_128s", "coat_lite_tiny"),
]
SUBJECTS = [
    pytest.param(m, id=m.name, marks=() if m.name.partition(":")[2] in ALWAYS else pytest.mark.thorough)
    for m in MEMBERS
]


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    subject = Subject(request.param)
    yield subject
    vars(subject).clear()  # a failed test's traceback would keep the network alive


# --- The tests --------------------------------------------------------------------------------------


def test_what_always_runs_is_of_the_census() -> None:
    assert set(ALWAYS) < {member.name.partition(":")[2] for member in MEMBERS}


def test_census_holds_every_family_of_torchvision() -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    families = {torchvision.models.get_model_builder(name).__module__ for name in names}
    held = [m.name.split(":")[1] for m in MEMBERS if m.name.startswith("torchvision:")]
    assert families <= {getattr(torchvision.models, name).__module__ for name in held}


def test_rules_differ_from_the_gradient_exactly_where_rectifiers_lie_before_the_image(
    subject: Subject,
) -> None:
    rectifiers, _ = subject.oracle
    assert close(opsin.saliency(subject.model, subject.images).extras["gradient"], subject.plain)
    signals = {"guided_backprop": torch.ones(2), "deconvnet": subject.scores}
    for name, answer in subject.answers.items():
        if rectifiers:
            plain = subject.plain * signals[name].view(-1, 1, 1, 1)
            assert isinstance(answer, Tensor), answer
            assert (answer - plain).norm() > 0.01 * plain.norm(), name
        else:
            assert isinstance(answer, opsin.NetworkError)
            assert "no rectifier" in str(answer)


def test_rules_agree_with_rectifiers_replaced_in_the_forward(subject: Subject) -> None:
    rectifiers, expected = subject.oracle
    assert (subject.scores > 0).all(), "deconvnet would project nothing: take another seed"
    for name, answer in subject.answers.items():
        assert isinstance(answer, Tensor) == bool(rectifiers)
        if isinstance(answer, Tensor):
            assert close(answer, expected[name]), name


def test_grad_cam_at_the_default_layer_agrees_with_plain_autograd(subject: Subject) -> None:
    member = subject.member
    assert subject.cam.record.arguments["layer"] == member.layer
    assert close(subject.cam.values, plain_grad_cam(subject, member.layer, member.layout))


def test_grad_cam_before_an_in_place_operation_agrees_with_plain_autograd(subject: Subject) -> None:
    layer = subject.member.overwritten
    assert subject.overwritten == layer
    if layer is not None:
        found = opsin.grad_cam(subject.model, subject.images, layer=layer, relu=False)
        assert close(found.values, plain_grad_cam(subject, layer, maps))


def test_network_is_bit_identical_afterwards(subject: Subject) -> None:
    assert subject.answers
    assert subject.cam
    if subject.member.overwritten:
        opsin.grad_cam(subject.model, subject.images, layer=subject.member.overwritten)
    now = state(subject.network)
    for name, tensor in subject.found["bits"].items():
        assert torch.equal(tensor, now["bits"][name]), name
    assert {k: v for k, v in now.items() if k != "bits"} == {
        k: v for k, v in subject.found.items() if k != "bits"
    }
