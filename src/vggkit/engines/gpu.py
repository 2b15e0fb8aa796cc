"""The engine for a CUDA GPU: bfloat16 in channels last, fused layers, and steps captured as CUDA graphs.

Convolutions are cuDNN's, with bias and ReLU in the same kernel; the first one, pooling and the way back through ReLU
and pool are Triton's (`triton_kernels.py`). Nothing is compiled by torch, so that a run starts in seconds.
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

from vggkit.engines.convolution import halves, scale_and_bias

HALF = torch.bfloat16
MAX_VALUES = 2**31
"""Of a map: the kernels count in 32 bits."""
MAX_GRAPHS = 8
MAX_REPLAYED_IMAGES = 32
WARM_UP_STEPS = 3


@functools.cache
def why_no_kernels() -> str:
    """Why this machine has no Triton kernels, in one line; empty if it has them."""
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "Triton needs a C compiler, got none of cc, gcc and clang"
    try:
        from vggkit.engines import triton_kernels

        triton_kernels.max_pool(torch.zeros(1, 16, 2, 2, dtype=HALF, device="cuda"))
    except Exception as error:
        return f"Triton does not work here: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return ""


def has_half(device: torch.device) -> bool:
    """Whether `device` computes in bfloat16 as fast as it can: NVIDIA's Ampere and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def why_not(layer: nn.Module) -> str:
    """Why torch runs `layer`, whatever its input; empty if this engine does."""
    if isinstance(layer, nn.MaxPool2d):
        return why_no_kernels()
    if not isinstance(layer, nn.Conv2d):
        return "torch's own is as fast"
    if type(layer) is not nn.Conv2d or type(layer.weight) is not nn.Parameter or layer.bias is None:
        return "not a plain nn.Conv2d with a bias"
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return "not padded with zeros"
    return why_no_kernels()


def pays(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether `fused` takes `conv` and `x`."""
    return (
        not why_not(conv)
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
        return triton_kernels.convolution(conv, x, *half_weights(conv, norm), relu, pool, is_kept=False)[0]
    y: Tensor
    if relu:
        y = triton_kernels.Convolution.apply(x, conv.weight, conv.bias, conv, pool)  # type: ignore[no-untyped-call]
    else:  # before a norm: torch's own
        y = triton_kernels.max_pool(conv(x)) if pool else conv(x)
    return y


def run(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`."""
    is_whole = x.ndim == 4 and 0 < x.numel() < MAX_VALUES and min(x.shape[-2:]) > 1
    if type(layer) is nn.MaxPool2d and is_whole and halves(layer) and not why_no_kernels():
        from vggkit.engines import triton_kernels

        return triton_kernels.max_pool(x)
    if type(layer) is nn.Linear and not torch.is_grad_enabled() and torch.is_autocast_enabled("cuda"):
        return F.linear(x.to(HALF), *half_weights(layer))
    y: Tensor = layer(x)
    return y


_HALVES: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], Tensor, Tensor | None]] = WeakKeyDictionary()
"""Weights as inference reads them, and which versions of the parameters they were made from: by the layer, or by the
norm that is folded into it."""


def half_weights(layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm2d | None = None) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of `layer` in bfloat16, with those of a `norm` that follows, made anew when they change.

    They keep their place in memory, which captured graphs read.
    """
    versions = _versions([layer] if norm is None else [layer, norm])
    kept = _HALVES.get(norm or layer)
    if kept is not None and kept[0] == versions:
        return kept[1:]
    with torch.inference_mode(False), torch.no_grad():  # inference mode's own tensors could not be written to later
        weight, bias = layer.weight, layer.bias
        if norm is not None:
            scale, bias = scale_and_bias(norm, bias)
            weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        if kept is not None and kept[1].shape == weight.shape and kept[1].device == weight.device:
            half, half_bias = kept[1].copy_(weight), kept[2]
            if half_bias is not None and bias is not None:
                half_bias.copy_(bias)
        else:
            half = weight.to(HALF)
            half = half.contiguous(memory_format=torch.channels_last) if half.ndim == 4 else half
            half_bias = None if bias is None else bias.to(HALF)
    _HALVES[norm or layer] = (versions, half, half_bias)
    return half, half_bias


def _versions(modules: Iterable[nn.Module]) -> tuple[int, ...]:
    """What changes when a parameter or buffer does."""
    found: list[int] = []
    for module in modules:
        # At every replay: `parameters()` and `buffers()` take ten times as long as these, a third of VGG-16's time.
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None:
                continue
            found += (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
    return tuple(found)


@contextmanager
def half(x: Tensor, is_wanted: bool = True) -> Iterator[bool]:
    """Within, autocast computes in bfloat16 if that `is_wanted` and `x` is on a GPU that has it.

    Yields whether outside it the results have the type that they have within.
    """
    if not is_wanted or not has_half(x.device) or torch.is_autocast_enabled("cuda"):
        yield True
        return
    with torch.autocast("cuda", HALF):
        yield False


class Replays:
    """Forward passes without gradients as CUDA graphs: a network that is all launches runs several times as fast.

    The first pass of a shape runs as it comes, the second is captured, later ones are replayed.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._graphs: dict[Any, tuple[torch.cuda.CUDAGraph, Tensor, Tensor] | None] = {}
        self._places: list[int] = []
        self._versions: tuple[int, ...] = ()

    def takes(self, x: Tensor) -> bool:
        """Whether launches are what `x` would wait for, and nothing is random, learnt or counted."""
        is_small = x.is_cuda and 0 < len(x) <= MAX_REPLAYED_IMAGES
        return is_small and not torch.is_grad_enabled() and not any(module.training for module in self._net.modules())

    def __call__(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`forward(x)`."""
        modules = list(self._net.modules())
        versions = _versions(modules)
        places = [*map(id, modules), *versions[::2]]
        if places != self._places:  # of layers and parameters, of which the graphs know the old ones
            self._graphs.clear()
        elif versions != self._versions:
            forward(x)  # brings the half weights up to date, in their places
        self._places, self._versions = places, versions
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
            graph, y = _captured(lambda: forward(example))
            captured = self._graphs[key] = graph, example, y
        graph, example, y = captured
        example.copy_(x)
        graph.replay()
        return y.clone()


def _captured(
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
    """Call `function` as a capture will, so that libraries and kernels get ready."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            function()
    torch.cuda.current_stream().wait_stream(stream)


def capture_step(
    step: Callable[[], Tensor], net: nn.Module, optimizer: torch.optim.Optimizer, generators: Sequence[torch.Generator]
) -> Callable[[], Tensor]:
    """A step of training as a CUDA graph; the warm-up leaves no trace in the network or the optimizer.

    Args:
        step: forward, backward and update. It reads and writes tensors that stay in their places, and does not wait
            for the GPU.
        net: what it trains.
        optimizer: whose state it updates.
        generators: that it draws from, beside the device's own; a seed that is set before a replay decides it.
    """

    def states() -> list[Tensor]:
        values = [value for state in optimizer.state.values() for value in state.values()]
        return [value for value in values if isinstance(value, Tensor)]

    kept = [(tensor, tensor.detach().clone()) for tensor in (*net.parameters(), *net.buffers(), *states())]
    _warm_up(step, WARM_UP_STEPS)
    known = {id(tensor) for tensor, _ in kept}
    with torch.no_grad():
        for tensor, before in kept:
            tensor.copy_(before)
        for tensor in states():  # which the first step made: zero is where each of them starts
            if id(tensor) not in known:
                tensor.zero_()
    optimizer.zero_grad()
    torch.cuda.empty_cache()
    graph, outcome = _captured(step, generators)
    changed = [*net.parameters(), *net.buffers()]

    def replay(_reads_tensors_of: object = step) -> Tensor:
        graph.replay()
        torch.autograd.graph.increment_version(changed)  # which a replay does not, and `half_weights` looks at
        return outcome

    return replay
