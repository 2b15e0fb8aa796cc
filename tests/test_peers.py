"""benchmarks/peers.py beside a torchvision with its compiled part and one without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WHOLE = """
import torch
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
ASKS = """
import torch
torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
"""


def import_peer(name, folder):
    return subprocess.run(
        [sys.executable, "-c", f"from peers import import_peer; assert import_peer({name!r}).__name__ == {name!r}"],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{BENCHMARKS}"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("compiled", [WHOLE, ""])
def test_a_peer_is_imported_with_and_without_a_compiled_part(compiled, tmp_path):
    (tmp_path / "torchvision.py").write_text(compiled + ASKS)
    (tmp_path / "needs_torchvision.py").write_text("import torchvision")
    done = import_peer("needs_torchvision", tmp_path)
    assert done.returncode == 0, done.stderr


def test_other_failures_are_not_hidden(tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('of another kind')")
    done = import_peer("torchvision", tmp_path)
    assert done.returncode == 1
    assert "of another kind" in done.stderr
