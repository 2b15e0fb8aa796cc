"""What every benchmark's row says about where it was measured, and where rows go."""

import datetime
import json
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vggkit.training.hardware import describe_hardware

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A network on batches of images of one size."""

    network: str
    image_size: int
    batch_size: int

    @property
    def name(self) -> str:
        return f"{self.network} {self.image_size} px batch {self.batch_size}"


def row_header(device: torch.device, repeats: int) -> dict[str, Any]:
    """Date, commit, hardware and versions."""
    commit = _git("describe", "--always", "--exclude", "*")
    if _git("status", "--porcelain", "--", "../src", "*.py"):  # what is measured, not the results beside it
        commit += "-dirty"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit or "unknown",
        "device": str(device),
        "hardware": describe_hardware(device),
        "torch": torch.__version__,
        "repeats": repeats,
    }


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=HERE).stdout.strip()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest, to three digits."""
    named = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.3g}") for name, value in named.items()}


def save_row(name: str, row: dict[str, Any], save: bool) -> None:
    """Print `row` as one JSON line; with `save`, add it to results/<name>.jsonl."""
    line = json.dumps({"benchmark": name, **row})
    print(line, flush=True)
    if save:
        (HERE / "results").mkdir(exist_ok=True)
        with (HERE / "results" / f"{name}.jsonl").open("a") as file:
            file.write(line + "\n")
