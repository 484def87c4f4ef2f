"""Running techniques on views: what can be done is done, and the rest is said."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from opsin.base.errors import OpsinError
from opsin.network.model import Model
from opsin.objectives.objective import Objective
from opsin.objectives.units import PREDICTED
from opsin.pages.views import Answer, View
from opsin.registry.kinds import Technique
from opsin.results.result import Result

Settings = Mapping[str, Mapping[str, Any]]
WHOLE = "layers"  # a technique whose result is long enough for one target


class Running:
    """Runs techniques with their settings; `left_out` says of each that did not fit why."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.left_out: dict[str, str] = {}

    def answers(self, technique: Technique, seen: View) -> list[Answer]:
        """The technique's results on a view: one for all targets together, if that fails one for each."""
        given: dict[str, Any] = dict(self.settings.get(technique.name, {}))
        if seen.layer is not None and takes_layer(technique):
            given["layer"] = seen.layer
        if "target" not in technique.parameters or "target" in given or _has_own_target(technique, seen):
            return self._answer(technique, seen, given, None)
        if technique.name == WHOLE:
            classes = [goal for goal in seen.goals if goal.class_index is not None]
            goal = next(iter(classes), seen.goals[0])
            return self._answer(technique, seen, given | {"target": goal}, None)
        if technique.photos == "each" and not technique.iterative:
            before = dict(self.left_out)
            if together := self._answer(technique, seen, given, seen.goals):
                return together
            if len(seen.goals) > 1:
                self.left_out = before  # each target is told for itself
        single = [self._answer(technique, seen, given, (goal,), i) for i, goal in enumerate(seen.goals)]
        return [answer for answers in single for answer in answers]

    def general(self, technique: Technique, model: Model, target: object) -> Result | None:
        """The result of a technique that takes no photo."""
        given = dict(self.settings.get(technique.name, {}))
        if "target" in technique.parameters and target is not None:
            given.setdefault("target", target)
        return self._run(technique, model, None, given)

    def _answer(
        self,
        technique: Technique,
        seen: View,
        given: dict[str, Any],
        goals: tuple[Objective, ...] | None,
        first: int = 0,
    ) -> list[Answer]:
        """The result for some targets, the first of which has this number; for `None` it has no target."""
        images = seen.image
        if goals is not None:
            images = images.expand(len(goals), -1, -1, -1).contiguous()
            given = given | {"target": list(goals) if len(goals) > 1 else goals[0]}
        result = self._run(technique, seen.model, images, given)
        if result is None:
            return []
        numbers = () if goals is None else tuple(range(first, first + len(goals)))
        return [Answer(technique, result, numbers)]

    def _run(
        self, technique: Technique, model: Model, images: Tensor | None, given: dict[str, Any]
    ) -> Result | None:
        try:
            return technique.run(*technique.inputs(model, images), **given)  # type: ignore[no-any-return]
        except OpsinError as error:
            self.left_out.setdefault(technique.name, str(error))
            return None


def takes_layer(technique: Technique) -> bool:
    """Whether it reads a layer that can be chosen."""
    return any(parameter.arg.role == "layer" for parameter in technique.parameters.values())


def _has_own_target(technique: Technique, seen: View) -> bool:
    """Whether its default target is better than a class: the strongest unit, for deconvnet."""
    default = inspect.signature(technique.run.__wrapped__).parameters["target"].default  # type: ignore[attr-defined]
    has_own = default is not inspect.Parameter.empty and default is not PREDICTED
    return has_own and all("output" in goal.layers for goal in seen.goals)
