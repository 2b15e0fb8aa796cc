import io
import json
import re
import sys
import types
from types import SimpleNamespace

import pytest
from PIL import Image

from vggkit import Recipe
from vggkit.training import progress as progress_module
from vggkit.training.progress import Progress, clock
from vggkit.training.run_state import EpochMetrics, RunState


def metrics(epoch, loss=0.5):
    return EpochMetrics(
        epoch=epoch,
        step=10 * epoch,
        train_loss=loss,
        train_accuracy=0.8,
        test_accuracy=0.75,
        learning_rate=0.1,
        examples_per_second=1234.5,
        train_seconds=1.0,
        loading_seconds=0.25,
        elapsed_seconds=75.2 * epoch,
    )


def shown_run(folder, epochs=1, steps=10, *, show=True, history=(), step=0, name="test"):
    """The progress of a run of `epochs` epochs of `steps` steps each, and its state."""
    state = RunState({}, {}, step=step, history=list(history))
    training = SimpleNamespace(
        recipe=Recipe.named("quick", epochs=epochs), state=state, steps_per_epoch=steps,
        data=SimpleNamespace(classes=("a", "b"), held_out_name=name),
    )  # fmt: skip
    return Progress(training, folder, show), state


def finish(progress, state, *epochs):
    for each in epochs:
        state.history.append(each)
        progress.epoch(each)
    progress.close()


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    progress, state = shown_run(tmp_path, 2)
    progress.say("hello")
    finish(progress, state, metrics(1), metrics(2))
    assert capsys.readouterr().out == (
        "hello\n"
        "epoch 1/2  loss 0.500, train acc 0.800, test acc 0.750  1,234 examples/s  1:15  compute-bound (loading 25%)\n"
        "epoch 2/2  loss 0.500, train acc 0.800, test acc 0.750  1,234 examples/s  2:30  compute-bound (loading 25%)\n"
    )
    assert Image.open(io.BytesIO((tmp_path / "curves.png").read_bytes())).size == (1320, 570)


def test_on_a_terminal_the_time_left_is_whole_and_counts_from_the_resume(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "_is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    clock_seconds = [100.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: clock_seconds[0])
    shown, state = shown_run(tmp_path, 40, 100, history=[metrics(1)] * 10, step=1000, name="validation")
    state.sums = [1.0, 1.0, 2.0]
    live = shown._live
    live.get_time = lambda: clock_seconds[0]
    for step in range(1001, 1011):
        clock_seconds[0] += 2
        shown.step(step)
    expected = (4000 - 1010) * 2  # seconds: 1:39:40
    assert abs(live.tasks[0].time_remaining - expected) < 0.3 * expected
    live.refresh()
    shown.close()
    out = capsys.readouterr().out
    assert re.search(r"[12]:\d\d:\d\d", out), out
    assert "0:0…" not in out


def test_a_reader_that_goes_away_does_not_stop_the_training(tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    finish(*shown_run(tmp_path), metrics(1))
    assert (tmp_path / "curves.png").exists()
    monkeypatch.setattr(sys, "stdout", None)
    (tmp_path / "other").mkdir()
    finish(*shown_run(tmp_path / "other"))


def test_silence_when_not_wanted(tmp_path, capsys):
    finish(*shown_run(tmp_path, show=False), metrics(1))
    assert capsys.readouterr().out == ""
    assert (tmp_path / "curves.png").exists()


def test_an_unfinished_epoch_is_shown_from_the_sums(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vggkit.training.progress.REFRESH_SECONDS", 0.0)
    monkeypatch.setattr("vggkit.training.progress.PLAIN_LINE_SECONDS", 0.0)
    progress, state = shown_run(tmp_path, 2)
    state.sums, state.loading_seconds, state.train_seconds = [64.0, 96.0, 128.0], 0.6, 1.0
    progress.step(15)
    progress.close()
    assert (
        "epoch 2/2  loss 0.500  train acc 0.750  loading-bound (loading 60%)  step 15/20  about 0:00 left"
    ) in capsys.readouterr().out
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    logged = json.loads(line)
    assert (logged["event"], logged["step"], logged["train_loss"]) == ("step", 15, 0.5)


def test_a_notebook_gets_one_picture_that_is_renewed(tmp_path, monkeypatch, capsys):
    calls = []
    handle = SimpleNamespace(update=lambda picture: calls.append(("update", picture)))
    shown = types.ModuleType("IPython.display")
    shown.Image = bytes
    shown.display = lambda picture, display_id: calls.append(("display", picture)) or handle
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    finish(*shown_run(tmp_path, 3), *(metrics(epoch, loss=1 / epoch) for epoch in (1, 2, 3)))
    assert [kind for kind, _ in calls] == ["display", "update", "update"]
    assert len({picture for _, picture in calls}) == 3
    assert calls[-1][1] == (tmp_path / "curves.png").read_bytes()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75.2, "1:15"), (4000, "1:06:40"), (59.6, "1:00")])
def test_times_are_read_as_on_a_clock(seconds, text):
    assert clock(seconds) == text
