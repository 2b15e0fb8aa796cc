"""Kernels for CUDA GPUs, in Triton: what stands around a convolution in one pass, and the first convolution whole.

Maps are channels last. A 2x2 max pool keeps one byte for each window, which says where its maximum was (0 to 3 by
rows) or that a ReLU cut it off (4); the full map is not needed again. NaN passes through all of them. Everything is
summed in one order, so that a step gives the same bits each time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 512
"""Of the kernels that sum: enough for any GPU, and each has a row of partial sums."""


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
    """The 3x3 surroundings of pixels (image, row, column), (len(pixel), TAPS); behind them a column of ones."""
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
    """Image, row and column of a pixel, or of one of the four of a window."""
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
    INPUTS: tl.constexpr, TAPS: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
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
        passes = tl.load(gate + offset, mask=mask, other=4) if POOL or RELU else gradient
        for place in tl.static_range(4 if POOL else 1):
            pixel = _place_of(index, place, height, width, POOL)
            a = _patches(x, pixel, inside, height, width, (s0, s1, s2, s3), INPUTS, TAPS, True)
            g = gradient
            if POOL:
                g = tl.where(passes == place, gradient, tl.zeros_like(gradient))
            elif RELU:
                g = tl.where(passes.to(tl.float32) <= 0, tl.zeros_like(gradient), gradient)
            summed = tl.dot(tl.trans(a.to(gradient.dtype)), g, summed, out_dtype=tl.float32)
    target = sums + (tl.program_id(0) * TAPS + tap[:, None]) * outputs + output[None, :]
    tl.store(target, summed, mask=(output < outputs)[None, :])


def pool(x: Tensor, relu: bool, is_kept: bool) -> tuple[Tensor, Tensor | None]:
    """The maxima of whole 2x2 windows of `x` (images, channels, height, width), and where they were if `is_kept`."""
    images, channels, height, width = x.shape
    y = torch.empty(
        (images, channels, height // 2, width // 2),
        dtype=x.dtype, device=x.device, memory_format=torch.channels_last,
    )  # fmt: skip
    codes = torch.empty_like(y, dtype=torch.uint8) if is_kept else None
    grid = (triton.cdiv(y.numel(), 1024),)
    _pool[grid](x, y, codes if codes is not None else y, y.numel(), height, width, channels, relu, is_kept, 1024)
    return y, codes


def gate_backward(dy: Tensor, gate: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The gradient before a ReLU, or before a pool and ReLU, and its sum for each channel.

    Args:
        dy: (images, channels, height, width), or half of both behind a pool.
        gate: what `pool` kept, uint8, as `dy`; else the ReLU's output.
        height: of the map before.
        width: of the map before.
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
    x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, pool: bool, is_kept: bool
) -> tuple[Tensor, Tensor | None]:
    """`pool(relu(conv(x)))`, a 3x3 convolution with padding 1 of few channels, computed in the type of `weight`.

    Args:
        x: (images, at most 4 channels, height, width), of any type and strides.
        weight: (outputs, channels, 3, 3).
        bias: (outputs,), or None.
        relu: whether to cut off what is negative.
        pool: whether to take the maximum of each whole 2x2 window.
        is_kept: whether to return where the maxima were.
    """
    images, inputs, height, width = x.shape
    outputs = len(weight)
    size = (height // 2, width // 2) if pool else (height, width)
    y = torch.empty((images, outputs, *size), dtype=weight.dtype, device=x.device, memory_format=torch.channels_last)
    bias = weight.new_zeros(outputs) if bias is None else bias
    codes = torch.empty_like(y, dtype=torch.uint8) if is_kept and pool else None
    rows = images * size[0] * size[1]
    columns = min(64, max(16, triton.next_power_of_2(outputs)))
    block = 128 if columns == 64 else 256
    _image_convolution[(triton.cdiv(rows, block), triton.cdiv(outputs, columns))](
        x, weight.permute(2, 3, 1, 0).contiguous(), bias, y, codes if codes is not None else y,
        rows, height, width, *x.stride(), outputs,
        inputs, _taps(inputs), relu, pool, codes is not None, block, columns,
    )  # fmt: skip
    return y, codes


def image_weight_gradient(x: Tensor, dy: Tensor, gate: Tensor | None, relu: bool, pool: bool) -> tuple[Tensor, Tensor]:
    """The gradients of `weight` and `bias` of `image_convolution`, float32, from that of its output."""
    images, inputs, height, width = x.shape
    outputs = dy.shape[1]
    rows = images * dy.shape[2] * dy.shape[3]
    columns = min(64, max(16, triton.next_power_of_2(outputs)))
    taps = _taps(inputs)
    block = min(128, 4096 // taps)  # what shared memory holds
    programs = min(PROGRAMS, triton.cdiv(rows, block))
    sums = torch.empty((programs, taps, outputs), device=x.device)
    _image_weight_gradient[(programs, triton.cdiv(outputs, columns))](
        x, dy, gate if gate is not None else dy, sums, rows, height, width, *x.stride(), outputs,
        inputs, taps, relu, pool, block, columns,
    )  # fmt: skip
    total = sums.sum(dim=0)
    dw = total[: 9 * inputs].view(3, 3, inputs, outputs).permute(3, 2, 0, 1)
    return dw, total[9 * inputs]


def _taps(inputs: int) -> int:
    """A power of two that holds 3x3 taps of each input, and one more for the bias."""
    return max(16, int(triton.next_power_of_2(9 * inputs + 1)))
