"""A run whose calls fail: nothing is said to be saved that is not, and a resume ends in the same bits."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from tests.killing import KILLS, newest
from tests.teams import wait_for
from tests.training.test_resume import bits
from vggkit.cli import main
from vggkit.training import loop, step
from vggkit.training.stopping import signals_handled
from vggkit.version import __version__
from vggkit.weights.runs import read_checkpoint, read_newest

TINY = [
    *(
        "--data",
        "fashion-mnist-sample",
        "--architecture",
        "1x4_bn",
        "--image-size",
        "8",
        "--head",
        "flatten",
        "--hidden",
        "8",
    ),
    *("--batch-size", "900", "--validation", "200", "--optimizer", "sgd", "--momentum", "0.9", "--epochs", "1"),
    *("--schedule", "constant"),
]


def vgg_train(folder, *more):
    return main(["train", *TINY, "--resume", str(folder), "--device", "cpu", "--save-seconds", "1e-9", *more])


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What a run that nothing disturbs ends in: two steps, with a best of its validation."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    threads = torch.get_num_threads()
    assert vgg_train(folder) == 0
    assert (folder / "best.safetensors").exists()
    yield bits(folder)
    torch.set_num_threads(threads)


CALLS = ("write", "fsync", "rename", "mkdir", "open")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)


class Failing:
    """From its `call`-th call on of those that write, one fails once, or all that follow do."""

    def __init__(self, monkeypatch, folder, call, number, for_good):
        self.remaining, self.number, self.for_good, self.failed = call, number, for_good, None
        self.folder = str(folder)
        for name in CALLS:
            monkeypatch.setattr(os, name, self.counted(name, getattr(os, name)))

    def counted(self, name, real):
        def maybe(*args, **options):
            path = args[0] if isinstance(args[0], int) else os.fspath(args[0])
            where = str(Path(f"/proc/self/fd/{path}").readlink()) if isinstance(path, int) else str(path)
            is_read = name == "open" and not args[1] & os.O_WRONLY and options.get("dir_fd") is not None
            if where.startswith(self.folder) and not is_read:
                self.remaining -= 1
                if self.remaining == 0 or (self.remaining < 0 and self.for_good):
                    self.failed = self.failed or f"{name} of {where}"
                    told = () if isinstance(path, int) else (str(path),)
                    raise OSError(self.number, os.strerror(self.number), *told)
            return real(*args, **options)

        return maybe


@pytest.mark.slow
@pytest.mark.torture
@pytest.mark.parametrize("for_good", [False, True])
def test_any_call_that_fails_is_told_and_a_resume_ends_in_the_same_bits(for_good, expected, tmp_path, capsys):
    torture = KILLS >= 200
    call, cases, harmless = 1, 0, []
    while True:
        for number in ERRORS if torture else [ERRORS[call % 3]]:
            folder = tmp_path / f"run-{call}-{number}"
            with pytest.MonkeyPatch.context() as monkeypatch:
                failing = Failing(monkeypatch, folder, call, number, for_good)
                code = vgg_train(folder)
            out, err = capsys.readouterr()
            if failing.failed is None:
                assert (code, bits(folder)) == (0, expected)
                print(f"{cases} failed calls, all told and made good; harmless: {harmless}")
                assert call > 60
                return
            cases += 1
            if code == 0:
                harmless.append(failing.failed)
                assert bits(folder) == expected
            else:
                assert code in (1, 2), (failing.failed, err)
                assert "examples/sec" not in out
                (last,) = err.splitlines()
                assert last.startswith("vgg train: "), (failing.failed, err)
                assert os.strerror(number) in last, (failing.failed, err)
                assert str(folder) in last, (failing.failed, err)
                if (folder / "checkpoints").exists():
                    for kept in (folder / "checkpoints").glob("step-*/SHA256SUMS"):
                        read_checkpoint(kept.parent)
                again = vgg_train(folder)
                out, err = capsys.readouterr()
                assert again == 0, (failing.failed, err)
                assert bits(folder) == expected, failing.failed
            shutil.rmtree(folder)
        call += 1 if torture else 13


def test_writes_of_a_part_only_lose_nothing(expected, tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, bytes(content)[:100]))
    assert vgg_train(tmp_path / "run") == 0
    assert bits(tmp_path / "run") == expected


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("free_kib", [0, 8, 24, 40, 64])
def test_a_full_disk_is_told_and_a_resume_ends_in_the_same_bits(free_kib, expected, small_disk, capsys):
    filler = small_disk / "filler"
    filler.write_bytes(bytes((1024 - free_kib) * 1024 - 4096))
    code = vgg_train(small_disk / "run")
    out, err = capsys.readouterr()
    assert code in (1, 2)
    assert all(text in err.splitlines()[-1] for text in ("vgg train: ", "No space left on device", str(small_disk)))
    assert "examples/sec" not in out
    filler.unlink()
    assert vgg_train(small_disk / "run") == 0
    assert bits(small_disk / "run") == expected


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path, capsys, monkeypatch):
    real, seen = step.train_step, []

    def spoiled(net, *args, **options):
        if len(seen) == 2:
            net.net.fc2.bias.register_hook(lambda gradient: gradient * float("nan"))
        before = {name: value.clone() for name, value in net.named_parameters()}
        outcome = real(net, *args, **options)
        seen.append(all(torch.equal(value, before[name]) for name, value in net.named_parameters()))
        return outcome

    monkeypatch.setattr(step, "train_step", spoiled)
    assert vgg_train(tmp_path / "run", "--batch-size", "300") == 1
    assert seen == [False, False, True]
    err = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        "vgg train: expected a finite loss and gradients, got a loss of [0-9.]+ at step 3, in epoch 1, which was not "
        "taken; the checkpoints before are kept; try a lower --learning-rate",
        err,
    )
    path, files = read_newest(tmp_path / "run", pytest.fail)
    assert path.name in ("step-00000001", "step-00000002")  # the second may have come while the first was written
    assert all(tensor.isfinite().all() for tensor in load(files["network.safetensors"]).values())
    assert not (tmp_path / "run/model.safetensors").exists()


def test_a_finished_run_without_checkpoints_is_not_trained_over(expected, tmp_path, capsys):
    assert vgg_train(tmp_path / "run") == 0
    shutil.rmtree(tmp_path / "run/checkpoints")  # as version 0.2 leaves it
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    assert vgg_train(tmp_path / "run") == 2
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("expected a run with checkpoints to go on from, got ") == 2
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_run_that_has_no_checkpoint_yet_says_that_it_begins_anew(expected, tmp_path, capsys):
    assert vgg_train(tmp_path / "run") == 0
    out, err = capsys.readouterr()
    assert "begins anew" not in out
    assert (out.count("WARNING: this is the sample"), err) == (1, "")
    shutil.rmtree(tmp_path / "run/checkpoints")
    (tmp_path / "run/model.safetensors").unlink()
    assert vgg_train(tmp_path / "run") == 0
    assert "run has no whole checkpoint yet, and begins anew" in capsys.readouterr().out
    assert bits(tmp_path / "run") == expected


@pytest.mark.parametrize("optimizer", [["--momentum", "0.9"], ["--optimizer", "adamw", "--momentum", "0"]])
def test_a_run_that_first_trains_its_head_goes_on_from_any_step(optimizer, tmp_path, capsys, monkeypatch):
    first = tmp_path / "first"
    assert vgg_train(first) == 0
    more = ["--pretrained", str(first), "--head-epochs", "1", "--epochs", "2", *optimizer]
    assert vgg_train(tmp_path / "unbroken", *more) == 0
    real = step.train_step
    for last in range(5):
        steps = []

        def stopping(*args, steps=steps, last=last, **options):
            steps.append(1)
            if len(steps) > last:
                with signals_handled() as flag:  # the one of the run, which another thread sets
                    signal.raise_signal(signal.SIGTERM)
                    wait_for(lambda: flag.signal_name)
            return real(*args, **options)

        monkeypatch.setattr(step, "train_step", stopping)
        code = vgg_train(tmp_path / f"{last}", *more)
        monkeypatch.setattr(step, "train_step", real)
        assert code == (75 if last < 4 else 0)
        with monkeypatch.context() as later:
            later.setattr(loop, "__version__", "9.9")
            assert vgg_train(tmp_path / f"{last}", *more) == 0, capsys.readouterr().err
        note = f"may differ from those of an uninterrupted run, since it had vggkit {__version__}, now 9.9"
        assert (note in capsys.readouterr().out) == (last < 4)
        assert bits(tmp_path / f"{last}") == bits(tmp_path / "unbroken")


def test_a_best_that_is_damaged_is_not_copied(tmp_path, capsys):
    assert vgg_train(tmp_path / "run", "--epochs", "6", "--learning-rate", "0.001") == 0
    kept = sorted((tmp_path / "run/checkpoints").iterdir())
    best = json.loads((kept[-1] / "state.json").read_text())["best_step"]
    assert best is not None
    (tmp_path / "run/best.safetensors").unlink()
    place = tmp_path / f"run/checkpoints/step-{best:08}"
    if place == newest(tmp_path / "run"):
        pytest.fail("the best is to be an older one")
    content = bytearray((place / "network.safetensors").read_bytes())
    content[-1] ^= 1
    (place / "network.safetensors").write_bytes(content)
    capsys.readouterr()
    assert vgg_train(tmp_path / "run", "--epochs", "6", "--learning-rate", "0.001") == 1
    assert f"{place} is damaged" in capsys.readouterr().err
    assert not (tmp_path / "run/best.safetensors").exists()


def test_a_run_is_found_from_elsewhere_and_says_what_is_not_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    assert vgg_train("run/", "--epochs", "2") == 0
    shutil.rmtree(newest(tmp_path / "run"))  # as if it had been killed in the second epoch
    (tmp_path / "run" / "model.safetensors").unlink()
    command = [sys.executable, "-m", "vggkit", "train", "--resume", "../run//"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2" if torch.get_num_threads() == 1 else "1"}
    done = subprocess.run(command, cwd=tmp_path / "below", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(
        "resumed after step [23], in epoch 2: the weights may differ from .*, since it had hardware", done.stdout
    ), done.stdout
    assert list((tmp_path / "below").iterdir()) == []
