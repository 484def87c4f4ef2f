"""Weights from files: only tensors are read, no code is run."""

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
OBJECT = re.compile(r"GLOBAL (\S+)")  # torch's name for an object that a pickle would have created
REFUSED = "Cannot use ``weights_only=True`` with "  # torch's words before a format that could hold code
MOST_NAMED = 5  # most weights that an error names


def fill(network: nn.Module, path: str | Path, name: str) -> None:
    """Load a file of weights into a network that errors call `name`.

    Raises `InputError` on a file that holds no weights, `NetworkError` on weights that do not fit.
    """
    stored = state(Path(path))
    expected = {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    if complex_names := [
        k for k in expected if k in stored and stored[k].is_complex() and not expected[k].is_complex()
    ]:
        raise NetworkError(f"{path} does not fit {name}: complex numbers in {_listed(complex_names)}")
    try:
        network.load_state_dict(stored)
    except RuntimeError as error:
        faults = "; ".join(_misfits(expected, stored)) or fault(error)
        raise NetworkError(f"{path} does not fit {name}: {faults}") from error


def state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: safetensors or `torch.save`, also in dicts of training scripts.

    Raises `InputError` on a file that holds anything else.
    """
    if not os.path.lexists(path):
        raise missing("weights file", path)
    with open_regular(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of formats that it refuses or can read
        try:
            is_safe = path.suffix == ".safetensors"
            stored: Any = load_file(path) if is_safe else torch.load(file, "cpu", weights_only=True)
        except Exception as error:
            raise InputError(
                f"{path} cannot be read as weights ({fault(error)}): pass a safetensors file, or "
                "a network's state_dict() saved by torch.save"
            ) from error
    for key in WRAPPERS:
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    if not isinstance(stored, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in stored.items()
    ):
        raise InputError(f"{path} holds no state dict: save network.state_dict()")
    for key, value in stored.items():
        if value.is_meta or value.is_quantized or value.layout is not torch.strided:
            kind = "meta" if value.is_meta else "quantised" if value.is_quantized else "sparse"
            raise InputError(f"{path} holds a {kind} tensor, {key}: weights are plain numbers")
    return {key.removeprefix("module."): value for key, value in stored.items()}


def fault(error: Exception) -> str:
    """The message of an error about a weights file, in one sentence, without advice to trust it."""
    if isinstance(error, UnpicklingError):
        found_object = OBJECT.search(str(error))
        return f"it holds {found_object[1]}, which is not run" if found_object else "its format is unknown"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    sentence = line.partition(". ")[0]
    return f"code could be in {sentence.removeprefix(REFUSED)}" if sentence.startswith(REFUSED) else sentence


def _misfits(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{key} {tuple(stored[key].shape)} for {tuple(expected[key].shape)}"
        for key in expected
        if key in stored and stored[key].shape != expected[key].shape
    ]
    misfits = {
        "missing": [key for key in expected if key not in stored],
        "unknown": [key for key in stored if key not in expected],
        "of another shape": shapes,
    }
    return [f"{len(keys)} {problem} ({_listed(keys)})" for problem, keys in misfits.items() if keys]


def _listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
