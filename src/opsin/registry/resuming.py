"""Going on from a saved result."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opsin.base.errors import InputError
from opsin.base.job import within
from opsin.base.trail import DAMAGED, unfinished

if TYPE_CHECKING:
    from torch import Tensor

    from opsin.base.records import Record
    from opsin.registry.kinds import Technique
from opsin.registry.catalogue import get


def resume(result: Any, model: Any = None, *, steps: int | None = None, target: Any = None) -> Any:
    """Resume a saved or loaded result of an iterative technique.

    `result` is one, or the folder of one; `model` the network, where the technique takes one. Its arguments
    are used again, with more `steps` if given. A `target` that has no text form must be passed again.

    Raises `InputError` on a result of another kind, another model or target, fewer steps than it already
    has, or a missing target that has no text form.
    """
    from opsin.objectives.parsing import resolve
    from opsin.results.pictures import Pictures
    from opsin.results.result import Result

    if not isinstance(result, Result | str | Path):
        raise InputError(f"resume takes a result or its folder, got {type(result).__name__}")
    loaded = result if isinstance(result, Result) else Result.load(result)
    if not isinstance(loaded, Pictures) or loaded.record is None or not loaded.state:
        raise InputError("only pictures of an iterative technique can be resumed")
    about, record = get(loaded.record.technique), loaded.record
    climbed = _climbed(loaded.state)
    if steps is not None and "steps" not in about.parameters:
        raise InputError(f"{about.name} has no number of steps: leave steps out")
    if steps is not None and steps < climbed:
        raise InputError(f"this result already has {climbed} steps: pass at least as many, not {steps}")
    _check_model(about, record, model)
    given = {k: v for k, v in record.arguments.items() if k in about.parameters}
    kept = {k.removeprefix("given."): v for k, v in loaded.state.items() if k.startswith("given.")}
    for name, parameter in about.parameters.items():
        if parameter.arg.role == "images":
            given[name] = [v for k, v in kept.items() if k.startswith(f"{name}.")]
    if target is not None:
        given["target"] = resolve(target, model)
        if given["target"].name != record.arguments.get("target"):
            raise InputError(f"the target was {record.arguments.get('target')}, not {given['target'].name}")
    if steps is not None:
        given["steps"] = steps
    if about.takes_images and "images" not in kept:
        raise InputError(f"{DAMAGED}the photos that were given are missing")
    with within(resumed=loaded.state):
        return about.run(*about.inputs(model, kept.get("images")), **given)


def _check_model(about: "Technique", record: "Record", model: Any) -> None:
    """Raise `InputError` unless the model is the one that the pictures were made with."""
    if not about.takes_model:
        if model is not None:
            raise InputError(f"{about.name} takes no model: leave it out")
    elif model is None:
        raise InputError(f"{about.name} needs the model that the pictures were made with")
    elif (sha256 := str(record.model.get("sha256"))) != model.weigh().fingerprint:
        raise InputError(
            f"these pictures were made with {record.model.get('name')} (weights {sha256[:12]}), "
            f"not with {model.name} (weights {model.weigh().fingerprint[:12]})"
        )


def _climbed(state: "Mapping[str, Tensor]") -> int:
    """How many steps the last climb of a state took. Raises `InputError` where the state does not say."""
    try:
        return int(state[f"{unfinished(state)}/number"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"{DAMAGED}{error}") from error
