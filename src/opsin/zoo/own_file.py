"""Networks from a file of the user's own."""

import importlib.util
import os
import sys
from contextlib import suppress
from inspect import isfunction
from pathlib import Path

from torch import nn

from opsin.base.errors import InputError, NetworkError, shortened, unknown
from opsin.base.files import missing
from opsin.network.model import Model
from opsin.zoo.checkpoints import fill
from opsin.zoo.timm import from_timm


def open_file(name: str, weights: str | Path | None) -> Model:
    """The model returned by a function in the user's file, which is run."""
    file, factory = name.rsplit(":", 1)
    path = Path(file)
    if not os.path.isfile(path):  # noqa: PTH113 (does not raise on a name that no file can have)
        raise missing("file", path, "*.py")
    spec = importlib.util.spec_from_file_location(f"opsin_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    sys.path.insert(0, str(path.parent.absolute()))  # the file may import modules beside it
    try:
        spec.loader.exec_module(module)
        make_model = getattr(module, factory, None)
        if not callable(make_model):
            public = [n for n, v in vars(module).items() if isfunction(v) and not n.startswith("_")]
            raise unknown("factory", factory, public, f" in {file}")
        model = make_model()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # an interrupt passes
        message = shortened(" ".join(str(error).split()))
        raise NetworkError(f"{name} failed: {type(error).__name__}: {message}") from error
    finally:
        with suppress(ValueError):  # the file may have changed it
            sys.path.remove(str(path.parent.absolute()))
    if isinstance(model, nn.Module) and hasattr(model, "pretrained_cfg"):
        model = from_timm(model, name)
    if not isinstance(model, Model):
        raise InputError(
            f"{name} returned an object of type {type(model).__name__}: return "
            "opsin.Model(network, mean=..., std=..., size=...), as only you know the preprocessing"
        )
    if weights == "random":
        raise InputError(f"{name} creates its own weights: 'random' is only for networks by name")
    if weights is not None:
        fill(model.network, weights, name)
    return model
