"""The memory that training a network takes, in closed form: nothing is built, nothing is run.

The model is a step of `vgg train` with torch's own operators on a CPU: maps in channels_last order, the pool of a block
before its last ReLU, ReLUs in place, the gradients of the previous step until the forward pass is done, and the
optimizer's state. Activations are the bytes that autograd keeps for the backward pass, each storage once: the images;
the inputs of convolutions, fully connected layers, norms and pools; the outputs of ReLUs and sigmoids; dropout masks;
the indices of max pools; the intermediate results of a local response normalisation; the loss's log-probabilities and
labels. With bfloat16, autocast decides: float32 weights with bfloat16 copies, bfloat16 maps, and float32 after a local
response normalisation and in the loss. The peak is the maximum over the step.

Not counted are the workspace of libraries, the running statistics of batch norm and the program itself. The compiled
convolutions keep less: a byte for each window of a pool instead of its input and indices. On CUDA a dropout mask takes
1 byte a value, and the padded squares of a local response normalisation take 2 with bfloat16.
"""

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from vggkit.design.architecture import Architecture
from vggkit.design.costs import BYTES_PER_VALUE, MAX_BATCH_SIZE, Costs
from vggkit.design.layers import Layer, check_one_of
from vggkit.design.network import Network, NetworkLike, as_network
from vggkit.errors import check_type

Dtype = Literal["float32", "bfloat16"]
"""The type of maps; `bfloat16` means autocast, with float32 weights."""
OptimizerState = Literal["sgd", "momentum", "adamw"]
"""`sgd` keeps nothing from step to step, `momentum` one number for each parameter, `adamw` two."""

_LRN_SIZE = 5  # as in vggkit.networks.modules
_INDEX_BYTES = 8
_STATE_VALUES = {"sgd": 0, "momentum": 1, "adamw": 2}


@dataclass(frozen=True)
class TrainingMemory:
    """The memory of a training step; see the module for how it is counted."""

    param_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    """Kept by autograd from the forward pass for the backward pass."""
    peak_bytes: int
    """The maximum over the step. It may be less than the sum of the others: gradients replace activations."""

    def __str__(self) -> str:
        """Parameters, gradients, the optimizer's state and the rest of the peak, in one unit."""
        from rich.filesize import pick_unit_and_suffix

        unit, suffix = pick_unit_and_suffix(self.peak_bytes, ["B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB"], 1000)
        parts = {"params": self.param_bytes, "grads": self.gradient_bytes, "optim": self.optimizer_bytes}
        parts["activations"] = self.peak_bytes - sum(parts.values())
        decimals = 2 if unit > 1 and self.peak_bytes < 100 * unit else 0  # enough for the sum to add up
        sums = " + ".join(f"{part / unit:,.{decimals}f} {name}" for name, part in parts.items() if part)
        return f"training: {sums} = {self.peak_bytes / unit:,.{decimals}f} {suffix}"

    def _repr_html_(self) -> str:
        return f"<pre>{self}</pre>"


def training_memory(
    network: NetworkLike,
    batch_size: int,
    *,
    dtype: Dtype = "float32",
    optimizer: OptimizerState = "sgd",
    recompute: bool = False,
) -> TrainingMemory:
    """The memory of a training step of `network` on `batch_size` images; see the module for how it is counted.

    Args:
        network: see `as_network`.
        batch_size: images in the step, from 1.
        dtype: the type of the maps.
        optimizer: see `OptimizerState`.
        recompute: keep only the input of each block and recompute the rest, as `vgg train --recompute` does.
            A baseline has no blocks, so nothing changes.

    Raises:
        ArchitectureError: an invalid network or other value.

    >>> memory = training_memory("vgg16", 32, optimizer="momentum")
    >>> memory.param_bytes, memory.optimizer_bytes
    (553430176, 553430176)
    """
    check_one_of("dtype", dtype, Dtype)
    check_one_of("optimizer", optimizer, OptimizerState)
    network = as_network(network)
    param_bytes = Costs.of(network, batch_size).total.param_bytes
    optimizer_bytes = _STATE_VALUES[optimizer] * param_bytes
    if optimizer == "adamw":  # keeps a float32 step counter for each parameter tensor
        optimizer_bytes += BYTES_PER_VALUE * sum(2 for layer in network.layers() if layer.kind in ("conv", "fc", "bn"))
    activation_bytes, peak_bytes = _simulate(list(_operations(network, batch_size, dtype)), recompute)
    return TrainingMemory(
        param_bytes, param_bytes, optimizer_bytes, activation_bytes, param_bytes + optimizer_bytes + peak_bytes
    )


def largest_batch(network: NetworkLike, memory_bytes: float, **options: Any) -> int:
    """The largest batch size whose peak is within `memory_bytes`; 0 if not even one image fits.

    The options and the errors are those of `training_memory`.

    >>> largest_batch("vgg16", 6e9), largest_batch("vgg16", 1e9, dtype="bfloat16")
    (66, 0)
    """
    network = as_network(network)
    check_type(memory_bytes, int | float, "bytes of memory", "6e9")
    sizes = range(1, MAX_BATCH_SIZE + 1)
    return bisect_right(sizes, memory_bytes, key=lambda size: training_memory(network, size, **options).peak_bytes)


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A storage, compared by identity."""

    values: int
    bytes_per_value: int = BYTES_PER_VALUE

    @property
    def num_bytes(self) -> int:
        return self.values * self.bytes_per_value


@dataclass(frozen=True)
class _Operation:
    """The forward pass of one layer from `x` to `y`; `saved` is kept for the backward pass."""

    part: str
    x: _Tensor
    y: _Tensor  # `x` itself if the layer works in place
    saved: tuple[_Tensor, ...]
    copies: tuple[_Tensor, ...] = ()
    gradient_bytes: int = 0
    backward_bytes: int = 0  # temporary memory of the backward pass beside the gradients


def _operations(network: Network, batch_size: int, dtype: Dtype) -> Iterator[_Operation]:
    """The operations of a forward pass and its loss in execution order."""
    size = network.image_size
    x = _Tensor(batch_size * network.in_channels * size * size)
    for layer in _execution_order(network):
        input_size, size = size, layer.output_size(size)
        is_view = layer.kind == "flatten" and (input_size == 1 or layer.inputs == 1)
        if is_view or (layer.kind == "fit" and size == input_size) or (layer.kind == "dropout" and not network.dropout):
            continue
        operation = _operation(layer, x, batch_size * layer.outputs * size * size, dtype)
        yield operation
        x = operation.y
    log_probabilities = _Tensor(x.values)
    labels, divisor = _Tensor(batch_size, _INDEX_BYTES), _Tensor(1)
    yield _Operation("loss", x, log_probabilities, (log_probabilities, labels, divisor))


def _operation(layer: Layer, x: _Tensor, values: int, dtype: Dtype) -> _Operation:
    """The operation of `layer` on `x` with a result of `values` values."""
    y, part = _Tensor(values, x.bytes_per_value), layer.part
    saved: tuple[_Tensor, ...] = (x,)
    match layer.kind:
        case "conv" | "fc":
            y = _Tensor(values, 2 if dtype == "bfloat16" else BYTES_PER_VALUE)
            # Autocast converts an input of another type.
            saved_x = x if x.bytes_per_value == y.bytes_per_value else _Tensor(x.values, y.bytes_per_value)
            copies = (_Tensor(layer.weights, y.bytes_per_value),) if dtype == "bfloat16" else ()
            return _Operation(part, x, y, (saved_x, *copies), copies, BYTES_PER_VALUE * (layer.weights + layer.outputs))
        case "bn":
            statistics = _Tensor(2 * layer.outputs)
            return _Operation(part, x, y, (x, statistics), gradient_bytes=statistics.num_bytes)
        case "lrn":
            y = _Tensor(values)
            padded = _Tensor(values // layer.outputs * (layer.outputs + _LRN_SIZE - 1))
            # The gradient of the denominator takes three more maps.
            return _Operation(part, x, y, (x, padded, _Tensor(values), _Tensor(values)), backward_bytes=3 * y.num_bytes)
        case "relu" | "sigmoid":
            y = x if part.startswith("block") else y
            saved = (y,)
        case "pool":
            saved = (x, _Tensor(values, _INDEX_BYTES))
        case "dropout":
            saved = (_Tensor(values, x.bytes_per_value),)
        case "flatten" | "adaptive" if layer.kernel_size == 1:  # torch takes the mean, which saves nothing
            saved = ()
    return _Operation(part, x, y, saved)


def _execution_order(network: Network) -> list[Layer]:
    """The layers of `network` in execution order: in a VGG block the pool comes before the last ReLU."""
    layers = list(network.layers())
    if isinstance(network, Architecture):
        for index, layer in enumerate(layers):
            if layer.kind == "pool" and layers[index - 1].kind == "relu":
                layers[index - 1 : index + 1] = layer, layers[index - 1]
    return layers


class _Allocations:
    """The live storages with their reference counts, and the peak of their bytes."""

    def __init__(self) -> None:
        self.holders = Counter[_Tensor]()
        self.held_bytes = self.peak_bytes = 0

    def hold(self, tensors: Iterable[_Tensor]) -> None:
        for tensor in tensors:
            self.held_bytes += 0 if self.holders[tensor] else tensor.num_bytes
            self.holders[tensor] += 1

    def release(self, tensors: Iterable[_Tensor]) -> None:
        for tensor in tensors:
            self.holders[tensor] -= 1
            self.held_bytes -= 0 if self.holders[tensor] else tensor.num_bytes

    def peak_with(self, tensors: Iterable[_Tensor], more_bytes: int = 0) -> None:
        """Update the peak for a moment at which `tensors` and `more_bytes` are live too."""
        temporary_bytes = sum(tensor.num_bytes for tensor in set(tensors) if not self.holders[tensor])
        self.peak_bytes = max(self.peak_bytes, self.held_bytes + temporary_bytes + more_bytes)


def machine_memory_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _simulate(operations: list[_Operation], recompute: bool) -> tuple[int, int]:
    """Bytes saved at the end of the forward pass, and the peak without parameters and optimizer state."""
    parts = [list(part) for _, part in groupby(operations, lambda operation: operation.part)]
    recomputed = [recompute and part[0].part.startswith("block") for part in parts]
    saved, allocations = set[_Tensor](), _Allocations()
    last_gradient_bytes = sum(operation.gradient_bytes for operation in operations)
    allocations.hold([operations[0].x])  # the images, which the caller holds
    for part, is_recomputed in zip(parts, recomputed, strict=True):
        for index, operation in enumerate(part):
            newly_saved = operation.saved if not is_recomputed else () if index else (operation.x,)
            saved.update(newly_saved)
            allocations.hold([*newly_saved, *operation.copies])
            allocations.peak_with((operation.x, operation.y, *operation.saved), last_gradient_bytes)
    for operation in operations:
        allocations.release(operation.copies)  # at the end of autocast
    _simulate_backward(parts, recomputed, allocations)
    return sum(tensor.num_bytes for tensor in saved), allocations.peak_bytes


def _simulate_backward(parts: list[list[_Operation]], recomputed: list[bool], allocations: _Allocations) -> None:
    """The backward pass, which frees activations and adds gradients of parameters."""
    images, logits = parts[0][0].x, parts[-1][-1].x
    allocations.hold([logits])
    gradient_bytes, dy_bytes = 0, logits.num_bytes
    for part, is_recomputed in zip(reversed(parts), reversed(recomputed), strict=True):
        for operation in part if is_recomputed else ():
            allocations.hold(operation.saved)
            allocations.peak_with((operation.x, operation.y), gradient_bytes + dy_bytes)
        for operation in reversed(part):
            dx_bytes = 0 if operation.x is images else operation.x.num_bytes
            # The gradient of a copy has the copy's type and is converted after the copy is freed.
            copies_bytes = sum(copy.num_bytes for copy in operation.copies)
            made_bytes = (copies_bytes or operation.gradient_bytes) + operation.backward_bytes
            allocations.peak_with((), gradient_bytes + dy_bytes + dx_bytes + made_bytes)
            allocations.release(operation.saved)
            gradient_bytes += operation.gradient_bytes
            allocations.peak_with((), gradient_bytes + dx_bytes + copies_bytes)
            dy_bytes = dx_bytes
        if is_recomputed:
            allocations.release([part[0].x])
