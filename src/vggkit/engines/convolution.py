"""3x3 convolutions on a CPU by Winograd's minimal filtering, with what stands around them: bias, ReLU, max pool.

F(4x4, 3x3) of Lavin and Gray (arXiv 1509.09308): a map is cut into tiles of 4x4 outputs, which need 6x6 inputs each.
Both, and the weights, are evaluated at 6x6 points, where the convolution is 36 matrix products with a quarter of the
multiplications. Two engines do the same: `compiled` (`winograd.cpp`) in one pass through the cache, and `plain`, of
torch's own operators, where there is no compiler. The weights are those of any `nn.Conv2d`.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vggkit.engines import kernels
from vggkit.errors import KernelError

Engine = Literal["compiled", "plain", "torch"]
TILE, POINTS = 4, 6
MIN_GAIN = 1.5
"""How many times fewer multiplications there must be for tiles to be used: 4 is the most, and a map that does not fill
its tiles saves less. Measured by `benchmarks/winograd_layers.py`; maps of 2x2 pixels are as fast or faster by torch."""
PLAIN_MIN_CHANNELS, PLAIN_MIN_TILES = 256, 192
"""Of inputs and outputs, and of all images, from which `plain` is taken on a processor with AVX2 and no AVX-512: it is
then faster in training, and in inference on most; with AVX-512 it is not, and on others it was not measured."""
PLAIN_TILES = 256
"""In the cache at a time."""
MAX_IMAGE_CHANNELS = 4


@functools.cache
def engine() -> tuple[Engine, str]:
    """What convolves on this CPU, and why it is not `compiled`; the environment variable `VGGKIT_ENGINE` chooses.

    Without a compiler that is `plain` where it is faster than torch.

    Raises:
        ValueError: it names no engine.
        kernels.KernelError: it says `compiled`, and that cannot be had here.
    """
    wanted = os.environ.get("VGGKIT_ENGINE", "")
    if wanted and wanted not in get_args(Engine):
        raise ValueError(f"expected VGGKIT_ENGINE to be one of {', '.join(get_args(Engine))}, got {wanted!r}")
    if wanted in ("plain", "torch"):
        return ("plain" if wanted == "plain" else "torch"), "VGGKIT_ENGINE says so"
    try:
        kernels.library()
    except KernelError as error:
        if wanted:
            raise
        return ("plain" if torch.backends.cpu.get_cpu_capability() == "AVX2" else "torch"), str(error)
    return "compiled", ""


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, and the same by Winograd's minimal filtering where that is on, applies and pays."""

    is_fast = False

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, out_channels, new height, new width)."""
        # A class of its own is what a parametrization gives a layer, whose weights are then to be read once.
        return self.fused(x) if type(self) is Conv2d and self.is_fast and self.pays(x) else super().forward(x)

    def pays(self, x: Tensor) -> bool:
        """Whether `fused` takes `x`, and is faster than torch's own convolution."""
        if (
            kernels.is_watched()
            or x.ndim != 4
            or x.numel() == 0
            or x.shape[1] != self.in_channels
            or self.out_channels % kernels.LANES
        ):
            return False
        if max(self.in_channels, self.out_channels) > kernels.MAX_CHANNELS:
            return False
        shape = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.padding_mode)
        if shape != ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros"):
            return False
        weight, bias = (self.out_channels, self.in_channels, 3, 3), (self.out_channels,)
        if not kernels.can_read((x, x.shape), (self.weight, weight), (self.bias, bias)):
            return False
        chosen = engine()[0]
        if self.in_channels % kernels.LANES:
            return chosen == "compiled" and self.in_channels <= MAX_IMAGE_CHANNELS and not x.requires_grad
        height, width = x.shape[-2:]
        if chosen == "torch" or gain(height, width) < MIN_GAIN:
            return False
        is_wide = min(self.in_channels, self.out_channels) >= PLAIN_MIN_CHANNELS
        is_large = len(x) * _tiles(height) * _tiles(width) >= PLAIN_MIN_TILES
        return chosen == "compiled" or (is_wide and is_large)

    def folds(self, norm: nn.BatchNorm2d) -> bool:
        """Whether `fused` takes `norm`: it multiplies by and adds what it knows already, and nobody wants gradients."""
        tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        return (
            not (norm.training or torch.is_grad_enabled())
            and all(tensor is not None for tensor in tensors)
            and kernels.can_read(*((tensor, (self.out_channels,)) for tensor in tensors))
        )

    def fused(self, x: Tensor, norm: nn.BatchNorm2d | None = None, *, relu: bool = False, pool: bool = False) -> Tensor:
        """`pool(relu(norm(conv(x))))`, with a norm that `folds` says it takes."""
        scale, bias = (None, self.bias) if norm is None else _as_scale(norm, self.bias)
        tensors = (x, self.weight, bias)
        if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors):
            return _convolve(x, self.weight, scale, bias, relu, pool, is_kept=False)[0]
        y: Tensor = _Convolution.apply(x, self.weight, bias, relu, pool)  # type: ignore[no-untyped-call]
        return y


def gain(height: int, width: int) -> float:
    """How many times fewer multiplications the tiles of a map take than the convolution as it is defined."""
    return 9 * height * width / (POINTS**2 * _tiles(height) * _tiles(width))


def _as_scale(norm: nn.BatchNorm2d, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """What `norm` does in evaluation mode to a convolution with `bias`: a factor and a new bias for each output."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return scale, ((0 if bias is None else bias) - mean) * scale + norm.bias


class _Convolution(torch.autograd.Function):
    """Keeps x and, of what comes behind the convolution, where gradients pass: y for ReLU, a byte a window for pool."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, pool: bool) -> Tensor:
        x, weight = _channels_last(x), _channels_last(weight)
        y, codes = _convolve(x, weight, None, bias, relu, pool, is_kept=True)
        ctx.gate = "pool" if pool else "relu" if relu else "open"
        ctx.save_for_backward(x, weight, codes if pool else y if relu else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, passed = ctx.saved_tensors
        x, weight = _channels_last(x), _channels_last(weight)  # a hook may keep their values and not their strides
        passed = None if passed is None else _channels_last(passed)
        height, width = x.shape[-2:]
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        dy, dx, dw, db = _channels_last(dy.resolve_neg()), None, None, None
        if engine()[0] == "compiled":
            if needs_x:
                dx = kernels.input_gradient(dy, passed, ctx.gate, weight, height, width)
            if needs_weight or needs_bias:
                dw, db = kernels.weight_gradient(x, dy, passed, ctx.gate)
        else:
            dy = _behind(ctx.gate, dy, passed, height, width)
            if needs_x:
                dx = plain_input_gradient(dy, weight)
            if needs_weight or needs_bias:
                dw, db = plain_weight_gradient(x, dy)
        return dx, dw, db if needs_bias else None, None, None


def _convolve(
    x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, relu: bool, pool: bool, is_kept: bool
) -> tuple[Tensor, Tensor | None]:
    """What `kernels.convolve` does, by the engine and of tensors that lie as they like."""
    scale, bias = (None if tensor is None else tensor.contiguous() for tensor in (scale, bias))
    convolve = kernels.convolve if engine()[0] == "compiled" else plain_convolve
    return convolve(_channels_last(x), _channels_last(weight), scale, bias, relu, pool, is_kept)


def _channels_last(x: Tensor) -> Tensor:
    """`x`, with its channels side by side in memory."""
    return x if x.permute(0, 2, 3, 1).is_contiguous() else x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


# The plain engine. V and M are (36 points, tiles, channels); a Kronecker square does a transform both ways at once.
_INPUT = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
          (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))  # fmt: skip
_WEIGHT = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
           (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


@functools.cache
def _square(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype) -> Tensor:
    matrix = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(matrix, matrix).to(dtype)


def plain_convolve(
    x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, relu: bool, pool: bool, is_kept: bool
) -> tuple[Tensor, Tensor | None]:
    """What `kernels.convolve` does."""
    u = _square(_WEIGHT, x.dtype) @ weight.permute(2, 3, 1, 0).reshape(9, -1)
    u = u.view(POINTS**2, *weight.shape[1::-1])
    outputs, (height, width) = len(weight), x.shape[-2:]
    y = x.new_empty(len(x), TILE * _tiles(height), TILE * _tiles(width), outputs)
    for v, image, rows in _chunks(x):
        m = _square(_OUTPUT, x.dtype) @ torch.bmm(v, u).view(POINTS**2, -1)
        part = y[image, rows]
        tiles = (part.shape[0], part.shape[1] // TILE, part.shape[2] // TILE)
        part.view(tiles[0], tiles[1], TILE, tiles[2], TILE, outputs).copy_(
            m.view(TILE, TILE, *tiles, outputs).permute(2, 3, 0, 4, 1, 5)
        )
    y = y[:, :height, :width].permute(0, 3, 1, 2)
    if scale is not None:
        y = y * scale.view(-1, 1, 1)
    if bias is not None:
        y = y.add_(bias.view(-1, 1, 1))
    codes = None
    if pool:
        y, where = F.max_pool2d(y, 2, return_indices=True)
        codes = (where // width % 2 * 2 + where % width % 2).to(torch.uint8) if is_kept else None
    if relu:
        y = F.relu_(y)
        codes = codes.masked_fill_(y == 0, 4) if codes is not None else None
    return y.clone(memory_format=torch.channels_last), codes  # no view, which nothing may write into


def plain_input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """What `kernels.input_gradient` does, of the gradient of the convolution itself."""
    return plain_convolve(dy, weight.flip(2, 3).transpose(0, 1), None, None, False, False, False)[0]


def plain_weight_gradient(x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """What `kernels.weight_gradient` does, of the gradient of the convolution itself."""
    inputs, outputs = x.shape[1], dy.shape[1]
    height, width = dy.shape[-2:]
    padded = F.pad(dy, (0, -width % TILE, 0, -height % TILE)).permute(0, 2, 3, 1)
    u = x.new_zeros(POINTS**2, inputs, outputs)
    for v, image, rows in _chunks(x):
        part = padded[image, rows]
        tiles = part.unflatten(2, (-1, TILE)).unflatten(1, (-1, TILE)).permute(2, 4, 0, 1, 3, 5)
        g = _square(_OUTPUT, x.dtype).t() @ tiles.reshape(TILE**2, -1)
        u.baddbmm_(v.transpose(1, 2), g.view(POINTS**2, -1, outputs))
    dw = (_square(_WEIGHT, x.dtype).t() @ u.view(POINTS**2, -1)).view(3, 3, inputs, outputs)
    return dw.permute(3, 2, 0, 1), dy.sum(dim=(0, 2, 3))


def _behind(gate: str, dy: Tensor, passed: Tensor | None, height: int, width: int) -> Tensor:
    """The gradient of a convolution's own output from that behind its ReLU and pool."""
    if passed is None:
        return dy
    if gate == "relu":
        return torch.where(passed <= 0, 0, dy)
    full = dy.new_zeros(len(dy), dy.shape[1], height, width)
    for which in range(4):
        window = full[:, :, which // 2 : height // 2 * 2 : 2, which % 2 : width // 2 * 2 : 2]
        window.copy_(torch.where(passed == which, dy, 0))
    return full


def _chunks(x: Tensor) -> Iterator[tuple[Tensor, slice, slice]]:
    """The tiles of `x` at their points, a chunk at a time, (36, tiles, channels), and its images and rows."""
    height, width = x.shape[-2:]
    down, across = _tiles(height), _tiles(width)
    border = (1, across * TILE + 1 - width, 1, down * TILE + 1 - height)
    windows = F.pad(x, border).permute(0, 2, 3, 1).unfold(1, POINTS, TILE).unfold(2, POINTS, TILE)
    images, rows = max(1, PLAIN_TILES // (down * across)), min(down, max(1, PLAIN_TILES // across))
    for image in range(0, len(x), images):
        for row in range(0, down, rows):
            some = windows[image : image + images, row : row + rows].permute(4, 5, 0, 1, 2, 3)
            v = _square(_INPUT, x.dtype) @ some.reshape(POINTS**2, -1)
            where = slice(image, image + images), slice(row * TILE, min(down, row + rows) * TILE)
            yield v.view(POINTS**2, -1, x.shape[1]), *where


def _tiles(pixels: int) -> int:
    return -(-pixels // TILE)
