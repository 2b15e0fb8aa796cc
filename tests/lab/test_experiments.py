"""Experiments: what is compared, run once, gone on with after a kill, and what its numbers support."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.lab.conftest import kill_at, wait_for
from vggkit import Recipe, cli, costs
from vggkit.data.sources import open_data
from vggkit.design.network import as_network
from vggkit.errors import RecipeError
from vggkit.lab.answers import answered
from vggkit.lab.experiments import EXPERIMENTS, Experiment, fitted, matched, named_experiment
from vggkit.lab.trials import Chosen, Outcome, Plan, epoch_seconds

TINY = Recipe.named(
    "quick", architecture="1x8", data="fashion-mnist-sample", image_size=28, epochs=1, batch_size=256, warmup=0.0
)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("size", ["minutes", "hours", "gpu"])
def test_named_experiments_are_fair(name, size):
    experiment = named_experiment(name, size)
    recipes = experiment.recipes.values()
    assert experiment.question.endswith("?")
    assert {r.data for r in recipes} == {"fashion-mnist"}
    assert len({(r.epochs, r.batch_size, r.learning_rate) for r in recipes}) == 1
    networks = fitted(
        experiment, {label: r.network(in_channels=1, num_classes=10) for label, r in experiment.recipes.items()}
    )
    if experiment.equal == "macs":
        for label, reference in experiment.adapted.items():
            assert costs(networks[label]).total.macs == pytest.approx(costs(networks[reference]).total.macs, rel=0.06)
    if name == "kernel-size":
        fields = {
            label: next(layer.receptive_field for layer in costs(network).layers if layer.kind == "pool")
            for label, network in networks.items()
        }
        assert all(fields[label] == fields[experiment.reference(label)] for label in fields)
        assert networks["5x5"].blocks[0].channels == networks["3x3, 2 times"].blocks[0].channels


@pytest.mark.parametrize("by", ["macs", "parameters"])
@pytest.mark.parametrize("blocks", ["1x16 1x32", "3x7 2x9k5", "4x64_bn"])
def test_channels_are_matched(by, blocks):
    """For images of three channels and 100 classes too."""
    target, network = (
        as_network(some, image_size=32, in_channels=3, num_classes=100, hidden=()) for some in ("2x40 2x80", blocks)
    )
    wanted = getattr(costs(target).total, by)
    assert getattr(costs(matched(network, wanted, by)).total, by) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipes": {"one": TINY}}, "expected at least 2 recipes to compare, got 1"),
        ({"seeds": 0}, "expected from 1 to 1,000 seeds, got 0"),
        ({"equal": "luck"}, "expected epochs, images, seconds, macs, parameters to be held equal, got 'luck'"),
        ({"against": {"b": "c"}}, "expected labels of recipes, got c"),
    ],
)
def test_what_cannot_be_compared_is_refused(options, message):
    values = {"name": "x", "question": "?", "recipes": {"a": TINY, "b": TINY}, **options}
    with pytest.raises(RecipeError, match=message):
        Experiment(**values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["image_size=32,64", "image_size=16,28"], "expected each field once in --vary, got image_size twice"),
        (["image_size=32,64", "--vary", "flip=true,false"], "expected --vary once, with all of its values"),
        (["image_size=32,64,32"], "expected different values of image_size, got 32 twice"),
        (["epochs=1,2", "--epochs", "5"], "expected epochs in --vary or as --epochs, got both"),
        (["image_size=32,64", "--size", "minutes"], "expected --size with the name of a question"),
        (["seed=0,1"], "expected --seeds, which gives the seeds"),
        (["epochs=1,2", "--equal", "images"], "expected other fields in --vary with --equal images"),
        (["image_size=32\n,64"], "expected values as in one line of CSV, got 'image_size=32"),
        (["image_size={[]:1},32"], "expected image_size from 1 to 65536, got '{\\[\\]:1}'"),
        (
            ["validation=2000,100", "architecture=1x4", "data=fashion-mnist-sample"],
            "expected validation below the 2000",
        ),
    ],
)
def test_what_cannot_be_varied_is_refused_in_a_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["experiment", "--vary", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_step_is_measured_with_no_more_images_than_there_are(monkeypatch):
    """10^6 random images of 1x4 would take 19 GB."""
    drawn, randn = [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: drawn.append(shape[0]) or randn(*shape, **options))
    recipe = TINY.changed(batch_size=10**6, validation=100)
    assert 0 < epoch_seconds(recipe, open_data(recipe.data), torch.device("cpu")) < 60
    assert drawn == [1_900]


def plan(labels, seeds):
    chosen = dict.fromkeys(labels, Chosen(TINY.architecture, TINY.epochs, 8, 1, 10, 1.0))
    return Plan(Experiment("x", "Which?", dict.fromkeys(labels, TINY), seeds), chosen)


def outcome(label, seed, accuracy, **values):
    return Outcome(label, seed, "a CPU", accuracy, 0.1, 2.0, 100.0, None, **values)


def test_a_planted_difference_is_found_and_a_planted_tie_is_not_decided():
    """Of 400 simulated experiments each; seeds are shared, so that their noise cancels."""
    draws, found = np.random.default_rng(0), {0.0: 0, 0.01: 0}
    for true_difference in found:
        for _ in range(400):
            outcomes = []
            for seed, shared in enumerate(draws.normal(0.9, 0.05, 5)):
                for label, shift in (("a", 0.0), ("b", true_difference)):
                    accuracy = shared + shift + draws.normal(0, 0.002)
                    outcomes.append(outcome(label, seed, accuracy))
            row = answered(plan("ab", 5), outcomes).rows[1]
            assert row.verdict in ("better", "not decided") or not true_difference
            found[true_difference] += row.verdict != "not decided"
    assert found[0.01] > 395
    assert 8 <= found[0.0] <= 34  # 5% of 400, within 3 standard deviations


def test_an_answer_says_what_the_numbers_support():
    values = {"a": (0.90, 0.91, 0.92), "b": (0.85, 0.86, 0.87), "c": (0.92, 0.90, 0.91), "d": (None, None, None)}
    outcomes = [
        outcome(label, seed, accuracy, diverged="" if accuracy else "no")
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
    assert all("interval" in str(report) for report in (answer.plot(), answer.report("vgg")[len(answer.sentences)]))
    assert not any("interval" in str(report) for report in (single.plot(), *single.report("vgg")))
    # On which side of 0 the bounds lie can be seen, where three digits would be the same.
    close = {"a": (0, 0, 0), "b": (0.0044, 0.0074, 0.0102), "c": (0.0043, 0.0074, 0.01026)}
    outcomes = [
        outcome(*each) for label, values in close.items() for each in zip(label * 3, range(3), values, strict=True)
    ]
    assert answered(plan("abc", 3), outcomes).sentences == [
        "b is better than a by 0.0073 ±0.0072.",
        "c against a: not decided (+0.0073 ±0.0074).",
    ]


COMMAND = [
    *("--vary", 'architecture="2x4k3,1",lenet', "learning_rate=0.01,1e6", "data=fashion-mnist-sample", "image_size=28"),
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
        kill_at(process, Path("runs/001/metrics.jsonl"))
    finished = Path("runs/000/model.safetensors").stat().st_mtime_ns
    assert cli.main(["experiment", *COMMAND, "-o", "answer.json"]) == 0
    assert Path("runs/000/model.safetensors").stat().st_mtime_ns == finished
    assert steady(unbroken / "answer.json") == steady(broken / "answer.json")
    trials = json.loads(Path("answer.json").read_text())["trials"]
    assert {trial["label"].split(", ")[0] for trial in trials} == {"2x4k3,1", "lenet"}  # a comma inside a value
    accuracies = [trial["accuracy"] for trial in trials]
    assert len(accuracies) == 4
    assert None in accuracies  # a rate of a million diverges, and is a result
    capsys.readouterr()
    reordered = ["learning_rate=1e6,0.01" if word.startswith("learning_rate") else word for word in COMMAND]
    for another in ([*COMMAND, "--seeds", "3"], reordered):  # others are compared with the first recipe
        assert cli.main(["experiment", *another]) == 2
        assert "runs was begun with, got another one" in capsys.readouterr().err


@pytest.mark.torture
def test_a_cluster_that_loses_a_machine_gives_the_same_numbers(tmp_path, monkeypatch):
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other tests, nice workers would hardly run
    command = ["experiment", "--vary", "architecture=1x8,1x4", "batch_size=16", "data=fashion-mnist-sample"]
    command += ["--seeds", "1", "--epochs", "6"]
    here, there = (
        [*command, "--runs", str(tmp_path / name), "-o", str(tmp_path / f"{name}.json")] for name in ("here", "there")
    )
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    threads = torch.get_num_threads()  # a trial asks for as many CPUs
    whole = [sys.executable, "-m", "vggkit", *there, "--ray", cluster.address]
    try:
        with subprocess.Popen(whole, stderr=subprocess.PIPE, text=True) as process:
            expected = f"waiting: a trial asks for {threads} CPUs, no machine of the cluster has them"
            assert expected in process.stderr.readline()
            machine = cluster.add_node(num_cpus=threads)
            wait_for(process, tmp_path / "there" / "000" / "metrics.jsonl")
            cluster.add_node(wait=False, num_cpus=threads)
            assert not (tmp_path / "there" / "000" / "outcome.json").exists()
            cluster.remove_node(machine, allow_graceful=False)
            process.communicate()
        assert process.returncode == 0
    finally:
        cluster.shutdown()
    assert cli.main(here) == 0
    assert steady(tmp_path / "here.json") == steady(tmp_path / "there.json")


def test_without_ray_it_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["--vary", "architecture=1x8,1x4", "--runs", str(tmp_path / "runs"), "--ray", "auto"]
    assert cli.main(["experiment", *arguments]) == 2
    expected = "vgg experiment: expected ray for --ray, got none, try pip install 'vggkit[cluster]'\n"
    assert capsys.readouterr().err == expected
