"""A layer's call by its name."""

from collections.abc import Mapping

from torch import nn

from opsin.base.errors import InputError, unknown
from opsin.network.tracing import Call


def call_named(name: str, calls: Mapping[str, Call], network: nn.Module) -> Call:
    """The traced call of this name.

    Raises `InputError`, with valid names, on an unknown one and on one of several calls without its `#k`.
    """
    if name in calls:
        return calls[name]
    repeated = [call for call in calls if call.startswith(f"{name}#")]
    if repeated:
        raise InputError(
            f"layer {name!r} is called {len(repeated)} times; specify one: {', '.join(repeated)}"
        )
    uncalled = name in dict(network.named_modules())
    also = " (the forward never calls this module, or gets no tensor from it)" if uncalled else ""
    raise unknown("layer", name, calls, also)
