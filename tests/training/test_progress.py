import io
import json
import re
import sys
import types

import pytest
from PIL import Image

from vggkit.training import progress as progress_module
from vggkit.training.progress import Progress, clock
from vggkit.training.run_state import EpochMetrics


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


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    progress = Progress(tmp_path, 2, 10, "test", show=True)
    progress.say("hello")
    for epoch in (1, 2):
        progress.epoch(metrics(epoch))
    progress.close()
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
    shown = Progress(tmp_path, 40, 100, "validation", show=True, history=[metrics(1)] * 10, start_step=1000)
    live = shown._live
    live.get_time = lambda: clock_seconds[0]
    for step in range(1001, 1011):
        clock_seconds[0] += 2
        shown.step(step, [1.0, 1.0, 2.0], 0.4)
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
    progress = Progress(tmp_path, 1, 10, "test", show=True)
    progress.epoch(metrics(1))
    progress.close()
    assert (tmp_path / "curves.png").exists()
    monkeypatch.setattr(sys, "stdout", None)
    (tmp_path / "other").mkdir()
    Progress(tmp_path / "other", 1, 10, "test", show=True).close()


def test_silence_when_not_wanted(tmp_path, capsys):
    progress = Progress(tmp_path, 1, 10, "test", show=False)
    progress.epoch(metrics(1))
    progress.close()
    assert capsys.readouterr().out == ""
    assert (tmp_path / "curves.png").exists()


def test_an_unfinished_epoch_is_shown_from_the_sums(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vggkit.training.progress.REFRESH_SECONDS", 0.0)
    monkeypatch.setattr("vggkit.training.progress.PLAIN_LINE_SECONDS", 0.0)
    progress = Progress(tmp_path, 2, 10, "test", show=True)
    progress.step(15, [64.0, 96.0, 128.0], loading_share=0.6)
    progress.close()
    assert (
        "epoch 2/2  loss 0.500  train acc 0.750  loading-bound (loading 60%)  step 15/20  about 0:00 left"
    ) in capsys.readouterr().out
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    logged = json.loads(line)
    assert (logged["event"], logged["step"], logged["train_loss"]) == ("step", 15, 0.5)


def test_a_notebook_gets_one_picture_that_is_renewed(tmp_path, monkeypatch, capsys):
    calls = []
    handle = types.SimpleNamespace(update=lambda picture: calls.append(("update", picture)))
    shown = types.ModuleType("IPython.display")
    shown.Image = bytes
    shown.display = lambda picture, display_id: calls.append(("display", picture)) or handle
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    progress = Progress(tmp_path, 3, 10, "test", show=True)
    for epoch in (1, 2, 3):
        progress.epoch(metrics(epoch, loss=1 / epoch))
    progress.close()
    assert [kind for kind, _ in calls] == ["display", "update", "update"]
    assert len({picture for _, picture in calls}) == 3
    assert calls[-1][1] == (tmp_path / "curves.png").read_bytes()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75.2, "1:15"), (4000, "1:06:40"), (59.6, "1:00")])
def test_times_are_read_as_on_a_clock(seconds, text):
    assert clock(seconds) == text
