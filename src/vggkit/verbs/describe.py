"""`vgg describe`: what networks cost, and what it takes to train them."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from tyro.conf import Positional, arg

from vggkit.design.architecture import POOLED_SIZE, Architecture, Head
from vggkit.design.costs import MAX_BATCH_SIZE, Costs, Sum
from vggkit.design.memory import Dtype, OptimizerState, TrainingMemory, largest_batch, training_memory
from vggkit.design.network import Network, costs, parse_network
from vggkit.design.scaling import StepPrediction
from vggkit.verbs.scaling import ScalingFlags, predictions, print_scaling, scaling_fields
from vggkit.verbs.terminal import DONE, given, parse_flags, print_json, print_table

_MOST_WITH_RATIOS = 3
"""Networks side by side, so that the table fits a terminal of 80 columns."""
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB")


@dataclass(frozen=True)
class Flags:
    """Show what networks cost: shapes, parameters, MACs, activations, receptive field, memory for training."""

    networks: Positional[tuple[str, ...]]
    """A name (vgg16, vgg11_bn, vgg11/4, alexnet) or blocks ("1x64 2x128 3x256k3,3,1"); several are compared."""
    in_channels: int = 3
    """1 for grey images, 3 for RGB."""
    image_size: int | None = None
    """Pixels along a side; each network's own if not given: 224, lenet 28."""
    num_classes: int = 1000
    """Outputs of the last layer."""
    head: Head = "flatten"
    """flatten (the book's), adaptive (torchvision's), conv (the paper's dense evaluation), gap."""
    pooled_size: int = POOLED_SIZE
    """Pixels that the first fully connected layer sees, with adaptive and conv."""
    hidden: tuple[int, ...] | None = None
    """Widths of the hidden fully connected layers; 4096 4096 if not given, none with the head gap."""
    batch_size: int = 1
    """Images that MACs, activations and training memory are counted for."""
    optimizer: OptimizerState = "sgd"
    """What training keeps beside the parameters: sgd nothing, momentum as much again, adamw twice."""
    dtype: Dtype = "float32"
    """What maps are made of in training; bfloat16 under autocast."""
    memory: str | None = None
    """What there is for training (6GB, 6GiB, 500MB, 6e9): whether it fits, and which batch does."""
    scaling: Annotated[ScalingFlags, arg(name="")] = ScalingFlags()  # noqa: RUF009 (frozen)
    layers: bool = False
    """A row for each layer instead of each block."""
    json: bool = False
    """Print JSON instead of a table: an object for one network, a list for several."""


def run(arguments: list[str]) -> int:
    """Run the verb; returns the exit code."""
    flags = parse_flags("describe", Flags, arguments)
    if not flags.networks:
        raise ValueError("expected a network, got none, try 'vgg describe vgg16'")
    if flags.layers and len(flags.networks) > 1:
        raise ValueError(f"expected one network with --layers, got {len(flags.networks)}")
    memory_bytes = None if flags.memory is None else parse_bytes(flags.memory)
    described = [_described(_network(text, flags), flags, memory_bytes) for text in flags.networks]
    if flags.json:
        values = [_json(one, flags, memory_bytes) for one in described]
        print_json(values if len(values) > 1 else values[0])
    elif len(described) > 1:
        _print_side_by_side(described, flags)
    else:
        _print_one(described[0], flags, memory_bytes)
    if not flags.json:
        for one in described:
            if one.steps:
                print_scaling(one.network, one.steps, flags.scaling)
    return DONE


def parse_bytes(text: str) -> int:
    """Bytes of a size such as 6GB, 6GiB, 500MB or 6e9; raises `ValueError` for anything else.

    >>> parse_bytes("6GB"), parse_bytes("1.5 MiB"), parse_bytes("6e9")
    (6000000000, 1572864, 6000000000)
    """
    expected = "expected a size from 1MB, such as 6GB, 6GiB, 500MB or 6e9, for --memory"
    match = re.fullmatch(
        r"\s*(\d{1,15}(?:\.\d{1,15})?(?:e\d{1,2})?)\s*(?:([kMGT])(i?)B|B?)\s*", text, re.IGNORECASE | re.ASCII
    )
    if match is None:
        raise ValueError(f"{expected}, got {text[:60]!r}")
    number, prefix, binary = match.groups()
    num_bytes = int(float(number) * (1024 if binary else 1000) ** (" kmgt".index(prefix.lower()) if prefix else 0))
    if not 10**6 <= num_bytes < 10**21:
        raise ValueError(f"{expected}, got {text.strip()!r}, which is {num_bytes} bytes")
    return num_bytes


@dataclass(frozen=True)
class _Described:
    """A network, its costs, and what it takes to train it."""

    network: Network
    costs: Costs
    training: TrainingMemory
    largest_batch: int | None
    """That fits into --memory, where it is given."""
    checkpointed: TrainingMemory | None
    """With each block computed again, of a network that has blocks; so is the next."""
    largest_checkpointed: int | None
    steps: list[StepPrediction]
    """One for each number of --workers."""


def _network(text: str, flags: Flags) -> Network:
    return parse_network(
        text,
        in_channels=flags.in_channels,
        num_classes=flags.num_classes,
        head=flags.head,
        pooled_size=flags.pooled_size,
        **given(image_size=flags.image_size, hidden=flags.hidden),
    )


def _described(network: Network, flags: Flags, memory_bytes: int | None) -> _Described:
    def memory(checkpoint: bool) -> TrainingMemory:
        return training_memory(
            network, flags.batch_size, dtype=flags.dtype, optimizer=flags.optimizer, checkpoint=checkpoint
        )

    def most(checkpoint: bool) -> int | None:
        if memory_bytes is None:
            return None
        return largest_batch(network, memory_bytes, dtype=flags.dtype, optimizer=flags.optimizer, checkpoint=checkpoint)

    has_blocks = isinstance(network, Architecture)
    return _Described(
        network=network,
        costs=costs(network, flags.batch_size),
        training=memory(checkpoint=False),
        largest_batch=most(checkpoint=False),
        checkpointed=memory(checkpoint=True) if has_blocks else None,
        largest_checkpointed=most(checkpoint=True) if has_blocks else None,
        steps=predictions(network, flags.batch_size, flags.scaling),
    )


def _json(one: _Described, flags: Flags, memory_bytes: int | None) -> dict[str, Any]:
    counted = one.costs
    sums = {
        "total": counted.total,
        "convolutional": counted.convolutional,
        "fully_connected": counted.fully_connected,
    }
    training: dict[str, Any] = {"optimizer": flags.optimizer, "dtype": flags.dtype, **asdict(one.training)}
    if one.checkpointed is not None:
        training["checkpoint"] = asdict(one.checkpointed)
    if memory_bytes is not None:
        training["memory"] = {
            "memory_bytes": memory_bytes,
            "fits": one.training.peak_bytes <= memory_bytes,
            "largest_batch": one.largest_batch,
            "largest_batch_checkpoint": one.largest_checkpointed,
        }
    scaling = {"scaling": scaling_fields(one.steps, flags.scaling)} if one.steps else {}
    return {
        "architecture": json.loads(one.network.to_json()),
        "batch_size": flags.batch_size,
        **{name: _sum_fields(part) for name, part in sums.items()},
        "training": training,
        **scaling,
        "parts": {name: _sum_fields(part) for name, part in counted.parts.items()},
        "layers": [asdict(layer) for layer in counted.layers],
    }


def _print_one(one: _Described, flags: Flags, memory_bytes: int | None) -> None:
    network, counted = one.network, one.costs
    total, convolutional, fully_connected = counted.total, counted.convolutional, counted.fully_connected

    # Large batches have no room for a tenth, nor need of it.
    mmacs = ",.1f" if total.macs < 1e11 else ",.0f"
    megabytes = ",.1f" if total.activation_bytes < 1e10 else ",.0f"

    def cells(part: Sum) -> tuple[str, ...]:
        return (
            f"{part.parameters:,}",
            f"{100 * part.parameters / total.parameters:.1f}",
            f"{part.macs / 1e6:{mmacs}}",
            f"{100 * part.macs / total.macs:.1f}",
            f"{part.activation_bytes / 1e6:{megabytes}}",
        )

    rows = []
    for name, part in ({c.name: Sum.of([c]) for c in counted.layers} if flags.layers else counted.parts).items():
        last = part.layers[-1]
        shape = "x".join(map(str, last.output_shape[1:]))
        sees = (str(last.receptive_field), str(last.stride))
        rows.append((name, last.kind if flags.layers else _weight_layers(part), shape, *cells(part), *sees))
    sums_rows = [
        ("all conv", _weight_layers(convolutional), "", *cells(convolutional), "", ""),
        ("all fc", _weight_layers(fully_connected), "", *cells(fully_connected), "", ""),
        ("total", str(total.weight_layers), "", *cells(total), "", ""),
    ]
    images = f"{network.in_channels}x{network.image_size}x{network.image_size} images"
    print(f"{network.name}: {images} in batches of {flags.batch_size}, {network.num_classes} classes")
    print_table(
        ("layer" if flags.layers else "part", "kind" if flags.layers else "layers", "output")
        + ("parameters", "%", "MMACs", "%", "MB out", "sees", "step"),
        [rows, sums_rows],
        left_aligned=3,
    )
    print(
        f"parameters: {total.param_bytes / 1e6:,.1f} MB in float32\n"
        "MMACs: millions of multiply-adds; FLOPs = 2 x MACs\n"
        "MB out: activations in float32\n"
        "sees, step: receptive field, and pixels from one output to the next"
    )
    print(_training_line(one.training))
    print(f"training: the peak of a step with {flags.optimizer} in {flags.dtype}, temporary maps included")
    if memory_bytes is not None:
        _print_whether_it_fits(one, flags, memory_bytes)


def _print_whether_it_fits(one: _Described, flags: Flags, memory_bytes: int) -> None:
    fits = "fits" if one.training.peak_bytes <= memory_bytes else "does not fit"
    print(f"in {_size(memory_bytes)}: a batch of {flags.batch_size} {fits}; {_most(one.largest_batch)}")
    if one.checkpointed is not None:
        fits = "fits" if one.checkpointed.peak_bytes <= memory_bytes else "does not fit"
        peak = _size(one.checkpointed.peak_bytes)
        print(f"with --checkpoint, blocks computed again: {peak}, {fits}; {_most(one.largest_checkpointed)}")
    print("not counted: the program itself, the data, what the allocator keeps")


def _most(batch_size: int | None) -> str:
    if batch_size == MAX_BATCH_SIZE:
        return "so does any other"
    return f"at most {batch_size:,}" if batch_size else "not even 1 does"


def _print_side_by_side(described: list[_Described], flags: Flags) -> None:
    quantities: list[tuple[str, str, Callable[[_Described], float]]] = [
        ("weight layers", ",.0f", lambda one: one.costs.total.weight_layers),
        ("parameters, conv", ",.0f", lambda one: one.costs.convolutional.parameters),
        ("parameters, fc", ",.0f", lambda one: one.costs.fully_connected.parameters),
        ("parameters", ",.0f", lambda one: one.costs.total.parameters),
        ("MMACs, conv", ",.1f", lambda one: one.costs.convolutional.macs / 1e6),
        ("MMACs, fc", ",.1f", lambda one: one.costs.fully_connected.macs / 1e6),
        ("MMACs", ",.1f", lambda one: one.costs.total.macs / 1e6),
        ("MB out", ",.1f", lambda one: one.costs.total.activation_bytes / 1e6),
        ("MB to train", ",.1f", lambda one: one.training.peak_bytes / 1e6),
    ]
    with_ratios = len(described) <= _MOST_WITH_RATIOS
    header = ["", described[0].network.name]
    for one in described[1:]:
        header += [one.network.name, "ratio"] if with_ratios else [one.network.name]
    rows = []
    for name, form, quantity in quantities:
        first = quantity(described[0])
        row = [name, format(first, form)]
        for one in described[1:]:
            row += [format(quantity(one), form)] + ([_ratio(quantity(one), first)] if with_ratios else [])
        rows.append(row)
    for name, batches in (
        ("largest batch", [one.largest_batch for one in described]),
        ("  --checkpoint", [one.largest_checkpointed for one in described]),
    ):
        if flags.memory is not None:
            row = [name]
            for index, batch_size in enumerate(batches):
                row += ["-" if batch_size is None else f"{batch_size:,}"] + [""] * (with_ratios and index > 0)
            rows.append(row)
    sizes = dict.fromkeys(f"{one.network.image_size}x{one.network.image_size}" for one in described)
    images = f"{flags.in_channels}x{' or '.join(sizes)} images"
    print(f"{images} in batches of {flags.batch_size}, {flags.num_classes} classes")
    print_table(header, [rows], left_aligned=1)
    print(
        "MMACs: millions of multiply-adds; FLOPs = 2 x MACs\n"
        "MB out: activations in float32\n"
        f"MB to train: the peak of a step with {flags.optimizer} in {flags.dtype}"
    )
    if with_ratios:
        print(f"ratio: to {described[0].network.name}")
    if flags.memory is not None:
        print(f"largest batch: that trains in {flags.memory}; --checkpoint: with vgg train --checkpoint")


def _ratio(value: float, first: float) -> str:
    if not first:
        return "-"
    ratio = value / first
    if ratio < 0.1:
        return f"{ratio:.1g}"
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:,.0f}"


def _training_line(memory: TrainingMemory) -> str:
    """Parameters, gradients, the optimizer's state and the rest of the peak, in one unit."""
    power = _power(memory.peak_bytes)
    parts = {"params": memory.param_bytes, "grads": memory.gradient_bytes, "optim": memory.optimizer_bytes}
    parts["activations"] = memory.peak_bytes - sum(parts.values())
    decimals = 2 if memory.peak_bytes < 100 * 1000**power and power else 0  # enough for the sum to be seen

    def number(num_bytes: int) -> str:
        return f"{num_bytes / 1000**power:,.{decimals}f}"

    sums = [f"{number(part)} {name}" for name, part in parts.items() if part]
    return f"training: {' + '.join(sums)} = {number(memory.peak_bytes)} {_UNITS[power]}"


def _power(num_bytes: int) -> int:
    """Of 1000, for a number before the unit from 1 to below 1000."""
    return min(int(math.log10(max(num_bytes, 1))) // 3, len(_UNITS) - 1)


def _size(num_bytes: int) -> str:
    power = _power(num_bytes)
    whole = len(str(num_bytes // 1000**power))
    return f"{num_bytes / 1000**power:,.{max(0, 3 - whole)}f} {_UNITS[power]}"


def _weight_layers(part: Sum) -> str:
    convs = sum(layer.kind == "conv" for layer in part.layers)
    connected = part.weight_layers - convs
    return " + ".join(f"{n} {kind}" for n, kind in ((convs, "conv"), (connected, "fc")) if n)


def _sum_fields(part: Sum) -> dict[str, int]:
    return {field.name: getattr(part, field.name) for field in fields(part) if field.name != "layers"}
