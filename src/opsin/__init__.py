"""Opsin shows what a vision network sees. Names are imported when they are first used."""

import importlib
from typing import TYPE_CHECKING, Any

from opsin import registry

if TYPE_CHECKING:
    from opsin.ascent import ascend as ascend
    from opsin.collection.findings import Findings as Findings
    from opsin.collection.map import map as map
    from opsin.collection.mistakes import mistakes as mistakes
    from opsin.collection.neighbours import leave_one_out as leave_one_out
    from opsin.collection.neighbours import neighbours as neighbours
    from opsin.collection.scanning import scan as scan
    from opsin.collection.store import Collection as Collection
    from opsin.collection.units import units as units
    from opsin.errors import InputError as InputError
    from opsin.errors import NetworkError as NetworkError
    from opsin.errors import OpsinError as OpsinError
    from opsin.errors import OutOfMemoryError as OutOfMemoryError
    from opsin.images import read as read
    from opsin.model import Model as Model
    from opsin.objectives import Objective as Objective
    from opsin.objectives import channel as channel
    from opsin.objectives import direction as direction
    from opsin.objectives import diversity as diversity
    from opsin.objectives import logit as logit
    from opsin.objectives import neuron as neuron
    from opsin.objectives import unit as unit
    from opsin.progress import Enough as Enough
    from opsin.progress import listening as listening
    from opsin.registry import resume as resume
    from opsin.report import explain as explain
    from opsin.results import Gallery as Gallery
    from opsin.results import Heatmap as Heatmap
    from opsin.results import Pictures as Pictures
    from opsin.results import Result as Result
    from opsin.zoo import load as load

_PUBLIC = {
    "ascend": "ascent",
    "Findings": "collection.findings",
    "map": "collection.map",
    "mistakes": "collection.mistakes",
    "leave_one_out": "collection.neighbours",
    "neighbours": "collection.neighbours",
    "scan": "collection.scanning",
    "Collection": "collection.store",
    "units": "collection.units",
    "InputError": "errors",
    "NetworkError": "errors",
    "OpsinError": "errors",
    "OutOfMemoryError": "errors",
    "read": "images",
    "Model": "model",
    "Objective": "objectives",
    "channel": "objectives",
    "direction": "objectives",
    "diversity": "objectives",
    "logit": "objectives",
    "neuron": "objectives",
    "unit": "objectives",
    "Enough": "progress",
    "listening": "progress",
    "resume": "registry",
    "explain": "report",
    "Gallery": "results",
    "Heatmap": "results",
    "Pictures": "results",
    "Result": "results",
    "load": "zoo",
}

__all__ = sorted([*_PUBLIC, *registry.names()])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"opsin.{_PUBLIC[name]}"), name)
    if name in registry.names():
        return registry.get(name).run
    raise AttributeError(f"module 'opsin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__]
