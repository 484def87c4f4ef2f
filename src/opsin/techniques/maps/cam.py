import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from opsin.base.errors import InputError, NetworkError
from opsin.gradients.derivatives import derivative
from opsin.network.activations import Activations
from opsin.network.model import Model
from opsin.objectives.objective import Objective
from opsin.objectives.units import PREDICTED
from opsin.registry.kinds import Target
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap


@technique(
    title="CAM",
    paper="Zhou et al.: Learning Deep Features for Discriminative Localization, 2016 (arXiv:1512.04150)",
    reading="Where the last layer sees evidence for the class (red) and against it (blue).",
    cost=1,
)
def cam(model: Model, images: Float[Tensor, "n 3 h w"], target: Target = PREDICTED) -> Heatmap:
    """Class activation map: the last maps, weighted by the classifier's weights of the class.

    M_c(i, j) = Σ_k w_k^c A_k(i, j), for a network whose score is S_c = Σ_k w_k^c mean(A_k) + b_c: the
    mean of the map is the score without its bias. Signed, in units of the score. It equals h·w times
    Grad-CAM's sum before the ReLU.

    Any weighted sum of classes is a target. Raises `NetworkError` on networks that do not end in
    global average pooling and one linear layer; it is checked on the numbers, not on names.
    """
    if target.layers != ("output",):
        raise InputError(f"CAM explains a class, not {target.name!r}: see grad_cam for units and channels")
    heads = [c for c in model.calls.values() if isinstance(model.network.get_submodule(c.layer), nn.Linear)]
    if not heads or heads[-1].layout != "vector":
        raise _no_cam(model)
    head = heads[-1].layer
    weight, bias = model.weights([head])[head], model.weights([head], "bias").get(head)
    fitting = [
        c.name
        for c in model.calls.values()
        if c.extent not in (None, (1, 1)) and _width(c.shape, c.layout) == weight.shape[1]
    ]
    run = model.run(images, ("output", *fitting))
    for layer in reversed(fitting):
        for maps in (run.maps(layer), relu(run.maps(layer))):  # DenseNet's last ReLU is no layer
            if _is_head(weight, bias, maps, run):
                weights = _score_weights(target, run) @ weight.to(maps)  # (n, classes) @ (classes, c)
                values = torch.einsum("nc,nchw->nhw", weights, maps)[:, None]
                return Heatmap(values, images, signed=True, overlay=True)
    raise _no_cam(model)


def _width(shape: tuple[int, ...], layout: str) -> int:
    return shape[1] if layout == "maps" else shape[-1]


def _is_head(
    weight: Float[Tensor, "classes c"],
    bias: Float[Tensor, " classes"] | None,
    maps: Float[Tensor, "n c h w"],
    run: Activations,
) -> bool:
    """Whether the output is the linear layer of the maps' mean, up to rounding."""
    scores = linear(maps.mean((2, 3)), weight, bias)
    tolerance = 1e-3 if maps.dtype in (torch.float32, torch.float64) else 5e-2
    output = run["output"].nan_to_num()
    scores = scores.nan_to_num()
    return scores.shape == output.shape and bool((scores - output).norm() <= tolerance * output.norm())


def _score_weights(target: Objective, run: Activations) -> Float[Tensor, "n classes"]:
    output = run["output"].detach().requires_grad_()
    run["output"] = output
    return derivative(target.score(run), output, target)


def _no_cam(model: Model) -> NetworkError:
    calls = list(model.calls.values())
    last = max((i for i, c in enumerate(calls) if c.extent not in (None, (1, 1))), default=-1)
    tail = ", ".join(f"{c.name} ({c.kind})" for c in calls[max(last, len(calls) - 6) :])
    return NetworkError(
        f"CAM needs global average pooling and one linear layer at the end; {model.name} ends in {tail}. "
        "Grad-CAM has no such condition: use grad_cam"
    )
