"""A run folder belongs to one process at a time, and what was there before is left as it is."""

import contextlib
import json
import os
import shutil
import threading
import time
from dataclasses import replace

import pytest

from tests.killing import KILLS
from vggkit import Recipe, train
from vggkit.cli import main
from vggkit.errors import RunError
from vggkit.training import run_folder
from vggkit.training.run_folder import new_run_folder, read_recipe, resumed_run_folder

RECIPE = Recipe.named("quick")
TINY = replace(
    RECIPE, data="fashion-mnist-sample", architecture="1x2", hidden=(), image_size=4, batch_size=1000, epochs=1
)


@pytest.mark.torture
@pytest.mark.parametrize("before", ["missing", "empty", "killed"])
def test_of_simultaneous_starts_one_at_a_time_is_in(before, tmp_path, monkeypatch):
    """A lock belongs to an open file, so that threads exclude each other as processes do."""
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 60.0)
    run = tmp_path / "deep" / "run"
    if before != "missing":
        run.mkdir(parents=True)
    if before == "killed":  # while its recipe was written
        (run / ".recipe.json-01234567").write_text("{")
    errors, entered, together = [], [], threading.Barrier(300 if KILLS >= 200 else 30)

    def start():
        together.wait()
        try:
            with resumed_run_folder(RECIPE, run):
                (run / "inside").mkdir()  # fails if another one is in
                time.sleep(0.001)
                (run / "inside").rmdir()
                entered.append(read_recipe(run))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(together.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert entered == [RECIPE] * together.parties


def test_only_one_of_a_new_run_and_a_resumed_one_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    in_use = pytest.raises(RunError, match="expected a run that no other process trains, got .*run, which is in use")
    with new_run_folder(RECIPE, tmp_path / "run") as run, in_use, resumed_run_folder(RECIPE, run):
        pytest.fail("both are in")
    exists = pytest.raises(RunError, match="that does not exist yet, got .*, try another --out, or --resume")
    with resumed_run_folder(RECIPE, run), exists, new_run_folder(RECIPE, run):
        pytest.fail("both are in")


@pytest.mark.parametrize("kind", ["empty", "link", "file system"])
def test_a_folder_that_was_there_is_used_as_it_is(kind, tmp_path):
    place = tmp_path / "place"
    place.mkdir(mode=0o711)
    place.chmod(0o2711)
    before = place.stat()
    if kind == "link":
        (tmp_path / "link").symlink_to(place)
    if kind == "file system":
        (place / "lost+found").mkdir()
    run = tmp_path / "link" if kind == "link" else place
    train(TINY, resume=run, device="cpu", progress=False)
    after = place.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert (place / "model.safetensors").exists()
    assert (tmp_path / "link").is_symlink() == (kind == "link")


def test_a_folder_with_something_else_in_it_is_refused_and_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="expected a run folder with its recipe.json, got .*: nothing there"):
        train(TINY, resume=tmp_path, device="cpu", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("kind", ["file", "dangling link", "link loop", "below a file", "FIFO"])
@pytest.mark.parametrize("flag", ["--out", "--resume"])
def test_what_cannot_be_a_run_folder_is_refused_in_one_line(kind, flag, tmp_path, capsys):
    path = tmp_path / "x"
    if kind in ("file", "below a file"):
        path.touch()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "link loop" else tmp_path / "nowhere")
    if kind == "below a file":
        path = path / "run"
    assert main(["train", "--data", "fashion-mnist-sample", "--recipe", "quick", flag, str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vgg train: expected a ") and str(path) in line


def test_checkpoints_that_are_a_link_are_not_thinned_out(tmp_path):
    mine, other = (train(TINY, out=tmp_path / name, device="cpu", progress=False).folder for name in ("mine", "other"))
    before = sorted((other / "checkpoints").rglob("*"))
    shutil.rmtree(mine / "checkpoints")
    (mine / "checkpoints").symlink_to(other / "checkpoints")
    with pytest.raises(
        RunError, match="expected .*mine/checkpoints as a folder, got a link: old checkpoints are removed"
    ):
        train(TINY, resume=mine, device="cpu", progress=False, save_seconds=1e-9)
    assert sorted((other / "checkpoints").rglob("*")) == before


def test_a_recipe_that_is_no_file_of_a_recipe_s_size_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "recipe.json"
    for make, reason in (
        (lambda: os.mkfifo(path), "no regular file"),
        (lambda: path.symlink_to("/dev/zero"), "no regular file"),
        (lambda: path.mkdir(), "a folder"),
        (lambda: path.write_text(json.dumps({"name": "x" * 2**21})), "more than 1,048,576 bytes"),
        (lambda: path.write_bytes(b"\xff"), "can't decode byte"),
    ):
        make()
        with pytest.raises(RunError, match=f"expected a run folder with its recipe.json, got .*: .*{reason}"):
            read_recipe(tmp_path)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_runs_are_numbered_beside_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_run_folder(RECIPE, None) as first, new_run_folder(RECIPE, None) as second:
        assert [str(first), str(second)] == ["runs/quick-1", "runs/quick-2"]
    shutil.rmtree("runs")
    (tmp_path / "runs").symlink_to("nowhere")
    with (
        pytest.raises(RunError, match="expected a folder that can be made, got runs/quick-1"),
        new_run_folder(RECIPE, None),
    ):
        pytest.fail("nothing can be made there")
