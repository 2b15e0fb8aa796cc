"""`python benchmarks/table.py`: the tables of README.md and docs/, from the rows that the benchmarks saved."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def readme() -> str:
    """What the README shows of the newest rows."""
    lines: list[list[str]] = []
    for row in newest("quick_accuracy", "recipe", "convolutions"):
        if row.get("convolutions") == "compiled" or kind(row) == "cuda":
            each, seconds = row["test_accuracy"]["all"], row["train_command_seconds"]
            accuracy = {"median": statistics.mean(each), "min": min(each), "max": max(each)}
            seeds = f"{row['repeats']} seeds" if row["repeats"] > 1 else "one seed"
            result = (
                f"{'mean ' * (len(each) > 1)}test acc {with_spread(accuracy, 4)}, {with_spread(seconds, 0)} s, {seeds}"
            )
            command = f"quick_accuracy.py --recipe {row['recipe']} --seeds {row['repeats']}"
            lines.append([f"recipe `{row['recipe']}`, {row['epochs']} epochs", result, measured_on(row), command])
    known = {row["recipe"] for row in rows("quick_accuracy")}
    for recipe in [name for name in ("five-minutes", "best") if name not in known]:
        lines.append([f"recipe `{recipe}`", "not measured yet", "", f"quick_accuracy.py --recipe {recipe} --seeds 5"])
    for row in newest("train_speed", "network", "image_size"):
        ours, ratio, chapter = row["examples_per_second"], row["ratio_to_pytorch"], row["ratio"]
        result = (
            f"{short(ours['median'])} examples/s: {ratio['median']}x PyTorch, {chapter['median']}x the chapter's code"
        )
        if row["image_size"] == 224:
            lines.append([f"training {case(row)}", result, measured_on(row), "train_speed.py"])
    for row in newest("inference_speed", "network", "image_size", "batch_size"):
        if (row["network"], row["image_size"]) == ("vgg16", 224):
            best, ncnn = row["best_over_ours"]["median"], row["ncnn_over_ours"]["median"]
            result = f"{short(row['milliseconds']['ours']['median'])} ms: {best}x as fast as the best of PyTorch, "
            result += f"ONNX Runtime and OpenVINO, {ncnn}x ncnn"
            lines.append([f"inference {case(row)}", result, measured_on(row), "inference_speed.py"])
    for row in newest("gpu_speed", "network", "is_training", "image_size", "batch_size"):
        speeds = {way: short(speed["median"]) for way, speed in row["examples_per_second"].items()}
        ours, plain, compiled = (speeds[way] for way in ("vggkit", "PyTorch", "PyTorch compiled"))
        share = row["share_of_product_rate"]["vggkit"]
        what = "training" if row["is_training"] else "inference"
        if row["batch_size"] > 1 and row["image_size"] == 224:
            result = f"{ours} examples/s, {share:.0%} of the matrix product rate; PyTorch {plain}, compiled {compiled}"
            lines.append([f"{what} {case({**row, 'dtype': 'bfloat16'})}", result, measured_on(row), "gpu_speed.py"])
    return table("what|result|measured on|command", [[*cells, f"`python benchmarks/{c}`"] for *cells, c in lines])


def doctor() -> str:
    """The table of docs/doctor.md: each verdict, and what the network then did."""
    lines = []
    for row in rows("doctor"):
        warm = f", warm-started from {row['warm_start']}" * bool(row["warm_start"])
        lines.append(
            [
                f"`{row['network']}`",
                f"`{row['init']}`{warm}",
                f"{row['optimizer']}, {row['learning_rate']}",
                f"{row['first_gradient']:.0e}",
                row["verdict"],
                f"{row['moved_after']} steps" if row["moved_after"] else f"not in {row['steps']:,}",
                {True: "yes", False: "**no**", None: "claims neither"}[row["agrees"]],
            ]
        )
    header = "network|from|steps by|gradient at the first layer|verdict|the loss moved after|came true"
    return table(header, lines)


def memory() -> str:
    """The table of docs/memory.md: the peak of a training step, predicted and measured."""
    lines = [
        [
            f"`{row['network']}`, {row['batch_size']}" + ", recompute" * row["recompute"],
            row["optimizer"],
            row["hardware"],
            f"{row['predicted_bytes'] / 1e9:.2f}",
            f"{row['measured_bytes']['median'] / 1e9:.2f}",
            f"{row['predicted_over_measured']['median']:.2f}",
            row["freed_memory"],
        ]
        for row in newest("memory", "network", "batch_size", "recompute", "optimizer", "freed_memory")
    ]
    header = "network, batch|optimizer|measured on|predicted GB|measured GB|predicted/measured|freed memory"
    return table(header, lines)


def scaling() -> str:
    """The table of docs/scaling.md: a step of data-parallel training, predicted and measured."""
    lines = []
    for row in newest("scaling", "compression", "network", "image_size", "images_per_worker", "head"):
        head = "" if row["head"] == "flatten" else f", {row['head']}"
        seconds = ("predicted_seconds", "predicted_without_overlap_seconds", "measured_seconds")
        least, most, measured = (f"{1000 * row[name]['median']:,.3g}" for name in seconds)
        lines.append(
            [
                f"`{row['network']}`{head}, {row['image_size']}, {row['images_per_worker']}",
                row["compression"],
                f"{row['workers']} x {row['hardware']}",
                f"{least} to {most}" if row["overlaps"] else most,
                measured,
                with_spread(row["predicted_over_measured"]),
                f"{row['predicted_efficiency']['median']:.0%}, {row['measured_efficiency']['median']:.0%}",
            ]
        )
    header = "network, pixels, images a worker|sent as|measured on|predicted ms, to without overlap|measured ms"
    return table(header + "|predicted/measured|efficiency predicted, measured", lines)


def loading() -> str:
    """The table of docs/data.md: what share of a step loading takes, and the memory of all processes."""
    named = {
        "small": ("28x28", "VGG-11/4 at 32 px, 128", "decoded once, "),
        "photos": ("500x375", "VGG-16 at 224 px, 16", ""),
        "many epochs": ("500x375", "two convolutions at 32 px, 128", ""),
    }
    lines = []
    for row in newest("loading", "case"):
        size, network, how = named[row["case"]]
        lines.append(
            [
                f"{row['images']:,} JPEGs of {size}, {row['image_bytes'] / 1000:.1f} kB",
                network,
                f"{how}{row['workers']} on {row['hardware']}",
                " / ".join(map(short, row["examples_per_second"])),
                " / ".join(f"{share:.1%}" for share in row["loading_share"]),
                " / ".join(f"{megabytes:,}" for megabytes in row["resident_megabytes"]),
            ]
        )
    header = "images|network, batch|workers, measured on|examples/s by epoch|loading by epoch|MB by epoch"
    return table(header, lines)


def inference() -> str:
    """The table of docs/speed.md: ms of a forward pass, ours and the peers'."""
    lines, ways = [], []
    for row in newest("inference_speed", "network", "image_size", "batch_size"):
        ways = list(row["milliseconds"])
        times = [short(row["milliseconds"][way]["median"]) for way in ways]
        lines.append([numbers(row), *times, *map(with_spread, (row["best_over_ours"], row["ncnn_over_ours"]))])
    heads = [way.removeprefix("torch ") for way in ways]
    return table("|".join(["network, px, batch", *heads, "best/ours", "ncnn/ours"]), lines)


def training() -> str:
    """The table of docs/speed.md: a training step, and the memory of the process."""
    lines = [
        [
            numbers(row),
            *(short(row[f"{way}examples_per_second"]["median"]) for way in ("", "pytorch_", "chapter_")),
            *map(with_spread, (row["ratio_to_pytorch"], row["ratio"])),
            ", ".join(f"{value:,}" for value in row["peak_megabytes"].values()),
            f"{row['fraction_of_floor_reached']:.0%}",
        ]
        for row in newest("train_speed", "network", "image_size")
    ]
    return table("network, pixels, batch|ours|PyTorch|chapter|times PyTorch|times chapter|peaks|floor/ours", lines)


def on_gpu() -> str:
    """The table of docs/speed.md: steps on a GPU, ours, PyTorch's eager and compiled, and the chapter's."""
    lines = []
    for row in newest("gpu_speed", "network", "is_training", "image_size", "batch_size"):
        ways = ("vggkit", "PyTorch", "PyTorch compiled", "the chapter's way")
        speeds = [row["examples_per_second"].get(way) for way in ways]
        starts = [f"{row['start_seconds'][way]:.1f} s" for way in ("vggkit", "PyTorch compiled")]
        lines.append(
            [
                f"{numbers(row)}, {'training' if row['is_training'] else 'inference'}",
                *(short(speed["median"]) if speed else "" for speed in speeds),
                f"{row['share_of_product_rate']['vggkit']:.0%}",
                ", ".join(starts),
                ", ".join(f"{row['peak_megabytes'][way]:,}" for way in ways[:3]),
            ]
        )
    header = "network, pixels, batch|ours|PyTorch|compiled|chapter|share|start: ours, compiled|peaks"
    return table(header, lines)


def table(header: str, lines: Iterable[list[str]]) -> str:
    """Markdown of a table; the names in `header` stand between bars."""
    names = header.split("|")
    head, *body = ["| " + " | ".join(cells) + " |" for cells in (names, *lines)]
    return "\n".join([head, "|---" * len(names) + "|", *body])


def case(row: Row) -> str:
    return f"`{row['network']}` at {row['image_size']} px, batch {row['batch_size']}, {row['dtype']}"


def numbers(row: Row) -> str:
    return f"`{row['network']}`, {row['image_size']}, {row['batch_size']}"


def measured_on(row: Row) -> str:
    """With what and when."""
    return f"{row['hardware']}, torch {row['torch']}, {row['date']}"


def short(value: float) -> str:
    """A speed or a time to three digits, or whole."""
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def with_spread(value: dict[str, float], decimals: int = 2) -> str:
    """A median with the least and the greatest, if they differ."""
    median, least, most = (f"{value[name]:.{decimals}f}" for name in ("median", "min", "max"))
    return median if least == most else f"{median} ({least} to {most})"


def rows(name: str) -> list[Row]:
    """All rows that benchmark `name` saved, the oldest first."""
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]


def newest(name: str, *key: str) -> list[Row]:
    """The last row for each kind of device and each value of the fields `key`."""
    return list({(kind(row), *(row.get(field) for field in key)): row for row in rows(name)}.values())


def kind(row: Row) -> str:
    """`cpu`, `cuda` or `mps`."""
    return str(row["device"]).partition(":")[0]


if __name__ == "__main__":
    for made in (readme, doctor, memory, scaling, loading, inference, training, on_gpu):
        print(made(), end="\n\n")
