"""How do time and memory of a training step grow with batch, image size and width?

    python benchmarks/growth.py [--device cpu] [--save]
    python benchmarks/growth.py --plot docs/pictures/growth.png

Takes VGG-11 with its `adaptive` head, 112 pixels, batch 8, width /2, and varies one of the three at a time. Beside the
measurement stands what the closed forms say: operations of `costs` (forward once, backward twice, convolutions as they
are defined) over the measured rate of a large matrix product, and `training_memory`, which is of torch's own operators.
Predicted before the first row: time in proportion to batch and to the square of image size and width from 64 pixels
and /4 on; more than that below, where the fully connected layers' weights are read and little else is done.
Prints a JSON line for each point; --save adds it to benchmarks/results/growth.jsonl; --plot draws the newest rows.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring import HERE, row_header, save_row, spread

from vggkit import Architecture, costs, training_memory
from vggkit.design.scaling import backward_macs
from vggkit.lab.bench import bench
from vggkit.training.hardware import choose_device

SIZE, BATCH, WIDTH = 112, 8, 2
AXES: dict[str, tuple[int, ...]] = {
    "batch size": (1, 2, 4, 8, 16, 32, 64),
    "image size": (32, 64, 112, 160, 224, 320, 448),
    "width": (8, 4, 2, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--plot", type=Path)
    flags = parser.parse_args()
    if flags.plot is not None:
        plot(flags.plot)
        return
    device = choose_device(flags.device)
    for axis, values in AXES.items():
        for value in values:
            row = measure(axis, value, flags.repeats, str(device))
            save_row("growth", {**row_header(device, flags.repeats), **row}, flags.save)


def measure(axis: str, value: int, repeats: int, device: str) -> dict[str, Any]:
    """One point."""
    point = {"image size": SIZE, "batch size": BATCH, "width": WIDTH, axis: value}
    width = f"/{point['width']}" if point["width"] > 1 else ""
    arch = replace(Architecture.parse(f"vgg11{width}", image_size=point["image size"]), head="adaptive")
    measured = bench(arch, point["batch size"], training=True, repeats=repeats, device=device)
    operations = 2 * (costs(arch, point["batch size"]).total.macs + backward_macs(arch, point["batch size"]))
    predicted_bytes = training_memory(arch, point["batch size"]).peak_bytes
    return {
        "axis": axis,
        "value": value,
        "network": arch.name,
        "image_size": point["image size"],
        "batch_size": point["batch size"],
        "product_flops_per_second": float(f"{measured.product_flops_per_second:.3g}"),
        "predicted_seconds": float(f"{operations / measured.product_flops_per_second:.3g}"),
        "predicted_bytes": predicted_bytes,
        "step_seconds": {
            speed.way: spread([point["batch size"] / examples for examples in speed.examples_per_second])
            for speed in measured.speeds
        },
        "peak_bytes": {speed.way: speed.peak_bytes for speed in measured.speeds},
    }


def plot(path: Path) -> None:
    """Draw the newest row of each point."""
    from matplotlib.figure import Figure

    lines = (HERE / "results" / "growth.jsonl").read_text().splitlines()
    rows = list({(row["axis"], row["value"]): row for row in map(json.loads, lines)}.values())
    figure = Figure(figsize=(11, 6.5), dpi=120, layout="constrained")
    grid = figure.subplots(2, 3, squeeze=False)
    for column, axis in enumerate(AXES):
        some = sorted(
            (row for row in rows if row["axis"] == axis and row["value"] in AXES[axis]), key=lambda row: row["value"]
        )
        x = [1 / row["value"] if axis == "width" else row["value"] for row in some]
        names = [f"/{row['value']}" if axis == "width" and row["value"] > 1 else str(row["value"]) for row in some]
        for line, (quantity, unit) in enumerate((("step_seconds", "s a step"), ("peak_bytes", "peak GB"))):
            axes = grid[line, column]
            for way in some[0][quantity]:
                values = [row[quantity][way] for row in some]
                if quantity == "step_seconds":
                    values = [value["median"] for value in values]
                else:
                    values = [value / 1e9 for value in values]
                axes.plot(x, values, marker="o", markersize=4, label=way)
            predicted = [row["predicted_seconds"] if not line else row["predicted_bytes"] / 1e9 for row in some]
            axes.plot(x, predicted, color="black", linestyle="--", label="closed form")
            axes.set(xscale="log", yscale="linear" if line else "log", xlabel=axis, ylabel=unit)
            axes.set_xticks(x, names, fontsize=8)
            if line:
                axes.set_ylim(bottom=0)
            axes.set_xticks([], minor=True)
            axes.grid(alpha=0.3)
    grid[0, 0].legend(fontsize=8)
    first = rows[0]
    figure.suptitle(
        f"a training step of VGG-11 at {SIZE} px, batch {BATCH}, width /{WIDTH}; {first['hardware']}, {first['date']}",
        fontsize=10,
    )
    figure.savefig(path)


if __name__ == "__main__":
    main()
