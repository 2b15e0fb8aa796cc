"""`vgg describe`: what networks cost, and what it takes to train them."""

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.filesize import decimal
from tyro.conf import Positional

from vggkit.design.architecture import Architecture
from vggkit.design.costs import MAX_BATCH_SIZE, Costs, Sum
from vggkit.design.memory import Dtype, OptimizerState, TrainingMemory, largest_batch, training_memory
from vggkit.design.network import Network, costs
from vggkit.design.scaling import StepPrediction
from vggkit.design.table import Table
from vggkit.errors import UserError, shown
from vggkit.verbs.network import NetworkFlags
from vggkit.verbs.scaling import ScalingFlags, predictions, print_scaling
from vggkit.verbs.terminal import parse_flags, print_json


@dataclass(frozen=True)
class Flags:
    """Show what networks cost: parameters, MACs, memory, shapes.

    Examples:
      vgg describe vgg16 --batch-size 128 --memory 6GB
      vgg describe alexnet "1x64 2x128 3x256k3,3,1" --image-size 96 --json
    """

    networks: Positional[tuple[str, ...]]
    """Names (vgg16, vgg11_bn, vgg11/4, alexnet), blocks ("1x64 2x128 3x256k3,3,1"), run folders or weight files;
    several are compared."""
    network: NetworkFlags = field(default_factory=NetworkFlags)
    batch_size: int = 1
    """Images for which MACs, activations and training memory are counted."""
    optimizer: OptimizerState = "sgd"
    """Optimizer state that training keeps: none (sgd), one value a parameter (momentum) or two (adamw)."""
    dtype: Dtype = "float32"
    """Type of the feature maps in training; bfloat16 under autocast."""
    memory: str | None = None
    """Memory for training (6GB, 6GiB, 500MB, 6e9): whether a step fits into it, and the largest batch that does."""
    scaling: ScalingFlags = field(default_factory=ScalingFlags)
    layers: bool = False
    """A row for each layer instead of each block."""
    json: bool = False
    """Print JSON instead of a table: an object for one network, a list for several."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("describe", Flags, arguments)
    if not flags.networks:
        raise UserError("expected a network, got none, try 'vgg describe vgg16'")
    if flags.layers and len(flags.networks) > 1:
        raise UserError(f"expected one network with --layers, got {len(flags.networks)}")
    memory_bytes = None if flags.memory is None else parse_bytes(flags.memory)
    described = [_measured(flags.network.network(text), flags, memory_bytes) for text in flags.networks]
    if flags.json:
        values = [_json(item, flags, memory_bytes) for item in described]
        print_json(values if len(values) > 1 else values[0])
        return
    if len(described) > 1:
        print(_side_by_side(described, flags))
    else:
        _print_one(described[0], flags, memory_bytes)
    for item in described:
        if item.steps:
            print_scaling(item.network, item.steps, flags.scaling)


def parse_bytes(text: str) -> int:
    """Bytes of a size such as 6GB, 6GiB, 500MB or 6e9; raises `UserError` for anything else.

    >>> parse_bytes("6GB"), parse_bytes("1.5 MiB"), parse_bytes("6e9")
    (6000000000, 1572864, 6000000000)
    """
    pattern = r"\s*(\d{1,15}(?:\.\d{1,15})?(?:e\d{1,2})?)\s*(?:([kMGT])(i?)B|B?)\s*"
    num_bytes = 0
    if match := re.fullmatch(pattern, text, re.IGNORECASE | re.ASCII):
        number, prefix, binary = match.groups()
        num_bytes = int(float(number) * (1024 if binary else 1000) ** " kmgt".index((prefix or " ").lower()))
    if not 10**6 <= num_bytes < 10**21:
        raise UserError(f"expected a size from 1MB, such as 6GB, 6GiB, 500MB or 6e9, for --memory, got '{shown(text)}'")
    return num_bytes


@dataclass(frozen=True)
class _Described:
    network: Network
    costs: Costs
    training: dict[bool, TrainingMemory]
    """Without --recompute (False) and, for a network with blocks, with it (True)."""
    largest_batch: dict[bool, int]
    """The largest batch that fits into --memory, by --recompute; empty if --memory is not given."""
    steps: list[StepPrediction]
    """One for each number of --workers."""


def _measured(network: Network, flags: Flags, memory_bytes: int | None) -> _Described:
    recomputes = (False, True) if isinstance(network, Architecture) else (False,)
    options: dict[str, Any] = {"dtype": flags.dtype, "optimizer": flags.optimizer}
    training = {r: training_memory(network, flags.batch_size, recompute=r, **options) for r in recomputes}
    largest = {}
    if memory_bytes is not None:
        largest = {r: largest_batch(network, memory_bytes, recompute=r, **options) for r in recomputes}
    steps = predictions(network, flags.batch_size, flags.scaling)
    return _Described(network, costs(network, flags.batch_size), training, largest, steps)


def _json(item: _Described, flags: Flags, memory_bytes: int | None) -> dict[str, Any]:
    def sums(part: Sum) -> dict[str, int]:
        return {name: value for name, value in vars(part).items() if name != "layers"}

    training: dict[str, Any] = {"optimizer": flags.optimizer, "dtype": flags.dtype, **asdict(item.training[False])}
    if True in item.training:
        training["recompute"] = asdict(item.training[True])
    if memory_bytes is not None:
        training["memory"] = {
            "memory_bytes": memory_bytes,
            "fits": item.training[False].peak_bytes <= memory_bytes,
            "largest_batch": item.largest_batch[False],
            "largest_batch_recompute": item.largest_batch.get(True),
        }
    steps = [asdict(step) for step in item.steps]
    return {
        "architecture": json.loads(item.network.to_json()),
        "batch_size": flags.batch_size,
        **{name: sums(getattr(item.costs, name)) for name in ("total", "convolutional", "fully_connected")},
        "training": training,
        **({"scaling": {"prediction": True, **asdict(flags.scaling), "steps": steps}} if steps else {}),
        "parts": {name: sums(part) for name, part in item.costs.parts.items()},
        "layers": [asdict(layer) for layer in item.costs.layers],
    }


def _print_one(item: _Described, flags: Flags, memory_bytes: int | None) -> None:
    print(item.costs.table(flags.layers))
    print(item.training[False])
    print(f"training: the peak of a step with {flags.optimizer} in {flags.dtype}, temporary maps included")
    if memory_bytes is None:
        return
    for recompute, memory in item.training.items():
        fits, largest = "fits" if memory.peak_bytes <= memory_bytes else "does not fit", item.largest_batch[recompute]
        limit = f"at most {largest:,}" if largest else "not even 1 does"
        if largest == MAX_BATCH_SIZE:
            limit = "so does any other"
        if recompute:
            peak = decimal(memory.peak_bytes, precision=2)
            print(f"with --recompute, blocks computed again: {peak}, {fits}; {limit}")
        else:
            print(f"in {decimal(memory_bytes, precision=2)}: a batch of {flags.batch_size} {fits}; {limit}")
    print("not counted: the program itself, the data, what the allocator keeps")


def _side_by_side(described: list[_Described], flags: Flags) -> Table:
    with_ratios = len(described) <= 3  # so that the table fits a terminal of 80 columns
    name_width = max(8, (64 - 7 * with_ratios * (len(described) - 1)) // len(described) - 1)

    def row(name: str, cells: list[str], ratios: list[str] | None = None) -> list[str]:
        """The cell of each network, with its ratio behind all but the first if there is room."""
        pairs = zip(cells[1:], ratios or [""] * len(cells[1:]), strict=True)
        return [name, cells[0], *(text for pair in pairs for text in pair[: 1 + with_ratios])]

    networks = [item.network for item in described]
    inputs = [f"{network.in_channels}x{network.image_size}x{network.image_size}" for network in networks]
    rows = [row("images", inputs), row("classes", [f"{network.num_classes:,}" for network in networks])]
    columns = [_quantities(item) for item in described]
    for name, (form, _) in columns[0].items():
        first, *others = values = [quantities[name][1] for quantities in columns]
        rows.append(row(name, [format(value, form) for value in values], [_ratio(value, first) for value in others]))
    notes = [
        "MMACs: millions of multiply-adds; FLOPs = 2 x MACs",
        "MB out: what the layers put out, in float32; training keeps only some of it",
        f"MB to train: the peak of a step with {flags.optimizer} in {flags.dtype}",
    ]
    if with_ratios:
        notes.append(f"ratio: to {shown(networks[0].name, limit=40)}")
    if flags.memory is not None:
        for recompute, name in ((False, "largest batch"), (True, "  --recompute")):
            largest = [item.largest_batch.get(recompute) for item in described]
            rows.append(row(name, ["-" if n is None else f"{n:,}" for n in largest]))
        notes.append(f"largest batch: that trains in {flags.memory}; --recompute: with vgg train --recompute")
    header = row("", [shown(network.name, name_width) for network in networks], ["ratio"] * (len(networks) - 1))
    return Table(header, [rows], title=f"batches of {flags.batch_size}", notes=notes)


def _quantities(item: _Described) -> dict[str, tuple[str, float]]:
    """The format and the value of each figure by which networks are compared."""
    total, conv, fc = item.costs.total, item.costs.convolutional, item.costs.fully_connected
    return {
        "weight layers": (",.0f", total.weight_layers),
        "parameters, conv": (",.0f", conv.parameters),
        "parameters, fc": (",.0f", fc.parameters),
        "parameters": (",.0f", total.parameters),
        "MMACs, conv": (",.1f", conv.macs / 1e6),
        "MMACs, fc": (",.1f", fc.macs / 1e6),
        "MMACs": (",.1f", total.macs / 1e6),
        "MB out": (",.1f", total.activation_bytes / 1e6),
        "MB to train": (",.1f", item.training[False].peak_bytes / 1e6),
    }


def _ratio(value: float, first: float) -> str:
    ratio = value / first if first else 0.0
    if not ratio:
        return "-"
    return f"{ratio:.1g}" if ratio < 0.1 else f"{ratio:.2f}" if ratio < 100 else f"{ratio:,.0f}"
