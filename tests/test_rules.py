import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import nets
import opsin
import reference
from opsin.gradients import rules
from opsin.registry import catalogue
from opsin.techniques.gradients.saliency import saliency

IMAGES = nets.images(2)
NORMALISED = torch.stack([torch.from_numpy(reference.normalised(reference.array(image))) for image in IMAGES])
CALLS = {"relu", "relu6", "hardtanh", "threshold", "clamp", "clip", "clamp_min", "maximum", "max"} | {
    "leaky_relu",
    "prelu",
    "rrelu",
}
GATED = {"guided_backprop": True, "deconvnet": False}


class Rectified(torch.autograd.Function):
    """What a rectifier gave, with the positive part of the signal going on to `x`."""

    @staticmethod
    def forward(_context, _x: Tensor, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(_context, signal: Tensor) -> tuple[Tensor, None]:
        return signal.clamp(min=0), None


class Oracle(TorchFunctionMode):
    """The second way to a rule: every call of a rectifier in the forward is replaced by another function."""

    def __init__(self, *, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.met = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__.strip("_") not in CALLS:
            return function(*args, **(kwargs or {}))
        self.met += 1
        x = next(a for a in args if isinstance(a, Tensor) and a.requires_grad)
        y = function(*(x.clone() if a is x else a for a in args), **(kwargs or {}))
        return Rectified.apply(y, y.detach()) if self.gated else Rectified.apply(x, y.detach())


def by_oracle(name: str, net: nn.Module, target: int) -> Tensor:
    net.requires_grad_(False)
    x = NORMALISED.clone().requires_grad_()
    with Oracle(gated=GATED[name]) as oracle:
        scores = net(x)[:, target]
    assert oracle.met
    signal = torch.ones_like(scores) if GATED[name] else scores.detach().clamp(min=0)
    (gradient,) = torch.autograd.grad(scores, x, signal)
    return gradient / torch.tensor(nets.STD, dtype=torch.float64).view(-1, 1, 1)


def by_hand(name: str, net: nn.Module, image: Tensor, target: int, spelling: nets.Spelling) -> np.ndarray:
    a = reference.forward(net, reference.array(image), spelling)
    score = 1.0 if GATED[name] else max(a["output"][target], 0)
    rule = reference.guided if GATED[name] else reference.deconvnet
    return reference.backward(net, a, score * reference.one_hot(target), rule=rule, rectifier=spelling)


def run(name: str, net: nn.Module, target: object) -> opsin.Heatmap:
    return catalogue.get(name).run(nets.model(net), IMAGES, target=target)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize(("spelling", "net"), nets.rectified(), ids=nets.SPELLINGS)
def test_every_spelling_of_a_rectifier_follows_the_rule(name, spelling, net):
    written = nets.SPELLINGS[spelling]
    target = int(reference.forward(net, reference.array(IMAGES[0]), written)["output"].argmax())
    result = run(name, net, target)
    assert any("×2" in said for said in result.record.notes)
    for image, got in zip(IMAGES, result.values, strict=True):
        expected = by_hand(name, net, image, target, written)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result.values, by_oracle(name, net, target), rtol=1e-9, atol=1e-12)
    assert result.values[0].any()


@pytest.mark.parametrize(("spelling", "net"), nets.rectified(), ids=nets.SPELLINGS)
def test_the_census_tells_the_rules_from_the_gradient(spelling, net):
    # so that the test above can fail: negative signals arrive, and gates are closed where signals pass
    score = nets.model(net).run(IMAGES)["output"].detach().clamp(min=0)
    target = int(score[0].argmax())
    gradient = saliency(nets.model(net), IMAGES, target=target).extras["gradient"][0]
    guided, projected = (by_oracle(name, net, target)[0] for name in GATED)
    projected = projected / score[0, target]
    for one, other in ((gradient, guided), (gradient, projected), (guided, projected)):
        assert (one - other).norm() > 0.05 * other.norm()


def test_saturation_of_a_bounded_rectifier_is_met_in_the_census():
    for image in IMAGES:
        a = reference.forward(nets.plain(), reference.array(image), nets.SPELLINGS["nn.ReLU6"])
        assert (a["conv1"] > 6).any()
        assert (a["conv2"] > 6).any()


class Shared(nn.Module):
    """Residual, with one in-place rectifier for all, as ResNet's blocks are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(x + self.inner(x))
        a, b = x.chunk(2, 1)
        return self.fc(torch.cat([F.relu(1 - a), b.clamp(0, 6)], 1).mean((2, 3)))


@pytest.mark.parametrize("name", GATED)
def test_reused_mixed_and_branching_rectifiers_follow_the_rule(name):
    net = nets.seeded(Shared())
    target = int(net(NORMALISED)[0].argmax())
    result = run(name, net, target)
    (said,) = (said for said in result.record.notes if "rule acted" in said)
    assert "Relu ×3" in said
    assert "Clamp ×1" in said
    assert result.values[0].any()
    torch.testing.assert_close(result.values, by_oracle(name, net, target), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize(("activation", "net"), nets.smooth(), ids=nets.SMOOTH)
def test_a_network_without_rectifiers_is_refused_and_told_what_it_has(name, activation, net):
    with pytest.raises(opsin.NetworkError, match=rf"met no rectifier.*{activation} ×2.*saliency"):
        run(name, net, 0)


@pytest.mark.parametrize("activation", nets.SMOOTH)
def test_smooth_activations_keep_their_derivative_and_are_named_in_the_record(activation):
    net = nets.seeded(nets.Plain(nets.SMOOTH[activation], nn.ReLU))
    result = run("guided_backprop", net, 0)
    assert "the guided rule acted on Relu ×1" in result.record.notes
    assert f"not rectifiers, so left unchanged: {activation} ×1" in result.record.notes
    torch.testing.assert_close(result.values, by_oracle("guided_backprop", net, 0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "bend",
    [
        lambda x: F.hardtanh(x, -1.0, 1.0),
        lambda x: x.clamp(-1, 1),
        lambda x: x.clamp(max=0),
        lambda x: x.clamp(min=0.5),
        lambda x: F.threshold(x, 0.5, 0.0),
        lambda x: torch.maximum(x, torch.ones_like(x)),
        lambda x: torch.maximum(x, -x),
    ],
    ids=[
        "hardtanh",
        "clamp",
        "clamp max",
        "clamp min 0.5",
        "threshold 0.5",
        "maximum with 1",
        "maximum of two",
    ],
)
def test_a_kink_elsewhere_than_at_zero_is_no_rectifier(bend):
    net = nets.seeded(nets.Plain(lambda: bend, nn.ReLU))
    assert "the guided rule acted on Relu ×1" in run("guided_backprop", net, 0).record.notes
    net = nets.seeded(nets.Plain(lambda: bend))
    with pytest.raises(opsin.NetworkError, match="met no rectifier"):
        run("guided_backprop", net, 0)


class InPlaceOnAView(nets.Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).permute(0, 2, 3, 1)  # (n, c, h, w) -> (n, h, w, c)
        x = F.relu(x, inplace=True).permute(0, 3, 1, 2)
        return self.fc(self.flat(self.mean(self.relu2(self.conv2(self.pool(x))))))


@pytest.mark.parametrize("name", GATED)
def test_a_rectifier_that_overwrites_a_view_is_acted_on_or_the_network_refused(name):
    expected = run(name, nets.plain(), 1).values
    try:
        values = run(name, nets.seeded(InPlaceOnAView()), 1).values
    except opsin.NetworkError:
        return
    torch.testing.assert_close(values, expected)


class Checkpointed(nets.Plain):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(lambda x: self.pool(self.relu1(self.conv1(x))), x, use_reentrant=self.reentrant)
        return self.fc(self.flat(self.mean(self.relu2(self.conv2(x)))))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", GATED)
def test_a_checkpointed_network_that_hides_its_rectifiers_is_refused(name):
    with pytest.raises(opsin.NetworkError, match="checkpointing"):
        run(name, nets.seeded(Checkpointed(reentrant=True)), 1)


@pytest.mark.parametrize("name", GATED)
def test_a_checkpointed_network_that_shows_its_rectifiers_follows_the_rule(name):
    got = run(name, nets.seeded(Checkpointed(reentrant=False)), 1).values
    assert torch.equal(got, run(name, nets.plain(), 1).values)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", GATED)
def test_a_scripted_network_is_refused(name):
    scripted = torch.jit.script(nets.plain())
    for _ in range(3):  # the scripting engine changes what it runs after the first calls
        with pytest.raises(opsin.OpsinError, match=r"(?i)script"):
            run(name, scripted, 1)


@pytest.mark.parametrize("name", GATED)
def test_a_compiled_network_is_run_uncompiled(name):
    compiled = torch.compile(nets.plain(), backend="aot_eager")
    assert torch.equal(run(name, compiled, 1).values, run(name, nets.plain(), 1).values)


@pytest.mark.parametrize("name", GATED)
def test_a_rule_ends_with_its_call(name):
    model = nets.model(nets.plain())
    before = saliency(model, IMAGES, target=0)
    kept = model.run(IMAGES, start="image")
    catalogue.get(name).run(model, IMAGES, target=0)
    assert saliency(model, IMAGES, target=0) == before
    (gradient,) = torch.autograd.grad(kept["output"][:, 0].sum(), kept["image"])
    assert torch.equal(gradient, before.extras["gradient"])


def test_a_rule_holds_inside_its_block_alone():
    seen = nets.model(nets.plain()).run(IMAGES, start="image")

    def gradient() -> Tensor:
        return torch.autograd.grad(seen["output"][:, 0].sum(), seen["image"], retain_graph=True)[0]

    before = gradient()
    with rules.applied(rules.guided, [seen["output"]]):
        inside = gradient()
    with pytest.raises(ValueError, match="no"), rules.applied(rules.deconvnet, [seen["output"]]):
        raise ValueError("no")
    assert not torch.allclose(inside, before)
    assert torch.equal(inside, run("guided_backprop", nets.plain(), 0).values)
    assert torch.equal(gradient(), before)


def test_the_oracle_leaves_other_calls_alone():
    x = NORMALISED.clone().requires_grad_()
    with Oracle(gated=True) as oracle:
        y = F.max_pool2d(torch.sigmoid(x), 2)
    assert not oracle.met
    assert torch.equal(y, F.max_pool2d(torch.sigmoid(NORMALISED), 2))
