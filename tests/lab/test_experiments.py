"""Experiments: what is compared, run once, gone on with after a kill, and what its numbers support."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vggkit import Recipe, cli, costs
from vggkit.errors import RecipeError
from vggkit.lab.answers import answered
from vggkit.lab.experiments import EXPERIMENTS, Experiment, matched, named_experiment
from vggkit.lab.trials import Outcome, Plan

TINY = Recipe.named(
    "quick", architecture="1x8", data="fashion-mnist-sample", image_size=28, epochs=1, batch_size=256, warmup=0.0
)


def cost_of(recipe):
    return costs(recipe.network(in_channels=1, num_classes=10)).total


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("size", ["minutes", "hours", "gpu"])
def test_named_experiments_are_fair(name, size):
    experiment = named_experiment(name, size)
    recipes = experiment.recipes.values()
    assert experiment.question.endswith("?")
    assert {(r.data, r.epochs, r.batch_size) for r in recipes} == {("fashion-mnist", recipes_epochs(size), 128)}
    if name == "deep-or-wide":
        macs = [cost_of(recipe).macs for recipe in recipes]
        assert max(macs) < 1.02 * min(macs)
    if name == "kernel-size":
        fields = {}
        for label, recipe in experiment.recipes.items():
            layers = costs(recipe.network(in_channels=1, num_classes=10)).layers
            fields[label] = next(layer.receptive_field for layer in layers if layer.name == "pool1")
            reference = experiment.against.get(label, label)
            assert fields[label] == fields[reference]
            if "equal MACs" in label:
                ratio = cost_of(recipe).macs / cost_of(experiment.recipes[reference]).macs
                assert 0.95 < ratio < 1.05


def recipes_epochs(size):
    return {"minutes": 1, "hours": 6, "gpu": 10}[size]


@pytest.mark.parametrize("by", ["macs", "parameters"])
@pytest.mark.parametrize("blocks", ["1x16 1x32", "3x7 2x9k5", "4x64_bn"])
def test_channels_are_matched(by, blocks):
    target = TINY.changed(architecture="2x40 2x80")
    found = matched(TINY.changed(architecture=blocks), target, by)
    assert getattr(cost_of(found), by) == pytest.approx(getattr(cost_of(target), by), rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipes": {"one": TINY}}, "expected at least 2 recipes to compare, got 1"),
        ({"seeds": 0}, "expected from 1 to 1,000 seeds, got 0"),
        ({"equal": "luck"}, "expected epochs, seconds, macs, parameters to be held equal, got 'luck'"),
        ({"against": {"b": "c"}}, "expected labels of recipes in against, got c"),
    ],
)
def test_what_cannot_be_compared_is_refused(options, message):
    values = {"name": "x", "question": "?", "recipes": {"a": TINY, "b": TINY}, **options}
    with pytest.raises(RecipeError, match=message):
        Experiment(**values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resolutoin"], "expected an experiment of resolution, .*, got 'resolutoin', try resolution"),
        ([], r"expected the name of a question or --vary FIELD=VALUE,VALUE, try vgg experiment --list"),
        (["--vary", "image_sise=1,2"], "expected FIELD=VALUE,VALUE .*, got 'image_sise=1,2', try image_size=..."),
        (["--vary", "epochs=x,2"], "expected epochs to be a whole number from 1 to 1000000, got 'x'"),
        (["--vary", "epochs=2"], "expected at least 2 recipes to compare, got 1"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message, capsys):
    assert cli.main(["experiment", *arguments]) == 2
    assert re.fullmatch(f"vgg experiment: {message}\n", capsys.readouterr().err)


def plan(labels, seeds, **options):
    return Plan(
        Experiment("x", "Which?", dict.fromkeys(labels, TINY), seeds, **options), dict.fromkeys(labels, 1.0), "a CPU"
    )


def test_a_planted_difference_is_found_and_a_planted_tie_is_not_decided():
    """Of 400 simulated experiments each; seeds are shared, so that their noise cancels."""
    draws, found = np.random.default_rng(0), {0.0: 0, 0.01: 0}
    for true_difference in found:
        for _ in range(400):
            outcomes = []
            for seed, shared in enumerate(draws.normal(0.9, 0.05, 5)):
                for label, shift in (("a", 0.0), ("b", true_difference)):
                    accuracy = shared + shift + draws.normal(0, 0.002)
                    outcomes.append(Outcome(label, seed, accuracy, 0.1, 1.0, 100.0, None))
            row = answered(plan("ab", 5), outcomes).rows[1]
            assert row.verdict in ("better", "not decided") or not true_difference
            found[true_difference] += row.verdict != "not decided"
    assert found[0.01] > 395
    assert 8 <= found[0.0] <= 34  # 5% of 400, within 3 standard deviations


def test_an_answer_says_what_the_numbers_support():
    values = {"a": (0.90, 0.91, 0.92), "b": (0.85, 0.86, 0.87), "c": (0.92, 0.90, 0.91), "d": (None, None, None)}
    outcomes = [
        Outcome(label, seed, accuracy, 0.1, 2.0, 100.0, None, "" if accuracy else "no")
        for label, accuracies in values.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    answer = answered(plan("abcd", 3), outcomes)
    assert answer.sentences == [
        "b is worse than a by 0.050 ±0.000.",
        "c against a: not decided (+0.000 ±0.043).",
        "d diverged, or a did.",
    ]
    assert "diverged" in str(answer.table())
    single = answered(plan("ab", 1), [o for o in outcomes if o.label in "ab" and o.seed == 0])
    assert single.sentences == ["b against a: not decided (-0.050)."]
    assert json.loads(json.dumps(single.to_json(), allow_nan=False))["rows"][0]["accuracy"]["low"] is None
    assert "<svg" in single.plot()


COMMAND = [
    *("--vary", "architecture=1x8,lenet", "learning_rate=0.01,1e6", "data=fashion-mnist-sample", "image_size=28"),
    *("--epochs", "1", "--seeds", "1", "--runs", "runs"),
]


def steady(path):
    """A report without its times and memory."""
    return re.sub(r'"(seconds|predicted_seconds|examples_per_second|peak_bytes)": [0-9.e+-]+', "", path.read_text())


def test_a_killed_experiment_goes_on_to_the_same_report(tmp_path, monkeypatch, capsys):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    unbroken.mkdir()
    broken.mkdir()
    monkeypatch.chdir(unbroken)
    assert cli.main(["experiment", *COMMAND, "-o", "answer.json"]) == 0
    monkeypatch.chdir(broken)
    with subprocess.Popen([sys.executable, "-m", "vggkit", "experiment", *COMMAND]) as process:
        deadline = time.monotonic() + 120
        while not Path("runs/001/metrics.jsonl").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    finished = Path("runs/000/model.safetensors").stat().st_mtime_ns
    assert cli.main(["experiment", *COMMAND, "-o", "answer.json"]) == 0
    assert Path("runs/000/model.safetensors").stat().st_mtime_ns == finished
    assert steady(unbroken / "answer.json") == steady(broken / "answer.json")
    accuracies = [trial["accuracy"] for trial in json.loads(Path("answer.json").read_text())["trials"]]
    assert len(accuracies) == 4
    assert None in accuracies  # a rate of a million diverges, and is a result
    capsys.readouterr()
    assert cli.main(["experiment", *COMMAND, "--seeds", "3"]) == 2
    assert "expected the experiment that runs was begun with, got another one" in capsys.readouterr().err
