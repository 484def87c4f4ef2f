"""Which operations of an autograd graph are rectifiers, and which cannot be a part of one."""

import re
from collections.abc import Callable
from math import prod
from typing import Any, Literal

from torch import Tensor
from torch.autograd.graph import Node

Role = Literal["rectifier", "activation", "straight", "unknown"]


def _zero(bound: Any) -> bool:
    return not bool(bound.any()) if isinstance(bound, Tensor) else bound is not None and bound == 0


RECTIFIERS: dict[str, Callable[[Any], bool]] = {
    "Relu": lambda node: True,
    "Hardtanh": lambda node: _zero(node._saved_min_val),
    "Clamp": lambda node: _zero(node._saved_min),
    "ClampMin": lambda node: _zero(node._saved_min),
    "Threshold": lambda node: _zero(node._saved_threshold),
    "Maximum": lambda node: _zero(node._saved_other) or _zero(node._saved_self),
    "Fmax": lambda node: _zero(node._saved_other) or _zero(node._saved_self),
    "LeakyRelu": lambda node: True,
    "PreluKernel": lambda node: True,
    "RreluWithNoise": lambda node: True,
}
# Other functions that bend a signal; Where, MaskedFill and IndexPut may be rectifiers written by hand.
ACTIVATIONS = re.compile(
    r"""
    Elu | Celu | Gelu | Silu | Mish | Hardswish | Softplus | LogSigmoid | Tanh | Sigmoid | Hardsigmoid
    | Glu | Hardshrink | Softshrink | Hardtanh | Clamp | ClampMin | ClampMax | Threshold | Where | MaskedFill
    | IndexPut | MkldnnRnnLayer | LstmMps | ThnnFused(Lstm|Gru)Cell
    """,
    re.VERBOSE,
)
# Functions without a kink, or with one that only selects among many positions. All others are unknown:
# torch's other kinks (abs, sign, minimum, sort ...) and whatever later versions and extensions add.
STRAIGHT = re.compile(
    r"""
    # sums and products
    Add | Addbmm | Addcdiv | Addcmul | Addmm | Addmv | Addr | Baddbmm | Bmm | Cumprod | Cumsum | Div
    | Dot | Lerp | Linear | MkldnnLinear | LinalgCross | Matmul | Mean | Mm | GroupedMm | Mul | Mv
    | Nansum | Neg | Prod | Rsub | Sub | Sum | Trace | Trilinear | Complex | Conj | Polar | FftC2C
    | FftC2R | FftR2C
    # convolutions
    | \w*Convolution(Transpose|Overrideable)? | Slow(Conv|ConvDilated|ConvTranspose)[23]D
    | ConvDepthwise[23]D | ConvTbc | Im2Col | Col2Im | Unfold
    # layout of values
    | Alias | AsStrided | AsStridedScatter | BlockDiag | Cat | ChannelShuffle | Chunk | Clone
    | ConstantPadNd | Diagonal | DiagonalScatter | DiagEmbed | Expand | Flip | Gather | Index | IndexAdd
    | IndexCopy | IndexSelect | LazyClone | Lift | LiftFresh | MkldnnReshape | NanToNum | NarrowCopy
    | NegView | Permute | PixelShuffle | PixelUnshuffle | ReflectionPad[123]D | Repeat
    | ReplicationPad[123]D | ReshapeAlias | ReshapeCopy | Roll | Rot90 | Scatter | ScatterAdd | Select
    | SelectScatter | Slice | SliceScatter | Split | SplitWithSizes | Squeeze | Stack | T | Take | ToCopy
    | ToDense | ToMkldnn | ToSparse\w* | Transpose | Tril | Triu | Unbind | UnsafeIndex | UnsafeSplit
    | UnsafeSplitWithSizes | UnsafeView | Unsqueeze | View | ViewAsComplex | ViewAsReal
    | torch::autograd::(AccumulateGrad|CopyBackwards|CopySlices)
    # pooling and resampling
    | \w*(Avg|Max)Pool[23]D(WithIndices)? | MaxUnpool[23]D | Upsample\w+ | \w*GridSampler\w*
    | \w*AffineGridGenerator
    # normalisation, attention, dropout
    | \w*BatchNorm\w* | Native(Layer|Group)Norm | FusedRmsNorm | WeightNormInterface | Norm
    | LinalgVectorNorm | Std | StdMean | Var | VarMean | \w*Softmax | Logsumexp | ScaledDotProduct\w+
    | \w*Attention | NativeDropout | FusedDropout | Embedding | EmbeddingBag
    # smooth functions
    | Acos | Acosh | Asin | Asinh | Atan | Atan2 | Atanh | Cos | Cosh | Erf | Erfc | Exp | Exp2 | Expm1
    | Log | Log10 | Log1P | Log2 | Logaddexp | Logaddexp2 | Logit | Pow | Reciprocal | Rsqrt | Sin | Sinc
    | Sinh | Sqrt | Tan | Xlogy
    """,
    re.VERBOSE,
)
EXTREMES = ("Amax", "Amin", "Max", "Min")
POOLED = 4  # the extreme of at least this many values (a window of 2 x 2) is pooling, not a rectifier


def kind(node: Node) -> str:
    """The operation's name without the suffixes of the graph: `Relu` of `ReluBackward0`."""
    return node.name().rstrip("0123456789").removesuffix("Backward")


def role(node: Node) -> Role:
    """What an operation does to a signal on its way back.

    An `activation` bends the signal, but is not a rectifier that a rule acts on; a `straight` operation
    does not bend it. An `unknown` operation may be part of a rectifier.
    """
    name = kind(node)
    if name in RECTIFIERS and RECTIFIERS[name](node):
        return "rectifier"
    if ACTIVATIONS.fullmatch(name):
        return "activation"
    if STRAIGHT.fullmatch(name) or (name in EXTREMES and _choices(node) >= POOLED):
        return "straight"
    return "unknown"


def _choices(node: Any) -> float:
    """From how many input values each output value was chosen."""
    below, index = node.next_functions[0]
    given, returned = below._input_metadata[index].shape, node._input_metadata[0].shape
    return float(prod(given) / max(1, prod(returned)))
