"""A search: promoted trials go on exactly, a killed one goes on, and limits are kept."""

import itertools
import json
import re
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from vggkit import Recipe, cli, costs, train
from vggkit.design.memory import training_memory
from vggkit.errors import RunError
from vggkit.lab.designs import Budget
from vggkit.lab.search import LOG, search

BASE = Recipe.named("quick", architecture="1x8", data="fashion-mnist-sample", image_size=14, epochs=3, batch_size=250)
BUDGET = Budget(parameters=4_000, macs=200_000)


def counted(folder, trials, **options):
    """A search whose clock counts, so that it ends after so many trials, and its log without the times."""
    found = search(
        BASE, BUDGET, folder, seconds=trials, seeds=2, device="cpu", now=itertools.count().__next__, **options
    )
    return found, [{**line, "seconds": 0} for line in logged(folder)]


def logged(folder):
    lines = (folder / LOG).read_text().splitlines() if (folder / LOG).exists() else []
    return [json.loads(line) for line in lines]


def test_a_paused_run_ends_in_the_bits_of_an_unbroken_one(tmp_path):
    recipe = BASE.changed(architecture="1x8_bn", hidden=())
    whole = train(recipe, out=tmp_path / "whole", progress=False)
    for epoch in (1, 2, 3):
        paused = train(recipe, resume=tmp_path / "paused", until_epoch=epoch, progress=False)
        assert len(paused.history) == epoch
        assert (paused.stopped_by is None) == (epoch == 3)
    files = [load_file(run.folder / "model.safetensors") for run in (whole, paused)]
    assert all((files[0][name] == files[1][name]).all() for name in files[0])


def test_the_best_are_promoted_and_a_killed_search_goes_on(tmp_path):
    lines = []
    found, trials = counted(tmp_path / "s", 7, say=lines.append)
    total = costs(found.recipe.network(in_channels=1, num_classes=10)).total
    assert total.parameters <= BUDGET.parameters
    assert total.macs <= BUDGET.macs
    assert 4 <= len(trials) == len(lines) - 2 <= 7  # time is left to train the best to the end
    best = r"\d:\d\d left, (no accuracy yet|best accuracy 0\.\d{4}): training [0-9x ]+_bn to epoch [13]"
    assert all(re.fullmatch(best, line) for line in lines[:-2]) and "left, no accuracy yet: " in lines[0]
    for number, trial in enumerate(trials):
        if trial["epochs"] == 3:  # of the best third of its rung when it was promoted
            rung = sorted((t for t in trials[:number] if t["epochs"] == 1), key=lambda t: -t["accuracy"])
            assert trial["notation"] in [t["notation"] for t in rung[: max(1, len(rung) // 3)]]
    last = [trial for trial in trials if trial["epochs"] == 3]
    assert found.finalists[0].accuracy == max(trial["accuracy"] for trial in last)
    assert len(found.finalists) == len(last) >= 1
    assert found.finalists[0].is_on_front
    assert len(found.test_accuracies) == 2

    program = f"""
import itertools, pathlib, vggkit
from vggkit.lab.designs import Budget
from vggkit.lab.search import search
base = vggkit.Recipe.from_json({BASE.to_json()!r})
search(base, {BUDGET!r}, pathlib.Path({str(tmp_path / "killed")!r}), seconds=7, seeds=2, device="cpu",
       now=itertools.count().__next__)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    while len(logged(tmp_path / "killed")) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(logged(tmp_path / "killed")) < len(trials)
    with (tmp_path / "killed" / LOG).open("a") as log:  # a line that a kill cut short counts for nothing
        log.write('{"notation": "1x')
    again, same = counted(tmp_path / "killed", 7)
    assert same == trials
    assert (again.recipe, again.test_accuracies) == (found.recipe, found.test_accuracies)
    assert [f.notation for f in again.finalists] == [f.notation for f in found.finalists]
    with pytest.raises(RunError, match="expected the search that .* was begun with, got another one"):
        search(BASE, Budget(parameters=5_000), tmp_path / "killed", seconds=9)

    page = "".join(map(str, found.report("vgg search")))
    assert page.count("<svg") == 1
    assert found.finalists[0].notation in page


def test_what_breaks_a_limit_is_not_trained(tmp_path):
    memory_bytes = 9e6
    budget = Budget(parameters=20_000, memory_bytes=memory_bytes)
    clock = itertools.count().__next__
    search(BASE.changed(epochs=1), budget, tmp_path / "memory", seconds=6, seeds=1, device="cpu", now=clock)
    peaks = [
        training_memory(
            BASE.changed(architecture=trial["notation"], hidden=(), head="gap").network(1, 10), 250, optimizer="adamw"
        ).peak_bytes
        for trial in logged(tmp_path / "memory")
    ]
    assert max(peaks) <= memory_bytes

    for name, base, limits, said in (
        ("slow", BASE, Budget(parameters=20_000, milliseconds=1e-6), "ms"),
        ("stalls", BASE.changed(optimizer="sgd", learning_rate=1e-9), Budget(parameters=20_000), "stalls"),
    ):
        with pytest.raises(RunError, match="expected a network that learns within the limits, got none"):
            search(base, limits, tmp_path / name, seconds=2, device="cpu", now=itertools.count().__next__)
        assert all(trial["ruled_out"].endswith(said) and not trial["epochs"] for trial in logged(tmp_path / name))
        assert len(logged(tmp_path / name)) == 2


def test_a_search_goes_on_with_more_time(tmp_path):
    """Also if there was none, and if it finds another winner."""
    with pytest.raises(RunError, match="got none, try higher ones or more --time"):
        counted(tmp_path / "s", 0)
    runs = [counted(tmp_path / "s", trials) for trials in (1, 4, 12, 2)]
    for (_, before), (found, trials) in itertools.pairwise(runs):
        assert trials[: len(before)] == before
        assert len(found.test_accuracies) == 2
    assert 0 < len(runs[0][1]) < len(runs[2][1]) == len(runs[3][1])
    winners = {found.recipe.architecture.replace(" ", "-") for found, _ in runs}
    assert {path.name for path in (tmp_path / "s").glob("winner-*")} == {
        f"winner-{w}-{s}" for w in winners for s in (0, 1)
    }


@pytest.mark.parametrize(
    ("changes", "limits", "message"),
    [
        ({}, {"parameters": 1}, "expected a budget with room for a network of blocks, got --max-params 1, try"),
        ({}, {"parameters": 1, "macs": 2}, "got --max-params 1 --max-macs 2, try a larger one"),
        ({"validation": 2_000}, {"parameters": 4_000}, "expected validation below the 2000 training images, got 2000"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_the_work(tmp_path, changes, limits, message):
    with pytest.raises(ValueError, match=message):
        search(BASE.changed(**changes), Budget(**limits), tmp_path / "s", seconds=9, device="cpu")
    assert not (tmp_path / "s").exists()


def test_the_verb_writes_a_recipe_and_a_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    limits = ["--max-params", "2k", "--time", "1s", "--epochs", "1", "--seeds", "1", "--data", "fashion-mnist-sample"]
    assert cli.main(["search", *limits, "--device", "cpu", "-o", "a.html"]) == 0
    printed = capsys.readouterr().out
    assert "searches/quick/found.json is its recipe" in printed
    assert "one run, from seed 0" in printed and "interval" not in printed
    assert "<script" not in (tmp_path / "a.html").read_text()
    assert cli.main(["search", *limits, "--device", "cpu", "--json", "-o", "a.svg"]) == 0  # nothing is trained again
    found = json.loads(capsys.readouterr().out)
    assert found["recipe"] == json.loads((tmp_path / "searches/quick/found.json").read_text())
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
