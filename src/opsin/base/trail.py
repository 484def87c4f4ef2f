"""The states of a technique's optimisations, from which a stopped one can be resumed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from opsin.base.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from opsin.results.pictures import Pictures

DAMAGED = "the saved state is damaged: "
# The arrays that are kept of a finished optimisation
RESULT = ("parameters", "number", "generator", "scores", "finished")


@dataclass
class Trail:
    """The states of a technique's optimisations by label; in `flat` they are named `label/array`.

    `saved` holds those of an earlier run. `result` makes a result that can be resumed from images, a caption
    and the trail. `stopped` says where an optimisation was stopped early; it is empty if none was.
    """

    saved: "Mapping[str, Tensor]" = field(default_factory=dict)
    result: "Callable[[Tensor, str, Trail], Pictures] | None" = None
    states: "dict[str, dict[str, Tensor]]" = field(default_factory=dict)
    stopped: str = ""

    def saved_state(self, label: str) -> "dict[str, Tensor]":
        """The state that an earlier run saved under this label; empty if there is none."""
        if label in self.states:
            raise ValueError(f"two optimisations of one technique are labelled {label!r}")
        return {
            name.rpartition("/")[2]: value
            for name, value in self.saved.items()
            if name.rpartition("/")[0] == label
        }

    def with_state(self, label: str, state: "dict[str, Tensor]") -> "Trail":
        """The trail with the state of one more optimisation."""
        return replace(self, states={**self.states, label: state})

    def flat(self) -> "dict[str, Tensor]":
        """All states; only the result of a finished optimisation."""
        arrays: dict[str, Tensor] = {}
        for label, state in self.states.items():
            keys = RESULT if bool(state["finished"]) else state
            arrays |= {f"{label}/{key}": state[key].cpu() for key in keys}
        return arrays


def unfinished(arrays: "Mapping[str, Tensor]") -> str:
    """The label of the unfinished optimisation. Raises `InputError` unless there is just one."""
    states = {name.rpartition("/")[0]: value for name, value in arrays.items() if name.endswith("/finished")}
    labels = [label for label, value in states.items() if not value.any()]
    if len(labels) != 1:
        raise InputError(f"{DAMAGED}{len(labels)} of its {len(states)} optimisations are unfinished, not one")
    return labels[0]
