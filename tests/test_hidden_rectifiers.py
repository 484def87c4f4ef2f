"""A rectifier that a rule cannot see is passed over with a caution, and ordinary networks are without one."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import nets
import opsin
from hostile import networks_with_hidden_rectifiers as hidden
from opsin.base.job import CAUTION, noting
from opsin.gradients import operations, rules
from opsin.gradients.custom import CustomFunctions
from opsin.images import colour
from opsin.network import graph
from opsin.registry import catalogue
from oracle import Rectifiers

IMAGES = nets.images(2)
RULES = {"guided_backprop": "guided", "deconvnet": "deconvnet"}
EVERY = hidden.CUSTOM | {name: bend for name, (bend, _) in hidden.WRITTEN.items()}
PLACES = {"before": hidden.before_a_relu, "behind": hidden.behind_a_relu}
EQUAL = "whose output equals relu(input) on this run"
MAY_BE = "which may be rectifiers"
OTHER = "whose output is not relu(input) on this run"

each_rule = pytest.mark.parametrize("name", RULES)
each_place = pytest.mark.parametrize("place", PLACES)


def run(name: str, net: nn.Module, images: Tensor = IMAGES) -> opsin.Heatmap:
    return catalogue.get(name).run(nets.model(net), images, target=1)


def cautions(result: opsin.Result) -> list[str]:
    """What the rule passed over; a deconvnet has other cautions as well."""
    return [said for said in result.record.notes if said.startswith(CAUTION) and "passed over" in said]


def by_oracle(name: str, net: nn.Module) -> Tensor:
    """The rule by functions in the place of torch's rectifiers; those written otherwise are left alone."""
    mean, std = (IMAGES.new_tensor(values).view(-1, 1, 1) for values in (nets.MEAN, nets.STD))
    x = ((IMAGES - mean) / std).requires_grad_()
    with Rectifiers() as watch:
        scores = net.requires_grad_(False)(x)[:, 1]
    watch.rule = RULES[name]
    signal = torch.ones_like(scores) if watch.rule == "guided" else scores.detach().clamp(min=0)
    (gradient,) = torch.autograd.grad(scores, x, signal)
    return gradient / std


# --- what is passed over is named


@pytest.mark.parametrize("name", EVERY)
def test_what_hides_a_rectifier_gives_what_relu_gives(name):
    x = nets.images(1, dtype=torch.float64) - 0.5
    assert torch.equal(EVERY[name](x.clone()), x.relu())


@each_rule
@each_place
@pytest.mark.parametrize("custom", hidden.CUSTOM)
def test_a_custom_function_that_is_relu_is_named_as_such_with_a_caution(name, place, custom):
    result = run(name, PLACES[place](hidden.CUSTOM[custom]))
    (said,) = cautions(result)
    assert said.startswith(
        f"{CAUTION}the {RULES[name]} rule passed over custom functions ({custom} ×1) {EQUAL}"
    )
    assert f"the {RULES[name]} rule acted on Relu ×1" in result.record.notes


@each_rule
@each_place
@pytest.mark.parametrize("written", hidden.WRITTEN)
def test_a_rectifier_in_other_operations_is_named_with_a_caution(name, place, written):
    bend, operation = hidden.WRITTEN[written]
    (said,) = cautions(run(name, PLACES[place](bend)))
    passed = f"operations ({operation}) that a rectifier may be written with"
    assert said == f"{CAUTION}the {RULES[name]} rule passed over {passed}"


@each_rule
@pytest.mark.parametrize("bend", ["SavesInput", "NewStyle", "(x + |x|) / 2", "amax of a stack"])
def test_what_is_passed_over_keeps_its_own_derivative_which_is_far_from_the_rule(name, bend):
    net = hidden.before_a_relu(EVERY[bend])
    values = run(name, net).values
    torch.testing.assert_close(values, by_oracle(name, net), rtol=1e-9, atol=1e-12)
    ruled = run(name, nets.plain()).values
    assert (values - ruled).norm() > 0.2 * ruled.norm()


@each_rule
@pytest.mark.parametrize("custom", hidden.OTHERS)
def test_a_custom_function_that_is_something_else_is_named_as_such_with_a_caution(name, custom):
    (said,) = cautions(run(name, hidden.before_a_relu(hidden.OTHERS[custom])))
    assert said == f"{CAUTION}the {RULES[name]} rule passed over custom functions ({custom} ×1) {OTHER}"


@pytest.mark.parametrize("custom", hidden.UNDECIDED)
def test_a_custom_function_of_which_nothing_is_seen_may_be_a_rectifier(custom):
    (said,) = cautions(run("guided_backprop", hidden.before_a_relu(hidden.UNDECIDED[custom])))
    assert f"custom functions ({custom} ×1), {MAY_BE}" in said


def test_a_function_that_gives_what_it_is_given_is_no_relu_where_nothing_given_is_negative():
    net = nets.seeded(nets.Plain(nn.ReLU, lambda: lambda x: hidden.Same.apply(x.relu())))
    (said,) = cautions(run("guided_backprop", net))
    assert f"(Same ×1), {MAY_BE}" in said


@each_rule
def test_functions_that_are_called_several_times_and_read_by_several_are_counted_by_what_they_gave(name):
    relu, undecided = cautions(run(name, hidden.residual(hidden.SavesOutput.apply)))
    assert f"custom functions (SavesOutput ×3) {EQUAL}" in relu
    assert f"custom functions (SavesOutput ×1), {MAY_BE}" in undecided  # it is given what is positive already


def test_custom_functions_that_are_read_in_a_list_are_seen():
    def bend(x: Tensor) -> Tensor:
        return torch.cat([hidden.SavesOutput.apply(half) for half in x.split(2, 1)], 1)

    (said,) = cautions(run("guided_backprop", hidden.before_a_relu(bend)))
    assert f"custom functions (SavesOutput ×2) {EQUAL}" in said


def test_custom_functions_and_operations_of_several_kinds_are_each_named():
    def bend(x: Tensor) -> Tensor:
        return (
            hidden.Swish.apply(hidden.SavesInput.apply(x - 1).abs() - 0.1)
            + hidden.InPlace.apply(x - 2).sign()
        )

    assert [
        said.partition("passed over ")[2] for said in cautions(run("deconvnet", hidden.before_a_relu(bend)))
    ] == [
        f"custom functions (InPlace ×1, SavesInput ×1) {EQUAL}; it would act on torch.relu",
        f"custom functions (Swish ×1) {OTHER}",
        "operations (Abs ×1, Sign ×1) that a rectifier may be written with",
    ]


@each_rule
@pytest.mark.parametrize("bend", ["SavesInput", "(x + |x|) / 2"])
def test_a_network_whose_rectifiers_are_all_hidden_is_refused_and_told_so(name, bend):
    with pytest.raises(
        opsin.NetworkError, match=r"met no rectifier.*passed over .*(SavesInput|Abs) ×2.*saliency"
    ):
        run(name, hidden.alone(EVERY[bend]))


def test_a_custom_function_between_layer_and_image_is_named_by_guided_grad_cam():
    model = nets.model(hidden.before_a_relu(hidden.SavesInput.apply))
    (said,) = cautions(opsin.guided_grad_cam(model, IMAGES, target=1, layer="conv2"))
    assert f"custom functions (SavesInput ×1) {EQUAL}" in said


@each_rule
def test_a_custom_function_that_gives_the_target_itself_is_named(name):
    class Ends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return hidden.SavesOutput.apply(x)

    net = nets.seeded(nets.Chain(**dict(nets.Plain().named_children()), end=Ends()))
    (said,) = cautions(run(name, net))
    assert f"custom functions (SavesOutput ×1) {EQUAL}" in said


def test_a_custom_function_in_a_checkpointed_part_is_named():
    def bend(x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(hidden.SavesInput.apply, x, use_reentrant=False)

    (said,) = cautions(run("guided_backprop", hidden.before_a_relu(bend)))
    assert f"custom functions (SavesInput ×1) {EQUAL}" in said


def test_a_run_that_was_not_watched_leaves_open_what_custom_functions_are():
    seen = nets.model(hidden.before_a_relu(hidden.SavesInput.apply)).run(IMAGES, start="image")
    with noting() as notes, rules.applied(rules.guided, [seen["output"]]):
        pass
    assert f"{CAUTION}the guided rule passed over custom functions (SavesInput ×1), {MAY_BE}" in notes


@pytest.fixture
def photos(tmp_path):
    """A folder of two photos."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, image in enumerate(IMAGES):
        colour.photo(image).save(folder / f"{index}.png")
    return folder


def test_projections_of_units_are_shown_with_the_caution(photos, tmp_path):
    model = nets.model(hidden.before_a_relu(hidden.SavesInput.apply))
    made = opsin.scan(photos, model, tmp_path / "c", layers=["relu2"], workers=0)
    (said,) = cautions(opsin.units(model, made, channels=[0], projection="guided"))
    assert f"custom functions (SavesInput ×1) {EQUAL}" in said


def test_projections_of_units_whose_rectifiers_are_all_hidden_say_why_they_are_plain_gradients(
    photos, tmp_path
):
    model = nets.model(hidden.alone(hidden.SavesInput.apply))
    made = opsin.scan(photos, model, tmp_path / "c", layers=["conv2"], workers=0)
    found = opsin.units(model, made, channels=[0])
    assert found.facts["projection"] == "gradient"
    assert any(
        "plain gradients" in said and f"(SavesInput ×1) {EQUAL}" in said for said in found.record.notes
    )


# --- and always in the same words


@each_rule
def test_threads_and_repeated_calls_are_told_the_same(name):
    def bend(x: Tensor) -> Tensor:
        return hidden.SavesInput.apply(x).abs() + hidden.Swish.apply(x)

    model = nets.model(hidden.before_a_relu(bend))
    technique = catalogue.get(name)
    expected = technique.run(model, IMAGES, target=1)
    assert len(cautions(expected)) == 3
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: technique.run(model, IMAGES, target=1), range(8)))
    for result in results:
        assert result == expected
        assert result.record.notes == expected.record.notes


@each_rule
@pytest.mark.parametrize(
    "spelling", ["nn.ReLU", "F.relu in place", "clamp(0, 6)", "maximum(0, x)", "nn.PReLU"]
)
def test_watching_a_run_changes_no_number_and_no_layer(name, spelling):
    net = nets.seeded(nets.Plain(nets.SPELLINGS[spelling].make))
    plain = nets.model(net).run(
        IMAGES, ("conv1", "relu2", "output") if "nn." in spelling else (), start="image"
    )
    with CustomFunctions():
        watched = nets.model(net).run(IMAGES, tuple(plain.keys() - {"image"}), start="image")
    assert all(torch.equal(watched[layer], plain[layer]) for layer in plain)
    assert not cautions(run(name, net))


# --- ordinary networks have no cautions


def worried(net: nn.Module, images: Tensor) -> list[str]:
    """What a rule would pass over between a network's output and its image."""
    images = images.clone().requires_grad_()
    with CustomFunctions() as custom:
        output = net.eval().requires_grad_(False)((images - 0.5) / 0.25)
    with noting() as notes:
        try:
            with rules.applied(rules.guided, [output], custom):
                pass
        except opsin.NetworkError as error:  # without a rectifier
            notes.append(str(error))
    assert notes
    return [said for said in notes if "passed over" in said]


TORCHVISION = {
    "alexnet": 96,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 64,
    "vit_b_32": 224,
}
TIMM = {
    "cait_xxs24_224": 224,
    "coat_lite_mini": 224,
    "convnextv2_atto": 64,
    "csatv2": 64,  # pools by a maximum over tokens
    "edgenext_xx_small": 64,
    "efficientvit_b0": 64,
    "eva02_tiny_patch14_224": 224,
    "ghostnet_050": 64,
    "hiera_tiny_224": 224,
    "hrnet_w18_small": 64,
    "levit_128s": 224,
    "mobilevit_xxs": 64,
    "poolformer_s12": 64,
    "res2net50_14w_8s": 64,
    "resnest14d": 64,
    "sequencer2d_s": 224,
    "swinv2_cr_tiny_224": 224,
    "volo_d1_224": 224,
}


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", TORCHVISION)
def test_networks_of_torchvision_are_without_cautions(name):
    size = TORCHVISION[name]
    assert not worried(
        torchvision.models.get_model(name, weights=None), nets.images(1, size, dtype=torch.float32)
    )


@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm_are_without_cautions(name):
    assert not worried(timm.create_model(name), nets.images(1, TIMM[name], dtype=torch.float32))


def test_the_network_that_comes_with_the_install_is_without_cautions():
    model = opsin.load()
    result = opsin.guided_backprop(model, nets.images(1, 224, dtype=torch.float32))
    assert result.record.notes == ("the guided rule acted on Relu ×57",)


# --- which operations are known


STRAIGHT = {
    "sums": lambda x: 2 - (x + 1 - x / 3).sum(1, keepdim=True) * x.mean((2, 3), keepdim=True),
    "products": lambda x: torch.einsum("nchw,ncHw->nhH", x, x) @ x[:, 0],
    "matrices": lambda x: torch.baddbmm(x[0], x[1], x[0]) + torch.addmm(x[0, 0], x[1, 1], x[0, 1]),
    "convolutions": lambda x: F.conv_transpose2d(F.conv2d(x, torch.ones(2, 3, 3, 3)), torch.ones(2, 3, 3, 3)),
    "unfolding": lambda x: F.fold(F.unfold(x, 2, stride=2), 8, 2, stride=2),
    "shapes": lambda x: torch.stack(
        [x.flatten(1).view(2, 3, 8, 8), x.roll(1, 2).flip(3).transpose(2, 3)]
    ).unbind()[0],
    "pieces": lambda x: torch.cat([*x.chunk(3, 1), x[:, 1:], x.narrow(1, 0, 1), x.select(1, 0)[:, None]], 1),
    "indices": lambda x: (
        x[:, [2, 0]].index_select(1, torch.tensor([1])).gather(2, torch.zeros(2, 1, 1, 8).long())
    ),
    "repeats": lambda x: x.repeat(1, 2, 1, 1).expand(2, 6, 8, 8).squeeze().unsqueeze(0).tril(),
    "shuffles": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2), 2),
    "padding": lambda x: F.pad(F.pad(F.pad(x, (1,) * 4, "reflect"), (1,) * 4, "replicate"), (1,) * 4),
    "writing": lambda x: (
        x.clone().index_add(1, torch.tensor([0]), x[:, :1]).scatter_add(1, torch.zeros(1, 1, 1, 1).long(), x)
    ),
    "average pooling": lambda x: F.adaptive_avg_pool2d(F.avg_pool2d(x, 2), 3),
    "maximum pooling": lambda x: F.adaptive_max_pool2d(F.max_pool2d(x, 2), 3),
    "a maximum over positions": lambda x: (
        x.amax((2, 3)) + x.flatten(2).max(2).values + x.max() - x.amin(-1).mean(2)
    ),
    "scaling": lambda x: F.interpolate(F.interpolate(x, 5, mode="bilinear"), 12, mode="bicubic"),
    "nearest": lambda x: F.interpolate(F.interpolate(x, 5), 12, mode="nearest-exact"),
    "sampling": lambda x: F.grid_sample(x, torch.ones(2, 8, 8, 2) * x.mean(), align_corners=False),
    "batch normalisation": lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3)),
    "other normalisation": lambda x: F.layer_norm(F.group_norm(F.instance_norm(x), 3), [8]),
    "normalisation by hand": lambda x: (
        (x - x.mean(1, keepdim=True)) * (x.var(1, keepdim=True) + 1e-5).rsqrt()
    ),
    "unit length": lambda x: F.normalize(x, dim=1) / x.norm(dim=1, keepdim=True),
    "root mean square": lambda x: F.rms_norm(x, [8]) + x / x.square().mean(1, keepdim=True).add(1).sqrt(),
    "softmax": lambda x: x.softmax(1) + x.log_softmax(2) + x.logsumexp(3, keepdim=True),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "masked attention": lambda x: F.scaled_dot_product_attention(x, x, x, torch.eye(8).bool()),
    "dropout": lambda x: F.dropout(x, 0.5),
    "transforms": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * (1 + 1j)),
    "smooth functions": lambda x: (
        x.exp().log1p().sin() + x.cosh().reciprocal() + x.erf() + (x * x + 1).pow(0.3)
    ),
    "types": lambda x: x.double().half().float().contiguous(memory_format=torch.channels_last),
}
BENT = {
    "abs": lambda x: x.abs(),
    "sign": lambda x: x.sign(),
    "round": lambda x: x.round(),
    "floor": lambda x: x.floor(),
    "remainder": lambda x: x % 1,
    "minimum": lambda x: torch.minimum(x, 1 - x),
    "maximum": lambda x: torch.maximum(x, 1 - x),
    "maxout": lambda x: x.unflatten(2, (4, 2)).amax(3),
    "maxout of three": lambda x: x.max(1).values,
    "minimum of two": lambda x: x.unflatten(3, (4, 2)).min(4).values,
    "sort": lambda x: x.sort(1).values,
    "topk": lambda x: x.topk(2, 1).values,
    "median": lambda x: x.median(1).values,
    "cummax": lambda x: x.cummax(1).values,
    "hypotenuse": lambda x: torch.hypot(x, torch.zeros_like(x)),
    "copysign": lambda x: x.copysign(torch.ones_like(x)),
    "masked scatter": lambda x: torch.zeros_like(x).masked_scatter(x > 0, x[x > 0]),
}
NAMED = {
    "where": lambda x: torch.where(x > 0, x, 0),
    "masked fill": lambda x: x.masked_fill(x < 0, 0),
    "another bound": lambda x: x.clamp_min(0.1) + x.clamp(max=0) + x.clamp_max(0) + F.threshold(x, 1, 1),
    "smooth": lambda x: (
        F.silu(x) + F.gelu(x) + F.hardswish(x) + F.glu(x, 3).sum() + F.logsigmoid(x) + F.hardsigmoid(x)
    ),
}


def roles(function, x: Tensor) -> set[operations.Role]:
    """What the operations of a function are taken for."""
    return {operations.role(node) for node in graph.nodes([function(x).grad_fn])}


def signals() -> Tensor:
    return (nets.images(2, 8, dtype=torch.float32) - 0.5).requires_grad_()


@pytest.mark.parametrize("name", STRAIGHT)
def test_an_operation_without_a_kink_is_known(name):
    assert roles(STRAIGHT[name], signals()) <= {"straight", "activation"}


@pytest.mark.parametrize("name", BENT)
def test_an_operation_with_a_kink_that_is_no_activation_is_unknown(name):
    assert "unknown" in roles(BENT[name], signals())


@pytest.mark.parametrize("name", NAMED)
def test_an_activation_and_what_a_record_names_already_is_known(name):
    assert roles(NAMED[name], signals()) <= {"straight", "activation"}
    assert "activation" in roles(NAMED[name], signals())


def test_a_custom_function_is_none_of_torchs_operations_whatever_its_name():
    node = hidden.Clamp.apply(signals()).grad_fn
    assert operations.kind(node) == "Clamp"
    (said,) = cautions(run("guided_backprop", hidden.before_a_relu(hidden.Clamp.apply)))
    assert "custom functions (Clamp ×1)" in said
