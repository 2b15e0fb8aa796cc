"""Draw the newest rows of inference_speed.py and train_speed.py.

    python benchmarks/speed_plot.py docs/pictures/speed.png

A bar is a peer's time over vggkit's in the same turn or run, by medians: 2 means that vggkit is twice as fast.
"""

import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from table import newest

COLORS = {
    "torch": "#8c8c8c",
    "torch channels_last": "#5f5f5f",
    "torch compiled": "#b5b5b5",
    "onnxruntime": "#4c78a8",
    "openvino": "#72b7b2",
    "ncnn": "#e45756",
    "the chapter's way": "#f2a541",
}


def main() -> None:
    figure = Figure(figsize=(11, 6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = newest("inference_speed", lambda row: (row["network"], row["image_size"], row["batch_size"]))
    inference = {
        f"{row['network']}\n{row['image_size']} px, batch {row['batch_size']}": {
            way: ms["median"] / row["milliseconds"]["ours"]["median"]
            for way, ms in row["milliseconds"].items()
            if way != "ours"
        }
        for row in rows
    }
    bars(left, inference, "inference, float32", rows[-1])
    rows = [
        row for row in newest("train_speed", lambda row: (row["network"], row["image_size"])) if row["device"] == "cpu"
    ]
    training = {
        f"{row['network']}\n{row['image_size']} px, batch {row['batch_size']}": {
            "torch channels_last": row["ratio_to_pytorch"]["median"],
            "the chapter's way": row["ratio"]["median"],
        }
        for row in rows
    }
    bars(right, training, "training, float32", rows[-1])
    figure.savefig(Path(sys.argv[1]))


def bars(axes: Axes, ratios: dict[str, dict[str, float]], title: str, row: dict[str, Any]) -> None:
    """A group for each case, a bar in it for each peer."""
    ways = [way for way in COLORS if any(way in case for case in ratios.values())]
    height = 0.8 / len(ways)
    for number, way in enumerate(ways):
        places = [group + (number - (len(ways) - 1) / 2) * height for group in range(len(ratios))]
        values = [case.get(way, 0) for case in ratios.values()]
        axes.barh(places, values, height * 0.9, color=COLORS[way], label=way)
        for place, value in zip(places, values, strict=True):
            axes.text(value + 0.03, place, f"{value:.1f}", va="center", fontsize=6)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(ratios)), list(ratios), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("time over vggkit's")
    axes.set_title(f"{title}\n{row['hardware']}, {row['date']}", fontsize=9)
    axes.margins(x=0.12)
    axes.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)


if __name__ == "__main__":
    main()
