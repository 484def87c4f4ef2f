"""Networks that torch cannot differentiate are refused with the cause; errors of their own pass unchanged."""

import pytest
import torch

import nets
import opsin
from hostile import networks_that_cannot_be_differentiated as hostile
from opsin.images import colour
from opsin.network.regions import fields
from opsin.objectives.features import gram, gram_match
from opsin.registry import catalogue

SIZE = 40
IMAGES = nets.images(1, h=SIZE)
FROM_THE_IMAGE: dict[str, dict[str, object]] = {
    "saliency": {},
    "guided_backprop": {},
    "deconvnet": {},
    "guided_grad_cam": {},
    "smooth_grad": {"samples": 2},
    "integrated_gradients": {"samples": 2},
    "layers": {},
    "class_model": {"steps": 2},
    "deepdream": {"steps": 2, "octaves": 2, "layers": "parts.conv2"},
    "inversion": {"steps": 2, "layers": "parts.conv2"},
}
WITHOUT_GRADIENTS: dict[str, dict[str, object]] = {
    "occlusion": {},
    "score_cam": {"layer": "parts.conv2"},  # a default layer is looked for by a gradient
}
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of checkpoints
A_RECTIFIER_IN_PLACE = "a rectifier in place on two views"


def run(name: str, net: torch.nn.Module, **settings: object) -> opsin.Result:
    technique = catalogue.get(name)
    given = (IMAGES,) if technique.takes_images else ()
    towards = {"target": 1} if "target" in technique.parameters else {}
    return technique.run(nets.model(net, size=SIZE), *given, **towards, **settings)


@pytest.mark.parametrize("net", hostile.UNDIFFERENTIABLE)
@pytest.mark.parametrize("name", FROM_THE_IMAGE)
def test_a_network_that_torch_cannot_differentiate_is_refused_with_the_cause(name, net):
    with pytest.raises(opsin.NetworkError) as raised:
        run(name, hostile.undifferentiable(net), **FROM_THE_IMAGE[name])
    _, cause = hostile.UNDIFFERENTIABLE[net]
    assert cause in str(raised.value) or "rule cannot see" in str(raised.value)
    assert "\n" not in str(raised.value) or "failed on an input" in str(raised.value)


@pytest.mark.parametrize("net", hostile.UNDIFFERENTIABLE)
@pytest.mark.parametrize("name", WITHOUT_GRADIENTS)
def test_a_technique_that_needs_no_gradient_works_on_it(name, net):
    result = run(name, hostile.undifferentiable(net), **WITHOUT_GRADIENTS[name])
    assert result.values.isfinite().all()


def test_a_network_whose_default_layer_cannot_be_found_by_a_gradient_is_refused_with_the_cause():
    net = nets.Plain()
    net.fc = nets.Chain(linear=net.fc, change=hostile.Reentrant())
    with pytest.raises(opsin.NetworkError, match=r"torch cannot differentiate.*use_reentrant"):
        nets.model(nets.seeded(net)).default_layer  # noqa: B018


def test_receptive_fields_of_such_a_network_are_refused_with_the_cause():
    model = nets.model(hostile.undifferentiable(A_RECTIFIER_IN_PLACE), size=SIZE)
    with pytest.raises(opsin.NetworkError, match=r"torch cannot differentiate.*inplace"):
        fields(model, "parts.conv2")


def test_a_climb_in_tiles_on_such_a_network_is_refused_with_the_cause():
    model = nets.model(hostile.undifferentiable(A_RECTIFIER_IN_PLACE), size=SIZE)
    wanted = gram(model.run(IMAGES, ("parts.conv2",)).maps("parts.conv2"))
    climb = opsin.ascend(
        model, gram_match("parts.conv2", wanted), IMAGES, opsin.Recipe(steps=1, rate=0.1, tile=SIZE // 2)
    )
    with pytest.raises(opsin.NetworkError, match=r"torch cannot differentiate.*inplace"):
        list(climb)


def test_projections_of_units_of_such_a_network_are_refused_with_the_cause(tmp_path):
    (tmp_path / "photos").mkdir()
    colour.photo(IMAGES[0]).save(tmp_path / "photos" / "0.png")
    model = nets.model(hostile.undifferentiable(A_RECTIFIER_IN_PLACE), size=SIZE)
    made = opsin.scan(tmp_path / "photos", model, tmp_path / "c", layers=["parts.flat"], workers=0)
    with pytest.raises(opsin.NetworkError, match=r"torch cannot differentiate.*inplace"):
        opsin.units(model, made, channels=[0], projection="gradient")


@pytest.mark.parametrize("name", FROM_THE_IMAGE)
@pytest.mark.parametrize(
    "error",
    [RuntimeError("mine"), NotImplementedError("mine"), ValueError("mine"), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
def test_what_the_backward_of_a_custom_function_raises_passes_unchanged(name, error):
    with pytest.raises(type(error)) as raised:
        run(name, hostile.failing(error), **FROM_THE_IMAGE[name])
    assert raised.value is error


@pytest.mark.parametrize("name", FROM_THE_IMAGE)
def test_a_backward_that_lacks_memory_is_no_fault_of_the_network(name):
    with pytest.raises(
        opsin.OutOfMemoryError, match=f"{name} ran out of memory: give fewer or smaller"
    ) as raised:
        run(name, hostile.without_memory(), **FROM_THE_IMAGE[name])
    assert "cannot differentiate" not in str(raised.value)
