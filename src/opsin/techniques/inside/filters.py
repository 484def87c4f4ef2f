from typing import Annotated

from torch import nn

from opsin.base.errors import NetworkError, unknown
from opsin.base.job import note
from opsin.network.model import Model
from opsin.registry.kinds import Arg
from opsin.registry.technique import technique
from opsin.results.gallery import Gallery, Panel


@technique(
    paper="Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep CNNs, 2012 (NeurIPS 25), fig. 3",
    reading="The patterns that the layer multiplies with: edges and colours at first. Zero is neutral.",
    cost=0,
)
def filters(
    model: Model,
    layer: Annotated[str | None, Arg("layer with convolution weights; the first one by default")] = None,
    count: Annotated[int, Arg("number of filters to show", least=1)] = 64,
) -> Gallery:
    """The weights of a layer as pictures.

    A layer on three channels gives one panel with a coloured tile a filter, (k, 3, kh, kw); a deeper
    one gives a panel a filter, with a tile for each of its input channels, (c, 1, kh, kw). All share
    one unit, the weight's; every panel has its own signed scale with zero in the middle.

    Raises `InputError` on an unknown layer, `NetworkError` on one without convolution weights.
    """
    modules = dict(model.network.named_modules())
    spatial = {name: weight for name, weight in model.weights(modules).items() if weight.ndim == 4}
    if not spatial:
        raise NetworkError(f"{model.name} has no layer with convolution weights")
    name = next(iter(spatial)) if layer is None else layer.split("#")[0]
    if name not in modules:
        raise unknown("layer", name, spatial)
    if name not in spatial:
        kind = type(modules[name]).__name__
        raise NetworkError(
            f"layer {name!r} ({kind}) has no convolution weights; these have: {', '.join(list(spatial)[:8])}"
        )
    weight = spatial[name].float()  # (out, in, kh, kw)
    if isinstance(modules[name], nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    note(f"layer {name}")
    shown = weight[:count]
    about = f"{len(shown)} of {len(weight)} filters, {'×'.join(map(str, weight.shape[1:]))}"
    if weight.shape[1] == 3:
        return Gallery((Panel(name, "filters", about, shown),))
    tiles = ((index, one[:, None]) for index, one in enumerate(shown))  # (in, kh, kw) -> (in, 1, kh, kw)
    return Gallery(tuple(Panel(name, f"filter {index}", about, tile) for index, tile in tiles))
