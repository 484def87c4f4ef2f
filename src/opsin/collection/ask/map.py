"""A collection laid out in two dimensions: images that are similar to a network are near each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from opsin.base.errors import InputError, NetworkError, at_least, unknown
from opsin.base.job import note, noting
from opsin.collection.ask.wording import counted, record
from opsin.collection.store.store import Collection, opened
from opsin.collection.store.tables import Row
from opsin.collection.store.truth import WNID, truth
from opsin.results.map import Map, Spot

Method = Literal["tsne", "pca"]
PAPERS: Mapping[Method, str] = {
    "tsne": "van der Maaten, Hinton: Visualizing Data using t-SNE, 2008",
    "pca": "Pearson: On Lines and Planes of Closest Fit to Systems of Points in Space, 1901",
}
SAID: Mapping[Method, str] = {"tsne": "t-SNE", "pca": "the first two principal components"}
COMPONENTS = 50  # principal components before t-SNE; the paper takes 30
PERPLEXITY = 30.0  # of t-SNE; less if there are few images
FEWEST = 10  # images for t-SNE: positions of fewer mean nothing, found by trial
ALIKE = 1e-6  # directions that differ by no more in any channel are equal up to rounding
SPREAD = 1e-4  # standard deviation of the first coordinate where t-SNE starts, scikit-learn's own


def map(
    collection: Collection | str | Path,
    *,
    layer: str | None = None,
    method: Method = "tsne",
    most: int = 2000,
    seed: int = 0,
) -> Map:
    """Lay the images of a collection out in a plane: images with similar features at a layer are near.

    The pooled features f are normalised, f / |f|, so that distances are those of their directions (the
    square is twice the cosine distance). `pca` takes their first two principal components; `tsne` runs
    t-SNE on the first 50, with perplexity 30, or a third of the number of other images if that is less;
    fewer than ten images are laid out by principal components. `layer` defaults to the collection's first.
    If there are more than `most` images, a random sample is laid out. Labels that are a class's index or
    WordNet number are shown with its name.

    Raises `InputError` on fewer than two images, `NetworkError` if features are NaN or infinite.
    Departs from the t-SNE paper: neighbours and repulsion are approximated (van der Maaten: Accelerating
    t-SNE using Tree-Based Algorithms, 2014), and it starts from the first two components, not at random.
    """
    collection = opened(collection)
    layer = collection.about.layers[collection.layer(layer)].name
    if method not in get_args(Method):
        raise unknown("method", method, get_args(Method))
    at_least(2, most=most)
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be at least 0 and below 2^32, not {seed}")
    if (n := len(collection)) < 2:
        raise InputError(f"a map needs at least 2 images, {collection.folder} holds {n}")
    with noting() as notes:
        chosen = _sample(n, most, seed)
        features = collection.features(layer, chosen)
        if not np.isfinite(features).all():
            raise NetworkError(f"the features of layer {layer!r} hold NaN or infinite numbers")
        places = laid_out(features, method, seed)
    spots = tuple(_spot(collection, row) for row in collection.rows(chosen))
    settings = {"layer": layer, "method": method, "most": most, "seed": seed}
    return Map(
        f"{counted(len(chosen), 'image')} as {collection.about.model['name']} sees them",
        f"Images near each other have similar features at {layer}, laid out by {SAID[method]}.",
        torch.from_numpy(places),
        spots,
        record=record(collection, "map", PAPERS[method], settings, notes),
    )


def laid_out(features: Float[np.ndarray, "n c"], method: Method, seed: int) -> Float[np.ndarray, "n 2"]:
    """Positions of features in the plane; one thread, so that results do not depend on the thread count."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    units = features / np.where(lengths > 0, lengths, 1)
    if np.abs(units - units[0]).max() <= ALIKE:
        note("all features have the same direction: all images are at one position")
        return np.zeros((len(units), 2), np.float32)
    if method == "tsne" and len(units) < FEWEST:
        note(f"{len(units)} images are too few for t-SNE: laid out by {SAID['pca']}")
        method = "pca"
    with threadpool_limits(1):
        count = min(COMPONENTS if method == "tsne" else 2, *units.shape)
        places: Float[np.ndarray, "n c"] = PCA(count, random_state=seed).fit_transform(units)
        if count < 2:  # a single channel has no second component
            places = np.pad(places, ((0, 0), (0, 1)))
        if method == "tsne":
            start = SPREAD * places[:, :2] / places[:, 0].std()
            perplexity = min(PERPLEXITY, (len(places) - 1) / 3)
            places = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(places)
    return places


def _sample(n: int, most: int, seed: int) -> list[int]:
    """The rows that are laid out."""
    if n <= most:
        return list(range(n))
    note(f"a random sample of {most:,} of the {n:,} images is laid out")
    drawn = np.random.default_rng(seed).choice(n, most, replace=False)
    return sorted(drawn.tolist())


def _spot(collection: Collection, row: Row) -> Spot:
    names = collection.about.labels or ()
    label = row.label
    if label and names and (label.isdecimal() or WNID.fullmatch(label)):
        index = truth(label, names)
        label = label if index is None else f"{collection.label(index)} ({label})"
    prediction = collection.label(row.classes[0]) if row.classes else None
    probability = row.probabilities[0] if row.probabilities else None
    return Spot(row.path, label, prediction, probability, row.thumbnail)
