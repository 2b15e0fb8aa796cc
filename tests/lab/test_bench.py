"""`bench`: every way runs the same network; what cannot be measured is one line."""

import json
import os
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from vggkit import Architecture, cli
from vggkit.engines.cpu import why_not_compiled
from vggkit.errors import RunError
from vggkit.lab.bench import bench

SMALL = Architecture.parse("1x16 1x16", in_channels=3, image_size=16, hidden=(8,), num_classes=4)


def test_every_way_is_measured():
    result = bench(SMALL, 2, training=False, repeats=2, device="cpu")
    assert [speed.way for speed in result.speeds] == ["vggkit", "PyTorch channels_last", "PyTorch"]
    ours = "torch" if why_not_compiled() else "compiled, 2 of 2"
    assert [speed.convolutions for speed in result.speeds] == [ours, "torch", "torch"]
    assert result.not_compiled == why_not_compiled()
    assert result.product_flops_per_second > 1e8
    for speed in result.speeds:
        assert len(speed.examples_per_second) == 2
        assert 0 < speed.share_of_product_rate < 1
        assert speed.peak_bytes > 0


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("repeats", 0)])
def test_counts_start_at_one(name, value):
    options = {"batch_size": 1, "repeats": 1, name: value}
    with pytest.raises(ValueError, match=f"expected {name} from 1, got 0"):
        bench(SMALL, training=False, device="cpu", **options)


def test_a_process_that_ends_is_told():
    """Memory that runs out: the system ends the process, without a word."""
    with pytest.raises(RunError, match="expected vggkit to end its turn, got an ended process, try a smaller batch"):
        bench(Ending(), 2, training=False, repeats=1, device="cpu")


@dataclass(frozen=True)
class Ending:
    """A network whose name alone ends the process that hears of it."""

    def __reduce__(self):
        return os._exit, (9,)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["vgg11/8", "--batch-size", "-1"], "vgg bench: expected batch_size from 1, got -1"),
        (["vgg11/8", "--repeats", "0"], "vgg bench: expected repeats from 1, got 0"),
        (
            ["vgg99"],
            "vgg bench: 'vgg99', character 1: expected a name such as vgg16 or blocks such as '1x64 2x128', got 'vgg99', try vgg19",
        ),
        (["vgg11/8"], "vgg bench: expected an engine of fast, eager, torch, got 'fastest'"),
    ],
)
def test_what_cannot_be_is_one_line(monkeypatch, capsys, arguments, line):
    monkeypatch.setenv("VGGKIT_ENGINE", "fastest")
    assert cli.main(["bench", *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == line


def test_the_gpu_benchmark_runs_on_a_cpu(monkeypatch, capsys):
    """The same program, with networks of seconds: what is left to a GPU are the figures."""
    program = Path(__file__).parents[2] / "benchmarks" / "gpu_speed.py"
    monkeypatch.syspath_prepend(program.parent)
    monkeypatch.setattr(sys, "argv", [str(program), "--device", "cpu", "--quick", "--repeats", "1"])
    runpy.run_path(str(program), run_name="__main__")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["is_training"] for row in rows] == [True, False]
    assert all(values["median"] > 0 for row in rows for values in row["examples_per_second"].values())
