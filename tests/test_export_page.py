"""docs/export.md: every command and program of it runs, on a run of the sample in place of the page's."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from vggkit import train
from vggkit.cli import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/export.md").read_text()
BLOCKS = {
    language: re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for language in ("sh", "python")
}
COMMANDS = [line for block in BLOCKS["sh"] for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "docs").symlink_to(ROOT / "docs")
    options = {
        "architecture": "1x16 1x32 1x64",
        "epochs": 2,
        "batch_size": 32,
    }  # which learns, so that a temperature fits
    options |= {"data": "fashion-mnist-sample", "validation": 400}
    train("quick", out=folder / "runs" / "quick-1", progress=False, **options)
    return folder


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page(line, folder, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    code = main(shlex.split(line)[1:])
    torch.set_num_threads(threads)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    for made in re.findall(r"(?:--plot|--mistakes|--reliability|--predictions|--fit-temperature|-o) (\S+)", line):
        assert (folder / made).stat().st_size > 0


@pytest.mark.parametrize("program", BLOCKS["python"])
def test_a_program_of_the_page(program, folder, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(folder)
    found = {}
    exec(program, found)
    assert next(found[name] for name in ("probabilities", "logits") if name in found).shape == (1, 10)
