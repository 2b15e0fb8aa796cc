"""The tables of README.md and docs/, from the rows that the benchmarks saved: `python benchmarks/table.py`."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def markdown() -> str:
    """The table, from the newest row for each device kind and size."""
    lines = [
        "| what | measured on | result | command |",
        "|---|---|---|---|",
    ]
    accuracies = newest("quick_accuracy", lambda row: (kind(row), row["recipe"], convolutions(row)))
    for row in sorted(accuracies, key=convolutions):
        accuracy, seconds = row["test_accuracy"], row["train_command_seconds"]
        lines.append(
            f"| the `{row['recipe']}` recipe, {row['epochs']} epochs, {convolutions(row)} convolutions "
            f"| {measured_on(row)} "
            f"| test acc {accuracy['median']:.3f} ({accuracy['min']:.3f} to {accuracy['max']:.3f}, "
            f"{row['repeats']} seeds) in "
            f"{seconds['median']:.0f} s ({seconds['min']:.0f} to {seconds['max']:.0f}), all included "
            f"| `{'VGGKIT_ENGINE=torch ' * (convolutions(row) == 'torch' and kind(row) == 'cpu')}"
            f"python benchmarks/quick_accuracy.py --seeds {row['repeats']}` |"
        )
    for row in newest("train_speed", lambda row: (kind(row), row["network"], row["image_size"])):
        speeds = [row[f"{way}examples_per_second"]["median"] for way in ("", "pytorch_", "chapter_")]
        ours, pytorch, chapter = map(short, speeds)
        lines.append(
            f"| training `{row['network']}` at {row['image_size']} px, batch {row['batch_size']}, {row['dtype']} "
            f"| {measured_on(row)} | {ours} examples/s; PyTorch channels_last {pytorch}: "
            f"{row['ratio_to_pytorch']['median']}x; the chapter's way {chapter}: {row['ratio']['median']}x "
            f"| `python benchmarks/train_speed.py` |"
        )
    for row in newest("inference_speed", lambda row: (kind(row), row["network"], row["image_size"], row["batch_size"])):
        if (row["network"], row["image_size"]) == ("vgg16", 224):
            lines.append(
                f"| inference `vgg16` at 224 px, batch {row['batch_size']}, float32 | {measured_on(row)} "
                f"| {short(row['milliseconds']['ours']['median'])} ms; the fastest of PyTorch, ONNX Runtime and "
                f"OpenVINO takes {row['best_over_ours']['median']}x, ncnn {row['ncnn_over_ours']['median']}x "
                f"| `python benchmarks/inference_speed.py` |"
            )
    if not any(kind(row) == "cuda" for row in rows("train_speed")):
        lines.append("| the same on a CUDA GPU | | not measured yet | `python benchmarks/train_speed.py` |")
    if not any(row["recipe"] == "d2l" for row in rows("quick_accuracy")):
        command = "python benchmarks/quick_accuracy.py --recipe d2l --seeds 1"
        lines.append(f"| the `d2l` recipe, the chapter's 10 epochs at 224 px | | not measured yet | `{command}` |")
    return "\n".join(lines)


def measured_on(row: dict[str, Any]) -> str:
    """What, with what and when."""
    return f"{row['hardware']}, torch {row['torch']}, {row['date']}"


def parity() -> str:
    """The table of docs/weights.md: how near the logits of every peer's networks come to the peer's own."""
    lines = ["| source | network | float32 | float64 |", "|---|---|---|---|"]
    for row in newest("parity", lambda row: (row["source"], row["network"])):
        double = f"{row['float64_error']:.1e}" if "float64_error" in row else "-"
        source = f"{row['source']} {row['version']}"
        lines.append(f"| {source} | `{row['network']}` | {row['float32_error']:.1e} | {double} |")
    return "\n".join(lines)


def doctor() -> str:
    """The table of docs/doctor.md: each verdict, and what the network then did."""
    lines = [
        "| network | from | steps by | gradient at the first layer | verdict | the loss moved after | came true |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows("doctor"):
        start = f"`{row['init']}`" + (f", warm-started from {row['warm_start']}" if row["warm_start"] else "")
        moved = f"{row['moved_after']} steps" if row["moved_after"] else f"not in {row['steps']:,}"
        came_true = {True: "yes", False: "**no**", None: "claims neither"}[row["agrees"]]
        lines.append(
            f"| `{row['network']}` | {start} | {row['optimizer']}, {row['learning_rate']} "
            f"| {row['first_gradient']:.0e} | {row['verdict']} | {moved} | {came_true} |"
        )
    return "\n".join(lines)


def memory() -> str:
    """The table of docs/memory.md: the peak of a training step, predicted and measured."""
    lines = [
        "| network, batch | optimizer | measured on | predicted GB | measured GB | predicted/measured | freed memory |",
        "|---|---|---|---|---|---|---|",
    ]
    key = ("network", "batch_size", "recompute", "optimizer", "freed_memory")
    for row in newest("memory", lambda row: (kind(row), *(row[name] for name in key))):
        case = f"`{row['network']}`, {row['batch_size']}" + (", recompute" if row["recompute"] else "")
        lines.append(
            f"| {case} | {row['optimizer']} | {row['hardware']} | {row['predicted_bytes'] / 1e9:.2f} "
            f"| {row['measured_bytes']['median'] / 1e9:.2f} | {row['predicted_over_measured']['median']:.2f} "
            f"| {row['freed_memory']} |"
        )
    if not any(kind(row) == "cuda" for row in rows("memory")):
        lines.append("| the same on a CUDA GPU | | not measured yet | | | | |")
    return "\n".join(lines)


def scaling() -> str:
    """The table of docs/scaling.md: a step of data-parallel training, predicted and measured."""
    lines = [
        "| network, pixels, images a worker | sent as | measured on | predicted ms, to without overlap | measured ms "
        "| predicted/measured | efficiency predicted, measured |",
        "|---|---|---|---|---|---|---|",
    ]
    case = ("network", "image_size", "images_per_worker", "head")
    for row in newest("scaling", lambda row: (kind(row), row["compression"], *(row[name] for name in case))):
        head = "" if row["head"] == "flatten" else f", {row['head']}"
        seconds = ("predicted_seconds", "predicted_without_overlap_seconds", "measured_seconds")
        least, most, measured = (f"{1000 * row[name]['median']:,.3g}" for name in seconds)
        least = f"{least} to " if row["overlaps"] else ""
        ratio = row["predicted_over_measured"]
        lines.append(
            f"| `{row['network']}`{head}, {row['image_size']}, {row['images_per_worker']} | {row['compression']} "
            f"| {row['workers']} x {row['hardware']} | {least}{most} | {measured} "
            f"| {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) "
            f"| {row['predicted_efficiency']['median']:.0%}, {row['measured_efficiency']['median']:.0%} |"
        )
    if not rows("scaling"):
        lines.append("| two processes, loopback | | not measured yet | | | | |")
    lines.append("| machines of their own | | not measured yet | | | | |")
    return "\n".join(lines)


def loading() -> str:
    """The table of docs/data.md: what share of a step loading takes, and the memory of all processes."""
    lines = [
        "| images | network, batch | workers, measured on | examples/s by epoch | loading by epoch | MB by epoch |",
        "|---|---|---|---|---|---|",
    ]
    named = {
        "small": ("28x28", "VGG-11/4 at 32 px, 128", "decoded once, "),
        "photos": ("500x375", "VGG-16 at 224 px, 16", ""),
        "many epochs": ("500x375", "two convolutions at 32 px, 128", ""),
    }
    for row in newest("loading", lambda row: (kind(row), row["case"])):
        size, network, how = named[row["case"]]
        speeds = " / ".join(map(short, row["examples_per_second"]))
        lines.append(
            f"| {row['images']:,} JPEGs of {size}, {row['image_bytes'] / 1000:.1f} kB | {network} "
            f"| {how}{row['workers']} on {row['hardware']} | {speeds} "
            f"| {' / '.join(f'{share:.1%}' for share in row['loading_share'])} "
            f"| {' / '.join(f'{megabytes:,}' for megabytes in row['resident_megabytes'])} |"
        )
    if not rows("loading"):
        lines.append("| | | not measured yet | | | |")
    lines.append("| the same for a CUDA GPU | | not measured yet | | | |")
    return "\n".join(lines)


def inference() -> str:
    """The table of docs/speed.md: ms of a forward pass, ours and the peers'."""
    lines: list[str] = []
    for row in newest("inference_speed", lambda row: (row["network"], row["image_size"], row["batch_size"])):
        ways = list(row["milliseconds"])
        if not lines:
            heads = " | ".join(way.removeprefix("torch ") for way in ways)
            lines = [f"| network, px, batch | {heads} | best/ours | ncnn/ours |"]
            lines += ["|---" * (len(ways) + 3) + "|"]
        ratios = [row["best_over_ours"], row["ncnn_over_ours"]]
        medians = [row["milliseconds"][way]["median"] for way in ways]
        times = map(short, medians)
        spreads = map(with_spread, ratios)
        case = f"`{row['network']}`, {row['image_size']}, {row['batch_size']}"
        lines.append(f"| {case} | {' | '.join(times)} | {' | '.join(spreads)} |")
    return "\n".join(lines)


def training() -> str:
    """The table of docs/speed.md: a training step, and the memory of the process."""
    lines = [
        "| network, pixels, batch | ours | PyTorch | chapter | times PyTorch | times chapter | peaks | floor/ours |",
        "|---" * 8 + "|",
    ]
    for row in newest("train_speed", lambda row: (kind(row), row["network"], row["image_size"])):
        speeds = [row[f"{way}examples_per_second"]["median"] for way in ("", "pytorch_", "chapter_")]
        ratios = [row["ratio_to_pytorch"], row["ratio"]]
        lines.append(
            f"| `{row['network']}`, {row['image_size']}, {row['batch_size']} "
            f"| {' | '.join(map(short, speeds))} "
            f"| {' | '.join(map(with_spread, ratios))} "
            f"| {', '.join(f'{value:,}' for value in row['peak_megabytes'].values())} "
            f"| {row['fraction_of_floor_reached']:.0%} |"
        )
    return "\n".join(lines)


def short(value: float) -> str:
    """A speed or a time to three digits, or whole."""
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def with_spread(value: dict[str, float]) -> str:
    """A median with the least and the greatest."""
    return f"{value['median']:.2f} ({value['min']:.2f} to {value['max']:.2f})"


def convolutions(row: dict[str, Any]) -> str:
    """What convolved; before it was recorded, torch's own."""
    return str(row.get("convolutions", "torch"))


def rows(name: str) -> list[dict[str, Any]]:
    """All rows that benchmark `name` saved, the oldest first."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def newest(name: str, key: Any) -> list[dict[str, Any]]:
    """The last row of each `key`."""
    return list({key(row): row for row in rows(name)}.values())


def kind(row: dict[str, Any]) -> str:
    """`cpu`, `cuda` or `mps`."""
    return str(row["device"]).partition(":")[0]


if __name__ == "__main__":
    for table in (markdown, parity, doctor, memory, scaling, loading, inference, training):
        print(table(), end="\n\n")
