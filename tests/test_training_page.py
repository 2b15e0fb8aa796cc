"""docs/training.md: every command of it is one that `vgg train` takes, and those for this machine run."""

import re
import shlex
from pathlib import Path

import pytest

from vggkit import Recipe
from vggkit.cli import main
from vggkit.verbs.terminal import parse_flags
from vggkit.verbs.train import Flags

PAGE = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
BLOCKS = re.findall(r"^```(?:sh|bash)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if re.match(r"vgg |torchrun ", line)]
SHORT = ["--data", "fashion-mnist-sample", "--epochs", "1", "--architecture", "1x4", "--image-size", "16"]


def test_the_page_has_commands():
    assert len(COMMANDS) == 8


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_one_that_can_be_parsed(line):
    from torch.distributed.run import get_args_parser

    words = shlex.split(line.partition("&")[0])
    if words[0] == "torchrun":
        given = get_args_parser().parse_args(words[1:])
        assert (given.module, given.training_script) == (True, "vggkit")
        words = ["vgg", *given.training_script_args]
    assert words[:2] == ["vgg", "train"]
    flags = parse_flags("train", Flags, words[2:], Flags(Recipe.named("quick"), "quick"))
    assert flags.recipe in ("quick", "paper")


@pytest.mark.parametrize("line", [line for line in COMMANDS if not re.search("paper|more-epochs|torchrun", line)])
def test_a_command_for_this_machine_runs(line, tmp_path, monkeypatch, capsys):
    """Without torchrun, which tests/test_readme.py starts."""
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(line)[1:], *SHORT]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("runs/")
