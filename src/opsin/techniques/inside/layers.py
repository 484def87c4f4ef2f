from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opsin.base.errors import InputError
from opsin.gradients.derivatives import derivative
from opsin.network.activations import Activations
from opsin.network.backward import differentiating
from opsin.network.cut import check_graph
from opsin.network.model import Model
from opsin.network.tracing import Call
from opsin.objectives.objective import Objective
from opsin.objectives.units import PREDICTED
from opsin.registry.kinds import Arg, Target
from opsin.registry.technique import technique
from opsin.results.gallery import Gallery, Panel

PARAMETRIZED = "parametrizations."  # what a module's weight is computed from
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
MAX_MATRIX = 128  # rows and columns of a matrix that fit a page; found by trial


@technique(
    title="Every layer",
    paper="Karpathy: ConvNetJS, 2014 (https://cs.stanford.edu/people/karpathy/convnetjs/)",
    reading="Every layer for this photo: what it gives, its weights, and how the loss would change both.",
    cost=4,
)
def layers(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    target: Target = PREDICTED,
    tiles: Annotated[int, Arg("number of maps or kernels to show per layer", least=1)] = 9,
) -> Gallery:
    """Activations, weights and the gradients of both, of every layer: the ConvNetJS view.

    The gradients are those of the cross-entropy E = log Σ_c exp S_c - S_t against the target class t,
    the predicted one by default, for each image alone. A panel holds up to `tiles` tiles; shape, least
    and greatest value in its caption are of the whole.

    Layers are the modules that have weights of their own or no modules inside; identities and dropout, which
    pass on what they are given, are left out. Raises `InputError` on
    a target that is not a class.
    """
    if target.layers != ("output",):
        raise InputError(f"layers differentiates the cross-entropy of a class, not {target.name!r}")
    whole = model.run(images)
    if whole["output"].shape[1:] == (1,):
        raise InputError("layers differentiates the cross-entropy of classes; this network gives one score")
    panels = []
    for index in range(len(images)):
        prefix = f"image {index}: " if len(images) > 1 else ""
        asked = target.for_image(whole, index)
        panels += _panels(model, images[index : index + 1], asked, tiles, prefix)
    return Gallery(tuple(panels))


def _panels(
    model: Model, image: Float[Tensor, "1 3 h w"], target: Objective, tiles: int, prefix: str
) -> list[Panel]:
    own = {
        name: [f"{name}.{n}" for n, _ in m.named_parameters() if "." not in n or n.startswith(PARAMETRIZED)]
        for name, m in model.network.named_modules()
    }
    shown = [
        c
        for c in model.calls.values()
        if c.readable
        and (own[c.layer] or not any(model.network.get_submodule(c.layer).children()))
        and not isinstance(model.network.get_submodule(c.layer), IDENTITIES)
    ]
    run = model.run(image, ("output", *(call.name for call in shown)), start="image", parameters=True)
    if not run["output"].requires_grad:
        check_graph(model, run, ("output",))
    score = target.score(run)
    loss = run["output"].logsumexp(1) - score
    by_class = derivative(score, run["output"], target, again=True)
    if not torch.equal(by_class.sort(1).values, torch.eye(by_class.shape[1]).to(by_class)[-1:]):
        raise InputError(f"layers differentiates the cross-entropy of one class, not {target.name!r}")
    wanted = [name for name in run if name not in ("image", "output") and run[name].requires_grad]
    leaves = [run[name] for name in wanted]
    with differentiating():
        found = torch.autograd.grad(loss.sum(), leaves, allow_unused=True) if leaves else ()
    gradients = {n: torch.zeros_like(run[n]) if g is None else g for n, g in zip(wanted, found, strict=True)}
    panels = []
    for call in shown:
        group = f"{prefix}{call.name} ({call.kind})"
        for name in (call.name, *own[call.layer]):
            what = "activations" if name == call.name else name.removeprefix(f"{call.layer}.")
            for title, source in ((what, run), (f"gradient of {what}", gradients)):
                if name in source:
                    values = source[name].detach()
                    drawn = _kernels(values) if name != call.name else _maps(values, call, run)
                    caption = _caption(values, name != call.name)
                    if len(drawn) > tiles:
                        caption = f"{tiles} of {len(drawn)} shown: {caption}"
                    panels.append(Panel(group, title, caption, drawn[:tiles]))
    return panels


def _maps(values: Tensor, call: Call, run: Activations) -> Float[Tensor, "k 1 h w"]:
    if call.extent:
        return run.as_maps(values, call.name)[0][:, None]  # (1, c, h, w) -> (c, 1, h, w)
    return _matrix(values[0] if values.ndim > 1 else values)


def _kernels(weight: Tensor) -> Float[Tensor, "k c h w"]:
    if weight.ndim != 4:
        return _matrix(weight)
    return (
        weight if weight.shape[1] == 3 else weight.flatten(0, 1)[:, None]
    )  # (out, in, h, w) -> (out*in, 1, h, w)


def _matrix(values: Tensor) -> Float[Tensor, "1 1 h w"]:
    """Numbers without a place in the image as one tile, cut to a legible size; a vector is a row."""
    rows = values.reshape(1, -1) if values.ndim < 2 else values.flatten(0, -2)
    return rows[None, None, :MAX_MATRIX, :MAX_MATRIX]


def _caption(values: Tensor, parameters: bool) -> str:
    shape = values.shape if parameters else values.shape[1:]
    size = "×".join(map(str, shape)) or "1"
    count = f"{size} = {values.numel()}" if parameters and len(shape) > 1 else size
    return f"{count}, {values.min():.3g} to {values.max():.3g}"
