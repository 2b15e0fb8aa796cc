"""What does the `quick` recipe reach, and how long does `vgg train` take, start-up and evaluation included?

    [VGGKIT_ENGINE=torch] python benchmarks/quick_accuracy.py [--seeds 5] [--save]

Runs the command itself, in a process of its own for each seed, on the device that it chooses. The accuracy is the
test set's after the last epoch. With VGGKIT_ENGINE=torch the convolutions are torch's own.
Prints one JSON line; --save adds it to benchmarks/results/quick_accuracy.jsonl.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import row_header, save_row, spread

from vggkit import Recipe
from vggkit.engines.cpu import why_not_compiled
from vggkit.training.hardware import choose_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--save", action="store_true")
    flags = parser.parse_args()
    accuracies, seconds = [], []
    for seed in range(flags.seeds):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            start = time.perf_counter()
            command = [sys.executable, "-m", "vggkit", "train", "--recipe", flags.recipe, "--out", str(run)]
            subprocess.run([*command, "--seed", str(seed)], check=True, stdout=sys.stderr)
            seconds.append(time.perf_counter() - start)
            last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
            accuracies.append(last["test_accuracy"])
    device = choose_device(None)
    row = {
        **row_header(device, flags.seeds),
        "convolutions": "compiled" if device.type == "cpu" and not why_not_compiled() else "torch",
        "recipe": flags.recipe,
        "epochs": Recipe.named(flags.recipe).epochs,
        "test_accuracy": {**spread(accuracies), "all": accuracies},
        "train_command_seconds": spread(seconds),
    }
    save_row("quick_accuracy", row, flags.save)


if __name__ == "__main__":
    main()
