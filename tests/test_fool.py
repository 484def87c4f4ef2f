"""The page that shows attacks side by side."""

import json
import math

import pytest
import torch
from PIL import Image

import nets
import opsin
from opsin.network.distances import feature_distances
from opsin.pages import fooled
from opsin.pages.curves import curve

MODEL = nets.model(nets.plain())
IMAGES = nets.images(2, dtype=torch.float32)


@pytest.fixture(scope="module", autouse=True)
def short():
    """Few points of the curve over ε."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fooled, "RADII", (1, 8))
        yield


QUICK = ["random_noise", "fgsm", "deepfool"]


@pytest.fixture(scope="module")
def report(short):
    return opsin.fool(MODEL, IMAGES, epsilon="8/255", attacks=QUICK, maps="grad_cam,saliency")


def test_every_attack_is_what_the_technique_itself_gives(report):
    for row, section in enumerate(report.sections):
        assert [technique.name for technique, _ in section.attacks] == QUICK
        own = opsin.fgsm(MODEL, IMAGES[row : row + 1], epsilon="8/255")
        assert torch.equal(section.attacks[1][1].attacked, own.attacked)


def test_the_facts_count_successes_of_those_seen_rightly_before():
    seen = [row[0].class_index for row in MODEL.predict(IMAGES)]
    wrong = (seen[1] + 1) % 5
    report = opsin.fool(MODEL, IMAGES, epsilon=0.3, attacks="fgsm", label=[seen[0], wrong])
    fgsm = report.facts()["attacks"]["fgsm"]
    assert (fgsm["right"], fgsm["success"]) == (1, 1)
    assert "sees another class already" in report.html()


def test_where_noise_alone_succeeds_the_page_says_that_other_attacks_prove_little():
    images = nets.images(4, dtype=torch.float32)[[2, 0]]
    shares = [opsin.random_noise(MODEL, x[None], epsilon=0.1).numbers["share"].item() for x in images]
    assert shares[0] > shares[1] == 0
    report = opsin.fool(MODEL, images, epsilon=0.1, attacks=["fgsm", "random_noise"])
    assert [section.by_noise for section in report.sections] == shares
    assert all(section.attacks[0][1].success[0] for section in report.sections)
    unsure, sure = report.html().split('<section id="photo-')[1:]
    assert f"in {100 * shares[0]:.0f} % of the draws: the network was unsure about it" in unsure
    assert "proves little on this photo" in unsure
    assert "proves little" not in sure


def test_the_maps_are_those_of_both_pictures_for_the_old_and_the_new_class(report):
    for section in report.sections:
        fooling = [t.name for t, attack in section.attacks if attack.success[0]]
        assert [technique.name for technique, _, _ in section.maps] == [n for n in fooling for _ in range(2)]
        for _, _, pictures in section.maps:
            assert len(pictures) == 4
            assert [caption.partition(",")[0] for caption, _ in pictures] == ["photo"] * 2 + ["attacked"] * 2


def test_the_page_says_factor_norms_and_both_curves(report, tmp_path, visit):
    report.save(tmp_path / "out")
    html = (tmp_path / "out" / "index.html").read_text("utf-8")
    for section in report.sections:
        for _, attack in section.attacks:
            assert f"The change × {attack.magnified(0)[1]};" in html
            assert f"L2 {float(attack.length[0]):.3g}" in html
    page = visit(f"file://{tmp_path / 'out' / 'index.html'}")
    assert page.locator("svg").count() == 4
    assert page.locator(".attack").count() == 2 * len(QUICK)
    narrow = visit(f"file://{tmp_path / 'out' / 'index.html'}", width=390)
    assert narrow.evaluate("document.documentElement.scrollWidth") <= 390
    facts = json.loads((tmp_path / "out" / "facts.json").read_text("utf-8"))
    assert facts["attacks"].keys() == set(QUICK)
    assert opsin.Result.load(tmp_path / "out" / "photo 1" / "deepfool").record.technique == "deepfool"


def test_distances_are_those_of_the_features():
    layers = ("conv1", "relu2", "fc")
    found = feature_distances(MODEL, IMAGES, IMAGES.flip(0), layers)
    for layer in layers:
        a, b = (MODEL.run(x, (layer,))[layer].flatten(1) for x in (IMAGES, IMAGES.flip(0)))
        torch.testing.assert_close(found[layer], (a - b).norm(dim=1) / a.norm(dim=1))
    assert next(iter(feature_distances(MODEL, IMAGES, IMAGES))) == "image"
    assert all((d == 0).all() for d in feature_distances(MODEL, IMAGES, IMAGES).values())


def test_a_layer_of_zeros_is_infinitely_far_from_others():
    net = nets.plain(dtype=torch.float32)
    net.conv1.bias.data.fill_(-1.0)
    net.conv1.weight.data.abs_().mul_(0.01)
    black, model = torch.zeros(1, 3, 16, 16), nets.model(net, mean=[0.0] * 3, std=[0.01] * 3)
    found = feature_distances(model, black, black + 1, ("relu1",))
    assert math.isinf(found["relu1"][0])
    assert feature_distances(model, black, black, ("relu1",))["relu1"][0] == 0


def test_a_curve_leaves_out_what_has_no_place():
    drawn = curve("t", "x", ["a", "b", "c"], {"one": [0.0, 0.1, math.inf]}, logarithmic=True)
    assert [text for _, _, text in drawn.lines[0].points] == ["one, b: 0.1"]
    whole = curve("t", "x", ["a", "b"], {"one": [0.0, 1.0]})
    assert [y for _, y, _ in whole.lines[0].points] == [198, 12]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"attacks": "grad_cam"}, "not an attack"),
        ({"attacks": "nothing"}, "unknown technique"),
        ({"maps": "pgd"}, "not a technique of maps"),
        ({"epsilon": 8}, "is 8/255 meant"),
        ({"label": [1, 2, 3]}, "3 targets for 2 images"),
        ({"towards": "beagel"}, "beagle"),
    ],
)
def test_bad_settings_are_refused(given, said):
    with pytest.raises(opsin.InputError, match=said):
        opsin.fool(MODEL, IMAGES, **given)


def test_an_attack_that_does_not_fit_is_left_out_and_said():
    net = nets.plain(dtype=torch.float32)
    seen = MODEL.predict(IMAGES[:1])[0][0].class_index
    report = opsin.fool(nets.model(net), IMAGES[:1], attacks=["fgsm", "deepfool"], towards=seen)
    assert [name for name, _ in report.left_out] == ["fgsm"]
    assert "already seen" in dict(report.left_out)["fgsm"]
    with pytest.raises(opsin.InputError, match="already seen"):
        opsin.fool(nets.model(net), IMAGES[:1], attacks="fgsm", towards=seen)


def test_a_network_without_a_gradient_is_shown_under_attacks_that_ask_for_none():
    model = nets.model(nets.detached())
    report = opsin.fool(model, IMAGES[:1], epsilon=0.1, attacks=["random_noise", "square", "pgd"])
    (section,) = report.sections
    assert [technique.name for technique, _ in section.attacks] == ["random_noise", "square"]
    assert dict(report.left_out).keys() == {"pgd", "fgsm"}
    assert [line.name for line in section.over_epsilon.lines] == ["Random noise, the control"]
    assert len(section.over_epsilon.lines[0].points) == len(fooled.RADII) + 1


def test_the_command_makes_the_page(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("import nets\n\n\ndef net():\n    return nets.model(nets.plain())\n")
    for name, image in zip("ab", IMAGES, strict=True):
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(f"{name}.png")
    words = ("fool", "a.png", "b.png", "-m", "net.py:net", "--attack", "fgsm")
    code, out, err = call(*words, "--maps", "grad_cam", "--epsilon", "2/255")
    assert (code, out, err) == (0, "fool/index.html\n", "")
    assert (tmp_path / "fool" / "a.png" / "fgsm" / "record.json").is_file()
    assert call(*words, "--epsilon", "8")[0] == 2
    seen = str(MODEL.predict(IMAGES[:1])[0][0].class_index)
    words = (*words[:1], "a.png", *words[3:], "--attack", "random-noise", "--attack", "deepfool", "-t", seen)
    code, _, err = call(*words, "-o", "towards")
    assert code == 1
    assert "left out: random_noise: the wanted class" in err
    code, _, err = call(*words, "--maps", "filters")
    assert code == 2
    assert "filters is not a technique of maps" in err
