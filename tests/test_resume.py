from dataclasses import replace

import pytest
import torch
from torch import Tensor

import nets
import opsin

MODEL = nets.model(nets.plain())
PHOTOS = nets.images(2, 32, dtype=torch.float32)

# a technique, its arguments, and the climb and the step at which it is stopped
CASES = {
    "class_model": ((), {"target": "beagle", "steps": 6, "blur": 0.5, "blur_every": 2}, 1, 3),
    "class_model of two": ((), {"target": "beagle; conv2:1", "steps": 5}, 1, 2),
    "feature_visualization": ((), {"target": "conv2:1", "steps": 6, "shift": 2, "pictures": 2}, 1, 4),
    "deepdream": ((PHOTOS,), {"layers": "conv2", "steps": 4, "octaves": 3, "shift": 3}, 2, 2),
}
every_case = pytest.mark.parametrize("case", CASES)


def stopping(climb, step):
    """A listener that has seen enough at this step of this climb, each counted from one."""
    labels = []

    def listen(told):
        if told.label not in labels:
            labels.append(told.label)
        if (len(labels), told.done) == (climb, step):
            raise opsin.StopEarly

    return listen


def stopped(case):
    inputs, settings, climb, step = CASES[case]
    with opsin.listening(stopping(climb, step)):
        return getattr(opsin, case.split()[0])(MODEL, *inputs, **settings)


def same(one, other):
    """Pictures, captions and numbers to the bit, and the state to go on from."""
    assert one.panels == other.panels
    for kind in ("numbers", "state"):
        first, second = getattr(one, kind), getattr(other, kind)
        assert first.keys() == second.keys()
        for name in first:
            assert torch.equal(first[name], second[name]), name


@every_case
def test_a_stopped_climb_goes_on_to_the_same_bits_as_one_without_a_break(case, tmp_path):
    inputs, settings, _, step = CASES[case]
    part = stopped(case)
    assert any(f"stopped at step {step} of {settings['steps']}" in line for line in part.record.notes)
    part.save(tmp_path / "part")
    whole = getattr(opsin, case.split()[0])(MODEL, *inputs, **settings)
    assert whole != part
    same(opsin.resume(tmp_path / "part", MODEL, steps=settings["steps"]), whole)


def test_a_result_in_memory_is_resumed_as_a_folder_is(tmp_path):
    part = stopped("deepdream")
    part.save(tmp_path / "part")
    same(opsin.resume(part, MODEL), opsin.resume(tmp_path / "part", MODEL))


def test_it_may_be_stopped_and_resumed_again():
    inputs, settings, *_ = CASES["deepdream"]
    first = stopped("deepdream")
    with opsin.listening(stopping(2, 1)):
        second = opsin.resume(first, MODEL)
    third = opsin.resume(second, MODEL)
    same(third, opsin.deepdream(MODEL, *inputs, **settings))


def test_a_finished_climb_goes_further_when_asked_for_more_steps():
    done = opsin.class_model(MODEL, "beagle", steps=3)
    same(opsin.resume(done, MODEL), done)
    same(opsin.resume(done, MODEL, steps=6), opsin.class_model(MODEL, "beagle", steps=6))


def test_lbfgs_goes_on_rising_and_says_that_it_forgot(tmp_path):
    settings = {"layers": "conv1,conv2", "size": 16, "source": 16, "steps": 12}
    with opsin.listening(stopping(1, 5)):
        part = opsin.texture(MODEL, PHOTOS[:1, :, :16, :16], **settings)
    part.save(tmp_path / "part")
    whole = opsin.resume(tmp_path / "part", MODEL)
    assert "resumed: L-BFGS began with an empty memory" in whole.record.notes
    loss = whole.numbers["0 loss"][:, 0]
    assert len(loss) == 12
    assert torch.equal(loss[:5], part.numbers["0 loss"][:, 0])
    assert (loss[5:].diff() <= 0).all()
    assert loss[-1] < 0.9 * loss[5]


def test_an_inversion_goes_on_where_it_was_stopped(tmp_path):
    inputs = {"images": PHOTOS[..., :16, :16], "layers": "conv1,conv2"}
    with opsin.listening(stopping(3, 2)):  # of photo 1 at conv2
        part = opsin.inversion(MODEL, steps=5, **inputs)
    assert [panel.group for panel in part.panels] == ["photo"] * 2 + ["conv1"] * 2 + ["conv2"]
    assert len(part.numbers["conv2 feature error"]) == 1
    part.save(tmp_path / "part")
    whole = opsin.resume(tmp_path / "part", MODEL)
    assert [panel.group for panel in whole.panels] == ["photo"] * 2 + ["conv1"] * 2 + ["conv2"] * 2
    assert whole.panels[:4] == part.panels[:4]
    scores = whole.state["photo 1, conv2/scores"]
    assert len(scores) == 5
    assert torch.equal(scores[:2], part.state["photo 1, conv2/scores"])


def test_the_record_of_a_resumed_climb_says_what_was_asked_in_all():
    part = stopped("class_model")
    done = opsin.resume(part, MODEL, steps=9)
    assert done.record.arguments == {**part.record.arguments, "steps": 9}
    assert len(done.numbers["scores"]) == 9


def test_another_network_is_refused_by_name():
    other = nets.model(nets.plain(seed=1), name="the other")
    part = stopped("class_model")
    with pytest.raises(opsin.InputError, match=r"made with Plain \(weights \w{12}\), not with the other"):
        opsin.resume(part, other)


def test_a_result_that_was_not_climbed_is_refused(tmp_path):
    opsin.saliency(MODEL, PHOTOS[..., :16, :16]).save(tmp_path / "out")
    with pytest.raises(opsin.InputError, match="only pictures of an iterative technique"):
        opsin.resume(tmp_path / "out", MODEL)
    with pytest.raises(opsin.InputError, match="not a saved result"):
        opsin.resume(tmp_path, MODEL)


def test_a_target_without_a_text_form_is_refused():
    own = opsin.Objective("brightness", ("image",), lambda a: a["image"].mean((1, 2, 3)))
    done = opsin.class_model(MODEL, own, steps=2)
    with pytest.raises(opsin.InputError, match="brightness"):
        opsin.resume(done, MODEL, steps=3)


def test_given_again_such_a_target_is_resumed():
    own = opsin.Objective("brightness", ("image",), lambda a: a["image"].mean((1, 2, 3)))
    done = opsin.class_model(MODEL, own, steps=2)
    same(opsin.resume(done, MODEL, steps=3, target=own), opsin.class_model(MODEL, own, steps=3))


def test_another_target_is_refused():
    with pytest.raises(opsin.InputError, match=r"target was 2 \(beagle\), not 0 \("):
        opsin.resume(stopped("class_model"), MODEL, target=0)


def test_fewer_steps_than_have_been_climbed_are_refused():
    with pytest.raises(opsin.InputError, match="already has 3 steps: pass at least as many, not 2"):
        opsin.resume(stopped("class_model"), MODEL, steps=2)


def test_what_is_no_result_is_refused():
    with pytest.raises(opsin.InputError, match="got Tensor"):
        opsin.resume(PHOTOS, MODEL)


def test_a_setting_that_there_is_none_of_is_told():
    with pytest.raises(TypeError, match="nosuch"):
        opsin.resume(stopped("class_model"), MODEL, nosuch=3)


def test_the_network_is_left_as_it_was():
    net = nets.plain().train()
    model = nets.model(net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with opsin.listening(stopping(1, 2)):
        part = opsin.class_model(model, "beagle", steps=4)
    opsin.resume(part, model)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())


def test_a_listener_that_raises_anything_else_leaves_nothing_for_the_next_climb():
    def listen(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), opsin.listening(listen):
        opsin.class_model(MODEL, "beagle", steps=4)
    assert isinstance(opsin.class_model(MODEL, "beagle", steps=1).images, Tensor)


@every_case
def test_the_record_says_what_was_climbed(case):
    assert any(line.startswith("climbed: ") for line in stopped(case).record.notes)


def test_layers_that_nobody_chose_are_named():
    made = opsin.deepdream(MODEL, PHOTOS, steps=1, octaves=1)
    assert made.record.notes == ("climbed: energy(relu1)",)


@pytest.mark.parametrize(
    "number", [torch.tensor(3j), torch.tensor(3, dtype=torch.uint16), torch.tensor(True)]
)
def test_a_state_whose_number_of_steps_is_of_another_kind_is_refused(number):
    part = stopped("class_model")
    (name,) = [name for name in part.state if name.endswith("/number")]
    damaged = replace(part, state={**part.state, name: number})
    with pytest.raises(opsin.InputError, match="the saved state is damaged"):
        opsin.resume(damaged, MODEL)


# techniques without a network, and the picture and step at which they are stopped
GROWN = {
    "efros_leung": ({"window": 5, "size": 20}, 2, 3),
    "quilting": ({"block": 12, "size": 40}, 2, 5),
    "heeger_bergen": ({"size": 20, "steps": 4, "scales": 2}, 2, 2),
}
every_growth = pytest.mark.parametrize("name", GROWN)


@every_growth
def test_what_grows_without_a_network_goes_on_to_the_same_bits(name, tmp_path):
    settings, picture, step = GROWN[name]
    heard = []

    def listen(told):
        heard.append(told.label)
        if len(set(heard)) == picture and heard.count(told.label) == step:
            raise opsin.StopEarly

    with opsin.listening(listen):
        part = getattr(opsin, name)(PHOTOS, **settings)
    assert part.stopped
    part.save(tmp_path / "part")
    whole = getattr(opsin, name)(PHOTOS, **settings)
    assert whole != part
    same(opsin.resume(tmp_path / "part"), whole)


def test_portilla_and_simoncellis_way_is_resumed_with_an_empty_memory():
    def listen(told):
        if told.done == 2:
            raise opsin.StopEarly

    with opsin.listening(listen):
        part = opsin.portilla_simoncelli(PHOTOS[:1], size=32, scales=1, steps=3)
    result = opsin.resume(part)
    assert not result.stopped
    assert "resumed: L-BFGS began with an empty memory" in result.record.notes
    assert len(result.numbers["0 score"]) == 3
    assert torch.equal(result.numbers["0 score"][:2], part.numbers["0 score"])


def test_what_does_not_go_with_a_technique_without_a_network_is_refused():
    part = opsin.heeger_bergen(PHOTOS[:1], size=20, steps=1, scales=2)
    with pytest.raises(opsin.InputError, match="takes no model"):
        opsin.resume(part, MODEL)
    assert len(opsin.resume(part, steps=3).numbers["0 score"]) == 3
    grown = opsin.efros_leung(PHOTOS[:1], window=5, size=16)
    with pytest.raises(opsin.InputError, match="no number of steps"):
        opsin.resume(grown, steps=10_000)
    with pytest.raises(opsin.InputError, match="needs the model"):
        opsin.resume(stopped("deepdream"))


def test_a_damaged_growth_is_refused():
    part = opsin.efros_leung(PHOTOS[:1], window=5, size=16)
    for key, value in (
        ("known", torch.ones(3, 3)),
        ("generator", torch.zeros(4)),
        ("number", torch.tensor(-1)),
    ):
        state = {**part.state, f"texture/{key}": value}
        with pytest.raises(opsin.InputError, match="damaged"):
            opsin.resume(replace(part, state=state))
