"""What the benchmarks share: the description of the machine in every row, and the place where rows are saved."""

import argparse
import datetime
import json
import multiprocessing
import statistics
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from vggkit.training.hardware import describe_hardware

HERE = Path(__file__).parent
Result = TypeVar("Result")


@dataclass(frozen=True)
class Case:
    """A network on batches of images of one size."""

    network: str
    image_size: int
    batch_size: int

    @property
    def name(self) -> str:
        return f"{self.network} {self.image_size} px batch {self.batch_size}"


def parser(description: str | None, repeats: int | None = None) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--save", action="store_true", help="add the rows to benchmarks/results")
    if repeats is not None:
        made.add_argument("--repeats", type=int, default=repeats)
    return made


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
    return {name: digits(value) for name, value in named.items()}


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """The spread of the ratios turn by turn."""
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def digits(value: float, count: int = 3) -> float:
    """`value` rounded to `count` significant digits."""
    return float(f"{value:.{count}g}")


def save_row(name: str, row: dict[str, Any], save: bool) -> None:
    """Print `row` as one JSON line; with `save`, add it to results/<name>.jsonl."""
    line = json.dumps({"benchmark": name, **row})
    print(line, flush=True)
    if save:
        with (HERE / "results" / f"{name}.jsonl").open("a") as file:
            file.write(line + "\n")


def own_process() -> ProcessPoolExecutor:
    """A new process, which runs what is submitted to it: how a process gets its memory is set once in its life."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def in_own_process(function: Callable[..., Result], *arguments: object) -> Result:
    """What `function` returns in a process of its own."""
    with own_process() as process:
        return process.submit(function, *arguments).result()


def resident_bytes(field: str, process: int | str = "self") -> int:
    """Of this process or another one: `VmRSS` now, `VmHWM` the most so far. Linux only."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return 1024 * int(status[field].split()[0])
