from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from opsin.base.choices import MOST_PIXELS
from opsin.base.errors import InputError, NetworkError
from opsin.base.extras import extra
from opsin.base.job import note
from opsin.network.batches import chunks, forward_batch, pooled
from opsin.network.model import Model
from opsin.objectives.objective import Objective
from opsin.objectives.priors import total_variation
from opsin.objectives.units import PREDICTED, logit
from opsin.optimise.canvas import Fourier
from opsin.optimise.climb import climb, named
from opsin.optimise.recipe import Recipe
from opsin.optimise.transforms import Transform, jitter
from opsin.registry.kinds import Arg, Layer, Target
from opsin.registry.technique import technique
from opsin.results.pictures import Picture, Pictures

COMPONENTS = 50  # of the principal component analysis before t-SNE, as the paper
PERPLEXITY = 30.0  # of t-SNE, less where there are few images
WIDTHS = (0.6, 0.35, 0.2)  # of the bias to the centre in each phase, in shares of the side; found by trial


@technique(
    title="Multifaceted feature visualization",
    paper="Nguyen, Yosinski, Clune: Multifaceted Feature Visualization, 2016 (arXiv:1602.03616)",
    reading="The different kinds of picture that excite the target, one for each cluster of the photos.",
    cost=1000,
    iterative=True,
    photos="together",
)
def facets(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    target: Target = PREDICTED,
    layer: Layer = None,
    clusters: Annotated[int, Arg("number of clusters of the photos", least=1)] = 4,
    nearest: Annotated[int, Arg("number of photos per mean image; 15 in the paper", least=1)] = 15,
    steps: Annotated[int, Arg("number of steps in each of the three phases", least=1)] = 70,
    rate: Annotated[float, Arg("Adam's rate, in the spectrum's unit", least=0, most=10)] = 0.02,
    shift: Annotated[int, Arg("largest random shift (jitter), pixels", least=0, most=MOST_PIXELS)] = 8,
    variation_weight: Annotated[float, Arg("weight λ of the total variation", least=0, most=1e6)] = 3e-3,
    seed: Annotated[int, Arg("random seed of t-SNE and k-means", least=0, most=2**32 - 1)] = 0,
) -> Pictures:
    """Class images that start from the mean of each cluster of photos of the class.

    The photos' features at a layer, PCA to 50 dimensions, t-SNE to two, k-means; then for every cluster
    gradient ascent on S(x) - λ V(x) from the mean of the 15 photos nearest its centre. The gradient is
    multiplied by a Gaussian around the middle that narrows in three phases, so that one object grows from
    the middle. By default the target is the class that most photos are put in.

    Raises `InputError` on fewer photos than clusters. Departs from the paper: the ascent is by Adam over
    the spectrum (`canvas.Fourier`) under small shifts, where the paper blurs pixels less and less; the
    widths of the Gaussian were found by trial.
    """
    if len(images) < max(2, clusters):
        raise InputError(f"facets: {len(images)} photos cannot make {clusters} clusters: give more photos")
    if target.count > 1:
        raise InputError(f"facets: one target for all photos, not {target.count}")
    goal = commonest(model, images) if target.name == PREDICTED.name else target
    features = pooled(model, images, layer)
    if not features.isfinite().all():
        raise NetworkError(f"the features of layer {layer!r} hold NaN or infinite numbers")
    if len(features.unique(dim=0)) < max(2, clusters):
        raise InputError(f"facets: the photos have too few different features for {clusters} clusters")
    places, labels, centres = clustered(features.numpy(), clusters, seed)
    order = [np.linalg.norm(places - centre, axis=1).argsort() for centre in centres]
    members = [own[labels[own] == k][:nearest] for k, own in enumerate(order)]  # none of another cluster
    means = torch.stack([images[torch.from_numpy(m)].mean(0) for m in members])
    goal_smooth = goal + variation_weight * total_variation(2.0) if variation_weight else goal
    pictures, scores = means, list[Tensor]()
    for number, width in enumerate(WIDTHS):
        found = climb(
            f"facets, phase {number + 1} of {len(WIDTHS)}",
            model,
            goal_smooth,
            pictures,
            Recipe(
                steps=steps,
                rate=rate,
                canvas=Fourier(*images.shape[-2:]),
                transforms=[towards_centre(width), jitter(shift)],
                seed=seed + number,
            ),
        )
        pictures, scores = found.images, [*scores, found.scores]
    panels = []
    seen = [f"; the network sees {name}" if name else "" for name in named(model, pictures)]
    for k, (m, mean, image) in enumerate(zip(members, means, pictures, strict=True)):
        group = f"facet {k + 1} ({int((labels == k).sum())} photos)"
        panels += [Picture(group, "photo", images[i], made=False) for i in m[:4]]
        panels += [Picture(group, f"mean of {len(m)}", mean, made=False)]
        panels += [Picture(group, f"{goal.name}{seen[k]}", image)]
    numbers = {
        "map": torch.from_numpy(places),
        "cluster": torch.from_numpy(labels),
        "scores": torch.cat(scores),
    }
    return Pictures(tuple(panels), numbers=numbers)


def commonest(model: Model, images: Float[Tensor, "n 3 h w"]) -> Objective:
    """The class that most of the images are put in."""
    if not model.classes:
        raise InputError(f"facets: {model.name} gives no classes: name a target, as layer:channel")
    parts = chunks(len(images), forward_batch(model, images))
    best = torch.cat([model.run(images[part])["output"].argmax(1) for part in parts])
    index = int(best.mode().values)
    note(f"target: {model.label(index)}, the class of {int((best == index).sum())} of {len(images)} photos")
    return logit(index, model.label(index))


def clustered(
    features: Float[np.ndarray, "n c"], clusters: int, seed: int
) -> tuple[Float[np.ndarray, "n 2"], Int[np.ndarray, " n"], Float[np.ndarray, "k 2"]]:
    """Places in two dimensions, the cluster of each, and the clusters' centres."""
    with extra("collection"):
        from sklearn.cluster import KMeans  # noqa: PLC0415 (needed here alone, and slow)
        from sklearn.decomposition import PCA  # noqa: PLC0415
        from sklearn.manifold import TSNE  # noqa: PLC0415
    n = len(features)
    flat = PCA(min(COMPONENTS, *features.shape), random_state=seed).fit_transform(features)
    perplexity = min(PERPLEXITY, (n - 1) / 3)
    init = "pca" if min(flat.shape) > 1 else "random"  # a single feature has no plane
    places = TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(flat)
    found = KMeans(clusters, n_init=10, random_state=seed).fit(places)
    return places, found.labels_, found.cluster_centers_


def towards_centre(width: float) -> Transform:
    """Leaves a picture as it is and multiplies its gradient by a Gaussian around the middle."""

    def apply(images: Tensor, _: torch.Generator) -> Tensor:
        rows, columns = (torch.linspace(-0.5, 0.5, side).to(images).square() for side in images.shape[-2:])
        share = (-(rows[:, None] + columns) / (2 * width**2)).exp()
        return images * share + (images * (1 - share)).detach()

    return apply
