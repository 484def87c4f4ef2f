"""The plain net of `nets` by hand: NumPy in float64, one image at a time, no autograd."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from nets import MEAN, SPELLINGS, STD, Spelling

LAYERS = ("image", "conv1", "relu1", "pool", "conv2", "relu2", "mean", "output")
RELU = SPELLINGS["nn.ReLU"]

Array = np.ndarray
Rule = Callable[
    [Array, Array], Array
]  # (signal at the rectifier's output, the rectifier's slope) -> signal below


def plain_gradient(signal: Array, slope: Array) -> Array:
    return signal * slope


def guided(signal: Array, slope: Array) -> Array:
    return np.maximum(signal, 0) * slope


def deconvnet(signal: Array, slope: Array) -> Array:
    return np.maximum(signal, 0)


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def normalised(image: Array) -> Array:
    return (image - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]


def convolve(x: Array, weight: Array, bias: Array) -> Array:
    """y[o, i, j] = bias[o] + Σ weight[o, c, a, b] x[c, i + a - 1, j + b - 1], x zero outside."""
    _, h, w = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    y = np.zeros((len(weight), h, w)) + bias[:, None, None]
    for a in range(3):
        for b in range(3):
            y += np.tensordot(weight[:, :, a, b], padded[:, a : a + h, b : b + w], 1)
    return y


def convolve_transposed(signal: Array, weight: Array) -> Array:
    """The transposed filters: what each output position took from an input one, it gives back to it."""
    _, h, w = signal.shape
    padded = np.zeros((weight.shape[1], h + 2, w + 2))
    for a in range(3):
        for b in range(3):
            padded[:, a : a + h, b : b + w] += np.tensordot(weight[:, :, a, b].T, signal, 1)
    return padded[:, 1:-1, 1:-1]


def kernel_gradient(signal: Array, x: Array) -> Array:
    """How the sum of signal * convolve(x) changes with each weight."""
    _, h, w = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    gradient = np.zeros((len(signal), len(x), 3, 3))
    for a in range(3):
        for b in range(3):
            gradient[:, :, a, b] = np.tensordot(signal, padded[:, a : a + h, b : b + w], ((1, 2), (1, 2)))
    return gradient


def windows(h: int, w: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(h // 2) for j in range(w // 2)]


def pool(x: Array) -> Array:
    c, h, w = x.shape
    y = np.zeros((c, h // 2, w // 2))
    for i, j in windows(h, w):
        y[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2))
    return y


def average_pool(x: Array) -> Array:
    c, h, w = x.shape
    y = np.zeros((c, h // 2, w // 2))
    for i, j in windows(h, w):
        y[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
    return y


def gram(maps: Array, weight: Array | None = None) -> Array:
    """G_ij = Σ_k w_k F_ik F_jk / Σ_k w_k over the positions k, entry by entry; w is one without a weight."""
    weight = np.ones(maps.shape[1:]) if weight is None else weight
    n = len(maps)
    return np.array([[(weight * maps[i] * maps[j]).sum() / weight.sum() for j in range(n)] for i in range(n)])


def unpool(signal: Array, x: Array) -> Array:
    """The signal of each 2 x 2 window at the place of its (first) maximum in x: the switches."""
    c, h, w = x.shape
    y = np.zeros_like(x)
    for i, j in windows(h, w):
        for k in range(c):
            window = x[k, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            a, b = divmod(int(window.argmax()), 2)
            y[k, 2 * i + a, 2 * j + b] = signal[k, i, j]
    return y


def forward(
    net: nn.Module, image: Array, rectifier: Spelling = RELU, pooling: Callable[[Array], Array] = pool
) -> dict[str, Array]:
    """Every activation of one image (3, h, w) in [0, 1]."""
    p = {name: array(value) for name, value in net.named_parameters()}
    a: dict[str, Array] = {"image": image}
    a["conv1"] = convolve(normalised(image), p["conv1.weight"], p["conv1.bias"])
    a["relu1"] = rectifier.value(a["conv1"])
    a["pool"] = pooling(a["relu1"])
    a["conv2"] = convolve(a["pool"], p["conv2.weight"], p["conv2.bias"])
    a["relu2"] = rectifier.value(a["conv2"])
    a["mean"] = a["relu2"].mean((1, 2))
    a["output"] = p["fc.weight"] @ a["mean"] + p["fc.bias"]
    return a


def backward(
    net: nn.Module,
    a: dict[str, Array],
    signal: Array,
    *,
    start: str = "output",
    to: str = "image",
    rule: Rule = plain_gradient,
    rectifier: Spelling = RELU,
) -> Array:
    """The signal at the layer `start` carried down to the layer `to`, with `rule` at the rectifiers."""
    p: dict[str, Any] = {name: array(value) for name, value in net.named_parameters()}
    positions = a["relu2"][0].size
    down = {
        "output": lambda s: p["fc.weight"].T @ s,
        "mean": lambda s: np.broadcast_to(s[:, None, None], a["relu2"].shape) / positions,
        "relu2": lambda s: rule(s, rectifier.slope(a["conv2"])),
        "conv2": lambda s: convolve_transposed(s, p["conv2.weight"]),
        "pool": lambda s: unpool(s, a["relu1"]),
        "relu1": lambda s: rule(s, rectifier.slope(a["conv1"])),
        "conv1": lambda s: convolve_transposed(s, p["conv1.weight"]) / np.array(STD)[:, None, None],
    }
    for layer in reversed(LAYERS[LAYERS.index(to) + 1 : LAYERS.index(start) + 1]):
        signal = down[layer](signal)
    return signal


def one_hot(index: int, length: int = 5) -> Array:
    return np.eye(length)[index]


def enlarged(coarse: Array, h: int, w: int) -> Array:
    """Bilinear upsampling of (rows, columns) to (h, w); pixel centres at halves, edges extended."""

    def mix(length: int, cells: int) -> Array:
        weights = np.zeros((length, cells))
        for i in range(length):
            place = min(max((i + 0.5) * cells / length - 0.5, 0), cells - 1)
            low = int(place)
            high = min(low + 1, cells - 1)
            weights[i, low] += 1 - (place - low)
            weights[i, high] += place - low
        return weights

    return mix(h, coarse.shape[0]) @ coarse @ mix(w, coarse.shape[1]).T
