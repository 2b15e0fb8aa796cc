"""What training a network needs, in closed form: nothing is built, nothing is run.

How it counts. A step as the training loop takes it: maps in channels_last strides, the forward pass of `VGG` (in the
last convolution of a block the pool comes before the ReLU, and ReLUs are in place), the gradients of the step before
there until the forward pass is done, the optimizer's state there. Activations: every byte that autograd keeps from
the forward pass for the backward pass, each storage once: the images, the inputs of convolutions and fully connected
layers, of batch norm (and its statistics) and of pools (and the int64 positions of maxima), the results of ReLUs and
sigmoids, dropout's masks, what a local response normalisation is composed of, and the loss's log-probabilities and
labels. With bfloat16 that is autocast's rule: float32 weights and their bfloat16 copies, bfloat16 maps, float32 from
a local response normalisation on and in the loss. The operators are torch's own: the compiled convolutions of a CPU
keep a byte for each window of a pool instead of its input and int64 positions. The numbers are a CPU's: on CUDA a
dropout mask takes 1 byte a value, and with bfloat16 the padded squares of a local response normalisation 2 bytes
instead of 4.

The peak is the most that is there at one moment of the step: those, the map that a layer makes, the gradients of the
maps before and after the layer that the backward pass is at, the gradients of parameters so far. What libraries take
as workspace, batch norm's running statistics and the program itself are not in it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from vggkit.design.architecture import Architecture
from vggkit.design.costs import BYTES_PER_VALUE, MAX_BATCH_SIZE, Costs
from vggkit.design.layers import Layer, check_one_of
from vggkit.design.network import Network, NetworkLike, as_network

Dtype = Literal["float32", "bfloat16"]
"""What maps are made of; `bfloat16` under autocast, with float32 weights."""
OptimizerState = Literal["sgd", "momentum", "adamw"]
"""`sgd` keeps nothing from step to step, `momentum` one number for each parameter, `adamw` two."""

_LRN_SIZE = 5  # AlexNet's, as the module of a local response normalisation has it
_INDEX_BYTES = 8
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB")
_STATE_VALUES = {"sgd": 0, "momentum": 1, "adamw": 2}


@dataclass(frozen=True)
class TrainingMemory:
    """What a training step holds; see the module for how it counts."""

    param_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    """What autograd keeps from the forward pass for the backward pass."""
    peak_bytes: int
    """The most at one moment. Gradients come as activations go, so that it may be less than the sum of the others."""

    def __str__(self) -> str:
        """Parameters, gradients, the optimizer's state and the rest of the peak, in one unit."""
        power = _power(self.peak_bytes)
        parts = {"params": self.param_bytes, "grads": self.gradient_bytes, "optim": self.optimizer_bytes}
        parts["activations"] = self.peak_bytes - sum(parts.values())
        decimals = 2 if self.peak_bytes < 100 * 1000**power and power else 0  # enough for the sum to be seen

        def number(num_bytes: int) -> str:
            return f"{num_bytes / 1000**power:,.{decimals}f}"

        sums = " + ".join(f"{number(part)} {name}" for name, part in parts.items() if part)
        return f"training: {sums} = {number(self.peak_bytes)} {_UNITS[power]}"

    def _repr_html_(self) -> str:
        return f"<pre>{self}</pre>"


def in_units(num_bytes: int) -> str:
    """A size with three digits or more and its unit.

    >>> in_units(6_000_000_000), in_units(123)
    ('6.00 GB', '123 B')
    """
    power = _power(num_bytes)
    whole = len(str(num_bytes // 1000**power))
    return f"{num_bytes / 1000**power:,.{max(0, 3 - whole) if power else 0}f} {_UNITS[power]}"


def _power(num_bytes: int) -> int:
    """The power of 1000 whose unit `num_bytes` is written in."""
    return min((len(str(num_bytes)) - 1) // 3, len(_UNITS) - 1)


def training_memory(
    network: NetworkLike,
    batch_size: int,
    *,
    dtype: Dtype = "float32",
    optimizer: OptimizerState = "sgd",
    checkpoint: bool = False,
) -> TrainingMemory:
    """What a step of training `network` on `batch_size` images holds; see the module for how it counts.

    Args:
        network: see `as_network`; a baseline has no blocks, so that `checkpoint` says nothing about it.
        batch_size: images, from 1.
        dtype: `float32`, or `bfloat16` under autocast.
        optimizer: `sgd`, `momentum` or `adamw`.
        checkpoint: keep each block's input alone, and compute the rest again, as `VGG(..., checkpoint=True)` does.

    Raises:
        ArchitectureError: another `batch_size`, `dtype` or `optimizer`.

    >>> memory = training_memory("vgg16", 32, optimizer="momentum")
    >>> memory.param_bytes, memory.optimizer_bytes
    (553430176, 553430176)
    """
    check_one_of("dtype", dtype, Dtype)
    check_one_of("optimizer", optimizer, OptimizerState)
    network = as_network(network)
    param_bytes = Costs.of(network, batch_size).total.param_bytes
    optimizer_bytes = _STATE_VALUES[optimizer] * param_bytes
    if optimizer == "adamw":  # counts its steps, in float32, for each tensor of parameters
        optimizer_bytes += BYTES_PER_VALUE * sum(2 for layer in network.layers() if layer.kind in ("conv", "fc", "bn"))
    operations = list(_operations(network, batch_size, dtype))
    activation_bytes, peak_bytes = _walk(operations, checkpoint)
    return TrainingMemory(
        param_bytes=param_bytes,
        gradient_bytes=param_bytes,
        optimizer_bytes=optimizer_bytes,
        activation_bytes=activation_bytes,
        peak_bytes=param_bytes + optimizer_bytes + peak_bytes,
    )


def largest_batch(
    network: NetworkLike,
    memory_bytes: float,
    *,
    dtype: Dtype = "float32",
    optimizer: OptimizerState = "sgd",
    checkpoint: bool = False,
) -> int:
    """The most images in a step whose peak is within `memory_bytes`; 0 if not even one fits.

    The other arguments, and what is raised, are those of `training_memory`.

    >>> largest_batch("vgg16", 6e9), largest_batch("vgg16", 1e9)
    (66, 0)
    """
    network = as_network(network)

    def fits(batch_size: int) -> bool:
        options = {"dtype": dtype, "optimizer": optimizer, "checkpoint": checkpoint}
        return training_memory(network, batch_size, **options).peak_bytes <= memory_bytes  # type: ignore[arg-type]

    least, most = 0, 1  # least fits, most does not
    while most <= MAX_BATCH_SIZE and fits(most):
        least, most = most, 2 * most
    most = min(most, MAX_BATCH_SIZE + 1)
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A storage; two are never equal."""

    values: int
    bytes_per_value: int = BYTES_PER_VALUE

    @property
    def num_bytes(self) -> int:
        return self.values * self.bytes_per_value


@dataclass(frozen=True)
class _Operation:
    """What one layer makes of `x` in the forward pass, and keeps for the backward pass."""

    part: str
    x: _Tensor
    y: _Tensor
    """`x` itself where the layer writes in place."""
    saved: tuple[_Tensor, ...]
    copies: tuple[_Tensor, ...] = ()
    """Of weights, in autocast's type."""
    gradient_bytes: int = 0
    """Of its parameters."""
    backward_bytes: int = 0
    """What the backward pass needs beside the gradients."""


def _operations(network: Network, batch_size: int, dtype: Dtype) -> Iterator[_Operation]:
    """The operations of a forward pass and its loss, in the order in which they run."""
    map_bytes = 2 if dtype == "bfloat16" else BYTES_PER_VALUE
    size = network.image_size
    x = _Tensor(batch_size * network.in_channels * size * size)
    for layer in _in_running_order(network):
        before, size = size, layer.output_size(size)
        values = batch_size * layer.outputs * size * size
        y, part = _Tensor(values, x.bytes_per_value), layer.part
        match layer.kind:
            case "conv" | "fc":
                y = _Tensor(values, map_bytes)
                # Autocast's copy of what is not in its type.
                kept = x if x.bytes_per_value == map_bytes else _Tensor(x.values, map_bytes)
                copies = (_Tensor(layer.weights, map_bytes),) if dtype == "bfloat16" else ()
                gradient_bytes = BYTES_PER_VALUE * (layer.weights + layer.outputs)
                yield _Operation(part, x, y, (kept, *copies), copies, gradient_bytes)
            case "bn":
                statistics = _Tensor(2 * layer.outputs)
                yield _Operation(part, x, y, (x, statistics), gradient_bytes=2 * BYTES_PER_VALUE * layer.outputs)
            case "relu" | "sigmoid":
                if part.startswith("block"):
                    y = x
                yield _Operation(part, x, y, (y,))
            case "lrn":
                y = _Tensor(values)
                padded = _Tensor(values // layer.outputs * (layer.outputs + _LRN_SIZE - 1))
                saved = (x, padded, _Tensor(values), _Tensor(values))
                yield _Operation(part, x, y, saved, backward_bytes=3 * y.num_bytes)  # of the quotient's denominator
            case "pool":
                yield _Operation(part, x, y, (x, _Tensor(values, _INDEX_BYTES)))
            case "dropout":
                if not network.dropout:
                    continue
                yield _Operation(part, x, y, (_Tensor(values, x.bytes_per_value),))
            case "adaptive" if size == 1:  # torch takes the mean, which needs nothing
                yield _Operation(part, x, y, ())
            case "fit" if size == before:
                continue
            case "flatten":
                if before == 1 or layer.inputs == 1:  # a view
                    continue
                y = _Tensor(x.values, x.bytes_per_value)
                yield _Operation(part, x, y, ())
            case _:
                yield _Operation(part, x, y, (x,))
        x = y
    labels, divisor = _Tensor(batch_size, _INDEX_BYTES), _Tensor(1)
    log_probabilities = _Tensor(x.values)
    yield _Operation("loss", x, log_probabilities, (log_probabilities, labels, divisor))


def _in_running_order(network: Network) -> list[Layer]:
    """The layers of `network`, where the pool of a VGG block comes before the block's last ReLU."""
    layers = list(network.layers())
    if isinstance(network, Architecture):
        for index, layer in enumerate(layers):
            if layer.kind == "pool" and layers[index - 1].kind == "relu":
                layers[index - 1 : index + 1] = layer, layers[index - 1]
    return layers


class _Ledger:
    """The storages that are held, by how many hold them, and the most bytes that there ever were."""

    def __init__(self) -> None:
        self.holders = Counter[_Tensor]()
        self.held_bytes = 0
        self.peak_bytes = 0

    def hold(self, tensors: Iterable[_Tensor]) -> None:
        for tensor in tensors:
            self.held_bytes += 0 if self.holders[tensor] else tensor.num_bytes
            self.holders[tensor] += 1

    def release(self, tensors: Iterable[_Tensor]) -> None:
        for tensor in tensors:
            self.holders[tensor] -= 1
            self.held_bytes -= 0 if self.holders[tensor] else tensor.num_bytes

    def pass_by(self, tensors: Iterable[_Tensor], more_bytes: int = 0) -> None:
        """A moment at which `tensors` are there too, and `more_bytes`."""
        passing_bytes = sum(tensor.num_bytes for tensor in set(tensors) if not self.holders[tensor])
        self.peak_bytes = max(self.peak_bytes, self.held_bytes + passing_bytes + more_bytes)


def _is_recomputed(part: list[_Operation], checkpoint: bool) -> bool:
    return checkpoint and part[0].part.startswith("block")


def _walk(operations: list[_Operation], checkpoint: bool) -> tuple[int, int]:
    """Bytes saved at the end of the forward pass, and the peak without parameters and the optimizer's state."""
    images, logits = operations[0].x, operations[-1].x
    parts = [list(part) for _, part in groupby(operations, lambda operation: operation.part)]
    saved, ledger = _Ledger(), _Ledger()
    last_gradient_bytes = sum(operation.gradient_bytes for operation in operations)
    ledger.hold([images])  # as the step itself does
    for part in parts:
        is_recomputed = _is_recomputed(part, checkpoint)
        for operation in part:
            kept = [part[0].x] if is_recomputed and operation is part[0] else []
            kept += [] if is_recomputed else operation.saved
            saved.hold(kept)
            ledger.hold([*kept, *operation.copies])  # the copies until autocast ends
            ledger.pass_by((operation.x, operation.y, *operation.saved), last_gradient_bytes)
    for operation in operations:
        ledger.release(operation.copies)
    ledger.hold([logits])
    gradient_bytes, dy_bytes = 0, logits.num_bytes
    for part in reversed(parts):
        is_recomputed = _is_recomputed(part, checkpoint)
        if is_recomputed:
            for operation in part:
                ledger.hold(operation.saved)
                ledger.pass_by((operation.x, operation.y), gradient_bytes + dy_bytes)
        for operation in reversed(part):
            dx_bytes = 0 if operation.x is images else operation.x.num_bytes
            # The gradient of a copy is of its type, and becomes the weights' when the copy is gone.
            copies_bytes = sum(copy.num_bytes for copy in operation.copies)
            made_bytes = (copies_bytes or operation.gradient_bytes) + operation.backward_bytes
            ledger.pass_by((), gradient_bytes + dy_bytes + dx_bytes + made_bytes)
            ledger.release(operation.saved)
            gradient_bytes += operation.gradient_bytes
            ledger.pass_by((), gradient_bytes + dx_bytes + copies_bytes)
            dy_bytes = dx_bytes
        if is_recomputed:
            ledger.release([part[0].x])
    return saved.held_bytes, ledger.peak_bytes
