"""Textures side by side: the measures by slow formulas, the page, the command."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nets
import opsin
from opsin.pages import textures as page
from opsin.statistics import measures
from opsin.statistics.haralick import SIGNED

SAMPLE = nets.images(1, 40, 44, dtype=torch.float32)
QUICK = {
    "quilting": {"block": 12},
    "efros_leung": {"window": 5},
    "heeger_bergen": {"steps": 1, "scales": 1},
    "portilla_simoncelli": {"steps": 1, "scales": 1},
}
SMALL = {"size": 32, "source": 44}


def test_copies_are_counted_word_for_word():
    made = nets.images(1, 20, 24, seed=3, dtype=torch.float32)
    made[..., 2:13, 3:15] = SAMPLE[..., 9:20, 10:22]
    bytes_of = [(image[0] * 255).round().numpy().astype(np.uint8) for image in (made, SAMPLE)]
    found = [
        {
            image[:, r : r + 8, c : c + 8].tobytes()
            for r in range(image.shape[1] - 7)
            for c in range(image.shape[2] - 7)
        }
        for image in bytes_of
    ]
    count = sum(
        bytes_of[0][:, r : r + 8, c : c + 8].tobytes() in found[1] for r in range(13) for c in range(17)
    )
    assert count == 4 * 5
    assert measures.copied(made, SAMPLE) == pytest.approx(count / (13 * 17))


def test_distances_are_zero_of_the_sample_and_mean_log_ratios():
    other = nets.images(1, 32, 50, seed=5, dtype=torch.float32)
    for distance in (measures.cooccurrence_distance, measures.spectrum_distance, measures.wavelet_distance):
        assert distance(SAMPLE, SAMPLE) == 0
        assert distance(SAMPLE, other) > 0
    faint = 0.5 + (SAMPLE - 0.5) / 4  # a sixteenth of the power, in every ring
    assert measures.spectrum_distance(faint, SAMPLE) == pytest.approx(np.log(16), rel=1e-4)


def test_the_distance_of_co_occurrence_is_that_of_glcms_features():
    other = nets.images(1, 40, 44, seed=5, dtype=torch.float32) ** 2
    offsets = ";".join(f"{d * a},{d * b}" for d in (1, 4) for a, b in ((0, 1), (-1, 1), (-1, 0), (-1, -1)))
    logs = []
    for image in (SAMPLE, other):
        result = opsin.glcm(image, levels=16, offsets=offsets)
        kept = [index for index, name in enumerate(result.names) if name not in SIGNED]
        logs.append(result.values[0, 0, :-1][:, kept].clamp(min=1e-6).log())
    expected = float((logs[0] - logs[1]).abs().mean())
    assert measures.cooccurrence_distance(SAMPLE, other) == pytest.approx(expected)


def test_makes_every_way_and_says_what_each_measure_is():
    model = nets.model(nets.plain(dtype=torch.float32), size=32)
    given = QUICK | {"texture": {"steps": 1, "layers": "relu2"}}
    found = opsin.textures(SAMPLE, model, settings=given, **SMALL)
    assert {shot.group for shot in found.shots} >= {"Sample", "Image quilting", "Texture synthesis"}
    assert [way["way"] for way in found.facts["ways"]] == list(page.WAYS)
    near, measured = found.tables
    assert near.columns == ("way", "time", "co-occurrence", "spectrum", "wavelets", "Gram", "copied")
    assert [row[0] for row in measured.rows] == ["co-occurrence", "spectrum", "wavelets", "Gram", "copied"]
    assert {row[0]: row[2] for row in measured.rows}["co-occurrence"] == "no technique"
    by_way = {way["way"]: way for way in found.facts["ways"]}
    assert by_way["random_phase"]["copied"] == 0
    assert by_way["quilting"]["copied"] > 0.05
    assert by_way["random_phase"]["spectrum"] < by_way["portilla_simoncelli"]["spectrum"]
    assert found.record.model["name"] == model.name


def test_a_way_that_cannot_be_taken_is_left_out_and_the_page_says_why(tmp_path):
    ways = ["quilting", "efros_leung", "texture"]
    found = opsin.textures(SAMPLE, ways=ways, settings={"efros_leung": {"window": 63}}, **SMALL)
    assert [way["way"] for way in found.facts["ways"]] == ["quilting"]
    assert "at least 63" in found.facts["left out"]["efros_leung"]
    assert "needs a network" in found.facts["left out"]["texture"]
    found.save(tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert "at least 63" in text
    assert "<dt>network</dt>" not in text
    assert opsin.Result.load(tmp_path / "out") == found


def test_a_measure_without_its_extra_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "plenoptic.models", None)
    found = opsin.textures(SAMPLE, ways="quilting", **SMALL)
    assert "wavelets" not in found.tables[0].columns
    assert "opsin[texture]" in found.facts["left out"]["wavelets"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ways": "quiltin"}, "quilting"),
        ({"size": 8}, "32 to"),
        ({"width": 9999}, "32 to"),
        ({"settings": {"quilting": {"blok": 3}}}, "block"),
        ({"ways": "quilting", "settings": {"efros_leung": {}}}, "not among the ways"),
        ({"ways": ["texture"]}, "needs a network"),
    ],
)
def test_what_cannot_be_compared_is_refused(settings, said):
    with pytest.raises(opsin.InputError, match=said):
        opsin.textures(SAMPLE, **SMALL | settings)


def test_a_sample_of_one_colour_gives_a_page():
    found = opsin.textures(torch.full((1, 3, 40, 40), 0.3), settings=QUICK, **SMALL)
    assert "one colour" in found.facts["left out"]["portilla_simoncelli"]


def test_is_a_command(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    Image.fromarray((SAMPLE[0].permute(1, 2, 0) * 255).byte().numpy()).save("sample.png")
    words = ["--no-network", "--size", "32", "--source", "44", "--way", "quilting", "--way", "random-phase"]
    code, out, err = call("textures", "sample.png", *words, "--set", "quilting.block=12", "-o", "out")
    assert (code, err) == (0, "")
    assert "Image quilting" in out
    assert out.splitlines()[-1] == "out/index.html"
    assert json.loads(Path("out/facts.json").read_text())["ways"][0]["way"] == "quilting"
    code, _, err = call("textures", "sample.png", "--no-network", "--way", "quiltin", "-o", "out")
    assert code == 2
    assert "unknown way" in err
