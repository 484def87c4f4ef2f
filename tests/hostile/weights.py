"""Bad files of weights, made by code: `make(folder)` writes them, `SAID` are words of the errors."""

import argparse
import os
import pickle
import random
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import nets

Write = Callable[[Path], object]


class Executes:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def state() -> dict[str, Tensor]:
    """Weights of the plain net."""
    return {name: value.detach().clone() for name, value in nets.plain().state_dict().items()}


def _executing(old: bool = False) -> Write:
    """A checkpoint that makes the folder `executed` beside itself."""

    def write(path: Path) -> None:
        held = {"a": Executes(path.parent / "executed"), "state_dict": state()}
        torch.save(held, path, _use_new_zipfile_serialization=not old)

    return write


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Executes(path.parent / "executed")))


def _saved(value: object, **settings: Any) -> Write:
    return lambda path: torch.save(value, path, **settings)


def _scripted(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(path)


def _legacy(path: Path) -> None:
    with tarfile.open(path, "w"):
        pass


def _cut(path: Path) -> None:
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "nothing")


def _with(**changed: Tensor) -> Write:
    """The weights, some of them other ones."""
    return _saved(state() | {name.replace("_", ".", 1): value for name, value in changed.items()})


def _renamed(path: Path) -> None:
    torch.save({f"encoder.{name}": value for name, value in state().items()}, path)


def _itself() -> dict[str, Any]:
    """A dict that holds itself where the weights might be."""
    made: dict[str, Any] = {"a": 1}
    made["model"] = made
    return made


ENDINGS = (".pt", ".pth", ".bin", ".tar", ".pkl", "")
NOT_RUN = r"it holds posix\.mkdir, which is not run"
SAID: dict[str, tuple[str, Write]] = {
    **{
        f"executes{ending}": (NOT_RUN, _executing()) for ending in (".pt", ".pth", ".bin", ".tar", ".pkl", "")
    },
    **{f"executes, old{ending}": (NOT_RUN, _executing(old=True)) for ending in (".pt", ".pth", "")},
    "executes.safetensors": ("cannot be read as weights", _executing()),
    "pickle.pkl": ("cannot be read as weights", _pickled),
    "module.pt": (
        r"it holds nets\.Plain, which is not run\): .*torch\.save\(model\.state_dict\(\), FILE\)",
        _saved(nets.plain()),
    ),
    "module in a dict.pt": (r"it holds nets\.Plain, .*state_dict\(\)", _saved({"model": nets.plain()})),
    "script.pt": ("code could be in TorchScript archives", _scripted),
    "legacy.tar": ("code could be in files saved in the legacy", _legacy),
    "arguments.pth": (
        r"it holds argparse\.Namespace",
        _saved({"args": argparse.Namespace(lr=0.1), "state_dict": state()}),
    ),
    "arrays.npz": ("cannot be read as weights", lambda path: np.savez(path, a=np.zeros(3))),
    "archive.pt": ("cannot be read as weights", _zip),
    "noise.pt": ("cannot be read as weights", lambda path: path.write_bytes(random.Random(0).randbytes(999))),
    "noise.safetensors": (
        "cannot be read as weights",
        lambda path: path.write_bytes(random.Random(0).randbytes(999)),
    ),
    "empty.pt": ("cannot be read as weights", lambda path: path.write_bytes(b"")),
    "empty.safetensors": ("cannot be read as weights", lambda path: path.write_bytes(b"")),
    "cut.pt": ("cannot be read as weights", _cut),
    "tensor.pt": ("holds no state dict", _saved(torch.zeros(3))),
    "list.pt": ("holds no state dict", _saved([torch.zeros(3)])),
    "numbers.pt": ("holds no state dict", _saved({0: torch.zeros(3)})),
    "texts.pt": ("holds no state dict", _saved({"state_dict": {"a": "b"}})),
    "itself.pt": ("holds no state dict", _saved(_itself())),
    "deep.pt": ("holds no state dict", _saved({"model": {"ema": {"net": {"model": {"ema": state()}}}}})),
    "partly prefixed.pt": (
        r"1 missing \(fc\.bias\); 1 unknown \(module\.fc\.bias\)$",
        _saved({"module." * (name == "fc.bias") + name: value for name, value in state().items()}),
    ),
    "meta.pt": ("holds a meta tensor, fc.bias", _with(fc_bias=torch.zeros(5, device="meta"))),
    "sparse.pt": ("holds a sparse tensor, fc.weight", _with(fc_weight=torch.zeros(5, 6).to_sparse())),
    "complex.pt": ("complex numbers in fc.bias", _with(fc_bias=torch.zeros(5, dtype=torch.complex64))),
    "shape.pt": (r"1 of another shape \(fc\.bias \(7,\) for \(5,\)\)$", _with(fc_bias=torch.zeros(7))),
    "shape.safetensors": (
        r"1 of another shape \(fc\.bias \(7,\) for \(5,\)\)$",
        lambda path: save_file(state() | {"fc.bias": torch.zeros(7)}, path),
    ),
    "nothing.pt": ("6 missing .* and 1 more", _saved({})),
    "prefix.pt": (r"6 missing .* and 1 more\); 6 unknown \(encoder\.conv1\.weight, .* and 1 more", _renamed),
    "folder.pt": ("is a folder, not a regular file", Path.mkdir),
    "pipe.pt": ("is a pipe, not a regular file", os.mkfifo),
    "pipe.safetensors": ("is a pipe, not a regular file", os.mkfifo),
    "zeros.pt": ("is a device, not a regular file", lambda path: path.symlink_to("/dev/zero")),
    "nowhere.pt": ("cannot be read: No such file", lambda path: path.symlink_to("nothing")),
}


def make(folder: Path) -> dict[str, Path]:
    """Write every bad file of weights into a folder that is made for them, by name."""
    folder.mkdir(parents=True)
    for name, (_, write) in SAID.items():
        write(folder / name)
    return {name: folder / name for name in SAID}
