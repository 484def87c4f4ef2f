"""Whatever is given for settings, targets and images: a result, or one error that is Opsin's."""

import math
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nets
import opsin
from opsin.images import colour
from opsin.objectives import parsing
from opsin.registry import catalogue

TECHNIQUES = catalogue.techniques()
SIZE = 40  # the default patch of occlusion fits in
MODEL = nets.model(nets.plain(), size=SIZE)
PHOTOS = nets.images(2, SIZE, dtype=torch.float32)
# where a technique takes them
SHORT = {
    **{"samples": 3, "searches": 1, "steps": 2, "octaves": 2, "clusters": 2, "size": SIZE},
    **{"scales": 1, "window": 7},
}
NEEDED = {"target": 1, "images": nets.images(1, SIZE, dtype=torch.float32, seed=9)}

NUMBERS = (-1, 0, 1, 1.5, -0.0, math.nan, math.inf, -math.inf, 1e308, -1e308, 1e-320, 10**20, -(10**400))
OTHERS = (None, True, "", "x", "1", b"\0", [], {}, (1, 2), 1j, object(), torch.zeros(2), torch.tensor(1.5))
LAYERS = ("conv1", "conv2", "fc", "output", "image", "relu2", "nowhere")
PARTS = ("0", "1", "3", "99", "-1", "1.5", "1e308", "1e400", "1e-400", "nan", "inf", "", "é", "x" * 300)
CALLS = ("neuron", "direction", "energy", "diversity", "norm", "total_variation", "blur")
SIGNS = (" + ", " - ", "+", "*", "; ", " ", "(", ")", "\0", "\n", "--", "@1,1")

endless = st.builds(lambda: "1" * 5000)  # more digits than Python reads
parts = st.sampled_from(PARTS[:4]) | st.sampled_from(PARTS) | endless
layers = st.sampled_from(LAYERS)
bodies = st.one_of(
    st.sampled_from(("beagle", "class 1", "predicted", "1", "1 (class 1)")) | parts,
    st.builds("{}:{}".format, layers, parts),
    st.builds("{}:{}@{},{}".format, layers, parts, parts, parts),
    st.builds(
        lambda name, given: f"{name}({', '.join(given)})",
        st.sampled_from(CALLS),
        st.lists(layers | parts, max_size=5),
    ),
)
weighted = bodies | st.builds("{}*{}".format, parts, bodies) | st.builds("({})".format, bodies)
texts = st.lists(
    st.tuples(weighted, st.sampled_from(SIGNS[:2]) | st.sampled_from(SIGNS)), min_size=1, max_size=3
).map(lambda pairs: "".join(word for pair in pairs for word in pair).removesuffix(pairs[-1][1]))


def one_word(text):
    """Whether a shell can hand it on: a command's arguments end at NUL."""
    return "\0" not in text


sides = st.just(SIZE) | st.integers(0, SIZE + 3)
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.bool, torch.complex64)
quick = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def called(name, images=PHOTOS, **chosen):
    technique = TECHNIQUES[name]
    given = technique.inputs(MODEL, images)
    few = {key: value for key, value in SHORT.items() if key in technique.parameters}
    required = {key: NEEDED[p.arg.role] for key, p in technique.parameters.items() if p.required}
    return technique.run(*given, **{**few, **required, **chosen})


def shows(result):
    """Every picture of a result can be drawn, and what is not finite in it is said."""
    assert result.pictures() is not None
    assert not result.not_finite() or any("NaN or infinite" in line for line in result.record.notes)


@pytest.mark.parametrize("name", TECHNIQUES)
@quick
@given(draw=st.data())
def test_any_settings_give_a_result_or_one_error(name, draw):
    parameters = TECHNIQUES[name].parameters
    few = st.lists(st.sampled_from(sorted(parameters)), min_size=1, max_size=2, unique=True)
    chosen = {key: draw.draw(st.sampled_from(NUMBERS + OTHERS), key) for key in draw.draw(few)}
    with suppress(opsin.OpsinError):
        shows(called(name, **chosen))


@pytest.mark.parametrize("name", [name for name, technique in TECHNIQUES.items() if technique.takes_images])
@quick
@given(
    shape=st.tuples(st.integers(1, 2), st.just(3), sides, sides) | st.lists(sides, max_size=5),
    fill=st.just(0.5) | st.sampled_from((0.0, 1.0, -1.0, 255.0, math.nan, math.inf)),
    dtype=st.just(torch.float32) | st.sampled_from(DTYPES),
)
def test_images_of_any_shape_give_a_result_or_one_error(name, shape, fill, dtype):
    images = torch.full(tuple(shape), fill if math.isfinite(fill) or dtype.is_floating_point else 0.0).to(
        dtype
    )
    with suppress(opsin.OpsinError):
        shows(called(name, images))


@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=texts | st.text(max_size=20))
def test_any_text_is_one_target_which_its_own_name_means_again_or_one_error(text):
    try:
        target = parsing.resolve(text, MODEL)
        score = target.score(MODEL.run(PHOTOS, [*target.layers]))
    except opsin.OpsinError:
        return
    again = parsing.resolve(target.name, MODEL)
    assert again.name == target.name
    torch.testing.assert_close(again.score(MODEL.run(PHOTOS, [*again.layers])), score, equal_nan=True)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a photo and an own network, to work in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "import nets\n\n\ndef net():\n    return nets.model(nets.plain(), size=40)\n"
    )
    colour.photo(PHOTOS[0]).save("photo.png")


@pytest.mark.parametrize("name", TECHNIQUES)
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(draw=st.data())
def test_any_words_in_the_command_line_end_in_success_or_one_error(name, here, call, draw):
    flags = st.sampled_from([f"--{key.replace('_', '-')}" for key in TECHNIQUES[name].parameters])
    values = st.sampled_from([*PARTS, *LAYERS, *map(str, NUMBERS), "--", "-", "--help="]) | texts.filter(
        one_word
    )
    chosen = draw.draw(st.lists(st.tuples(flags, values), min_size=1, max_size=2))
    photo = ["photo.png"] if TECHNIQUES[name].takes_images else []
    few = [f"--{key}={value}" for key, value in SHORT.items() if key in TECHNIQUES[name].parameters]
    network = ["-m", "net.py:net"] if TECHNIQUES[name].takes_model else []
    code, _, err = call(name, *photo, *network, "-o", "out", *few, *sum(chosen, ()))
    assert code in (0, 2)
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 6


STRANGE = {
    "on the meta device": lambda: PHOTOS.to("meta"),
    "sparse": PHOTOS.to_sparse,
    "complex": lambda: PHOTOS.to(torch.complex64),
    "under inference mode": torch.inference_mode()(PHOTOS.clone),
    "with a graph": lambda: PHOTOS.clone().requires_grad_() * 1,
    "not contiguous": lambda: PHOTOS.transpose(2, 3),
}
USABLE = ("under inference mode", "with a graph", "not contiguous")


@pytest.mark.parametrize("name", [name for name, technique in TECHNIQUES.items() if technique.takes_images])
@pytest.mark.parametrize("kind", STRANGE)
def test_images_of_a_strange_kind_work_or_are_refused_with_their_kind(name, kind):
    images = STRANGE[kind]()
    if kind in USABLE:
        shows(called(name, images))
    else:
        with pytest.raises(opsin.InputError, match=kind.removeprefix("on the ")):
            called(name, images)


@pytest.mark.parametrize("kind", [kind for kind in STRANGE if kind not in USABLE])
def test_style_images_of_a_strange_kind_are_refused_with_their_kind(kind):
    with pytest.raises(opsin.InputError, match=kind.removeprefix("on the ")):
        called("style_transfer", style=STRANGE[kind]())
