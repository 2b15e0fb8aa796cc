"""The README's own commands, run as they stand; training runs get the sample and one epoch added to them."""

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.weights.test_containers import state_of
from vggkit.cli import main
from vggkit.data.fashion_mnist import load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHORT = ["--data", "fashion-mnist-sample", "--epochs", "1"]


def blocks(language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for named, text in fenced if named == language]


PUBLISHED, STAND_IN = "torchvision/vgg16", "vgg16-397923af.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder with the README's neighbours, in which its commands run one after another.

    In place of torchvision's published weights, which a test does not download, there is a file as torchvision
    writes it, of other numbers.
    """
    folder = tmp_path_factory.mktemp("readme")
    (folder / "docs").symlink_to(ROOT / "docs")
    torch.save(state_of("torchvision", "vgg16"), folder / STAND_IN)
    sample = load("fashion-mnist-sample")
    for label, name in enumerate(sample.classes[:3]):
        (folder / "photos" / name).mkdir(parents=True)
        for index, image in enumerate(sample.train_images[sample.train_labels == label][:20]):
            Image.fromarray(image).save(folder / "photos" / name / f"{index}.png")
    return folder


def environment():
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for inherited in ("MAKEFLAGS", "MAKELEVEL"):  # `make test` may be running us
        variables.pop(inherited, None)
    return variables


def run(command, cwd):
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300)


def run_here(arguments, folder, monkeypatch, capfd):
    """What the program vgg does, in this process; tests/test_packaging.py starts it as it is installed."""
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    code = main(arguments)
    torch.set_num_threads(threads)
    return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())


def answer_of_the_page(folder):
    """What `make app` serves at the address that it prints; it is then stopped."""
    arguments = shlex.join(["--no-browser", "--port", "0", "--runs", str(folder / "runs")])
    command = ["make", "app", f"ARGS={arguments}"]
    options = {"cwd": ROOT, "env": environment(), "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options, start_new_session=True) as process:
        try:
            address = next(line for line in process.stdout if line.startswith("http://127.0.0.1:"))
            with urllib.request.urlopen(address.strip(), timeout=60) as answer:
                return subprocess.CompletedProcess(command, 0, answer.read().decode(), "")
        finally:
            os.killpg(process.pid, signal.SIGTERM)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme(line, folder, monkeypatch, capfd):
    command = shlex.split(line, comments=True)
    if command[:2] == ["make", "train"]:
        command.append(f"ARGS={shlex.join([*SHORT, '--out', str(folder / 'runs/quick-1')])}")
        done = run(command, ROOT)
        assert done.stdout.splitlines()[-1] == str(folder / "runs/quick-1")
    elif command == ["make", "app"]:
        done = answer_of_the_page(folder)
    else:
        assert "--resume" not in command or "--recipe" in command  # SHORT would begin the run without it
        command = [STAND_IN if word == PUBLISHED else word for word in command]
        command += SHORT * ("train" in command and "photos" not in command) + ["--repeats", "1"] * ("bench" in command)
        if "bench" in command:
            command[command.index("--batch-size") + 1] = "2"
        if "experiment" in command:
            command.insert(command.index("--vary") + 1, "data=fashion-mnist-sample")
        if "quick" in command:
            command += ["--architecture", "1x8"]  # it is begun, resumed and shared by processes as the larger one
        is_vgg = command[0] == "vgg"
        done = run_here(command[1:], folder, monkeypatch, capfd) if is_vgg else run(command, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    for made in re.findall(r"(?:--plot|-o) (\S+)", line):
        assert (folder / made).exists()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_the_commands_leave_nothing_that_git_would_track(folder):
    made = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if path.name not in ("docs", STAND_IN))
    assert {"runs/", "photos/", "vgg16.svg", "confusion.png", "features.safetensors"} <= set(made)
    ignored = subprocess.run(["git", "check-ignore", *made], cwd=ROOT, capture_output=True, text=True)
    assert ignored.stdout.splitlines() == made


def test_what_the_readme_shows_of_describe_is_what_it_prints(folder, monkeypatch, capfd):
    shown = next(block for block in blocks("") if block.startswith("vgg11/4: "))
    command = next(line for line in COMMANDS if line.startswith("vgg describe vgg11/4"))
    printed = run_here(shlex.split(command)[1:], folder, monkeypatch, capfd).stdout
    assert [line.rstrip() for line in shown.splitlines()] == [line.rstrip() for line in printed.splitlines()]


def python_of_the_readme(start):
    (program,) = [block for block in blocks("python") if block.startswith(start)]
    return program


def printed_by(program, folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    exec(program, {})
    return capfd.readouterr().out


def test_the_python_of_the_readme(folder, monkeypatch, capfd):
    program = python_of_the_readme("import torch")
    assert 'Recipe.named("quick")' in program
    program = program.replace(
        'Recipe.named("quick")',
        'Recipe(**{**Recipe.named("quick").__dict__, "data": "fashion-mnist-sample", "epochs": 1})',
    )
    printed = printed_by(program, folder, monkeypatch, capfd)
    assert printed.count("output shape:") == 13
    assert "138357544" in printed
    assert "Conv2d(256, 256" in printed


@pytest.mark.parametrize(
    ("model", "layer", "shape"),
    [("runs/quick-1", "relu3_1", "[1, 64, 8, 8]"), (STAND_IN, "relu3_3", "[1, 256, 56, 56]")],
)
def test_three_lines_for_a_layer_of_an_image(model, layer, shape, folder, monkeypatch, capfd):
    program = python_of_the_readme("from vggkit import features")
    assert len([line for line in program.splitlines() if line]) == 3
    program = program.replace("runs/quick-1", model).replace("relu3_1", layer)
    program += f"print({layer}.shape, {layer}.min().item() >= 0)\n"
    assert printed_by(program, folder, monkeypatch, capfd) == f"torch.Size({shape}) True\n"


@pytest.mark.parametrize(
    ("table", "page"),
    [
        ("doctor", "doctor.md"),
        ("memory", "memory.md"),
        ("scaling", "scaling.md"),
        ("loading", "data.md"),
        ("inference", "speed.md"),
        ("training", "speed.md"),
        ("on_gpu", "speed.md"),
    ],
)
def test_a_table_of_the_documentation_is_what_was_measured(table, page):
    assert getattr(tables(), table)() in (ROOT / "docs" / page).read_text()


def test_every_relative_link_leads_somewhere_and_every_page_is_linked():
    targets = set(re.findall(r"\]\(([^):#]+)\)", README))
    assert [target for target in targets if not (ROOT / target).exists()] == []
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= targets


def test_the_map_has_every_room():
    drawn = next(block for block in blocks("") if block.startswith("src/vggkit/"))
    rooms = {path.name for path in (ROOT / "src/vggkit").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(re.findall(r"^  (\w+)/", drawn, re.MULTILINE)) == rooms


def tables():
    """benchmarks/table.py."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import table
    finally:
        sys.path.pop(0)
    return table


def test_every_figure_of_the_tables_is_a_measured_row():
    """The tables are made from the rows that the benchmarks saved."""
    assert tables().readme() in README
