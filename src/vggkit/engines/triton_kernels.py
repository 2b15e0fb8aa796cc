"""Triton kernels for CUDA GPUs: ReLU and max pool around a convolution in one pass, and the first convolution.

Maps are channels last. A 2x2 max pool saves one byte for each window, the position of its maximum (0 to 3 by rows) or 4
if a ReLU made it zero, instead of the full map. NaN propagates. The order of sums is fixed, so that steps are
deterministic.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vggkit.engines.convolution import MAX_IMAGE_CHANNELS

PROGRAMS = 512  # maximum number of programs, each with a row of partial sums, in kernels that sum


@triton.jit
def _larger(value, place, best, where):
    takes = (value > best) | (value != value)
    return tl.where(takes, value, best), tl.where(takes, place, where)


@triton.jit
def _pool(x, y, codes, total, height, width, channels, RELU: tl.constexpr, KEPT: tl.constexpr, BLOCK: tl.constexpr):
    """Each program: BLOCK values of the output."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < total
    channel, window = index % channels, index // channels
    column, rest = window % (width // 2), window // (width // 2)
    row, image = rest % (height // 2), rest // (height // 2)
    first = ((image * height + 2 * row) * width + 2 * column) * channels + channel
    best = tl.load(x + first, mask=mask, other=0).to(tl.float32)
    where = tl.zeros_like(index)
    for place in tl.static_range(1, 4):
        value = tl.load(x + first + (place // 2 * width + place % 2) * channels, mask=mask, other=0).to(tl.float32)
        best, where = _larger(value, place, best, where)
    if RELU:
        where = tl.where(best <= 0, 4, where)
        best = tl.where(best <= 0, 0.0, best)
    tl.store(y + index, best.to(y.dtype.element_ty), mask=mask)
    if KEPT:
        tl.store(codes + index, where.to(tl.uint8), mask=mask)


@triton.jit
def _gate_backward(
    dy, gate, dx, sums, rows, height, width, channels, POOL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Each program: every PROGRAMS-th block of ROWS windows (or pixels) of COLUMNS channels, and their sum."""
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    summed = tl.zeros((COLUMNS,), tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (channel < channels)[None, :]
        index = row[:, None] * channels + channel[None, :]
        gradient = tl.load(dy + index, mask=mask, other=0).to(tl.float32)
        if POOL:
            where = tl.load(gate + index, mask=mask, other=4)
            gradient = tl.where(where == 4, 0.0, gradient)
            column, rest = row % (width // 2), row // (width // 2)
            down, image = rest % (height // 2), rest // (height // 2)
            pixel = (image * height + 2 * down) * width + 2 * column
            first = pixel[:, None] * channels + channel[None, :]
            for place in tl.static_range(4):
                value = tl.where(where == place, gradient, 0.0).to(dx.dtype.element_ty)
                tl.store(dx + first + (place // 2 * width + place % 2) * channels, value, mask=mask)
        else:
            output = tl.load(gate + index, mask=mask, other=0).to(tl.float32)
            gradient = tl.where(output <= 0, 0.0, gradient)
            tl.store(dx + index, gradient.to(dx.dtype.element_ty), mask=mask)
        summed += tl.sum(gradient, axis=0)
    tl.store(sums + tl.program_id(0) * channels + channel, summed, mask=channel < channels)


@triton.jit
def _patches(x, pixel, rows, height, width, strides, INPUTS: tl.constexpr, TAPS: tl.constexpr, ONES: tl.constexpr):
    """The 3x3 patches of pixels (image, row, column): (pixels, TAPS), optionally with a column of ones."""
    image, row, column = pixel
    tap = tl.arange(0, TAPS)
    channel, down, across = tap % INPUTS, tap // INPUTS // 3 - 1, tap // INPUTS % 3 - 1
    at_row, at_column = row[:, None] + down[None, :], column[:, None] + across[None, :]
    mask = rows[:, None] & (tap < 9 * INPUTS)[None, :]
    mask = mask & (at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < width)
    offset = image[:, None] * strides[0] + channel[None, :] * strides[1] + at_row * strides[2] + at_column * strides[3]
    values = tl.load(x + offset, mask=mask, other=0)
    if ONES:
        values = tl.where(rows[:, None] & (tap == 9 * INPUTS)[None, :], 1, values)
    return values


@triton.jit
def _place_of(index, place, height, width, POOL: tl.constexpr):
    """Image, row and column of a pixel, or of pixel `place`, 0 to 3, of a window."""
    if POOL:
        column, rest = index % (width // 2), index // (width // 2)
        row, image = rest % (height // 2), rest // (height // 2)
        return image, 2 * row + place // 2, 2 * column + place % 2
    column, rest = index % width, index // width
    return rest // height, rest % height, column


@triton.jit
def _image_convolution(
    x, weight, bias, y, codes, rows, height, width, s0, s1, s2, s3, outputs,
    INPUTS: tl.constexpr, TAPS: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr, KEPT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Each program: ROWS windows (or pixels) of COLUMNS outputs."""
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    tap, inside = tl.arange(0, TAPS), index < rows
    w = tl.load(
        weight + tap[:, None] * outputs + output[None, :],
        mask=(tap < 9 * INPUTS)[:, None] & (output < outputs)[None, :],
        other=0,
    )
    added = tl.load(bias + output, mask=output < outputs, other=0).to(tl.float32)[None, :]
    best = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
    where = tl.zeros((ROWS, COLUMNS), tl.int32)
    for place in tl.static_range(4 if POOL else 1):
        pixel = _place_of(index, place, height, width, POOL)
        a = _patches(x, pixel, inside, height, width, (s0, s1, s2, s3), INPUTS, TAPS, False)
        value = tl.dot(a.to(w.dtype), w, out_dtype=tl.float32) + added
        best, where = _larger(value, place, best, where)
    if RELU:
        where = tl.where(best <= 0, 4, where)
        best = tl.where(best <= 0, 0.0, best)
    offset = index[:, None] * outputs + output[None, :]
    mask = inside[:, None] & (output < outputs)[None, :]
    tl.store(y + offset, best.to(y.dtype.element_ty), mask=mask)
    if KEPT:
        tl.store(codes + offset, where.to(tl.uint8), mask=mask)


@triton.jit
def _image_weight_gradient(
    x, dy, gate, sums, rows, height, width, s0, s1, s2, s3, outputs,
    INPUTS: tl.constexpr, TAPS: tl.constexpr, POOL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Each program: the sum over every PROGRAMS-th block of ROWS windows (or pixels), for COLUMNS outputs."""
    output = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    tap = tl.arange(0, TAPS)
    summed = tl.zeros((TAPS, COLUMNS), tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        index = start + tl.arange(0, ROWS)
        inside = index < rows
        mask = inside[:, None] & (output < outputs)[None, :]
        offset = index[:, None] * outputs + output[None, :]
        gradient = tl.load(dy + offset, mask=mask, other=0)
        passes = tl.load(gate + offset, mask=mask, other=4)
        for place in tl.static_range(4 if POOL else 1):
            pixel = _place_of(index, place, height, width, POOL)
            a = _patches(x, pixel, inside, height, width, (s0, s1, s2, s3), INPUTS, TAPS, True)
            if POOL:
                g = tl.where(passes == place, gradient, tl.zeros_like(gradient))
            else:
                g = tl.where(passes.to(tl.float32) <= 0, tl.zeros_like(gradient), gradient)
            summed = tl.dot(tl.trans(a.to(gradient.dtype)), g, summed, out_dtype=tl.float32)
    target = sums + (tl.program_id(0) * TAPS + tap[:, None]) * outputs + output[None, :]
    tl.store(target, summed, mask=(output < outputs)[None, :])


def max_pool(x: Tensor) -> Tensor:
    """The maxima of 2x2 windows of `x`, which saves a byte each for the backward pass."""
    x = x.contiguous(memory_format=torch.channels_last)
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _Pool.apply(x)
        return y
    return pool(x, relu=False, keeps_codes=False)[0]


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, codes = pool(x, relu=False, keeps_codes=True)
        ctx.save_for_backward(codes)
        ctx.size = x.shape[-2:]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (codes,) = ctx.saved_tensors
        return gate_backward(dy.contiguous(memory_format=torch.channels_last), codes, *ctx.size)[0]


def convolution(
    conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, has_pool: bool, keeps_codes: bool
) -> tuple[Tensor, Tensor | None, torch.Size]:
    """`pool(relu(conv(x)))`, the pool's codes if `keeps_codes`, and the size before the pool."""
    if _is_first(conv):
        return *image_convolution(x, weight, bias, relu, has_pool, keeps_codes), x.shape[-2:]
    x = x.to(weight.dtype).contiguous(memory_format=torch.channels_last)
    shape: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
    if relu and x.is_cuda:
        y = torch.cudnn_convolution_relu(x, weight, bias, *shape)
    else:
        y = F.conv2d(x, weight, bias, *shape)
        y = F.relu_(y) if relu else y
    size = y.shape[-2:]
    return (*pool(y, relu=relu, keeps_codes=keeps_codes), size) if has_pool else (y, None, size)


def _is_first(conv: nn.Conv2d) -> bool:
    """Whether `conv` is one that `image_convolution` computes: 3x3 over the few channels of an image."""
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return conv.in_channels <= MAX_IMAGE_CHANNELS and shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1)


class Convolution(torch.autograd.Function):
    """`pool(relu(conv(x)))`; saves x, and the output or a byte for each window."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, conv: nn.Conv2d, has_pool: bool) -> Tensor:
        """In bfloat16 on a GPU."""
        half = weight.to(torch.bfloat16 if x.is_cuda else weight.dtype).contiguous(memory_format=torch.channels_last)
        if not _is_first(conv):
            x = x.to(half.dtype).contiguous(memory_format=torch.channels_last)
        y, codes, ctx.size = convolution(conv, x, half, bias.to(half.dtype), True, has_pool, keeps_codes=True)
        ctx.save_for_backward(x, half, y if codes is None else codes)
        ctx.conv, ctx.dtype = conv, weight.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight and bias."""
        x, weight, gate = ctx.saved_tensors
        conv, needs_x = ctx.conv, ctx.needs_input_grad[0]
        dy, dx = dy.contiguous(memory_format=torch.channels_last), None
        if _is_first(conv) and not needs_x:
            dw, db = image_weight_gradient(x, dy, gate)
        else:
            dz, db = gate_backward(dy, gate, *ctx.size)
            shape = (conv.stride, conv.padding, conv.dilation, False, [0], conv.groups)
            dx, dw, _ = torch.ops.aten.convolution_backward(
                dz, x.to(weight.dtype), weight, None, *shape, [needs_x, True, False]
            )
        return dx, dw.to(ctx.dtype), db.to(ctx.dtype), None, None


def pool(x: Tensor, relu: bool, keeps_codes: bool) -> tuple[Tensor, Tensor | None]:
    """The maxima of whole 2x2 windows of `x` (images, channels, height, width), and their codes if `keeps_codes`."""
    images, channels, height, width = x.shape
    y = torch.empty(
        (images, channels, height // 2, width // 2),
        dtype=x.dtype, device=x.device, memory_format=torch.channels_last,
    )  # fmt: skip
    codes = torch.empty_like(y, dtype=torch.uint8) if keeps_codes else None
    grid = (triton.cdiv(y.numel(), 1024),)
    _pool[grid](x, y, codes if codes is not None else y, y.numel(), height, width, channels, relu, keeps_codes, 1024)
    return y, codes


def gate_backward(dy: Tensor, gate: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The gradient before a ReLU, or before ReLU and pool, and its sum for each channel.

    `gate` is the codes of `pool` (uint8) or the ReLU's output; height and width are those of the map before.
    """
    images, channels = dy.shape[:2]
    is_pool = gate.dtype == torch.uint8
    has_rest = is_pool and (height % 2 or width % 2)
    make = torch.zeros if has_rest else torch.empty
    dx = make((images, height, width, channels), dtype=dy.dtype, device=dy.device).permute(0, 3, 1, 2)
    rows = images * dy.shape[2] * dy.shape[3]
    columns = min(128, triton.next_power_of_2(channels))
    block = 8192 // columns // (4 if is_pool else 1)
    programs = min(PROGRAMS, triton.cdiv(rows, block))
    sums = torch.empty((programs, channels), device=dy.device)
    grid = (programs, triton.cdiv(channels, columns))
    _gate_backward[grid](dy, gate, dx, sums, rows, height, width, channels, is_pool, block, columns)
    return dx, sums.sum(dim=0)


def image_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, pool: bool, keeps_codes: bool
) -> tuple[Tensor, Tensor | None]:
    """`pool(relu(conv(x)))`, a 3x3 convolution with padding 1 of at most 4 channels, in the type of `weight`.

    Returns it and, if `keeps_codes`, the pool's codes. `x` may have any type and strides.
    """
    images, inputs, height, width = x.shape
    outputs = len(weight)
    size = (height // 2, width // 2) if pool else (height, width)
    y = torch.empty((images, outputs, *size), dtype=weight.dtype, device=x.device, memory_format=torch.channels_last)
    bias = weight.new_zeros(outputs) if bias is None else bias
    codes = torch.empty_like(y, dtype=torch.uint8) if keeps_codes and pool else None
    rows = images * size[0] * size[1]
    columns = min(64, max(16, triton.next_power_of_2(outputs)))
    block = 128 if columns == 64 else 256
    _image_convolution[(triton.cdiv(rows, block), triton.cdiv(outputs, columns))](
        x, weight.permute(2, 3, 1, 0).contiguous(), bias, y, codes if codes is not None else y,
        rows, height, width, *x.stride(), outputs,
        inputs, _taps(inputs), relu, pool, codes is not None, block, columns,
    )  # fmt: skip
    return y, codes


def image_weight_gradient(x: Tensor, dy: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `weight` and `bias` of `image_convolution` with ReLU, float32; `gate` as in `gate_backward`."""
    images, inputs, height, width = x.shape
    outputs = dy.shape[1]
    rows = images * dy.shape[2] * dy.shape[3]
    columns = min(64, max(16, triton.next_power_of_2(outputs)))
    taps = _taps(inputs)
    block = min(128, 4096 // taps)  # what shared memory holds
    programs = min(PROGRAMS, triton.cdiv(rows, block))
    sums = torch.empty((programs, taps, outputs), device=x.device)
    _image_weight_gradient[(programs, triton.cdiv(outputs, columns))](
        x, dy, gate, sums, rows, height, width, *x.stride(), outputs,
        inputs, taps, gate.dtype == torch.uint8, block, columns,
    )  # fmt: skip
    total = sums.sum(dim=0)
    dw = total[: 9 * inputs].view(3, 3, inputs, outputs).permute(3, 2, 0, 1)
    return dw, total[9 * inputs]


def _taps(inputs: int) -> int:
    """The power of two for 3x3 taps of each input, and one for the bias."""
    return max(16, int(triton.next_power_of_2(9 * inputs + 1)))
