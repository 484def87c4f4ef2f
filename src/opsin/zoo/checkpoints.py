"""Weights from files: tensors are read, nothing that lies beside them is run."""

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from opsin.base.errors import InputError, NetworkError
from opsin.base.files import missing, open_regular

WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts keep the weights
OBJECT = re.compile(r"GLOBAL (\S+)")  # how torch names what a pickle would have made
REFUSED = "Cannot use ``weights_only=True`` with "  # torch's words before what could hold code
MOST_NAMED = 5  # weights that do not fit


def fill(network: nn.Module, path: str | Path, name: str) -> None:
    """Load a file of weights into a network that errors call `name`.

    Raises `InputError` on a file that is none, `NetworkError` on weights that do not fit.
    """
    stored = state(Path(path))
    own = {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    if cut := [k for k in own if k in stored and stored[k].is_complex() and not own[k].is_complex()]:
        raise NetworkError(f"{path} does not fit {name}: complex numbers in {_listed(cut)}")
    try:
        network.load_state_dict(stored)
    except RuntimeError as error:
        faults = "; ".join(_misfits(own, stored)) or fault(error)
        raise NetworkError(f"{path} does not fit {name}: {faults}") from error


def state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: of safetensors or `torch.save`, also within what trainers wrap.

    Raises `InputError` on a file that holds anything else.
    """
    if not os.path.lexists(path):
        raise missing("weights file", path)
    with open_regular(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of formats that it refuses, or reads well
        try:
            is_safe = path.suffix == ".safetensors"
            stored: Any = load_file(path) if is_safe else torch.load(file, "cpu", weights_only=True)
        except Exception as error:
            raise InputError(
                f"{path} cannot be read as weights ({fault(error)}): give a safetensors file, or what "
                "torch.save made of a network's state_dict()"
            ) from error
    for key in WRAPPERS:
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    if not isinstance(stored, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in stored.items()
    ):
        raise InputError(f"{path} holds no state dict")
    for key, value in stored.items():
        if value.is_meta or value.is_quantized or value.layout is not torch.strided:
            kind = "meta" if value.is_meta else "quantised" if value.is_quantized else "sparse"
            raise InputError(f"{path} holds a {kind} tensor, {key}: weights are plain numbers")
    return {key.removeprefix("module."): value for key, value in stored.items()}


def fault(error: Exception) -> str:
    """What an error of a file of weights says, in one sentence, without torch's advice to trust the file."""
    if isinstance(error, UnpicklingError):
        held = OBJECT.search(str(error))
        return f"it holds {held[1]}, which is not run" if held else "it is of no known format"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    sentence = line.partition(". ")[0]
    return f"code could be in {sentence.removeprefix(REFUSED)}" if sentence.startswith(REFUSED) else sentence


def _misfits(own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{key} {tuple(stored[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in stored and stored[key].shape != own[key].shape
    ]
    found = {
        "missing": [key for key in own if key not in stored],
        "unknown": [key for key in stored if key not in own],
        "of another shape": shapes,
    }
    return [f"{len(keys)} {what} ({_listed(keys)})" for what, keys in found.items() if keys]


def _listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
