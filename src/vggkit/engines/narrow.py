"""Fully connected layers with bfloat16 or int8 weights for inference: at batch 1, reading weights dominates."""

import copy
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggkit.errors import UserError

Head = Literal["float32", "bfloat16", "int8"]
"""The type of the weights of fully connected layers."""
ROWS = 512  # outputs whose weights are converted to float32 at a time, where no kernel reads narrow weights


class NarrowLinear(nn.Module):
    """`nn.Linear` for inference with narrow weights; inputs, sums and outputs are float32.

    `int8` weights are round(weight / scale), -127 to 127, with a scale for each output: 1/127 of its largest weight.
    """

    weight: Tensor  # bfloat16 or int8 (outputs, inputs)
    scale: Tensor | None  # float32 (outputs,) for int8
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, head: Head) -> None:
        super().__init__()
        self.in_features, self.out_features, self.training = layer.in_features, layer.out_features, layer.training
        weight, scale = layer.weight.detach(), None
        if head == "bfloat16":
            narrow = weight.bfloat16()
        else:
            scale = weight.abs().amax(dim=1) / 127
            parts = zip(weight.split(ROWS), scale.where(scale > 0, 1).split(ROWS), strict=True)
            # Clamped, since the scale of weights near the smallest float32 is inexact.
            rounded = [(rows / unit[:, None]).round().clamp(-127, 127).to(torch.int8) for rows, unit in parts]
            narrow = torch.cat(rounded)
        if not (weight.isfinite().all() and narrow.isfinite().all()):
            raise UserError(f"expected weights that are finite in {head}, got others, try other weights")
        self.register_buffer("weight", narrow)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs), with part of the weights in float32 at a time."""
        outputs = []
        for start in range(0, self.out_features, ROWS):
            rows = slice(start, start + ROWS)
            weight = self.weight[rows].to(x.dtype)
            if self.scale is not None:
                weight = weight.mul_(self.scale[rows, None])
            outputs.append(F.linear(x, weight, None if self.bias is None else self.bias[rows]))
        return torch.cat(outputs, dim=-1)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        new = state_dict.get(f"{prefix}weight")
        if new is not None and torch.int8 in {new.dtype, self.weight.dtype} and new.dtype != self.weight.dtype:
            raise UserError(
                f"{prefix}weight: expected weights in {self.weight.dtype}, as the layer keeps them, got {new.dtype}, "
                "try to load them into the network that was accelerated"
            )
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        """The arguments that `print` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.weight.dtype}"


READ_BY_PARENT = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""Modules that read the weights of their layers directly; those layers are not narrowed."""


def with_head(net: nn.Module, head: Head) -> nn.Module:
    """`net`, or a copy with narrow fully connected layers that shares all other parameters and buffers.

    Layers that are pruned, parametrised, empty, or in one of `READ_BY_PARENT` are not narrowed.

    Raises:
        ValueError: an unknown `head`.
        UserError: `net` has no plain fully connected layers, or narrow ones, or weights that are not finite.
    """
    if head not in get_args(Head):
        raise ValueError(f"expected a head in {', '.join(get_args(Head))}, got {head!r}")
    if head == "float32":
        return net
    modules = list(net.modules())
    if any(isinstance(module, NarrowLinear) for module in modules):
        raise UserError("expected a network in float32, got one with a narrow head, try the network it was made from")
    excluded = {id(child) for parent in modules if isinstance(parent, READ_BY_PARENT) for child in parent.children()}
    layers = [layer for layer in modules if type(layer) is nn.Linear and id(layer) not in excluded and _is_plain(layer)]
    if not layers:
        raise UserError(f"expected fully connected layers to keep in {head}, got a network without, try head='float32'")
    # Pruned weights are computed before each call; torch cannot copy such tensors.
    computed = [x for module in modules for x in vars(module).values() if isinstance(x, Tensor) and not x.is_leaf]
    memo: dict[int, Any] = {id(shared): shared for shared in (*net.parameters(), *net.buffers(), *computed)}
    memo |= {id(layer): NarrowLinear(layer, head) for layer in layers}
    return copy.deepcopy(net, memo)


def _is_plain(layer: nn.Linear) -> bool:
    return type(layer.weight) is nn.Parameter and layer.weight.numel() > 0
