"""`accelerate`: a network with the same parameters and outputs, up to rounding, that runs faster."""

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vggkit.engines import cpu, gpu, waiting
from vggkit.engines.convolution import can_fold, is_2x2_pool
from vggkit.engines.narrow import Head, with_head
from vggkit.errors import UserError, shown
from vggkit.networks.baselines import BaselineNetwork
from vggkit.networks.modules import check_images
from vggkit.networks.vgg import VGG

KNOWN = (VGG, BaselineNetwork, nn.Sequential)
"""The types of networks whose layers run in sequence, so that an engine can run them."""
EngineName = Literal["fast", "eager", "torch"]
"""`fast`: everything that this machine supports. `eager`: the same without CUDA graphs. `torch`: torch's own layers."""


class Engine(Protocol):
    """Runs layers on a kind of device; implemented by the modules `cpu` and `gpu`."""

    def unsupported_reason(self, layer: nn.Module) -> str:
        """Why torch runs `layer` for any input; empty if the engine does."""

    def is_faster(self, conv: nn.Conv2d, x: Tensor) -> bool:
        """Whether `fused` takes `conv` and `x`, and is faster than torch."""

    def fused(self, conv: nn.Conv2d, x: Tensor, norm: nn.BatchNorm2d | None, relu: bool, pool: bool) -> Tensor:
        """`pool(relu(norm(conv(x))))`, with a `norm` that `can_fold` accepts."""

    def run(self, layer: nn.Module, x: Tensor) -> Tensor:
        """`layer(x)` for every other layer."""


def engine_name(name: str | None = None) -> EngineName:
    """The engine `name`, by default that of the environment variable `VGGKIT_ENGINE` or `fast`; raises `ValueError`."""
    name = name or os.environ.get("VGGKIT_ENGINE") or "fast"
    if name not in get_args(EngineName):
        raise ValueError(f"expected an engine of {', '.join(get_args(EngineName))}, got {name!r}")
    return cast(EngineName, name)


def accelerate(
    net: nn.Module, engine: str | None = None, *, recompute: bool = False, head: Head = "float32"
) -> "Accelerated":
    """A faster module on the parameters and buffers of `net`, for training and inference.

    torch runs the layers that the engine does not support (subclasses, parametrised or pruned weights, other types);
    `describe_engine` lists them. Hooks of fused layers do not run. torch.compile, torch.export and torch.jit.trace
    see `net`; torch.func must be given `net` itself.

    Args:
        net: any module; only a VGG or an `nn.Sequential` becomes faster.
        engine: see `engine_name`.
        recompute: keep only each block's input for the backward pass and recompute the rest: the same gradients with
            less memory and about a third more time.
        head: the type of the fully connected layers' weights, for inference only: `bfloat16` or `int8` makes a copy of
            them and shares everything else, so that deleting `net` frees the float32 weights. See `NarrowLinear`.

    Raises:
        UserError: `net` is not a module; or, with a narrow `head`, it has no fully connected layers, narrow ones
            already, or weights that are not finite.
        ValueError: an unknown engine or head.
    """
    if not isinstance(net, nn.Module):
        raise UserError(f"expected a torch module, got {shown(repr(net))}, try accelerate(VGG('vgg11'))")
    return Accelerated(with_head(net, head), engine_name(engine), recompute)


class Accelerated(nn.Module):
    """The result of `accelerate`; `net` is the plain network."""

    net: Any

    def __init__(self, net: nn.Module, engine: EngineName, recompute: bool) -> None:
        super().__init__()
        self.net, self.engine, self.recompute = net, engine, recompute
        self.training = net.training
        self._replays = gpu.GraphCache(net)

    def forward(self, x: Tensor) -> Tensor:
        """`self.net(x)`."""
        y: Tensor
        if type(self.net) not in KNOWN or _is_traced():
            y = self.net(x)
            return y
        if isinstance(self.net, VGG | BaselineNetwork):
            check_images(x, self.net.in_channels, self.net.least_size, self.net.takes_one_size)
        with gpu.half(x, self.engine != "torch") as keeps_type:
            if self.engine == "fast" and self._replays.takes(x):
                y = self._replays(self._forward, x)
            else:
                y = self._forward(x)
        return y if keeps_type else y.to(x.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        engine = _engine_for(self.engine, x)
        with waiting.watched((id(self), x.shape[1:]), len(x), x.device.type):
            if not (self.recompute and torch.is_grad_enabled()):
                return run_layers(_flat_layers(*self.net), x, engine)
            for child in self.net:
                x = (_recomputed if type(child) is nn.Sequential else run_layers)(_flat_layers(child), x, engine)
        return x

    def features(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """`VGG.features` of `self.net`, a VGG."""
        taps: dict[str, Tensor]
        if _is_traced():
            taps = self.net.features(x, layers)
            return taps
        engine = _engine_for(self.engine, x)
        with gpu.half(x, self.engine != "torch") as keeps_type:
            taps = self.net.taps(x, layers, lambda inner, x: run_layers(inner, x, engine))
        return taps if keeps_type else {name: y.to(x.dtype) for name, y in taps.items()}


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


@dataclass(frozen=True)
class Choice:
    """The engine of one layer."""

    layer: str
    """Name in the plain network, such as `block1.conv1_1`."""
    engine: str
    """`vggkit` or `torch`."""
    reason: str
    """Why torch runs it; empty for vggkit."""


def describe_engine(fast: Accelerated) -> tuple[Choice, ...]:
    """The engine of each layer of `fast` on its device, and why; raises `UserError` unless it is from `accelerate`."""
    if not isinstance(fast, Accelerated):
        raise UserError(
            f"expected an accelerated network, got {shown(repr(fast))}, try describe_engine(accelerate(net))"
        )
    example = next(fast.net.parameters(), torch.empty(0)).detach()
    engine = _engine_for(fast.engine, example)
    why = f"engine {fast.engine} on {example.device.type}"
    if type(fast.net) not in KNOWN:
        engine, why = None, f"expected a VGG or an nn.Sequential, got {type(fast.net).__name__}"
    choices = []
    for name, layer in fast.net.named_modules():
        if not list(layer.children()):
            reason = engine.unsupported_reason(layer) if engine is not None else why
            choices.append(Choice(name, "torch" if reason else "vggkit", reason))
    return tuple(choices)


def run_layers(layers: Sequence[nn.Module], x: Tensor, engine: Engine | None) -> Tensor:
    """Run layers in sequence by `engine`, or by torch if it is None.

    Convolutions are fused with the layers that follow. Elsewhere max pooling, which commutes with ReLU, comes first and
    leaves a quarter of the values to rectify; and a ReLU overwrites the output of the previous layer.
    """
    rest, is_fresh = list(layers), False
    while rest:
        layer = rest.pop(0)
        if engine is None:
            x = layer(x)
        elif isinstance(layer, nn.Conv2d) and engine.is_faster(layer, x):
            norm = _take_next(rest, nn.BatchNorm2d, functools.partial(can_fold, layer))
            relu = _take_next(rest, nn.ReLU)
            pool = _take_next(rest, nn.MaxPool2d, is_2x2_pool) if min(x.shape[-2:]) >= 2 else None
            x = engine.fused(layer, x, norm, relu is not None, pool is not None)
            is_fresh = relu is None
        else:
            if type(layer) is nn.ReLU and rest and type(rest[0]) is nn.MaxPool2d and is_2x2_pool(rest[0]):
                layer, rest[0] = rest[0], layer
            x = F.relu_(x) if is_fresh and type(layer) is nn.ReLU else engine.run(layer, x)
            # These do not save their output for the backward pass.
            is_fresh = type(layer) in (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.Linear)
    return x


def _engine_for(name: EngineName, x: Tensor) -> Engine | None:
    if name == "torch":
        return None
    if gpu.has_fast_bfloat16(x.device):
        return gpu
    return cpu if x.device.type == "cpu" else None


def _flat_layers(*children: nn.Module) -> list[nn.Module]:
    """The layers of `children`, with every `nn.Sequential` flattened."""
    return [leaf for child in children for leaf in (_flat_layers(*child) if type(child) is nn.Sequential else [child])]


def _take_next(layers: list[nn.Module], kind: type[nn.Module], fits: Callable[[Any], bool] = lambda _: True) -> Any:
    """Remove and return the first of `layers` if it is of this kind and fits; otherwise None."""
    return layers.pop(0) if layers and type(layers[0]) is kind and fits(layers[0]) else None


def _recomputed(layers: list[nn.Module], x: Tensor, engine: Engine | None) -> Tensor:
    """`run_layers` that saves only `x` for the backward pass and is repeated there."""
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    y: Tensor = checkpoint(
        lambda x: run_layers(layers, x, engine),
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # blocks have no randomness
        context_fn=lambda: (nullcontext(), _FrozenStatistics(norms)),
    )
    return y


class _FrozenStatistics:
    """A context in which `norms` work as in training but do not update their running statistics."""

    def __init__(self, norms: Sequence[nn.BatchNorm2d]) -> None:
        self.norms = norms

    def __enter__(self) -> None:
        self.saved = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, counter) in zip(self.norms, self.saved, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
