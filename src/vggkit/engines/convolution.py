"""3x3 convolutions on a CPU by Winograd's minimal filtering, fused with bias, ReLU and max pool.

F(4x4, 3x3) of Lavin and Gray (arXiv 1509.09308): a map is cut into tiles of 4x4 outputs, which need 6x6 inputs each.
Inputs and weights are transformed to 6x6 points, where the convolution is 36 matrix products with a quarter of the
multiplications. `winograd.cpp` does it in one pass through the cache, with the weights of an `nn.Conv2d`.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vggkit.engines import kernels

TILE, POINTS = 4, 6
MIN_GAIN = 1.5
"""Minimum ratio of multiplications, direct to tiled, for which tiles are used: at most 4, less for partly filled tiles.
Measured layer by layer (docs/decisions.md); torch is as fast or faster on maps of 2x2 pixels."""
MAX_IMAGE_CHANNELS = 4


def unsupported_reason(conv: nn.Conv2d) -> str:
    """Why the kernels cannot run `conv` for any input; empty if they can."""
    if type(conv) is not nn.Conv2d or type(conv.weight) is not nn.Parameter:
        return "not a plain nn.Conv2d"  # parametrised, pruned, or a subclass
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    if shape != ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros"):
        return "not 3x3 with stride 1 and padding 1"
    if conv.out_channels % kernels.LANES or (
        conv.in_channels % kernels.LANES and conv.in_channels > MAX_IMAGE_CHANNELS
    ):
        return f"channels are no multiple of {kernels.LANES}"
    if max(conv.in_channels, conv.out_channels) > kernels.MAX_CHANNELS:
        return f"more than {kernels.MAX_CHANNELS} channels"
    return ""


def is_faster(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether `fused` takes `conv` and `x`, and is faster than torch."""
    if unsupported_reason(conv) or x.ndim != 4 or x.numel() == 0 or x.shape[1] != conv.in_channels:
        return False
    weight, bias = (conv.out_channels, conv.in_channels, 3, 3), (conv.out_channels,)
    if not kernels.can_read((x, x.shape), (conv.weight, weight), (conv.bias, bias)):
        return False
    if conv.in_channels % kernels.LANES:
        return not x.requires_grad
    return gain(*x.shape[-2:]) >= MIN_GAIN


def can_fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """Whether `norm` can be folded into `conv`: it has fixed statistics, and gradients are not needed."""
    return not (norm.training or torch.is_grad_enabled()) and all(
        tensor is not None
        and type(tensor) in (Tensor, nn.Parameter)
        and (tensor.shape, tensor.dtype, tensor.device) == ((conv.out_channels,), conv.weight.dtype, conv.weight.device)
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )


_POOL_2X2 = {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}


def is_2x2_pool(pool: nn.Module) -> bool:
    """Whether a max pool has 2x2 windows of stride 2 and no other options, as in VGG."""
    return all(getattr(pool, name) == value for name, value in _POOL_2X2.items())


def fused(conv: nn.Conv2d, x: Tensor, norm: nn.BatchNorm2d | None, relu: bool, pool: bool) -> Tensor:
    """`pool(relu(norm(conv(x))))` of a `conv` and a `norm` that `is_faster` and `can_fold` accept."""
    scale, bias = (None, conv.bias) if norm is None else scale_and_bias(norm, conv.bias)
    tensors = (x, conv.weight, bias)
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors):
        return kernels.convolve(x, conv.weight, scale, bias, relu, pool, keeps_codes=False)[0]
    y: Tensor = Convolution.apply(x, conv.weight, bias, relu, pool)  # type: ignore[no-untyped-call]
    return y


def gain(height: int, width: int) -> float:
    """The ratio of multiplications of a direct to a tiled convolution of a map."""
    return 9 * height * width / (POINTS**2 * -(-height // TILE) * -(-width // TILE))


def scale_and_bias(norm: nn.BatchNorm2d, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The factor and the bias, (outputs,), of a convolution with `bias` followed by `norm` in evaluation mode."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return scale, ((0 if bias is None else bias) - mean) * scale + norm.bias


class Convolution(torch.autograd.Function):
    """Saves x and where gradients pass: y for a ReLU, a byte for each window of a pool."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, pool: bool) -> Tensor:
        """`pool(relu(conv(x)))`."""
        x, weight = kernels.channels_last(x), kernels.channels_last(weight)
        y, codes = kernels.convolve(x, weight, None, bias, relu, pool, keeps_codes=True)
        ctx.save_for_backward(x, weight, codes if pool else y if relu else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight and bias."""
        x, weight, gate = ctx.saved_tensors
        dy, x, weight = (kernels.channels_last(tensor) for tensor in (dy.resolve_neg(), x, weight))
        gate = None if gate is None else kernels.channels_last(gate)  # saved-tensor hooks may change strides
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        dx, dw, db = None, None, None
        if needs_x:
            dx = kernels.input_gradient(dy, gate, weight, *x.shape[-2:])
        if needs_weight or needs_bias:
            dw, db = kernels.weight_gradient(x, dy, gate)
        return dx, dw, db if needs_bias else None, None, None
