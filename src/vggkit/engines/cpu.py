"""The engine for a CPU: float32 layers that are faster than torch's.

torch computes float32 matrix products by MKL, which takes its AVX2 path on CPUs of other vendors, and draws dropout's
mask one float at a time on one thread. oneDNN, which torch includes for convolutions, has no such restriction.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vggkit.engines import convolution, kernels
from vggkit.engines.narrow import NarrowLinear
from vggkit.errors import KernelError

_LEVELS = 2**16
FEW_IMAGES = 8  # largest batch for which reading the weights dominates, where the compiled kernel is faster than oneDNN


@functools.cache
def why_not_compiled() -> str:
    """Why the compiled kernels are unavailable, in one line; empty if they are available."""
    try:
        kernels.library()
    except KernelError as error:
        return str(error)
    return ""


def unsupported_reason(layer: nn.Module) -> str:
    """Why torch runs `layer` for any input; empty if this engine does."""
    if isinstance(layer, nn.Conv2d):
        return convolution.unsupported_reason(layer) or why_not_compiled()
    if type(layer) is nn.Linear and type(layer.weight) is nn.Parameter:
        return "" if torch.backends.mkldnn.is_available() else "torch was built without oneDNN"
    if isinstance(layer, NarrowLinear):
        return why_not_compiled()
    return "" if type(layer) is nn.Dropout else "torch's own is as fast"


def is_faster(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether `fused` takes `conv` and `x`, and is faster than torch."""
    return not why_not_compiled() and not torch.is_autocast_enabled("cpu") and convolution.is_faster(conv, x)


fused = convolution.fused


def run(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)` up to rounding; dropout draws other numbers with the same probability."""
    if type(layer) is nn.Linear:
        return _linear(layer, x)
    if type(layer) is nn.Dropout:
        return _dropout(layer, x)
    if isinstance(layer, NarrowLinear) and _kernel_takes(layer, x):
        sums = kernels.fully_connected(x, layer.weight, layer.bias, layer.scale)
        if layer.scale is None or sums.isfinite().all():  # int8 sums are scaled at the end and overflow sooner
            return sums
    y: Tensor = layer(x)
    return y


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    weight, bias = (layer.out_features, layer.in_features), (layer.out_features,)
    if (
        type(layer.weight) is nn.Parameter
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and kernels.can_read((x, (len(x), layer.in_features)), (layer.weight, weight), (layer.bias, bias))
    ):
        if len(x) <= FEW_IMAGES and not torch.is_grad_enabled() and not why_not_compiled():
            return kernels.fully_connected(x, layer.weight, layer.bias)
        if torch.backends.mkldnn.is_available():
            y: Tensor = _OneDnnLinear.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
            return y
    z: Tensor = layer(x)
    return z


def _kernel_takes(layer: NarrowLinear, x: Tensor) -> bool:
    """Whether the compiled kernel can compute `layer(x)`."""
    outputs = (layer.out_features,)
    return (
        0 < x.numel() <= FEW_IMAGES * layer.in_features
        and not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or why_not_compiled())
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == (torch.bfloat16 if layer.scale is None else torch.int8)
        and kernels.can_read((x, (len(x), layer.in_features)), (layer.bias, outputs), (layer.scale, outputs))
    )


def _dropout(layer: nn.Dropout, x: Tensor) -> Tensor:
    """Dropout with four random values from each draw; the probability is rounded to a multiple of 1/65536."""
    dropped = round(layer.p * _LEVELS)
    if not layer.training or layer.inplace or x.dtype != torch.float32 or not x.numel() or not 0 < dropped < _LEVELS:
        y: Tensor = layer(x)
        return y
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    mask = (draws.view(torch.int16)[: x.numel()] >= dropped - _LEVELS // 2).view(x.shape)
    return x * mask.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if needs_x else None,
            _product(gradient.t(), x.t()) if needs_weight else None,
            gradient.sum(dim=0) if ctx.has_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`; oneDNN reads transposed operands without a copy."""
    sparse = None if why_not_compiled() else kernels.sparse_product(x, weight.t())
    if sparse is not None:
        return sparse if bias is None else sparse.add_(bias)
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y
