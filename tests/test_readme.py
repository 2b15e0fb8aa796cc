"""The README's own commands, run as they stand; training runs get the sample and one epoch added to them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHORT = ["--data", "fashion-mnist-sample", "--epochs", "1"]


def blocks(language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for named, text in fenced if named == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder with the README's neighbours, in which its commands run one after another."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "docs").symlink_to(ROOT / "docs")
    return folder


def run(command, cwd):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for inherited in ("MAKEFLAGS", "MAKELEVEL"):  # `make test` may be running us
        environment.pop(inherited, None)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme(line, folder):
    command = shlex.split(line)
    if command[:2] == ["make", "train"]:
        command.append(f"ARGS={shlex.join([*SHORT, '--out', str(folder / 'made')])}")
        done = run(command, ROOT)
        assert done.stdout.splitlines()[-1] == str(folder / "made")
    else:
        done = run(command + SHORT * (command[:2] == ["vgg", "train"]), folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    for made in re.findall(r"--plot (\S+)", line):
        assert (folder / made).exists()


def test_what_the_readme_shows_of_describe_is_what_it_prints(folder):
    shown = next(block for block in blocks("") if block.startswith("vgg11/4: "))
    printed = run(shlex.split(COMMANDS[1]), folder).stdout
    assert [line.rstrip() for line in shown.splitlines()] == [line.rstrip() for line in printed.splitlines()]


def test_the_python_of_the_readme(folder):
    (program,) = blocks("python")
    assert 'Recipe.named("quick")' in program
    program = program.replace(
        'Recipe.named("quick")',
        'Recipe(**{**Recipe.named("quick").__dict__, "data": "fashion-mnist-sample", "epochs": 1})',
    )
    done = run([sys.executable, "-c", program], folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("output shape:") == 13
    assert "138357544" in done.stdout
    assert "Conv2d(256, 256" in done.stdout


def test_every_relative_link_leads_somewhere():
    for target in re.findall(r"\]\(([^):]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_figure_of_the_tables_is_a_measured_row():
    """The tables are made from the rows that the benchmarks saved."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import table
    finally:
        sys.path.pop(0)
    assert table.markdown() in README
