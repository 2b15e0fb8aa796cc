"""What accuracy do recipes reach, and how long does `vgg train` take, with start-up and evaluation?

    [VGGKIT_ENGINE=torch] python benchmarks/quick_accuracy.py [--recipe quick five-minutes] [--seeds 5] [--save]

Runs the command itself, in a new process for each seed, on the device that it chooses. The accuracy is that of the test
set after the last epoch. With VGGKIT_ENGINE=torch the convolutions are torch's own.
Prints a JSON line for each recipe. To try it, lower `--epochs`.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import parser, row_header, save_row, spread

from vggkit import Recipe
from vggkit.engines.cpu import why_not_compiled
from vggkit.training.hardware import choose_device


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--seeds", type=int, default=5)
    flags.add_argument("--recipe", nargs="+", default=["quick"])
    flags.add_argument("--epochs", type=int)
    given = flags.parse_args()
    for recipe in given.recipe:
        epochs = given.epochs or Recipe.named(recipe).epochs
        save_row("quick_accuracy", measured(recipe, epochs, given.seeds), given.save)


def measured(recipe: str, epochs: int, seeds: int) -> dict[str, Any]:
    """The row of `recipe`, trained once from each of some seeds."""
    accuracies, seconds = [], []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            start = time.perf_counter()
            command = [sys.executable, "-m", "vggkit", "train", "--recipe", recipe, "--out", str(run)]
            command += ["--seed", str(seed), "--epochs", str(epochs)]
            subprocess.run(command, check=True, stdout=sys.stderr)
            seconds.append(time.perf_counter() - start)
            last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
            accuracies.append(last["test_accuracy"])
    device = choose_device(None)
    return {
        **row_header(device, seeds),
        "convolutions": "compiled" if device.type == "cpu" and not why_not_compiled() else "torch",
        "recipe": recipe,
        "epochs": epochs,
        "test_accuracy": {**spread(accuracies), "all": accuracies},
        "train_command_seconds": spread(seconds),
    }


if __name__ == "__main__":
    main()
