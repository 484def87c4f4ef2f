"""The decorator that makes a technique of a function."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from opsin.base.choices import DEFAULT_NETWORK
from opsin.registry.helping import help_text, signature_of
from opsin.registry.kinds import Photos, Technique, parameter_of

P = ParamSpec("P")
R = TypeVar("R")


def technique(
    *,
    paper: str,
    reading: str,
    cost: int = 0,
    expensive: bool = False,
    per_channel: bool = False,
    iterative: bool = False,
    photos: Photos = "each",
    network: str = DEFAULT_NETWORK,
    title: str = "",
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a function `(model, images, ...)`, `(model, ...)` or `(images, ...)` that returns a `Result`.

    One without a model loads no network, and gets every photo whole; `explain` runs it only by name. Called
    with a list of names for its `Layer`, it returns a list of results, one for each, in that order.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        settings = [p for p in signature.parameters.values() if p.name not in ("model", "images")]
        parameters = {p.name: parameter_of(p) for p in settings}

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            from opsin.registry.calling import call_technique  # with torch, which a declaration does without

            return call_technique(about, function, signature, args, kwargs)  # type: ignore[no-any-return]

        run.__signature__ = signature_of(signature, parameters)  # type: ignore[attr-defined]
        run.__doc__ = help_text(function.__doc__ or "", parameters, reading, paper)
        takes_model, takes_images = (name in signature.parameters for name in ("model", "images"))
        about = Technique(
            function.__name__,
            run,
            title or function.__name__.replace("_", " ").capitalize(),
            paper,
            reading,
            cost,
            expensive or iterative or not takes_model,
            iterative,
            per_channel,
            photos if takes_model else "whole",
            network if takes_model else "",
            takes_model,
            takes_images,
            parameters,
        )
        run.technique = about  # type: ignore[attr-defined]
        return run

    return register
