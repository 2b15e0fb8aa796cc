"""A run that is killed and resumed ends in the same bits as one that is not."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from tests.killing import KILLS, killed_until_done, newest, start, trained
from tests.own_images import write
from tests.teams import steps_of, wait_for
from vggkit import cli, load_weights, train
from vggkit.errors import CheckpointError, DataError, RunError


def of_photos(recipe, photos):
    return replace(
        recipe, data=str(photos), channels="grey", architecture="1x16 2x16", shorter_side=(17, 24), translate=0, erase=0, color_shift=0.1,
        optimizer="adamw", momentum=0.0, learning_rate=0.003, batch_size=16, epochs=8,
    )  # fmt: skip


def bits(run):
    """What decides: the final checkpoint's tensors, byte for byte, and all that was logged but times."""
    final = newest(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {name: value for name, value in line.items() if not re.search("second", name)}
        for line in lines
        if line["event"] not in ("start", "resume", "threads")
    ]
    files = ("network.safetensors", "optimizer.safetensors")
    return final.name, [(final / file).read_bytes() for file in files], kept, (run / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.torture
@pytest.mark.parametrize(
    "kind",
    [
        "images in memory",
        pytest.param("0 workers", marks=pytest.mark.skipif(KILLS < 200, reason="as 2 workers: make torture runs it")),
        "2 workers",
    ],
)
def test_a_run_killed_at_random_ends_in_the_same_bits(recipe, photos, kind, tmp_path):
    options = {"save_seconds": 0.05}  # so that many kills fall into the writing of a checkpoint
    if kind != "images in memory":
        recipe, options["num_workers"] = replace(of_photos(recipe, photos), epochs=4), int(kind[0])
    seconds = trained(recipe, tmp_path / "unbroken", **{**options, "save_seconds": 1000.0})
    expected = bits(tmp_path / "unbroken")
    moments = random.Random(kind)
    runs, killed = 0, 0
    while killed < KILLS // 3 or not runs:
        folder = tmp_path / f"killed-{runs}"
        killed += killed_until_done(recipe, folder, KILLS // 3 + 1 - killed, 0.6 * seconds, moments, **options)
        assert bits(folder) == expected
        runs += 1
    assert killed >= KILLS // 3
    print(f"{kind}: {killed} kills in {runs} runs of {seconds:.1f} s, all bit-identical")


class KillAt:
    """Makes a process kill itself at its `call`-th write, fsync, rename or mkdir."""

    def __init__(self, call):
        self.remaining = call

    def __call__(self):
        for name in ("write", "fsync", "rename", "mkdir"):
            setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, real):
        def maybe(*args, **options):
            self.remaining -= 1
            if self.remaining == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return maybe


@pytest.mark.slow
@pytest.mark.torture
def test_a_run_killed_at_any_call_of_a_save_ends_in_the_same_bits(recipe, tmp_path):
    short = replace(recipe, epochs=1, batch_size=1000)
    trained(short, tmp_path / "unbroken", save_seconds=1e-9)
    expected = bits(tmp_path / "unbroken")
    call, survived = (step := 1 if KILLS >= 200 else 53), False
    while not survived:
        folder = tmp_path / f"killed-{call}"
        process = start(short, folder, KillAt(call), save_seconds=1e-9)
        process.join(120)
        survived = process.exitcode == 0
        if not survived:
            assert process.exitcode == -signal.SIGKILL
            again = start(short, folder, save_seconds=1e-9)
            again.join(120)
            assert again.exitcode == 0
        assert bits(folder) == expected
        call += step
    assert call > 106  # more than two checkpoints' worth of calls
    print(f"killed at each of {call // step - 1} calls, all bit-identical")


def test_a_finished_run_is_left_as_it_is_and_said_to_be_finished(recipe, tmp_path, capsys):
    short = replace(recipe, epochs=1)
    first = train(short, out=tmp_path / "run", device="cpu", progress=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    again = train(short, resume=tmp_path / "run", device="cpu")
    assert "the run is already finished" in capsys.readouterr().out
    assert again.history == first.history
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == before


def test_what_contradicts_the_recipe_of_a_run_is_refused(recipe, photos, tmp_path):
    run = train(replace(recipe, epochs=1), out=tmp_path / "run", device="cpu", progress=False).folder
    with pytest.raises(
        RunError, match="expected epochs 1, which the recipe of .*run decides, got 2, try without --epochs or --recipe"
    ):
        train(replace(recipe, epochs=2), resume=run, device="cpu", progress=False)
    changed = replace(recipe, epochs=2)
    (run / "recipe.json").write_text(changed.to_json())
    with pytest.raises(RunError, match="expected the recipe that .*run began with, got another one in its recipe.json"):
        train(changed, resume=run, device="cpu", progress=False)


def test_other_images_than_the_run_began_with_are_refused_before_they_are_read(recipe, photos, tmp_path):
    copy = tmp_path / "photos"
    subprocess.run(["cp", "-r", photos, copy], check=True)
    mine = replace(of_photos(recipe, copy), epochs=1)
    train(mine, out=tmp_path / "run", device="cpu", progress=False, num_workers=0)
    removed, broken, *_ = sorted((copy / "train").rglob("*.png"))
    removed.unlink()
    broken.write_bytes(bytes(broken.stat().st_size))  # which would be met if it were read
    message = "expected the images that the run began with in .*photos, got others, try to put back what was added"
    with pytest.raises(DataError, match=message):
        train(mine, resume=tmp_path / "run", device="cpu", progress=False, num_workers=0)


def test_the_same_flags_begin_a_run_and_go_on_with_it(tmp_path, monkeypatch, capsys):
    """Switches too, which are true in the recipe that the run then has; and where a link leads elsewhere meanwhile."""
    for folder in ("first", "second"):
        write(tmp_path / folder, [f"{name}/{index}.png" for name in "ab" for index in range(6)])
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "first")
    arguments = ["train", "--data", str(link), "--architecture", "1x2", "--hidden", "--image-size", "8", "--epochs", "1",
                 "--optimizer", "sgd", "--momentum", "0.9", "--nesterov", "--no-flip", "--device", "cpu",
                 "--resume", str(tmp_path / "run")]  # fmt: skip
    assert cli.main(arguments) == 0
    shutil.rmtree(tmp_path / "first")
    link.unlink()
    link.symlink_to(tmp_path / "second")
    assert cli.main(arguments) == 0, capsys.readouterr().err


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(recipe, tmp_path, capsys):
    trained(recipe, tmp_path / "run", save_seconds=0.02)
    expected = bits(tmp_path / "run")
    last, before = sorted((tmp_path / "run" / "checkpoints").iterdir(), reverse=True)
    content = bytearray((last / "optimizer.safetensors").read_bytes())
    content[-1] ^= 1
    (last / "optimizer.safetensors").write_bytes(content)
    train(recipe, resume=tmp_path / "run", device="cpu")
    out = capsys.readouterr().out
    assert f"{last} is damaged: expected what SHA256SUMS says, got another optimizer.safetensors" in out
    assert f"resumed after step {int(before.name[5:])}" in out
    if torch.get_num_threads() == 1:  # as the processes had that trained it first
        assert bits(tmp_path / "run") == expected
    for path in (tmp_path / "run" / "checkpoints").rglob("state.json"):
        path.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="expected a whole checkpoint, got 2 damaged, try a new run"):
        train(recipe, resume=tmp_path / "run", device="cpu", progress=False)


def vgg(*arguments, **options):
    command = [sys.executable, "-m", "vggkit", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


TINY = ["--data", "fashion-mnist-sample", "--architecture", "1x4 1x8", "--image-size", "16", "--batch-size", "16"]


def check_stopped(code, out, err, name, run):
    assert code == 75, err
    assert f"stopped by {name} after" in out
    assert f"go on with: vgg train --resume {run.name}" in out
    assert err == ""
    net, _ = load_weights(newest(run) / "network.safetensors")
    assert net.architecture.name == "1x4 1x8"


@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR1"])
def test_a_signal_ends_a_run_after_the_step_with_a_checkpoint(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = threading.Event()

    def signalling():
        wait_for(lambda: own.is_set() or steps_of("run") > 5)
        if not own.is_set():
            os.kill(os.getpid(), getattr(signal, name))

    thread = threading.Thread(target=signalling)
    thread.start()
    try:
        code = cli.main(["train", *TINY, "--epochs", "1000", "--out", "run"])
    finally:
        own.set()
        thread.join()
    check_stopped(code, *capsys.readouterr(), name, tmp_path / "run")


def test_signals_to_the_program_end_it_once_and_it_goes_on(tmp_path):
    with vgg(*TINY, "--epochs", "1000", "--out", "run", cwd=tmp_path) as process:
        [process.stdout.readline() for _ in range(3)]
        while process.poll() is None:  # until the very end: more of them change nothing
            process.send_signal(signal.SIGTERM)
            time.sleep(0.02)
        check_stopped(process.returncode, *process.communicate(timeout=60), "SIGTERM", tmp_path / "run")
    with vgg("--resume", "run", cwd=tmp_path) as process:
        lines = [process.stdout.readline() for _ in range(4)]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert any("resumed after step" in line and "bit for bit" in line for line in lines), lines


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    slow = ["--data", "fashion-mnist-sample", "--architecture", "vgg16", "--image-size", "96", "--batch-size", "64"]
    with vgg(*slow, "--out", "run", cwd=tmp_path) as process:
        [process.stdout.readline() for _ in range(2)]
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert process.returncode == 130  # at the end of the step, which takes much longer, it would be 75


def test_a_run_is_begun_where_there_is_none_only_with_a_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--resume", "runs/typo"]) == 2
    expected = "vgg train: expected a run folder, got runs/typo: nothing there, try it with --recipe, to begin it\n"
    assert capsys.readouterr().err == expected
    assert list(tmp_path.iterdir()) == []


def test_the_best_by_validation_is_kept_and_the_last_two(recipe, photos, tmp_path):
    mine = of_photos(recipe, photos)
    run = train(mine, out=tmp_path / "run", device="cpu", progress=False, save_seconds=1e-9, num_workers=0)
    accuracies = [metrics.test_accuracy for metrics in run.history]
    best = run.history[accuracies.index(max(accuracies))]
    kept = sorted(int(path.name[5:]) for path in (run.folder / "checkpoints").iterdir())
    assert kept[-1] == run.history[-1].step
    # Each of the last two also keeps what was the best when it was written: a run that goes on from it may need that.
    states = [json.loads(path.read_text()) for path in sorted((run.folder / "checkpoints").glob("*/state.json"))[-2:]]
    assert set(kept[:-2]) <= {state["best_step"] for state in states} <= set(kept)
    assert best.step in kept
    saved, _ = load_weights(run.folder / "best.safetensors")
    from_checkpoint, _ = load_weights(run.folder / "checkpoints" / f"step-{best.step:08}" / "network.safetensors")
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, from_checkpoint.state_dict()[name])


def test_images_that_have_moved_are_found_at_the_place_that_is_given(recipe, photos, tmp_path):
    mine = replace(of_photos(recipe, photos), epochs=2)
    whole = train(mine, out=tmp_path / "whole", device="cpu", progress=False, num_workers=0)
    moved = tmp_path / "elsewhere" / "photos"
    moved.parent.mkdir()
    subprocess.run(["cp", "-r", photos, moved], check=True)
    run = tmp_path / "run"
    assert killed_until_done(mine, run, 1, 1.0, random.Random(3), save_seconds=0.05, num_workers=0) <= 1
    for path in [run / "model.safetensors", *sorted((run / "checkpoints").iterdir())[1:]]:
        subprocess.run(["rm", "-r", path], check=True)  # as if it had not been finished
    again = train(replace(mine, data=str(moved)), resume=run, device="cpu", progress=False, num_workers=0)
    if torch.get_num_threads() == 1:
        for name, tensor in whole.net.state_dict().items():
            assert torch.equal(again.net.state_dict()[name], tensor)
    assert again.history[-1].step == whole.history[-1].step
