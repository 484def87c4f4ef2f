"""Opsin shows what a vision network sees. Names are imported when they are first used."""

import importlib
from typing import TYPE_CHECKING, Any

from opsin.registry import catalogue

if TYPE_CHECKING:
    from opsin.base.errors import InputError as InputError
    from opsin.base.errors import NetworkError as NetworkError
    from opsin.base.errors import OpsinError as OpsinError
    from opsin.base.errors import OutOfMemoryError as OutOfMemoryError
    from opsin.base.job import StopEarly as StopEarly
    from opsin.base.job import listening as listening
    from opsin.collection.ask.map import map as map
    from opsin.collection.ask.mistakes import mistakes as mistakes
    from opsin.collection.ask.neighbours import leave_one_out as leave_one_out
    from opsin.collection.ask.neighbours import neighbours as neighbours
    from opsin.collection.ask.units import units as units
    from opsin.collection.scan.scanning import scan as scan
    from opsin.collection.store.store import Collection as Collection
    from opsin.images.samples import sample as sample
    from opsin.images.tensors import read as read
    from opsin.network.distances import feature_distances as feature_distances
    from opsin.network.model import Model as Model
    from opsin.objectives.features import diversity as diversity
    from opsin.objectives.objective import Objective as Objective
    from opsin.objectives.units import channel as channel
    from opsin.objectives.units import direction as direction
    from opsin.objectives.units import logit as logit
    from opsin.objectives.units import neuron as neuron
    from opsin.objectives.units import unit as unit
    from opsin.optimise.ascent import ascend as ascend
    from opsin.optimise.defended import defended as defended
    from opsin.optimise.recipe import Recipe as Recipe
    from opsin.optimise.smoothing import Certificate as Certificate
    from opsin.optimise.smoothing import certify as certify
    from opsin.pages.explain import compare as compare
    from opsin.pages.explain import explain as explain
    from opsin.pages.fooling import fool as fool
    from opsin.pages.robustness import Robustness as Robustness
    from opsin.pages.robustness import robustness as robustness
    from opsin.pages.textures import textures as textures
    from opsin.registry.resuming import resume as resume
    from opsin.results.attack import Attack as Attack
    from opsin.results.cooccurrence import Cooccurrence as Cooccurrence
    from opsin.results.findings import Findings as Findings
    from opsin.results.gallery import Gallery as Gallery
    from opsin.results.heatmap import Heatmap as Heatmap
    from opsin.results.pictures import Pictures as Pictures
    from opsin.results.result import Result as Result
    from opsin.zoo.by_name import load as load

    __version__: str

_PUBLIC = {
    "ascend": "optimise.ascent",
    "defended": "optimise.defended",
    "Certificate": "optimise.smoothing",
    "certify": "optimise.smoothing",
    "Recipe": "optimise.recipe",
    "Cooccurrence": "results.cooccurrence",
    "Attack": "results.attack",
    "Findings": "results.findings",
    "map": "collection.ask.map",
    "mistakes": "collection.ask.mistakes",
    "leave_one_out": "collection.ask.neighbours",
    "neighbours": "collection.ask.neighbours",
    "scan": "collection.scan.scanning",
    "Collection": "collection.store.store",
    "units": "collection.ask.units",
    "InputError": "base.errors",
    "NetworkError": "base.errors",
    "OpsinError": "base.errors",
    "OutOfMemoryError": "base.errors",
    "read": "images.tensors",
    "sample": "images.samples",
    "Model": "network.model",
    "Objective": "objectives.objective",
    "channel": "objectives.units",
    "direction": "objectives.units",
    "diversity": "objectives.features",
    "logit": "objectives.units",
    "neuron": "objectives.units",
    "unit": "objectives.units",
    "StopEarly": "base.job",
    "listening": "base.job",
    "resume": "registry.resuming",
    "compare": "pages.explain",
    "explain": "pages.explain",
    "textures": "pages.textures",
    "fool": "pages.fooling",
    "Robustness": "pages.robustness",
    "robustness": "pages.robustness",
    "feature_distances": "network.distances",
    "Gallery": "results.gallery",
    "Heatmap": "results.heatmap",
    "Pictures": "results.pictures",
    "Result": "results.result",
    "load": "zoo.by_name",
}

__all__ = sorted([*_PUBLIC, *catalogue.existing()])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("opsin")
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"opsin.{_PUBLIC[name]}"), name)
    if name in catalogue.existing():
        return catalogue.get(name).run
    raise AttributeError(f"module 'opsin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
