"""The page that explains photos: what it shows, in which order, and that it says what it shows."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nets
import opsin
from opsin.images import colour
from opsin.images.photos import in_photo
from opsin.pages import teaching
from opsin.pages.figures import figures
from opsin.pages.kinds import two_kinds
from opsin.pages.report import share
from opsin.registry import catalogue

LABELS = ["red cat, Felis", "blue dog", "red dog", "green bird", "fish"]
FAST = ("grad_cam", "saliency")


@pytest.fixture(scope="module")
def googlenet():
    return opsin.load()


@pytest.fixture(scope="module")
def model():
    return opsin.Model(
        nets.plain().float(), mean=[0.5] * 3, std=[0.25] * 3, size=24, labels=LABELS, name="own"
    )


@pytest.fixture(scope="module")
def photo():
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (40, 60, 3), dtype=np.uint8))


def test_a_photo_of_two_things_is_explained_for_both(googlenet):
    """A cat's face above a cup: the second class is not another cat."""
    report = opsin.explain(googlenet, opsin.sample(), techniques="grad_cam")
    (view,) = report.sections[0].views
    names = [target.name for target in view.targets]
    assert names[0] == "tiger cat"
    assert names[1] in ("cup", "espresso", "coffee mug")
    maps = view.answers[0].result
    rows = maps.values[:, 0].sum(2) @ torch.arange(7.0)
    centres = rows / maps.values.sum((1, 2, 3))
    assert centres[0] + 1 < centres[1]  # the cat is above the cup
    assert [target.name.partition(",")[0] for target in maps.record.targets] == names


def test_kinds_are_told_by_the_features_that_classes_rest_on():
    """Three classes of a linear head: two alike, one apart; the order of probability is 0, 1, 2."""
    weight = torch.tensor([[1.0, 0.2, 0], [0.9, 0.1, 0.1], [0, 0, 0.9]])
    pixel = torch.nn.Conv2d(3, 3, 1, bias=False)
    head = torch.nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        pixel.weight.copy_(torch.eye(3)[:, :, None, None])
        head.weight.copy_(weight)
    net = torch.nn.Sequential(pixel, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), head)
    model = opsin.Model(net, mean=[0.0] * 3, std=[1.0] * 3, size=16)
    image = torch.ones(1, 3, 16, 16)
    scores = model.run(image)["output"][0]
    assert scores.argsort(descending=True).tolist() == [0, 1, 2]
    assert two_kinds(model, image) == [0, 2]
    assert two_kinds(model, image * torch.tensor([1.0, 1, 0])[None, :, None, None])[0] == 0


def test_several_targets_stand_side_by_side_and_are_named_on_every_card(model, photo):
    for target in ("blue dog; fish", ["blue dog; fish"], ["blue dog", "fish"], [1, 4]):
        report = opsin.explain(model, photo, target=target, techniques=FAST)
        (view,) = report.sections[0].views
        assert [t.name for t in view.targets] == ["blue dog", "fish"]
        alone = opsin.grad_cam(model, view.image, target="fish")
        both = next(a.result for a in view.answers if a.technique.name == "grad_cam")
        torch.testing.assert_close(both.values[1], alone.values[0])
        page = report.html()
        cards = re.findall(r'data-title="([^"]*)"', page)
        assert {"Grad-CAM · blue dog", "Grad-CAM · fish", "Saliency map · fish"} <= set(cards)


def test_a_target_that_is_a_sum_is_named_on_every_card(model, photo):
    page = opsin.explain(model, photo, target="blue dog - red dog", techniques=FAST).html()
    assert "1 (blue dog) - 2 (red dog)" in page


def titles(report):
    """What stands above the figures of each group."""
    groups = [group for part in report.sections[0].parts() for group in part["groups"]]
    return [figure.target for group in groups for figure in group]


def test_networks_and_layers_are_compared(model, photo):
    other = opsin.Model(
        nets.seeded(nets.plain(), 5).float(),
        mean=[0.5] * 3,
        std=[0.25] * 3,
        size=24,
        labels=LABELS,
        name="second",
    )
    report = opsin.compare([model, other], photo, target="fish", techniques="grad_cam")
    assert titles(report) == ["fish, own", "fish, second"]
    layers = [name for name, call in model.calls.items() if call.extent not in (None, (1, 1))][:2]
    report = opsin.compare(model, photo, target="fish", layers=layers, techniques="grad_cam")
    assert titles(report) == [f"fish, {layer}" for layer in layers]
    maps = [view.answers[0].result for view in report.sections[0].views]
    assert [result.record.arguments["layer"] for result in maps] == layers


def test_a_technique_that_reads_no_layer_is_shown_once_for_all_layers(model, photo):
    report = opsin.compare(model, photo, target="fish", layers=["conv1", "conv2"], techniques=FAST)
    assert sorted(titles(report)) == ["fish", "fish, conv1", "fish, conv2"]


def test_each_network_says_what_it_sees_and_is_shown(model, photo):
    """Networks with the same class names are asked for the same classes; others for their own."""
    net = nets.seeded(nets.plain(), 5).float()
    settings = {"mean": [0.5] * 3, "std": [0.25] * 3, "size": 32}
    second = opsin.Model(net, labels=LABELS, name="second", **settings)
    third = opsin.Model(net, name="third", **settings)
    report = opsin.compare([model, second, third], photo, techniques="grad_cam")
    own, same, other = report.sections[0].views
    assert [target.name for target in own.targets] == [target.name for target in same.targets]
    assert all(target.name.startswith("class ") for target in other.targets)
    page = report.html()
    assert "How own and second and third see photo 0" in page
    for said in ("24 × 24", "32 × 32", "<h3>second</h3>", "<h3>third</h3>"):
        assert said in page


def test_a_network_that_cannot_be_differentiated_is_explained_by_what_needs_no_gradient(photo):
    class Cut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nets.plain().float()

        @torch.no_grad()
        def forward(self, x):
            return self.net(x)

    model = opsin.Model(Cut(), mean=[0.5] * 3, std=[0.25] * 3, size=24, labels=LABELS)
    report = opsin.explain(model, photo, techniques=["occlusion", "saliency"])
    assert [a.technique.name for a in report.sections[0].views[0].answers] == ["occlusion"]
    assert "no_grad" in dict(report.left_out)["saliency"]
    assert "Occlusion" in report.html()


def test_of_several_targets_those_that_fit_are_explained(model, photo):
    report = opsin.explain(model, photo, target="conv2:1; blue dog - fish", techniques="deconvnet")
    (answer,) = report.sections[0].views[0].answers
    assert answer.targets == (0,)
    assert "blue dog" in dict(report.left_out)["deconvnet"]


def test_a_technique_that_needs_more_than_a_photo_is_left_out_beside_others(model, photo):
    report = opsin.explain(model, photo, techniques=["saliency", "style_transfer"])
    assert dict(report.left_out) == {
        "style_transfer": "style_transfer needs a style: use `opsin style_transfer`"
    }
    with pytest.raises(opsin.InputError, match="style_transfer needs a style"):
        opsin.explain(model, photo, techniques="style_transfer")


def test_a_report_is_told_in_five_lines(model, photo):
    told = repr(opsin.explain(model, photo, target="fish", techniques=FAST, names=["a" * 300])).splitlines()
    assert len(told) <= 5
    assert all(len(line) <= 100 for line in told)
    assert "fish" in told[1]
    assert "grad_cam, saliency" in told[2]


@pytest.mark.parametrize(
    ("probability", "said"),
    [(0.0004, "< 0.1 %"), (0.0006, "0.1 %"), (0.5, "50.0 %"), (0.9994, "99.9 %"), (0.9997, "> 99.9 %")],
)
def test_no_class_is_said_to_be_impossible_or_certain(probability, said):
    assert share(probability) == said


def test_the_order_is_that_of_teaching():
    parts = teaching.arranged(catalogue.techniques().values())
    assert [part.question for part, _ in parts] == [part.question for part in teaching.PARTS]
    names = [technique.name for _, own in parts for technique in own]
    assert sorted(names) == sorted(catalogue.names())
    details = [t.name for part, own in parts for t in own if part.question == "Which details?"]
    assert details[:3] == ["saliency", "deconvnet", "guided_backprop"]
    for part in teaching.PARTS:
        assert set(part.order) <= set(names)
    assert set(teaching.STRIP) <= set(names)


def test_settings_reach_their_technique_and_no_other(model, photo):
    report = opsin.explain(
        model, photo, techniques=["occlusion", "saliency"], settings={"occlusion": {"patch": 8, "stride": 4}}
    )
    arguments = {a.technique.name: a.result.record.arguments for a in report.sections[0].views[0].answers}
    assert arguments["occlusion"]["patch"] == 8
    with pytest.raises(opsin.InputError, match="setting of occlusion 'pach'; nearest: patch"):
        opsin.explain(model, photo, techniques="occlusion", settings={"occlusion": {"pach": 8}})
    with pytest.raises(opsin.InputError, match="occlusion, which is not among the techniques"):
        opsin.explain(model, photo, techniques="saliency", settings={"occlusion": {"patch": 8}})


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_values_under_the_pointer_are_those_of_the_map(model, photo):
    report = opsin.explain(model, photo, target="fish", techniques="grad_cam")
    view = report.sections[0].views[0]
    (figure,) = figures(view.answers[0], 0, view, "fish")
    grey = torch.tensor(np.array(decoded(figure.probe.picture)), dtype=torch.float32)
    values = view.answers[0].result.values[0, 0]
    shown = figure.probe.low + (figure.probe.high - figure.probe.low) * grey / 255
    torch.testing.assert_close(shown, values, rtol=0, atol=(figure.probe.high - figure.probe.low) / 400)


def test_a_caution_stands_on_the_card_of_its_own_target(photo):
    """The first class has weights of zero only, so that its map alone is zero."""
    net = nets.plain().float()
    with torch.no_grad():
        net.fc.weight[0] = 0
    model = opsin.Model(net, mean=[0.5] * 3, std=[0.25] * 3, size=24, labels=LABELS)
    report = opsin.explain(model, photo, target=["red cat", "fish"], techniques="hires_cam")
    view = report.sections[0].views[0]
    dead, alive = (figures(view.answers[0], index, view, "")[0] for index in (0, 1))
    assert "the map is zero everywhere for this target" in dead.cautions
    assert alive.cautions == ()


def test_maps_lie_where_the_network_looked(model, photo):
    report = opsin.explain(model, photo, techniques="grad_cam")
    view = report.sections[0].views[0]
    (figure,) = figures(view.answers[0], 0, view, "")
    assert figure.overlay
    assert figure.box == pytest.approx([100 * edge for edge in in_photo((0, 0, 24, 24), 60, 40, model)])
    assert "33 % of the photo is cut away" in report.html()


def test_coarse_maps_are_drawn_without_stars():
    """A single cell: bilinear interpolation would be a star, four times as high along the axes as across."""
    values = torch.zeros(1, 1, 7, 7)
    values[0, 0, 3, 3] = 1
    drawn = colour.smooth(values, (224, 224))[0, 0]
    reach = 36
    along, across = drawn[112 + reach, 112], drawn[112 + round(reach / 2**0.5), 112 + round(reach / 2**0.5)]
    assert float(across / along) == pytest.approx(1, abs=0.25)
    assert float(drawn.mean()) == pytest.approx(1 / 49, rel=1e-4)
    constant = colour.smooth(torch.full((1, 1, 3, 5), 2.0), (33, 50))
    torch.testing.assert_close(constant, torch.full((1, 1, 33, 50), 2.0))


def test_a_network_without_classes_is_explained_by_its_strongest_channel(photo):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
    model = opsin.Model(nets.seeded(net).float(), mean=[0.5] * 3, std=[0.25] * 3, size=24, name="segments")
    report = opsin.explain(model, photo)
    page = report.html()
    assert "The network gives 2×24×24 for an image, not one score per class" in page
    (target,) = report.sections[0].views[0].targets
    assert target.name.startswith(f"{model.default_layer}:")
    assert {a.technique.name for a in report.sections[0].views[0].answers} >= {"saliency", "grad_cam"}


def test_a_page_and_its_folder_are_small_enough_to_keep(googlenet, tmp_path):
    report = opsin.explain(googlenet, opsin.sample())
    page = report.save(tmp_path / "out")
    assert page.stat().st_size < 1.5e6
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6e6
    text = page.read_text()
    assert "Why bvlc_googlenet says <em>tiger cat</em>" in text
    assert "Explaining <b>tiger cat</b>, score" in text
    assert "layer inception_5b" in text
    assert "http" not in text.replace("https://cs.stanford.edu", "")
    facts = json.loads((tmp_path / "out/record.json").read_text())
    assert facts["photos"]["photo 0"][0]["targets"][0]["name"] == "tiger cat"


# --- the command line


@pytest.fixture
def here(tmp_path, monkeypatch, photo):
    monkeypatch.chdir(tmp_path)
    photo.save("photo.png")
    Path("net.py").write_text(
        "import nets, opsin\n"
        "def good():\n"
        "    net = nets.plain().float()\n"
        f"    return opsin.Model(net, mean=[.5] * 3, std=[.25] * 3, size=24, labels={LABELS})\n"
    )
    return tmp_path


def test_what_can_be_done_is_done_and_the_rest_is_said(here, call):
    Path("broken.png").write_text("no image")
    code, out, err = call(
        "explain", "photo.png", "broken.png", "-m", "net.py:good", "--technique", "saliency",
        "--technique", "saliency", "--technique", "layers", "-t", "conv2:1", "-o", "out"
    )  # fmt: skip
    assert (code, out) == (1, "out/index.html\n")
    assert "left out: broken.png is not an image" in err
    assert "left out: layers: layers differentiates the cross-entropy" in err
    assert Path("out/photo.png/saliency/record.json").is_file()
    code, _, err = call("explain", "broken.png", "-m", "net.py:good", "-o", "none")
    assert code == 2
    assert not Path("none").exists()


def test_targets_and_settings_are_given_in_words(here, call):
    code, _, err = call(
        "explain", "photo.png", "-m", "net.py:good", "-t", "fish", "-t", "blue dog",
        "--technique", "occlusion", "--set", "occlusion.patch=8", "--set", "occlusion.stride=4", "-o", "out"
    )  # fmt: skip
    assert (code, err) == (0, "")
    record = json.loads(Path("out/photo.png/occlusion/record.json").read_text())["record"]
    assert record["arguments"]["patch"] == 8
    assert [target["name"] for target in record["targets"]] == ["fish", "blue dog"]


@pytest.mark.parametrize("words", [("-t", "fish; blue dog"), ("-t", "fish", "-t", "blue dog; fish")])
@pytest.mark.parametrize("command", ["explain", "compare"])
def test_no_target_between_semicolons_is_dropped(here, call, command, words):
    own = ("photo.png", "-m", "net.py:good", "--technique", "saliency", "-o", "out")
    assert call(command, *own, *words)[0] == 0
    record = json.loads(Path("out/photo.png/saliency/record.json").read_text())["record"]
    assert [target["name"] for target in record["targets"]] == ["fish", "blue dog"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("occlusion.pach=8", "nearest: patch"),
        ("oclusion.patch=8", "nearest: occlusion"),
        ("occlusion.patch", "TECHNIQUE.SETTING=VALUE"),
        ("occlusion.patch=big", "is a number, not 'big'"),
        ("occlusion.patch=0", "at least 1"),
        ("grad_cam.relu=perhaps", "true or false"),
        ("saliency.patch=1", "saliency"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(here, call, setting, said):
    code, _, err = call("explain", "photo.png", "-m", "net.py:good", "--set", setting, "-o", "out")
    assert code == 2
    assert said in err
    assert not Path("out").exists()


def test_a_setting_with_which_a_technique_fails_is_said(here, call):
    code, _, err = call(
        "explain", "photo.png", "-m", "net.py:good", "--set", "occlusion.patch=1000", "-o", "out"
    )
    assert code == 1
    assert "left out: occlusion: occlusion: a patch of 1000 pixels is larger than the image" in err


def test_networks_are_compared_from_the_command_line(here, call):
    code, out, err = call(
        "compare", "photo.png", "-m", "net.py:good", "-t", "fish", "-l", "conv1", "-l", "conv2",
        "--technique", "grad_cam", "-o", "out"
    )  # fmt: skip
    assert (code, out, err) == (0, "out/index.html\n", "")
    folders = sorted(path.name for path in Path("out/photo.png").iterdir() if path.is_dir())
    assert folders == ["grad_cam-conv1", "grad_cam-conv2"]


# --- in a browser


def test_the_page_can_be_explored(visit, model, photo, tmp_path):
    report = opsin.explain(model, photo, target="blue dog; fish", techniques=FAST)
    page = visit(report.save(tmp_path / "out").as_uri())
    assert page.title() == "Opsin · own on photo 0"
    figure = page.locator(".group figure[data-probe]").first
    figure.scroll_into_view_if_needed()
    figure.locator("img").hover()
    page.wait_for_selector("#value", state="visible")
    assert re.search(r"[\d.e-]+ +at row \d+ of \d+, column \d+ of \d+", page.inner_text("#value"))
    figure.locator("img").click()
    titles = [page.inner_text("dialog p")]
    page.keyboard.press("ArrowRight")
    titles.append(page.inner_text("dialog p"))
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("dialog p") == titles[0] != titles[1]
    page.keyboard.press("Escape")
    assert not page.locator("dialog").evaluate("d => d.open")
    page.keyboard.press("b")
    assert "blink" in page.locator("body").get_attribute("class")
    page.keyboard.press("b")
    page.locator("#opacity").evaluate("o => { o.value = 0; o.dispatchEvent(new Event('input')) }")
    assert page.locator(".group .overlay").first.evaluate("o => getComputedStyle(o).opacity") == "0"
    fish = page.locator(".group figure[data-target='fish']")
    assert fish.count() == len(FAST)
    page.locator(".classes button", has_text="fish").click()
    assert page.locator(".group figure[data-target='fish']:visible").count() == 0
    assert page.locator(".group figure[data-target='blue dog']:visible").count() == len(FAST)


def test_the_page_is_readable_without_script(browser, model, photo, tmp_path):
    report = opsin.explain(model, photo, techniques=FAST)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.save(tmp_path / "out").as_uri())
    assert page.locator("h2", has_text="Where does it look?").is_visible()
    assert page.locator(".controls").first.is_hidden()
    assert page.locator(".group figure").first.is_visible()
    context.close()
