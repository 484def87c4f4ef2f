"""Units at the edge of a picture, whose receptive field reaches into the zero padding.

Padding is a contrast that no photo has: channels of many networks answer to it more than to anything in the
photos, so that all of their strongest places lie at the edge.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from opsin.base.errors import InputError
from opsin.base.job import CAUTION, note, tell
from opsin.collection.scan.chunks import as_maps
from opsin.collection.store.store import Collection
from opsin.collection.store.tally import Tally
from opsin.network.batches import chunks, forward_batch
from opsin.network.model import Model

MOST = 0.5  # share of a channel's places at the edge, beyond which it may be said to fire there
RATIO = 2.0  # and how many times the share of all positions that must be; both by judgement


def mostly(count: int, total: int, share: float) -> bool:
    """Whether `count` of `total` places are most of them, and too many for a `share` of all positions."""
    return bool(total) and count / total > max(MOST, RATIO * share)


def inside_tally(
    model: Model,
    collection: Collection,
    layer: str,
    edge: Bool[Tensor, "h w"],
    channels: Int[Tensor, " c"],
) -> Tally:
    """The lists of a tally for some channels, without positions at the edge.

    It runs the network over the images again, because a scan keeps only the strongest position of each.
    Raises `InputError` if there are no other positions. Its moments mean nothing.
    """
    if edge.all():
        raise InputError(
            f"every unit of layer {layer!r} sees the whole picture or beyond its edge, so no position is "
            "inside: choose an earlier layer"
        )
    count, tally = len(collection), Tally.empty(len(channels), collection.about.top)
    for part in chunks(count, forward_batch(model, torch.empty(1, 3, *model.size))):
        tell(f"inner places of {layer}", part.start, count)
        readable = []
        for row in collection.rows(range(count)[part]):
            try:
                readable.append((row.id, collection.photo(row, model)))
            except InputError as error:
                note(f"{CAUTION}{error}")
        if readable:
            photos = torch.stack([photo for _, photo in readable]).to(model.device)
            maps = as_maps(model.run(photos, (layer,)).channels(layer))[:, channels.to(photos.device)]
            inner = maps.float().masked_fill(edge.to(maps.device), -torch.inf)
            tally = tally.merged(
                Tally.of(inner, torch.tensor([id for id, _ in readable]), collection.about.top)
            )
    tell(f"inner places of {layer}", count, count)
    return tally
