"""`vgg describe`: what networks cost."""

import json
from dataclasses import asdict, dataclass, fields

from tyro.conf import Positional

from vggkit.design.baselines import parse_network
from vggkit.design.costs import Sum, costs
from vggkit.verbs.terminal import DONE, parse_flags, print_json, print_table


@dataclass(frozen=True)
class Flags:
    """Show what a network costs: shapes, parameters, MACs, activations, receptive field."""

    architecture: Positional[str]
    """A name (vgg16, vgg11_bn, vgg11/4, the paper's A-LRN) or blocks ("1x64 2x128 3x256k3,3,1")."""
    in_channels: int = 3
    """1 for grey images, 3 for RGB."""
    image_size: int = 224
    """Pixels along a side."""
    num_classes: int = 1000
    """Outputs of the last layer."""
    hidden: tuple[int, ...] = (4096, 4096)
    """Widths of the hidden fully connected layers."""
    batch_size: int = 1
    """Images that MACs and activations are counted for."""
    layers: bool = False
    """A row for each layer instead of each block."""
    json: bool = False
    """Print JSON instead of a table."""


def run(arguments: list[str]) -> int:
    """Run the verb; returns the exit code."""
    flags = parse_flags("describe", Flags, arguments)
    arch = parse_network(
        flags.architecture,
        in_channels=flags.in_channels,
        image_size=flags.image_size,
        num_classes=flags.num_classes,
        hidden=flags.hidden,
    )
    counted = costs(arch, flags.batch_size)
    total, convolutional, fully_connected = counted.total, counted.convolutional, counted.fully_connected
    if flags.json:
        sums = {"total": total, "convolutional": convolutional, "fully_connected": fully_connected}
        print_json(
            {
                "architecture": json.loads(arch.to_json()),
                "batch_size": flags.batch_size,
                **{name: _sum_fields(part) for name, part in sums.items()},
                "parts": {name: _sum_fields(part) for name, part in counted.parts.items()},
                "layers": [asdict(layer) for layer in counted.layers],
            }
        )
        return DONE

    def cells(part: Sum) -> tuple[str, ...]:
        return (
            f"{part.parameters:,}",
            f"{100 * part.parameters / total.parameters:.1f}",
            f"{part.macs / 1e6:,.1f}",
            f"{100 * part.macs / total.macs:.1f}",
            f"{part.activation_bytes / 1e6:,.1f}",
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
    images = f"{arch.in_channels}x{arch.image_size}x{arch.image_size} images"
    print(f"{arch.name}: {images} in batches of {flags.batch_size}, {arch.num_classes} classes")
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
    return DONE


def _weight_layers(part: Sum) -> str:
    convs = sum(layer.kind == "conv" for layer in part.layers)
    connected = part.weight_layers - convs
    return " + ".join(f"{n} {kind}" for n, kind in ((convs, "conv"), (connected, "fc")) if n)


def _sum_fields(part: Sum) -> dict[str, int]:
    return {field.name: getattr(part, field.name) for field in fields(part) if field.name != "layers"}
