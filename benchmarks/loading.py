"""Does loading keep up with training, and does memory stay flat over epochs?

    python benchmarks/loading.py [--only TEXT] [--save]

Makes folders of images from Fashion-MNIST, then trains on them with `vgg train`:

* `small`: 60,000 JPEGs of 28x28 and the quick recipe's network at 32 px, 3 epochs. They are decoded once.
* `photos`: 5,000 JPEGs of 500x375 (enlarged, with noise, 40 to 60 kB each) and VGG-16 at 224 px in batches of 16, with
  the random crops of the recipe `paper`, stopped by a signal after --seconds.
* `many epochs`: the same photos, and a network so small that almost all time is loading, 4 epochs: images decoded per
  second, and resident memory at the end of each epoch.

Prints a JSON line for each. To try it, lower `--images`.
"""

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
from measuring import digits, parser, resident_bytes, row_header, save_row
from PIL import Image

from vggkit.data import fashion_mnist
from vggkit.data.loader import default_workers

QUICK = ["--recipe", "quick", "--channels", "grey", "--epochs", "3"]
TINY = ["--architecture", "1x4 1x4", "--image-size", "32", "--shorter-side", "32", "40", "--hidden", "--epochs", "4"]
# The recipe's learning rate is for a batch of 256.
PHOTOS = ["--recipe", "paper", "--batch-size", "16", "--learning-rate", "0.0006", "--epochs", "1"]
CASES = {"small": QUICK, "photos": PHOTOS, "many epochs": TINY}


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--only", choices=CASES)
    flags.add_argument("--seconds", type=float, default=120, help="of training in `photos`")
    flags.add_argument("--images", type=int, help="fewer images, to try it")
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES if given.only is None else (given.only,):
            kind = "small" if case == "small" else "photos"
            num_images = given.images or {"small": 60_000, "photos": 5_000}[kind]
            images = Path(scratch) / kind
            if not images.exists():
                make_jpegs(images, num_images)
            sizes = [path.stat().st_size for path in images.rglob("*.jpg")]
            row = {
                **row_header(torch.device("cpu"), 1),
                "case": case,
                "images": num_images,
                "image_bytes": round(float(np.mean(sizes))),
                **trained(
                    Path(scratch) / f"run {case}", images, CASES[case], given.seconds if case == "photos" else None
                ),
            }
            save_row("loading", row, given.save)


def make_jpegs(folder: Path, count: int) -> None:
    """`count` images of Fashion-MNIST to train on and a fiftieth of them to measure, as they are or as photos."""
    dataset = fashion_mnist.load()
    generator = np.random.default_rng(0)
    for index in range(count + count // 50):
        split, position = ("train", index) if index < count else ("val", index - count)
        images, labels = (
            (dataset.train_images, dataset.train_labels)
            if split == "train"
            else (dataset.test_images, dataset.test_labels)
        )
        image = Image.fromarray(images[position])
        if folder.name == "photos":
            image = with_detail(image, generator)
        path = folder / split / dataset.classes[labels[position]].replace("/", " ") / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=85)


def with_detail(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """`image` enlarged to 500x375, with the detail of a photo."""
    large = np.asarray(image.convert("RGB").resize((500, 375)), np.float32)
    noise = generator.normal(0, 25, (94, 125, 3)).repeat(4, axis=0).repeat(4, axis=1)[:375]
    noisy = large + noise + generator.normal(0, 6, large.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def trained(run: Path, data: Path, arguments: list[str], stop_seconds: float | None) -> dict[str, Any]:
    """Train; what the run says of its loading, and the memory of its process."""
    command = [sys.executable, "-m", "vggkit", "train", "--data", str(data), "--out", str(run), *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        metrics, begun = run / "metrics.jsonl", None
        resident: list[int] = []
        while process.poll() is None:
            time.sleep(0.05)
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            num_epochs = sum('"event": "epoch"' in line for line in lines)
            if num_epochs > len(resident):
                resident.append(resident_bytes("VmRSS", process.pid))
            begun = begun or (time.monotonic() if lines else None)
            if stop_seconds is not None and begun is not None and time.monotonic() - begun > stop_seconds:
                resident.append(resident_bytes("VmRSS", process.pid))
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
        "loading_share": [digits(epoch["loading_seconds"] / epoch["train_seconds"], 2) for epoch in epochs],
        "resident_megabytes": [round(num_bytes / 1e6) for num_bytes in resident],
    }


if __name__ == "__main__":
    main()
