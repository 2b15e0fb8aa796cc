"""A plain network run as fast as this machine can: the same parameters, the same outputs up to rounding."""

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
from vggkit.engines.convolution import folds, halves
from vggkit.engines.narrow import Head, with_head
from vggkit.errors import UserError, shown
from vggkit.networks.baselines import BaselineNetwork
from vggkit.networks.modules import check_images
from vggkit.networks.vgg import VGG

KNOWN = (VGG, BaselineNetwork, nn.Sequential)
"""The types whose layers run one after the other, each of which an engine may take."""
EngineName = Literal["fast", "eager", "torch"]
"""`fast` is all that this machine can do; `eager` the same without captured steps, which starts at once; `torch` runs
torch's own layers."""


class Engine(Protocol):
    """What runs layers on a kind of device: the modules `cpu` and `gpu`."""

    def why_not(self, layer: nn.Module) -> str:
        """Why torch runs `layer`, whatever its input; empty if the engine does."""
        ...

    def pays(self, conv: nn.Conv2d, x: Tensor) -> bool:
        """Whether `fused` takes `conv` and `x`, and is faster than torch."""
        ...

    def fused(self, conv: nn.Conv2d, x: Tensor, norm: nn.BatchNorm2d | None, relu: bool, pool: bool) -> Tensor:
        """`pool(relu(norm(conv(x))))`, with a `norm` that `folds` accepts."""
        ...

    def run(self, layer: nn.Module, x: Tensor) -> Tensor:
        """`layer(x)`, for every other layer."""
        ...


def engine_name(name: str | None = None) -> EngineName:
    """The engine that `name` or, without it, the environment variable `VGGKIT_ENGINE` asks for; `fast` by default.

    Raises:
        ValueError: there is no such engine.
    """
    name = name or os.environ.get("VGGKIT_ENGINE") or "fast"
    if name not in get_args(EngineName):
        raise ValueError(f"expected an engine of {', '.join(get_args(EngineName))}, got {name!r}")
    return cast(EngineName, name)


def accelerate(
    net: nn.Module, engine: str | None = None, *, recompute: bool = False, head: Head = "float32"
) -> "Accelerated":
    """`net`, run faster: a module on the same parameters and buffers, for training and for inference.

    Layers that the engine does not know (somebody's subclass, parametrised or pruned weights, other types) are run
    by torch; `describe_engine` says which. Hooks of a layer that is fused with others do not run. torch.compile,
    torch.export and torch.jit.trace take `net`; torch.func is to be given `net` itself.

    Args:
        net: any module; what is gained is gained in a VGG or an `nn.Sequential`.
        engine: see `engine_name`.
        recompute: keep only each block's input for the backward pass and compute the rest of the block again: the
            same gradients with less memory and about a third more time.
        head: what the weights of the fully connected layers are kept in, for inference alone: `bfloat16` or `int8`
            takes a copy of them, so that the memory of the float32 weights is free once nobody holds `net` any more;
            all else is shared. See `NarrowLinear`.

    Raises:
        UserError: `net` is no module; or, for another `head` than float32, it has no fully connected layers, or narrow
            ones already, or weights that are not finite.
        ValueError: there is no such engine or head.
    """
    if not isinstance(net, nn.Module):
        raise UserError(f"expected a torch module, got {shown(repr(net))}, try accelerate(VGG('vgg11'))")
    return Accelerated(with_head(net, head), engine_name(engine), recompute)


class Accelerated(nn.Module):
    """What `accelerate` makes; `net` is the plain network."""

    net: Any

    def __init__(self, net: nn.Module, engine: EngineName, recompute: bool) -> None:
        super().__init__()
        self.net, self.engine, self.recompute = net, engine, recompute
        self.training = net.training
        self._replays = gpu.Replays(net)

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
                return run_layers(_leaves(*self.net), x, engine)
            for child in self.net:
                x = (_recomputed if type(child) is nn.Sequential else run_layers)(_leaves(child), x, engine)
        return x

    def features(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """`VGG.features` of `self.net`, which must be a VGG."""
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
    """How one layer is run."""

    layer: str
    """Its name in the plain network, such as `block1.conv1_1`."""
    engine: str
    """`vggkit`, or `torch`."""
    reason: str
    """Why it is torch; empty for vggkit."""


def describe_engine(fast: Accelerated) -> tuple[Choice, ...]:
    """Which layer of `fast` is run by what, and why, on the device that its parameters are on.

    Raises:
        UserError: `fast` does not come from `accelerate`.
    """
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
            reason = engine.why_not(layer) if engine is not None else why
            choices.append(Choice(name, "torch" if reason else "vggkit", reason))
    return tuple(choices)


def run_layers(layers: Sequence[nn.Module], x: Tensor, engine: Engine | None) -> Tensor:
    """The layers one after the other, with less memory and time, by `engine`; None is torch, as it comes.

    A convolution takes the layers that follow it along where it can. Else the maximum of a window commutes with ReLU,
    so that pooling first leaves a quarter of the values to rectify; and a ReLU may overwrite what the layer before it
    has just made.
    """
    rest, is_fresh = list(layers), False
    while rest:
        layer = rest.pop(0)
        if engine is None:
            x = layer(x)
        elif isinstance(layer, nn.Conv2d) and engine.pays(layer, x):
            norm = _next(rest, nn.BatchNorm2d, functools.partial(folds, layer))
            relu = _next(rest, nn.ReLU)
            pool = _next(rest, nn.MaxPool2d, halves) if min(x.shape[-2:]) >= 2 else None
            x = engine.fused(layer, x, norm, relu is not None, pool is not None)
            is_fresh = relu is None
        else:
            if [type(one) for one in (layer, *rest[:1])] == [nn.ReLU, nn.MaxPool2d] and halves(rest[0]):
                layer, rest[0] = rest[0], layer
            x = F.relu_(x) if is_fresh and type(layer) is nn.ReLU else engine.run(layer, x)
            # None of these keeps its own output for the backward pass.
            is_fresh = type(layer) in (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.Linear)
    return x


def _engine_for(name: EngineName, x: Tensor) -> Engine | None:
    if name == "torch":
        return None
    if gpu.has_half(x.device):
        return gpu
    return cpu if x.device.type == "cpu" else None


def _leaves(*children: nn.Module) -> list[nn.Module]:
    """The layers of `children`, those inside an `nn.Sequential` among them."""
    return [leaf for child in children for leaf in (_leaves(*child) if type(child) is nn.Sequential else [child])]


def _next(layers: list[nn.Module], kind: type[nn.Module], fits: Callable[[Any], bool] = lambda _: True) -> Any:
    """The first of `layers`, taken out of them, if it is of this kind and fits."""
    return layers.pop(0) if layers and type(layers[0]) is kind and fits(layers[0]) else None


def _recomputed(layers: list[nn.Module], x: Tensor, engine: Engine | None) -> Tensor:
    """`run_layers`, which keeps `x` alone for the backward pass and is done again there."""
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    y: Tensor = checkpoint(
        lambda x: run_layers(layers, x, engine),
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in a block is random
        context_fn=lambda: (nullcontext(), _Uncounted(norms)),
    )
    return y


class _Uncounted:
    """Within, `norms` work as in training, and save for the backward pass as then, but count nothing."""

    def __init__(self, norms: Sequence[nn.BatchNorm2d]) -> None:
        self.norms = norms

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, counter) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
