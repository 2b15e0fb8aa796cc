"""`vgg runs` among whole, unfinished, foreign and damaged folders."""

import fcntl
import json
import os
import subprocess
import sys

import pytest

from vggkit import Recipe
from vggkit.cli import main

EPOCH = {
    "event": "epoch", "epoch": 3, "step": 30, "train_loss": 0.5, "train_accuracy": 0.75, "test_accuracy": 0.875,
    "learning_rate": 0.1, "examples_per_second": 1234.5, "train_seconds": 2.0, "loading_seconds": 0.0,
    "elapsed_seconds": 3.0,
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def made(folder, *metrics, name="quick", seconds=0.0):
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(Recipe.named("quick").to_json().replace('"name": "quick"', f'"name": "{name}"'))
    lines = [line if isinstance(line, str) else json.dumps(line) for line in metrics]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    os.utime(folder / "metrics.jsonl", (1e9 - seconds, 1e9 - seconds))
    return folder


def listed(capsys, *arguments):
    assert main(["runs", *arguments, "--json"]) == 0
    return {run["run"].removeprefix("runs/"): run for run in json.loads(capsys.readouterr().out)}


def test_runs_are_listed_with_what_came_of_them_the_newest_first(here, capsys):
    (made(here / "b", {"event": "start"}, EPOCH, {"event": "step", "test_accuracy": 1.0}) / "model.safetensors").touch()
    made(here / "a", EPOCH | {"epoch": 10**9}, seconds=60)
    made(here / "c", "{", "[1]", EPOCH, "[" * 9999, "\x1b[31m", seconds=120)
    descriptor = os.open(made(here / "d", seconds=180), os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        runs = listed(capsys)
    finally:
        os.close(descriptor)
    assert {name: run["state"] for name, run in runs.items()} == {
        "b": "finished", "a": "stopped", "c": "stopped", "d": "training",
    }  # fmt: skip
    assert list(runs) == ["b", "a", "c", "d"]
    for name in "bc":
        assert (runs[name]["accuracy"], runs[name]["examples_per_second"], runs[name]["epochs_done"]) == (
            0.875,
            1234.5,
            3,
        )
    assert (runs["a"]["accuracy"], runs["a"]["recipe"], runs["a"]["data"]) == (None, "quick", "fashion-mnist")
    assert main(["runs", "runs/b"]) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "recipe", "data", "state", "epochs", "acc", "examples/s", "age"]
    assert row.split()[:7] == [
        "runs/b",
        "quick",
        "fashion-mnist",
        "finished",
        f"3/{Recipe.named('quick').epochs}",
        "0.875",
        "1,234",
    ]


def test_foreign_and_damaged_folders_do_no_harm(here, capsys):
    made(here / "evil\x1b[2J\n", EPOCH, name="\\u001b[31m" + "x" * 10_000)
    unlikely = {"epoch": 10**400, "test_accuracy": float("inf"), "examples_per_second": "fast"}
    made(here / "numbers", {**EPOCH, **unlikely}, {"event": "diverged", "reason": 3})
    for name in ("fifo", "folder", "link", "huge", "bytes"):
        recipe = made(here / name, EPOCH) / "recipe.json"
        recipe.unlink()
        {
            "fifo": lambda path: os.mkfifo(path),
            "folder": lambda path: path.mkdir(),
            "link": lambda path: path.symlink_to("/dev/zero"),
            "huge": lambda path: path.write_bytes(b"1" * 2**21),
            "bytes": lambda path: path.write_bytes(b"\xff\0"),
        }[name](recipe)
    os.mkfifo(made(here / "metrics") / "x")
    (here / "metrics/metrics.jsonl").unlink()
    os.mkfifo(here / "metrics/metrics.jsonl")
    (here / "photos").mkdir()
    (here / "a file").touch()
    runs = listed(capsys)
    states = {name: run["state"] for name, run in runs.items() if not name.startswith("evil")}
    assert states == dict.fromkeys(("bytes", "fifo", "folder", "huge", "link"), "damaged") | dict.fromkeys(
        ("metrics", "numbers"), "stopped"
    )
    assert [runs["numbers"][key] for key in ("accuracy", "examples_per_second", "epochs_done")] == [None, None, None]
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(runs)
    assert all(line.isprintable() and len(line) <= 80 for line in lines)


@pytest.mark.parametrize(("folder", "code"), [("nothing", 2), ("file", 2), ("empty", 0)])
def test_a_place_without_runs_is_told(folder, code, here, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    assert main(["runs", folder]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert listed(capsys, "empty") == {}


def test_it_starts_without_torch(here):
    made(here / "a", EPOCH)
    program = "import sys; from vggkit.cli import main; main(['runs']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
