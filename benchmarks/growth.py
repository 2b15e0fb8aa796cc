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
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring import row_header, save_row, spread
from table import newest

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
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = newest("growth", lambda row: (row["axis"], row["value"]))
    figure = Figure(figsize=(11, 7), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12))
    grid = figure.subplots(2, len(AXES), sharey="row")
    for column, (axis, values) in enumerate(AXES.items()):
        some = sorted((row for row in rows if row["axis"] == axis and row["value"] in values), key=lambda r: r["value"])
        x = [1 / row["value"] if axis == "width" else row["value"] for row in some]
        names = [f"/{row['value']}" if axis == "width" and row["value"] > 1 else str(row["value"]) for row in some]
        seconds, gigabytes = grid[:, column]
        for way in some[0]["step_seconds"]:
            seconds.plot(x, [row["step_seconds"][way]["median"] for row in some], marker="o", markersize=4, label=way)
            gigabytes.plot(x, [row["peak_bytes"][way] / 1e9 for row in some], marker="o", markersize=4)
        seconds.plot(x, [row["predicted_seconds"] for row in some], "k--", label="closed form")
        gigabytes.plot(x, [row["predicted_bytes"] / 1e9 for row in some], "k--")
        for axes, scale in ((seconds, "log"), (gigabytes, "linear")):
            axes.set(xscale="log", yscale=scale, xlabel=axis)
            axes.set_xticks(x, names, rotation=45)
            axes.set_xticks([], minor=True)
            axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel("seconds a step")
    grid[1, 0].set(ylabel="peak GB", ylim=(0, None))
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    at = f"{SIZE} px, batch {BATCH}, width /{WIDTH}"
    figure.suptitle(f"a training step of VGG-11 at {at}; {rows[0]['hardware']}, {rows[0]['date']}", fontsize=10)
    figure.savefig(path)


if __name__ == "__main__":
    main()
