"""Does loading keep up with training, and does memory stay flat over epochs?

    python benchmarks/loading.py [--only TEXT] [--save]

Trains with `vgg train` on folders that are made first, from Fashion-MNIST:

* `small`: 60,000 JPEGs of 28x28 and the quick recipe's network at 32 px, 3 epochs. They are decoded once.
* `photos`: 5,000 JPEGs of 500x375 (enlarged, with noise, 40 to 60 kB each) and VGG-16 at 224 px in batches of 16, with
  the random crops of the recipe `paper`, stopped by a signal after --seconds.
* `many epochs`: the same photos and a network so small that loading is all there is, 4 epochs: what a worker decodes
  a second, and the resident memory of all processes at the end of each epoch.

Written before it was run: loading below 1% of a step in `small` and `photos`, about 600 images/s for each worker in
`many epochs`, and memory within 5% from the second epoch on.
Prints one JSON line for each; --save adds it to benchmarks/results/loading.jsonl.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import row_header, save_row
from PIL import Image

from vggkit.data import fashion_mnist
from vggkit.data.loader import default_workers

CASES = ("small", "photos", "many epochs")
QUICK = ["--recipe", "quick", "--channels", "grey"]
TINY = ["--architecture", "1x4 1x4", "--image-size", "32", "--shorter-side", "32", "40", "--hidden", "--epochs", "4"]
# The recipe's learning rate is for a batch of 256.
PHOTOS = ["--recipe", "paper", "--batch-size", "16", "--learning-rate", "0.0006", "--epochs", "1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--seconds", type=float, default=120, help="of training in `photos`")
    parser.add_argument("--images", type=int, help="fewer images, to try it")
    parser.add_argument("--save", action="store_true")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for case in CASES if flags.only is None else (flags.only,):
            if case == "small":
                num_images, num_bytes = make_small(folder / case, flags.images or 60_000)
                run = trained(folder / "run", folder / case, [*QUICK, "--epochs", "3"], None)
            else:
                if not (folder / "photos").exists():
                    num_images, num_bytes = make_photos(folder / "photos", flags.images or 5_000)
                arguments, seconds = (PHOTOS, flags.seconds) if case == "photos" else (TINY, None)
                run = trained(folder / f"run {case}", folder / "photos", arguments, seconds)
            header = row_header(torch.device("cpu"), 1)
            row = {**header, "case": case, "images": num_images, "image_bytes": num_bytes, **run}
            save_row("loading", row, flags.save)


def make_small(folder: Path, count: int) -> tuple[int, int]:
    """JPEGs of Fashion-MNIST as they are; how many, and their bytes on average."""
    dataset = fashion_mnist.load()
    sizes = []
    for split, images, labels in (
        ("train", dataset.train_images[:count], dataset.train_labels),
        ("test", dataset.test_images, dataset.test_labels),
    ):
        for label, name in enumerate(dataset.classes):
            (folder / split / f"{label} {name}").mkdir(parents=True)
        for index, (image, label) in enumerate(zip(images, labels, strict=False)):
            path = folder / split / f"{label} {dataset.classes[label]}" / f"{index}.jpg"
            Image.fromarray(image).save(path, quality=90)
            sizes.append(path.stat().st_size)
    return count, round(float(np.mean(sizes)))


def make_photos(folder: Path, count: int) -> tuple[int, int]:
    """JPEGs of 500x375 with the detail of photos; how many, and their bytes on average."""
    dataset = fashion_mnist.load()
    generator = np.random.default_rng(0)
    sizes = []
    for index in range(count + count // 50):
        label = int(dataset.train_labels[index])
        place = folder / ("train" if index < count else "val") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        large = np.asarray(Image.fromarray(dataset.train_images[index]).convert("RGB").resize((500, 375)), np.float32)
        noise = generator.normal(0, 25, (94, 125, 3)).repeat(4, axis=0).repeat(4, axis=1)[:375]
        noisy = large + noise + generator.normal(0, 6, large.shape)
        path = place / f"{index}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=85)
        sizes.append(path.stat().st_size)
    return count, round(float(np.mean(sizes)))


def trained(run: Path, data: Path, arguments: list[str], stop_seconds: float | None) -> dict[str, Any]:
    """Train; what the run says of its loading, and the memory of its processes."""
    command = [sys.executable, "-m", "vggkit", "train", "--data", str(data), "--out", str(run), *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        metrics, begun = run / "metrics.jsonl", None
        resident: list[int] = []
        while process.poll() is None:
            time.sleep(0.05)
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            num_epochs = sum('"event": "epoch"' in line for line in lines)
            if num_epochs > len(resident):
                resident.append(resident_bytes(process.pid))
            begun = begun or (time.monotonic() if lines else None)
            if stop_seconds is not None and begun is not None and time.monotonic() - begun > stop_seconds:
                resident.append(resident_bytes(process.pid))
                process.send_signal(signal.SIGTERM)
                process.wait()
    expected = 0 if stop_seconds is None else 75
    if process.returncode != expected:
        sys.exit(f"expected 'vgg train' to end with {expected}, got {process.returncode}")
    state = json.loads(max((run / "checkpoints").glob("step-*")).joinpath("state.json").read_text())
    epochs = state["history"] or [{**state, "examples_per_second": state["sums"][2] / state["train_seconds"]}]
    return {
        "arguments": arguments,
        "workers": default_workers(),
        "examples_per_second": [round(epoch["examples_per_second"], 2) for epoch in epochs],
        "loading_share": [float(f"{epoch['loading_seconds'] / epoch['train_seconds']:.2g}") for epoch in epochs],
        "resident_megabytes": [round(num_bytes / 1e6) for num_bytes in resident],
    }


def resident_bytes(pid: int) -> int:
    """Of a process and its children; pages that they share count for each in its part (PSS)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = 0
    for process in [str(pid), *children]:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


if __name__ == "__main__":
    main()
