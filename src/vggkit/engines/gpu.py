"""The engine for a CUDA GPU: bfloat16 in channels last, fused layers, and steps captured as CUDA graphs.

Convolutions are cuDNN's, with bias and ReLU in the same kernel; the first one, pooling and the backward pass of ReLU
and pool are in Triton (`triton_kernels.py`). torch.compile is not used, so that a run starts in seconds.
"""

import functools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggkit.engines.convolution import is_2x2_pool, scale_and_bias

BFLOAT16 = torch.bfloat16
MAX_VALUES = 2**31  # in a map: the kernels have 32-bit indices
MAX_GRAPHS = 8
MAX_REPLAYED_IMAGES = 32
WARM_UP_STEPS = 3


@functools.cache
def why_no_kernels() -> str:
    """Why Triton kernels are unavailable, in one line; empty if they are available."""
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "Triton needs a C compiler, got none of cc, gcc and clang"
    try:
        from vggkit.engines import triton_kernels

        triton_kernels.max_pool(torch.zeros(1, 16, 2, 2, dtype=BFLOAT16, device="cuda"))
    except Exception as error:
        return f"Triton does not work here: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return ""


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether `device` has fast bfloat16: NVIDIA's Ampere and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def unsupported_reason(layer: nn.Module) -> str:
    """Why torch runs `layer` for any input; empty if this engine does."""
    if isinstance(layer, nn.MaxPool2d):
        return why_no_kernels()
    if not isinstance(layer, nn.Conv2d):
        return "torch's own is as fast"
    if type(layer) is not nn.Conv2d or type(layer.weight) is not nn.Parameter or layer.bias is None:
        return "not a plain nn.Conv2d with a bias"
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return "not padded with zeros"
    return why_no_kernels()


def is_faster(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether `fused` takes `conv` and `x`."""
    return (
        not unsupported_reason(conv)
        and x.ndim == 4
        and x.numel() > 0
        and x.is_floating_point()
        and max(x.numel(), x.numel() // conv.in_channels * conv.out_channels) < MAX_VALUES
        and torch.is_autocast_enabled("cuda")
    )


def fused(conv: nn.Conv2d, x: Tensor, norm: nn.BatchNorm2d | None, relu: bool, pool: bool) -> Tensor:
    """`pool(relu(norm(conv(x))))` in bfloat16."""
    from vggkit.engines import triton_kernels

    if not torch.is_grad_enabled() or not (x.requires_grad or conv.weight.requires_grad):
        return triton_kernels.convolution(conv, x, *bfloat16_weights(conv, norm), relu, pool, keeps_codes=False)[0]
    y: Tensor
    if relu:
        y = triton_kernels.Convolution.apply(x, conv.weight, conv.bias, conv, pool)  # type: ignore[no-untyped-call]
    else:  # before a batch norm
        y = triton_kernels.max_pool(conv(x)) if pool else conv(x)
    return y


def run(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`."""
    is_whole = x.ndim == 4 and 0 < x.numel() < MAX_VALUES and min(x.shape[-2:]) > 1
    if type(layer) is nn.MaxPool2d and is_whole and is_2x2_pool(layer) and not why_no_kernels():
        from vggkit.engines import triton_kernels

        return triton_kernels.max_pool(x)
    if type(layer) is nn.Linear and not torch.is_grad_enabled() and torch.is_autocast_enabled("cuda"):
        return F.linear(x.to(BFLOAT16), *bfloat16_weights(layer))
    y: Tensor = layer(x)
    return y


_BFLOAT16_WEIGHTS: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], Tensor, Tensor | None]] = WeakKeyDictionary()
"""Weights and biases for inference, and the parameter versions that they were made from, by layer or folded norm."""


def bfloat16_weights(layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm2d | None = None) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of `layer`, with `norm` folded in, in bfloat16; updated in place when parameters change.

    Captured graphs read them at a fixed address.
    """
    versions = _versions([layer] if norm is None else [layer, norm])
    cached = _BFLOAT16_WEIGHTS.get(norm or layer)
    if cached is not None and cached[0] == versions:
        return cached[1:]
    with torch.inference_mode(False), torch.no_grad():  # inference tensors could not be updated later
        weight, bias = layer.weight, layer.bias
        if norm is not None:
            scale, bias = scale_and_bias(norm, bias)
            weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        if cached is not None and cached[1].shape == weight.shape and cached[1].device == weight.device:
            half, half_bias = cached[1].copy_(weight), cached[2]
            if half_bias is not None and bias is not None:
                half_bias.copy_(bias)
        else:
            half = weight.to(BFLOAT16)
            half = half.contiguous(memory_format=torch.channels_last) if half.ndim == 4 else half
            half_bias = None if bias is None else bias.to(BFLOAT16)
    _BFLOAT16_WEIGHTS[norm or layer] = (versions, half, half_bias)
    return half, half_bias


def _versions(modules: Iterable[nn.Module]) -> tuple[int, ...]:
    """Addresses and versions of parameters and buffers, which change with them."""
    versions: list[int] = []
    for module in modules:
        # `parameters()` and `buffers()` take ten times as long, a third of the time of replaying VGG-16.
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None:
                continue
            versions += (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
    return tuple(versions)


@contextmanager
def half(x: Tensor, is_wanted: bool = True) -> Iterator[bool]:
    """Autocast to bfloat16, if `is_wanted` and the GPU of `x` supports it.

    Yields whether the body's results keep their type, because autocast was not turned on here.
    """
    if not is_wanted or not has_fast_bfloat16(x.device) or torch.is_autocast_enabled("cuda"):
        yield True
        return
    with torch.autocast("cuda", BFLOAT16):
        yield False


class GraphCache:
    """Forward passes without gradients as CUDA graphs, several times as fast where kernel launches dominate.

    The first pass of a shape is eager, the second is captured, later ones are replayed.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._graphs: dict[Any, tuple[torch.cuda.CUDAGraph, Tensor, Tensor] | None] = {}
        self._addresses: list[int] = []
        self._versions: tuple[int, ...] = ()

    def takes(self, x: Tensor) -> bool:
        """Whether launches dominate for `x`, and the pass has no gradients, randomness or batch statistics."""
        is_small = x.is_cuda and 0 < len(x) <= MAX_REPLAYED_IMAGES
        return is_small and not torch.is_grad_enabled() and not any(module.training for module in self._net.modules())

    def __call__(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`forward(x)`."""
        modules = list(self._net.modules())
        versions = _versions(modules)
        addresses = [*map(id, modules), *versions[::2]]
        if addresses != self._addresses:  # the graphs have the old addresses
            self._graphs.clear()
        elif versions != self._versions:
            forward(x)  # updates the bfloat16 weights in place
        self._addresses, self._versions = addresses, versions
        key = (x.shape, x.stride(), x.dtype, x.device, torch.is_inference_mode_enabled())
        if key not in self._graphs:
            if len(self._graphs) >= MAX_GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[key] = None
            return forward(x)
        captured = self._graphs[key]
        if captured is None:
            example = x.clone()
            _warm_up(lambda: forward(example), 1)
            graph, y = _capture(lambda: forward(example))
            captured = self._graphs[key] = graph, example, y
        graph, example, y = captured
        example.copy_(x)
        graph.replay()
        return y.clone()


def _capture(
    function: Callable[[], Tensor], generators: Sequence[torch.Generator] = ()
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """`function` as a CUDA graph, and the tensor that a replay writes its result to."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        result = function()
    return graph, result


def _warm_up(function: Callable[[], Tensor], times: int) -> None:
    """Call `function` on a side stream, as a capture does, to initialise libraries and kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            function()
    torch.cuda.current_stream().wait_stream(stream)


def capture_step(
    step: Callable[[], Tensor], net: nn.Module, optimizer: torch.optim.Optimizer, generators: Sequence[torch.Generator]
) -> Callable[[], Tensor]:
    """A training step as a CUDA graph; the warm-up changes neither `net` nor `optimizer`.

    `step` does forward, backward and update on tensors at fixed addresses, without synchronising. It may draw from the
    device's generator and from `generators`, which may be seeded before a replay.
    """

    def states() -> list[Tensor]:
        values = [value for state in optimizer.state.values() for value in state.values()]
        return [value for value in values if isinstance(value, Tensor)]

    saved = [(tensor, tensor.detach().clone()) for tensor in (*net.parameters(), *net.buffers(), *states())]
    _warm_up(step, WARM_UP_STEPS)
    old_ids = {id(tensor) for tensor, _ in saved}
    with torch.no_grad():
        for tensor, value in saved:
            tensor.copy_(value)
        for tensor in states():  # made by the first step; all start at zero
            if id(tensor) not in old_ids:
                tensor.zero_()
    optimizer.zero_grad()
    torch.cuda.empty_cache()
    graph, outcome = _capture(step, generators)
    changed = [*net.parameters(), *net.buffers()]

    def replay(_reads_tensors_of: object = step) -> Tensor:
        graph.replay()
        torch.autograd.graph.increment_version(changed)  # a replay does not, and `bfloat16_weights` needs it
        return outcome

    return replay
