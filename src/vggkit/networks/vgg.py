"""VGG blocks and networks as torch modules, built from an `Architecture`."""

import difflib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as module_globals
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint as recompute

from vggkit.design.architecture import POOLED_SIZE, Architecture, Head, Init
from vggkit.design.layers import Block, Layer, Norm
from vggkit.engines.convolution import Conv2d
from vggkit.engines.fully_connected import Dropout, Linear
from vggkit.networks.modules import Fit, init_weights, modules_of

_OWN_LAYERS = {
    nn.Sequential, Conv2d, nn.BatchNorm2d, nn.ReLU, nn.LocalResponseNorm, nn.MaxPool2d, nn.AdaptiveAvgPool2d,
    nn.Flatten, Fit, Linear, Dropout,
}  # fmt: skip
"""What `modules_of` makes for an `Architecture`."""


class VGG(nn.Sequential):
    """A network of VGG blocks: `block1`, ..., `flatten`, `fc6`, `relu6`, `drop6`, ..., under their canonical names.

    Input: float (batch, in_channels, height, width), where both sides are `image_size` with the head `flatten` and
    anything from `architecture.min_image_size` with the others. Output: logits (batch, num_classes).
    A block is a plain `nn.Sequential` of `conv3_1`, `relu3_1`, ..., `pool3`, so that the keys of `state_dict()`
    read `block3.conv3_2.weight`.

    Args:
        architecture: what to build.
        init: how the weights start, see `init_weights`.
        checkpoint: keep only each block's input for the backward pass and compute the rest of the block again:
            the same gradients with less memory and about a third more time. Not under torch.func's transforms.

    >>> VGG(Architecture.parse("vgg11/4", in_channels=1, num_classes=10)).fc8
    Linear(in_features=4096, out_features=10, bias=True)
    """

    def __init__(self, architecture: Architecture, init: Init = "kaiming", *, checkpoint: bool = False) -> None:
        blocks: OrderedDict[str, list[Layer]] = OrderedDict()
        head: list[Layer] = []
        for layer in architecture.layers():
            if layer.part.startswith("block"):
                blocks.setdefault(layer.part, []).append(layer)
            else:
                head.append(layer)
        children: OrderedDict[str, nn.Module] = OrderedDict(
            (name, nn.Sequential(modules_of(layers))) for name, layers in blocks.items()
        )
        super().__init__(children | modules_of(head, architecture.dropout))
        self.architecture = architecture
        self.checkpoint = checkpoint
        init_weights(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, in_channels, height, width).

        Raises:
            ValueError: a shape that this network does not take; the message says which it does.
        """
        self._check_input(x)
        for child in self:
            x = self._run(child, x)
        return x

    def features(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """What the named layers put out for `x`; nothing behind the deepest is computed, but for a block with hooks.

        A name stands for the output of that layer alone: `conv3_2` is the convolution before its ReLU, and no later
        layer writes into what is returned. Gradients flow. Layers of the blocks are computed at any size of input.

        Args:
            x: images (batch, in_channels, height, width).
            layers: canonical names, such as `relu3_3`, `conv4_1`, `pool5` or `fc7`, in any order.

        Returns:
            The outputs by name, in the order asked for; (batch, channels, height, width) for a map and
            (batch, features) behind `flatten`.

        Raises:
            ValueError: a name that this network has not, with the nearest that it has; or a shape that it does not
                take.

        >>> net = VGG(Architecture.parse("vgg16/16", image_size=32))
        >>> {name: tuple(y.shape) for name, y in net.features(torch.zeros(1, 3, 32, 32), ["relu3_3", "fc7"]).items()}
        {'relu3_3': (1, 16, 8, 8), 'fc7': (1, 4096)}
        """
        self._check_names(layers)
        missing = set(layers)
        taps: dict[str, Tensor] = {}
        children = dict(self.named_children())
        deepest = [i for i, child in enumerate(children.items()) if missing & set(_names(*child))][-1]
        ends_in_pool = f"pool{deepest + 1}" in missing
        self._check_input(x, pools=deepest + ends_in_pool if deepest < len(self.architecture.blocks) else None)
        keep = (lambda tensor: tensor) if self._writes_nothing() else Tensor.clone
        for name, child in children.items():
            names = _names(name, child)
            inside = missing.intersection(names[:-1])
            if not inside:  # at most the output of a block is asked for
                x = self._run(child, x)
                if names and names[-1] in missing:
                    taps[names[-1]] = keep(x)
            elif child._forward_hooks or child._forward_pre_hooks:  # which may change what goes in and out
                x = _tapped(child, x, missing, taps)
            else:
                for inner, module in child.named_children():
                    x = module(x)
                    if inner in missing:
                        taps[inner] = keep(x)
                    if missing <= taps.keys():
                        break
            missing.difference_update(names)
            if not missing:
                break
        return {name: taps[name] for name in layers}

    def __getitem__(self, index: slice | int) -> nn.Module:
        """The layer at `index`, or the layers of a slice as a plain `nn.Sequential`."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self.named_children())[index]))
        return super().__getitem__(index)

    def _run(self, child: nn.Module, x: Tensor) -> Tensor:
        if type(child) is not nn.Sequential:
            return child(x)  # type: ignore[no-any-return]
        if self.checkpoint and torch.is_grad_enabled():
            return _recomputed_block(child, x)
        return _forward_block(child, x, _is_watched(child))

    def _writes_nothing(self) -> bool:
        """Whether no layer can write into what another one has put out: all are ours, and nobody has touched them."""
        return not _has_global_hooks() and all(
            type(module) in _OWN_LAYERS and not getattr(module, "inplace", False) and not _is_touched(module)
            for child in self
            for module in child.modules()
        )

    def _check_names(self, layers: Sequence[str]) -> None:
        if isinstance(layers, str) or not layers:
            example = layers if isinstance(layers, str) else f"pool{len(self.architecture.blocks)}"
            raise ValueError(f"expected a list of layers, got {layers!r}, try {[example]}")
        known = [name for child in self.named_children() for name in _names(*child)]
        for name in layers:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5) or known
                raise ValueError(f"expected layers of {self.architecture.name}, got {name!r}, try {', '.join(close)}")

    def _check_input(self, x: Tensor, pools: int | None = None) -> None:
        """Raise `ValueError` unless the whole network, or its first blocks up to `pools` pools, takes `x`."""
        arch = self.architecture
        least, is_fixed = arch.min_image_size, arch.head == "flatten" and pools is None
        if pools is not None:
            least = 2**pools
        if x.ndim == 4 and x.shape[1] == arch.in_channels:
            height, width = x.shape[-2:]
            if (height == width == least) if is_fixed else (height >= least and width >= least):
                return
        if is_fixed:
            expected = f"expected images of shape (batch, {arch.in_channels}, {least}, {least}), got {tuple(x.shape)}"
            is_size = x.ndim == 4 and x.shape[1] == arch.in_channels
            raise ValueError(expected + is_size * "; the head 'flatten' takes one size, try adaptive, conv or gap")
        raise ValueError(
            f"expected images of shape (batch, {arch.in_channels}, height, width), both from {least}, "
            f"got {tuple(x.shape)}"
        )


def vgg_block(
    num_convs: int,
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int | tuple[int, ...] = 3,
    norm: Norm = "none",
    lrn: bool = False,
) -> nn.Sequential:
    """One VGG block: `num_convs` convolutions with a ReLU each, then a 2x2 max pool.

    Input: (batch, in_channels, height, width). Output: (batch, out_channels, height // 2, width // 2).
    Its layers have torch's own initialisation. Source: arXiv 1409.1556, section 2.1.

    Raises:
        ArchitectureError: a value that cannot be, see `Block`.
    """
    block = Block(num_convs, out_channels, kernel_size, lrn)
    Architecture((block,), in_channels=in_channels, image_size=2, norm=norm)  # checks the rest
    return nn.Sequential(modules_of(block.layers(in_channels, norm=norm)))


def vgg(
    conv_arch: Sequence[tuple[int, int]] | str,
    *,
    in_channels: int = 1,
    num_classes: int = 10,
    image_size: int = 224,
    hidden: Sequence[int] = (4096, 4096),
    dropout: float = 0.5,
    head: Head = "flatten",
    pooled_size: int = POOLED_SIZE,
    init: Init = "kaiming",
    checkpoint: bool = False,
) -> VGG:
    """The network of the book's `vgg(conv_arch)`: 1 channel, 10 classes, 224 pixels unless told otherwise.

    Args:
        conv_arch: pairs `(num_convs, out_channels)`, or a name or notation as `Architecture.parse` takes.
        in_channels: 1 for grey images, 3 for RGB.
        num_classes: outputs of the last layer.
        image_size: pixels along a side of the input.
        hidden: widths of the hidden fully connected layers.
        dropout: probability of dropping a hidden unit.
        head: `flatten`, `adaptive`, `conv` or `gap`, see `Architecture`.
        pooled_size: what the first fully connected layer sees, with `adaptive` and `conv`.
        checkpoint: see `VGG`.
        init: see `init_weights`.

    Raises:
        ArchitectureError: a network that cannot be.

    >>> [name for name, _ in vgg([(1, 8), (2, 16)], image_size=28, hidden=(32,)).named_children()]
    ['block1', 'block2', 'flatten', 'fc3', 'relu3', 'drop3', 'fc4']
    """
    options: dict[str, Any] = {
        "in_channels": in_channels,
        "num_classes": num_classes,
        "image_size": image_size,
        "hidden": hidden,
        "dropout": dropout,
        "head": head,
        "pooled_size": pooled_size,
    }
    if isinstance(conv_arch, str):
        return VGG(Architecture.parse(conv_arch, **options), init, checkpoint=checkpoint)
    return VGG(Architecture(conv_arch, **options), init, checkpoint=checkpoint)  # type: ignore[arg-type]


def _names(name: str, child: nn.Module) -> list[str]:
    """The layers in a child of a network: those of a block, or the child itself."""
    return [inner for inner, _ in child.named_children()] if type(child) is nn.Sequential else [name]


def _tapped(block: nn.Module, x: Tensor, names: Iterable[str], taps: dict[str, Tensor]) -> Tensor:
    """`block(x)`, and copies in `taps` of what the layers `names` in it put out."""

    def tap(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, output: taps.update({name: output.clone()})

    layers = {name: layer for name, layer in block.named_children() if name in names}
    handles = [layer.register_forward_hook(tap(name)) for name, layer in layers.items()]
    try:
        return block(x)  # type: ignore[no-any-return]
    finally:
        for handle in handles:
            handle.remove()


def _forward_block(block: nn.Sequential, x: Tensor, is_watched: bool) -> Tensor:
    """`block(x)` with less memory and time: to the last bit, gradients too, but where Winograd's way is on.

    A convolution takes what follows it along where it can. Else the maximum of a window commutes with ReLU, so that
    pooling first leaves a quarter of the values to rectify; and a ReLU may overwrite what the layer before it has
    just made, unless somebody is watching.
    """
    if is_watched:
        return block(x)  # type: ignore[no-any-return]
    layers = list(block)
    is_fresh = False
    while layers:
        layer = layers.pop(0)
        if type(layer) is Conv2d and layer.is_fast and layer.pays(x):
            norm = _next(layers, nn.BatchNorm2d, layer.folds)
            relu = _next(layers, nn.ReLU)
            pool = _next(layers, nn.MaxPool2d, _halves) if min(x.shape[-2:]) >= 2 else None
            x = layer.fused(x, norm, relu=relu is not None, pool=pool is not None)
            is_fresh = relu is None
            continue
        if [type(layer) for layer in (layer, *layers)] == [nn.ReLU, nn.MaxPool2d] and not layers[0].return_indices:
            layer, layers = layers[0], [layer]
        x = F.relu_(x) if is_fresh and type(layer) is nn.ReLU else layer(x)
        # None of these keeps its own output for the backward pass.
        is_fresh = type(layer) in (Conv2d, nn.BatchNorm2d, nn.MaxPool2d)
    return x


_Kind = TypeVar("_Kind", bound=nn.Module)


def _next(layers: list[nn.Module], kind: type[_Kind], fits: Callable[[_Kind], bool] = lambda _: True) -> _Kind | None:
    """The first of `layers`, taken out of them, if it is of this kind and fits."""
    if layers and type(layers[0]) is kind and fits(layers[0]):
        return layers.pop(0)  # type: ignore[return-value]
    return None


_HALVING = {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}


def _halves(pool: nn.MaxPool2d) -> bool:
    """Whether `pool` takes the maximum of 2x2 windows, as those of `modules_of` do, and nothing else."""
    return all(getattr(pool, name) == value for name, value in _HALVING.items())


def _is_watched(block: nn.Module) -> bool:
    """Whether hooks would see the difference, or somebody has put a forward of their own into the block."""
    return torch.compiler.is_compiling() or _has_global_hooks() or any(map(_is_touched, block.modules()))


def _has_global_hooks() -> bool:
    return bool(
        module_globals._global_forward_hooks
        or module_globals._global_forward_pre_hooks
        or module_globals._global_backward_hooks
        or module_globals._global_backward_pre_hooks
    )


def _is_touched(module: nn.Module) -> bool:
    """Whether somebody has given `module` a hook, or a forward of its own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or module._compiled_call_impl is not None
    )


def _recomputed_block(block: nn.Sequential, x: Tensor) -> Tensor:
    """`_forward_block`, which keeps `x` alone for the backward pass and is done again there."""
    is_watched = _is_watched(block)  # hooks may come and go before the second pass
    parameters = list(block.parameters())
    fast = [layer for layer in block if isinstance(layer, Conv2d) and layer.is_fast]

    def forward(x: Tensor) -> Tensor:
        if fast != [layer for layer in block if isinstance(layer, Conv2d) and layer.is_fast]:
            raise RuntimeError("expected the fast way on or off as in the forward pass, try fast_cpu around both")
        # What torch.func.functional_call puts in place is gone by then.
        if any(now is not then for now, then in zip(block.parameters(), parameters, strict=True)):
            raise RuntimeError("expected the forward pass's parameters in the backward pass too, try checkpoint=False")
        return _forward_block(block, x, is_watched)

    norms = [module for module in block if isinstance(module, _BatchNorm)]
    options: dict[str, Any] = {}
    if norms and not torch.compiler.is_compiling():  # a compiled second pass leaves out what has an effect
        options["context_fn"] = lambda: (nullcontext(), _Uncounted(norms))
    # Nothing in a block is random.
    y: Tensor = recompute(forward, x, use_reentrant=False, preserve_rng_state=False, **options)
    return y


class _Uncounted:
    """Within, `norms` work as in training, and save for the backward pass as then, but count nothing."""

    def __init__(self, norms: Sequence[_BatchNorm]) -> None:
        self.norms = norms

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, counter) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
