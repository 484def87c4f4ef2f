"""Accuracy over ε: what is counted, what is warned of, and going on where it was ended."""

import json
import math

import pytest
from PIL import Image
from torch import nn

import nets
import opsin
from opsin.optimise.smoothing import interval
from opsin.pages import protocol
from opsin.pages import robustness as evaluation

MODEL = nets.model(nets.plain())
IMAGES = nets.images(5)
SEEN = [row[0].class_index for row in MODEL.predict(IMAGES)]
LABELS = [(SEEN[0] + 1) % 5, *SEEN[1:]]  # the first is seen wrongly before
EPSILONS = ("2/255", "10/255")


@pytest.fixture(scope="module")
def report():
    return opsin.robustness(
        MODEL, IMAGES, LABELS, attacks=("fgsm", "pgd"), epsilons=EPSILONS, defences=("blur",), steps_each=5
    )


def test_a_photo_counts_as_right_if_it_was_before_and_still_is(report):
    blur = opsin.defended(MODEL, smooth="blur")
    for cell in report.cells:
        model = MODEL if cell.defence == "none" else blur
        made_on = model if cell.kind == "aware" else MODEL
        x = IMAGES
        if cell.attack != "clean":
            given = {"steps": 5, "stop": True} if cell.attack == "pgd" else {}
            x = getattr(opsin, cell.attack)(
                made_on, IMAGES, epsilon=cell.epsilon, label=LABELS, **given
            ).attacked
        clean, after = (
            [row[0].class_index == label for row, label in zip(model.predict(p), LABELS, strict=True)]
            for p in (IMAGES, x)
        )
        assert cell.right == sum(a and b for a, b in zip(clean, after, strict=True))
        assert cell.total == 5
        assert cell.between == interval(cell.right, 5)
    kinds = [(c.defence, c.kind, c.attack) for c in report.cells if c.epsilon != cell.epsilon]
    assert kinds == [
        ("none", "aware", "clean"),
        ("none", "aware", "fgsm"),
        ("none", "aware", "pgd"),
        ("blur", "aware", "clean"),
        ("blur", "unaware", "fgsm"),
        ("blur", "unaware", "pgd"),
        ("blur", "aware", "fgsm"),
        ("blur", "aware", "pgd"),
    ]


def test_it_goes_on_where_it_was_ended():
    kept, seen = {}, []
    given = {"attacks": ("fgsm", "random_noise"), "epsilons": EPSILONS}

    class EndError(Exception):
        pass

    def end(cells):
        kept.update({name: list(rows) for name, rows in cells.items()})
        if len(kept) == 3:
            raise EndError

    with pytest.raises(EndError):
        opsin.robustness(MODEL, IMAGES, LABELS, **given, keep=end)
    resumed = opsin.robustness(MODEL, IMAGES, LABELS, **given, known=kept, keep=lambda c: seen.append(len(c)))
    assert seen[0] == 4
    assert resumed.facts() == opsin.robustness(MODEL, IMAGES, LABELS, **given).facts()


def test_the_files_hold_the_numbers(report, tmp_path):
    report.save(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "index.html",
        "facts.json",
        "record.json",
        "accuracy.svg",
        "accuracy.png",
        "manifest.json",
    }
    facts = json.loads((tmp_path / "out" / "facts.json").read_text("utf-8"))
    assert facts["cells"][0]["accuracy"] == pytest.approx(0.8)
    html = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert "<svg" in html
    for name, cells in report.rows():
        assert name in html
        assert all(cell in html for cell in cells)


class Hiding(nn.Module):
    """Gives no gradient: its input is rounded to 64 levels."""

    def __init__(self):
        super().__init__()
        self.net = nets.plain()

    def forward(self, x):
        return self.net((x * 16).round() / 16)


def test_a_masked_gradient_is_warned_of():
    model = nets.model(Hiding(), labels=None)
    labels = [row[0].class_index for row in model.predict(IMAGES)]
    report = opsin.robustness(
        model, IMAGES, labels, attacks=("fgsm", "square"), epsilons=("40/255",), steps_each=60
    )
    assert any("square, without a gradient, leaves less" in text for text in report.cautions)
    assert any("exactly zero" in text for text in report.cautions)
    assert any("pgd at ε 0.5 leaves" in text for text in report.cautions)
    assert "masked" in report.html()


def test_a_network_without_a_gradient_is_measured_by_attacks_that_ask_for_none():
    model = nets.model(nets.detached())
    given = {"attacks": ("random_noise", "square"), "epsilons": ("8/255",), "steps_each": 5}
    report = opsin.robustness(model, IMAGES, LABELS, **given)
    (said,) = [text for text in report.cautions if "no attack with a gradient" in text]
    assert ".detach()" in said
    with pytest.raises(opsin.NetworkError, match="detach"):
        opsin.robustness(model, IMAGES, LABELS, attacks=("fgsm",))


def test_a_network_without_such_signs_is_not_warned_of(report):
    assert not [text for text in report.cautions if "masked" in text or "zero" in text]


def test_an_attack_that_knows_less_and_finds_more_is_warned_of():
    side = protocol.Contender("blur", opsin.defended(MODEL, smooth="blur"), MODEL)
    accuracy = {("unaware", "pgd", 0.1): 0.2, ("aware", "pgd", 0.1): 0.5}
    (said,) = [t for t in protocol.warnings(side, accuracy, IMAGES, LABELS) if "undefended" in t]
    assert "too weak" in said


def test_noise_that_changes_the_class_from_run_to_run_is_warned_of():
    net = nets.seeded(nets.Chain(flat=nn.Flatten(), fc=nn.Linear(3 * 16 * 16, 5)))
    model = nets.model(net)
    side = protocol.Contender("noise", opsin.defended(model, noise=1.0), model)
    images = nets.images(16)
    assert any("two runs" in text for text in protocol.warnings(side, {}, images, [0] * 16))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"attacks": ("deepfool",)}, "deepfool"),
        ({"epsilons": ("8",)}, "is 8/255 meant"),
        ({"defences": ("blurr",)}, "blur"),
        ({"defences": ("noise=much",)}, "is a number"),
        ({"defences": ("nois=1",)}, "noise"),
    ],
)
def test_bad_settings_are_refused(given, said):
    with pytest.raises(opsin.InputError, match=said):
        opsin.robustness(MODEL, IMAGES, LABELS, **given)


def test_what_has_no_accuracy_is_refused():
    with pytest.raises(opsin.InputError, match="2 labels for 5"):
        opsin.robustness(MODEL, IMAGES, [1, 2])
    maps = nets.model(nets.seeded(nets.Chain(conv=nn.Conv2d(3, 4, 3))))
    with pytest.raises(opsin.InputError, match="no class"):
        opsin.robustness(maps, IMAGES, LABELS)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Photos in folders named after the classes that are seen in them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("import nets\n\n\ndef net():\n    return nets.model(nets.plain())\n")
    for row, image in enumerate(IMAGES[1:]):
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        folder = tmp_path / "photos" / str(SEEN[row + 1])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    return tmp_path


WORDS = ("robustness", "net.py:net", "photos", "--attack", "fgsm", "--epsilon", "4/255")


def test_the_command_makes_page_table_and_json(here, call):
    code, out, err = call(*WORDS)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("none: fgsm: 100.0 %")
    assert out.splitlines()[-1] == "robustness/index.html"
    assert not list(here.glob("*.part.json"))
    code, out, _ = call(*WORDS, "--json", "--count", "2", "-o", "two")
    facts = json.loads(out)
    assert (code, facts["photos"]) == (0, 2)
    assert not math.isnan(facts["cells"][0]["accuracy"])


def test_a_killed_command_goes_on(here, call, monkeypatch):
    batches = []
    real = evaluation._right

    def dying(*given):
        batches.append(given)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(evaluation, "_right", dying)
    assert call(*WORDS)[0] != 0
    assert (here / "robustness.part.json").is_file()
    assert call(*WORDS)[0] == 0
    assert len(batches) == 3  # the one that was ended, once more
    assert not (here / "robustness.part.json").exists()


def test_photos_without_labels_are_refused(here, call):
    (here / "bare").mkdir()
    (here / "photos" / str(SEEN[1]) / "0.png").rename(here / "bare" / "0.png")
    code, _, err = call("robustness", "net.py:net", "bare")
    assert code == 2
    assert "no photo of bare has a label" in err
    table = here / "labels.csv"
    table.write_text(f"file,label\n0.png,{SEEN[1]}\n")
    code, out, _ = call(*WORDS[:2], "bare", *WORDS[3:], "--labels", table)
    assert code == 0
    assert out.startswith("none: fgsm: 100.0 %")
