"""What all attacks share: what they are asked for, what counts as a success, what is written."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import nets
import opsin
from opsin.optimise import fooling
from opsin.optimise.ball import Ball

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)
SEEN = [row[0].class_index for row in MODEL.predict(IMAGES)]
FREE = next(index for index in range(5) if index not in SEEN)  # a class that no photo is seen as


@pytest.mark.parametrize("given", ["8/255", " 8 / 255 ", "0.03137254901960784", 8 / 255, np.float64(8 / 255)])
def test_epsilon_is_a_number_or_a_fraction(given):
    result = opsin.fgsm(MODEL, IMAGES, epsilon=given)
    assert result.record.arguments["epsilon"] == pytest.approx(8 / 255)
    assert result == opsin.fgsm(MODEL, IMAGES, epsilon=8 / 255)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (8, "is 8/255 meant"),
        ("8", "is 8/255 meant"),
        ("16.0", "is 16/255 meant"),
        (-0.1, "at least 0"),
        ("-8/255", "at least 0"),
        ("300/255", "is 1.17647/255 meant"),
        (300, "at most 1"),
        ("8/0", "such as 8/255"),
        ("much", "'much'"),
        ("nan", "finite"),
        (None, "None"),
        (True, "True"),
    ],
)
def test_an_epsilon_that_cannot_be_is_refused_with_what_was_likely_meant(given, said):
    with pytest.raises(opsin.InputError, match=said):
        opsin.fgsm(MODEL, IMAGES, epsilon=given)


def test_the_command_line_takes_a_fraction_and_names_classes(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("import nets\n\n\ndef net():\n    return nets.model(nets.plain())\n")
    for name, image in zip("ab", IMAGES, strict=True):
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(f"{name}.png")
    names = "; ".join(str(index) for index in SEEN)
    words = ("a.png", "b.png", "-m", "net.py:net", "-o", "out")
    assert call("fgsm", *words, "--epsilon", "4/255", "--label", names, "--towards", FREE)[0] == 0
    results = [opsin.Result.load(f"out/{name}.png") for name in "ab"]
    assert [r.outcomes[0].label.class_index for r in results] == SEEN
    assert {r.outcomes[0].towards.class_index for r in results} == {FREE}
    code, _, err = call("fgsm", *words, "--epsilon", "8")
    assert (code, err) == (
        2,
        "opsin: fgsm: epsilon is in units of [0, 1], at most 1, not 8.0: is 8/255 meant?\n",
    )
    assert call("pgd", *words, "--towards", str(SEEN[0]))[0] == 2


def test_a_wrong_class_that_was_there_before_is_no_success():
    result = opsin.pgd(MODEL, IMAGES, epsilon=0.3, label=[FREE, SEEN[1]])
    assert [outcome.right for outcome in result.outcomes] == [False, True]
    assert not result.success[0]
    assert "not the label" in result.outcomes[0].verdict()
    assert any("1 were seen as another class before" in note for note in result.record.notes)


def test_towards_a_class_that_is_already_seen_or_is_the_label_is_refused():
    with pytest.raises(opsin.InputError, match="already seen in image 0"):
        opsin.fgsm(MODEL, IMAGES, towards=SEEN)
    with pytest.raises(opsin.InputError, match="is the label of image 0"):
        opsin.fgsm(MODEL, IMAGES, label=FREE, towards=FREE)
    with pytest.raises(opsin.InputError, match="already seen in image 0"):
        opsin.fgsm(MODEL, IMAGES[:1], label=FREE, towards=SEEN[0])


@pytest.mark.parametrize("given", ["conv2:1", "beagel", 5, -1, [1, 2, 3], 1.5])
def test_what_is_no_class_is_refused(given):
    for name in ("label", "towards"):
        with pytest.raises(opsin.InputError):
            opsin.pgd(MODEL, IMAGES, **{name: given})


def test_a_network_without_classes_is_refused():
    maps = nets.seeded(nets.Chain(conv=nn.Conv2d(3, 4, 3)))
    one = nets.seeded(nets.Chain(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(3, 1)))
    for net, shape in ((maps, r"\(2, 4, 14, 14\)"), (one, r"\(2, 1\)")):
        with pytest.raises(opsin.InputError, match=rf"{shape}.*classes"):
            opsin.fgsm(nets.model(net), IMAGES)


def test_what_survives_a_file_is_what_the_file_shows(tmp_path):
    result = opsin.pgd(MODEL, IMAGES, epsilon=0.1)
    result.save(tmp_path / "out")
    for index, outcome in enumerate(result.outcomes):
        name = [file for file, _ in result.files() if file.startswith("attacked")][index]
        pixels = np.asarray(Image.open(tmp_path / "out" / name))
        seen = MODEL.predict(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].double() / 255, 1)
        assert outcome.survives == (seen[0][0].class_index != outcome.label.class_index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ball", [{"epsilon": 1 / 255}, {"epsilon": 0.3}, {"l2": 0.3}])
def test_no_image_leaves_the_ball_or_the_range(dtype, ball):
    result = opsin.pgd(nets.model(nets.plain(dtype=dtype)), nets.images(2, dtype=torch.float32), **ball)
    lengths = result.largest if "epsilon" in ball else result.length
    assert (lengths <= next(iter(ball.values())) * (1 + 1e-5)).all()
    assert result.attacked.min() >= 0
    assert result.attacked.max() <= 1


def test_an_attack_that_left_its_ball_would_fail():
    goal = fooling.goal_of(MODEL, IMAGES, None, None)
    for wrong in (IMAGES + 0.2 * (IMAGES < 0.5), IMAGES * 0):
        with pytest.raises(AssertionError, match="outside"):
            fooling.evidence(MODEL, IMAGES, wrong, goal, Ball(IMAGES, 0.1))


def test_the_change_is_magnified_by_the_factor_that_is_said():
    result = opsin.fgsm(MODEL, 0.2 + 0.6 * IMAGES, epsilon="4/255")
    picture, factor = result.magnified(0)
    assert factor == 31
    torch.testing.assert_close(picture, (0.5 + 31 * result.change[0]).float())
    cells, total = result.cells(9)
    assert total == 6
    assert cells[1].title == "change × 31"
    assert "L∞ 4/255" in cells[1].caption


def test_a_batch_of_photos_that_differ_in_success_keeps_each_ones_own():
    whole = opsin.pgd(MODEL, nets.images(5), epsilon=0.04, stop=True)
    for index, part in enumerate(whole):
        alone = opsin.pgd(MODEL, nets.images(5)[index : index + 1], epsilon=0.04, stop=True)
        assert part.success == alone.success
        torch.testing.assert_close(part.attacked, alone.attacked, rtol=1e-9, atol=1e-9)
