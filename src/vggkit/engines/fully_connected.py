"""The fully connected layers' modules, with a faster way through them on a CPU in float32.

torch gives float32 matrix products to MKL, which takes its AVX2 path on other makers' CPUs, and draws dropout's
mask one float at a time on one thread. oneDNN, which torch brings too and uses for convolutions, has no such bias.
The fast way is off unless `use_fast_cpu` turns it on: training, evaluation and prediction do. What traces,
transforms or counts a network (torch.compile, torch.func, FlopCounterMode) meets torch's own operators.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vggkit.engines import kernels
from vggkit.engines.convolution import Conv2d, engine

_LEVELS = 2**16
FEW_IMAGES = 8
"""Up to which the time is that of reading the weights, which the compiled kernel does faster than oneDNN."""


def use_fast_cpu(net: nn.Module, on: bool = True) -> None:
    """Turn the fast way on or off in every layer of `net` that has one; it is taken where it applies."""
    for module in _with_a_fast_way(net):
        module.is_fast = on


def _with_a_fast_way(net: nn.Module) -> "list[Linear | Dropout | Conv2d]":
    return [module for module in net.modules() if isinstance(module, Linear | Dropout | Conv2d)]


@contextmanager
def fast_cpu(net: nn.Module) -> Iterator[None]:
    """Within, `net` takes the fast ways."""
    before = {module: module.is_fast for module in _with_a_fast_way(net)}
    use_fast_cpu(net)
    try:
        yield
    finally:
        for module, was_fast in before.items():
            module.is_fast = was_fast


class Linear(nn.Linear):
    """`nn.Linear`, and the same products faster where that is on and applies: float32 (batch, features) on a CPU."""

    is_fast = False

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_features) to (batch, out_features)."""
        weight, bias = (self.out_features, self.in_features), (self.out_features,)
        if (
            type(self) is Linear  # and no class that a parametrization made, whose weights are to be read once
            and self.is_fast
            and not kernels.is_watched()
            and x.numel() > 0
            and kernels.can_read((x, (len(x), self.in_features)), (self.weight, weight), (self.bias, bias))
        ):
            if len(x) <= FEW_IMAGES and not torch.is_grad_enabled() and engine()[0] == "compiled":
                return kernels.fully_connected(x, self.weight, self.bias)
            if torch.backends.mkldnn.is_available():
                y: Tensor = _OneDnnLinear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
                return y
        return super().forward(x)


class Dropout(nn.Dropout):
    """`nn.Dropout`, and the same with four random values from each draw where that is on and applies.

    The fast way drops with the nearest multiple of 1/65536 to `p`.
    """

    is_fast = False

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; in training each value is dropped, or scaled to keep the mean."""
        dropped = round(self.p * _LEVELS)
        if not (self.is_fast and self.training and _is_plain_float(x) and 0 < dropped < _LEVELS):
            return super().forward(x)
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
    """`x @ weight.T + bias`; oneDNN takes transposed operands as they lie."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _is_plain_float(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
