"""BVLC GoogLeNet, the default network, against Caffe's definition of it written out."""

import hashlib
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from torch.nn import functional as F

import opsin
from opsin.images.tensors import fit
from opsin.zoo import googlenet, vgg


@pytest.fixture(scope="module")
def model():
    return opsin.load()


def normalised_across_channels(maps):
    """Caffe's LRN, one number at a time over channels: x / (1 + α/5 Σ x²)^β over five neighbours."""
    squares = maps**2
    channels = maps.shape[1]
    sums = [squares[:, max(0, c - 2) : c + 3].sum(1) for c in range(channels)]
    return maps / (1 + 1e-4 / 5 * torch.stack(sums, 1)) ** 0.75


def by_definition(image):
    """The scores of one image in [0, 1], in float64, from Caffe's file and its own layer names."""
    caffe = {name: values.double() for name, values in load_file(googlenet.WEIGHTS).items()}
    # RGB -> BGR in 0..255, minus the mean
    maps = image.double().flip(1) * 255 - torch.tensor([104.0, 117, 123]).double().view(1, 3, 1, 1)

    def conv(maps, name, **settings):
        return F.conv2d(maps, caffe[f"{name}.weight"], caffe[f"{name}.bias"], **settings).clamp(min=0)

    def halved(maps):
        return F.max_pool2d(maps, 3, 2, ceil_mode=True)

    maps = normalised_across_channels(halved(conv(maps, "conv1/7x7_s2", stride=2, padding=3)))
    maps = conv(conv(maps, "conv2/3x3_reduce"), "conv2/3x3", padding=1)
    maps = halved(normalised_across_channels(maps))
    for number in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        name = f"inception_{number}"
        branches = [
            conv(maps, f"{name}/1x1"),
            conv(conv(maps, f"{name}/3x3_reduce"), f"{name}/3x3", padding=1),
            conv(conv(maps, f"{name}/5x5_reduce"), f"{name}/5x5", padding=2),
            conv(F.max_pool2d(maps, 3, 1, padding=1), f"{name}/pool_proj"),
        ]
        maps = torch.cat(branches, 1)
        if number in ("3b", "4e"):
            maps = halved(maps)
    return maps.mean((2, 3)) @ caffe["loss3/classifier.weight"].T + caffe["loss3/classifier.bias"]


def test_the_scores_are_those_of_the_definition(model):
    image = fit(Image.fromarray(data.cat()), model)[None]
    torch.testing.assert_close(
        model.run(image)["output"].double(), by_definition(image), rtol=1e-4, atol=2e-4
    )


@pytest.mark.parametrize(
    ("photo", "words"), [("cat", "Egyptian cat"), ("coffee", "espresso"), ("rocket", "missile")]
)
def test_it_knows_sample_photos(model, photo, words):
    image = fit(Image.fromarray(getattr(data, photo)()), model)[None]
    top = model.run(image)["output"][0].topk(5).indices
    assert any(words in model.label(int(index)) for index in top)


def test_layers_have_the_names_of_the_papers(model):
    assert {"conv1", "pool1", "norm1", "conv2_reduce", "inception_4c", "pool5", "classifier"} <= set(
        model.calls
    )
    assert {"inception_4c.3x3_reduce", "inception_4c.pool_proj"} <= set(model.calls)
    assert model.calls["inception_4c"].shape[1:] == (512, 14, 14)  # the concatenated branches
    assert model.default_layer == "inception_5b"


def test_concatenated_outputs_are_the_branches_side_by_side(model):
    names = [f"inception_4c.relu_{branch}" for branch in ("1x1", "3x3", "5x5", "pool_proj")]
    run = model.run(torch.rand(1, 3, 64, 64), ("inception_4c", *names))
    assert torch.equal(run["inception_4c"], torch.cat([run[name] for name in names], 1))


def test_the_notice_names_the_file_that_is_there():
    notice = (googlenet.WEIGHTS.parent / "NOTICE").read_text("utf-8")
    assert hashlib.sha256(googlenet.WEIGHTS.read_bytes()).hexdigest() in notice
    assert "unrestricted use" in notice
    assert f"{googlenet.WEIGHTS.stat().st_size:,}" in notice


def test_it_is_plain_torch():
    code = "import sys, opsin; opsin.load().calls; assert not {'timm', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_has_two_names_and_one_record():
    model = opsin.load("bvlc_googlenet")
    assert model.name == "bvlc_googlenet"
    assert model.loaded == opsin.load("googlenet").loaded == {"name": "googlenet"}


def test_other_weights_may_be_given(tmp_path):
    path = tmp_path / "own.pth"
    random = opsin.load("googlenet", weights="random")
    torch.save(random.network.state_dict(), path)
    assert opsin.load("googlenet", weights=path).weigh().fingerprint == random.weigh().fingerprint
    assert random.weigh().fingerprint != opsin.load("googlenet").weigh().fingerprint


def test_networks_whose_weights_are_fixed_take_no_others():
    with pytest.raises(opsin.InputError, match="fixed weights"):
        opsin.load(vgg.NAME, weights="random")
