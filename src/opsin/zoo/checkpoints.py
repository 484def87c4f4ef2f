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

# keys under which training scripts keep the weights, in the order of preference: averages over steps last
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net_state_dict", "net", "network", "module", "params"),
    *("weights", "state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema", "params_ema"),
)
MOST_WRAPPED = 4  # dicts within dicts
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")  # of DDP, torch.compile and Lightning
OBJECT = re.compile(r"GLOBAL (\S+)")  # torch's name for an object that a pickle would have created
REFUSED = "Cannot use ``weights_only=True`` with "  # torch's words before a format that could hold code
ADVICE = "pass a safetensors file, or a network's state_dict() saved by torch.save"
MOST_NAMED = 5  # most weights that an error names


def fill(network: nn.Module, path: str | Path, name: str, *, classes: int | None = None) -> None:
    """Load a file of weights into a network that errors call `name`.

    A prefix of DDP, torch.compile or Lightning that all weights carry is removed, unless the network's carry
    it. `classes` is the size of a head that can be built anew for another number of classes.

    Raises `InputError` on a file that holds no weights, `NetworkError` on weights that do not fit.
    """
    expected = {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    stored = _unprefixed(state(Path(path)), expected)
    if complex_names := [
        k for k in expected if k in stored and stored[k].is_complex() and not expected[k].is_complex()
    ]:
        raise NetworkError(f"{path} does not fit {name}: complex numbers in {_listed(complex_names)}")
    try:
        network.load_state_dict(stored)
    except RuntimeError as error:
        faults = "; ".join(_misfits(expected, stored)) or fault(error)
        saved = classes and _saved_classes(expected, stored, classes)
        if classes and saved:
            faults += (
                f". It was saved with {saved} classes, and the network is built for {classes}: pass "
                f"classes={saved} (--classes {saved})"
            )
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
        except UnpicklingError as error:
            if not OBJECT.search(str(error)):
                raise InputError(f"{path} cannot be read as weights ({fault(error)}): {ADVICE}") from error
            raise InputError(
                f"{path} cannot be read as weights ({fault(error)}): where it was made, save the weights "
                "alone, with torch.save(model.state_dict(), FILE)"
            ) from error
        except Exception as error:
            raise InputError(f"{path} cannot be read as weights ({fault(error)}): {ADVICE}") from error
    for _ in range(MOST_WRAPPED):  # a dict of somebody else's may hold itself
        if isinstance(stored, dict):
            stored = next((stored[key] for key in WRAPPERS if isinstance(stored.get(key), dict)), stored)
    if not isinstance(stored, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in stored.items()
    ):
        raise InputError(f"{path} holds no state dict: save network.state_dict()")
    for key, value in stored.items():
        if value.is_meta or value.is_quantized or value.layout is not torch.strided:
            kind = "meta" if value.is_meta else "quantised" if value.is_quantized else "sparse"
            raise InputError(f"{path} holds a {kind} tensor, {key}: weights are plain numbers")
    return stored


def fault(error: Exception) -> str:
    """The message of an error about a weights file, in one sentence, without advice to trust it."""
    if isinstance(error, UnpicklingError):
        found_object = OBJECT.search(str(error))
        return f"it holds {found_object[1]}, which is not run" if found_object else "its format is unknown"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    sentence = line.partition(". ")[0]
    return f"code could be in {sentence.removeprefix(REFUSED)}" if sentence.startswith(REFUSED) else sentence


def _unprefixed(stored: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the prefixes that all of them carry, except those that the network's carry, too."""
    for _ in range(MOST_WRAPPED):
        for prefix in PREFIXES:
            carried = bool(stored) and all(key.startswith(prefix) for key in stored)
            if carried and not any(key.startswith(prefix) for key in expected):
                stored = {key.removeprefix(prefix): value for key, value in stored.items()}
    return stored


def _saved_classes(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor], classes: int) -> int | None:
    """The checkpoint's number of classes, if it has a head for others than the network's `classes`."""
    misfits = [
        (tuple(stored[key].shape), tuple(value.shape))
        for key, value in expected.items()
        if key in stored and stored[key].shape != value.shape
    ]
    heads = {old[0] for old, new in misfits if old and new and new[0] == classes and old[1:] == new[1:]}
    return heads.pop() if len(heads) == 1 else None


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
