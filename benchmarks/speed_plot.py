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
    rows = newest("inference_speed", "network", "image_size", "batch_size")
    times = [{way: ms["median"] for way, ms in row["milliseconds"].items()} for row in rows]
    inference = [{way: ms / some["ours"] for way, ms in some.items() if way != "ours"} for some in times]
    bars(left, inference, "inference", rows)
    rows = [row for row in newest("train_speed", "network", "image_size") if row["device"] == "cpu"]
    named = {"torch channels_last": "ratio_to_pytorch", "the chapter's way": "ratio"}
    bars(right, [{way: row[ratio]["median"] for way, ratio in named.items()} for row in rows], "training", rows)
    figure.savefig(Path(sys.argv[1]))


def bars(axes: Axes, ratios: list[dict[str, float]], title: str, rows: list[dict[str, Any]]) -> None:
    """A group for each row, a bar in it for each peer."""
    ways = [way for way in COLORS if any(way in some for some in ratios)]
    height = 0.8 / len(ways)
    for number, way in enumerate(ways):
        places = [group + (number - (len(ways) - 1) / 2) * height for group in range(len(rows))]
        drawn = axes.barh(places, [some.get(way, 0) for some in ratios], height * 0.9, color=COLORS[way], label=way)
        axes.bar_label(drawn, fmt="%.1f", padding=2, fontsize=6)
    axes.axvline(1, color="black", linewidth=1)
    names = [f"{row['network']}\n{row['image_size']} px, batch {row['batch_size']}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("time over vggkit's")
    axes.set_title(f"{title}, float32\n{rows[-1]['hardware']}, {rows[-1]['date']}", fontsize=9)
    axes.margins(x=0.12)
    axes.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)


if __name__ == "__main__":
    main()
