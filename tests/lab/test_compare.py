"""Networks side by side: the same figures as `evaluate`, McNemar's test as scipy has it, the front by brute force."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from scipy import stats

from vggkit import cli, costs, evaluate, train
from vggkit.data.sources import open_data
from vggkit.errors import UserError
from vggkit.lab.compare import DISAGREEMENTS, compare
from vggkit.weights.files import load_weights, save_weights


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    options = {"data": "fashion-mnist-sample", "epochs": 1, "image_size": 28, "progress": False}
    for name, architecture in (("a", "1x8 1x16"), ("b", "1x8"), ("c", "lenet")):
        train("quick", out=folder / name, architecture=architecture, **options)
    return [folder / name for name in "abc"]


def test_figures_are_those_of_the_verbs_and_of_scipy(runs):
    comparison = compare(runs, device="cpu")
    for each, run in zip(comparison.networks, runs, strict=True):
        assert each.evaluation.accuracy == evaluate(run, "fashion-mnist-sample").accuracy
        assert each.cost.parameters == costs(each.classifier.net.architecture).total.parameters
        assert each.examples_per_second > 0
    facts = comparison.to_json()
    right = [each.evaluation.predicted == each.evaluation.labels for each in comparison.networks]
    for pair, (i, j) in zip(facts["pairs"], ((0, 1), (0, 2), (1, 2)), strict=True):
        only = int((right[i] & ~right[j]).sum()), int((~right[i] & right[j]).sum())
        assert (pair["only_first"], pair["only_second"]) == only
        named = only if pair["sentence"].startswith(pair["models"][0]) else only[::-1]
        assert f"({named[0]} and {named[1]} images right alone" in pair["sentence"]
        assert pair["p"] == pytest.approx(stats.binomtest(only[0], sum(only), 0.5).pvalue)
    front = {each.name for each in comparison.front}
    points = {each.name: (each.evaluation.accuracy, each.examples_per_second) for each in comparison.networks}
    for name, (accuracy, speed) in points.items():
        beaten = any(a >= accuracy and s >= speed and (a, s) != (accuracy, speed) for a, s in points.values())
        assert (name in front) != beaten
    index, label, taken = comparison.disagreements()[0]
    all_right = np.stack(right)[:, index]
    assert all_right.any()
    assert not all_right.all()
    assert [name == label for name in taken] == all_right.tolist()
    assert [row[0] for row in comparison.differences().sections[0]] == ["architecture"]


def test_the_verb_prints_tables_and_writes_reports(runs, tmp_path, capsys):
    names, page, picture = [str(run) for run in runs], tmp_path / "a.html", tmp_path / "a.svg"
    assert cli.main(["compare", *names, "--csv", "-o", str(page), "--scatter", str(picture), "--device", "cpu"]) == 0
    first, *_ = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert first["model"] == names[0]
    assert float(first["top1"]) + float(first["top1_err"]) == pytest.approx(100)
    assert float(first["top1"]) < float(first["top5"]) == pytest.approx(100 - float(first["top5_err"]))
    text = page.read_text()
    assert text.count("<svg") == 3  # accuracy against throughput, the curves, and the images on which they disagree
    assert text.count("data:image/png;base64,") == DISAGREEMENTS
    assert "<script" not in text
    assert not re.search(r'(src=|href="(?!#|data:)|url\((?!#)|@import)', text)  # nothing is fetched
    assert "vgg compare" in text
    assert all(name[-37:] in picture.read_text() for name in names)
    assert cli.main(["compare", *names[:2], "--json", "-o", str(tmp_path / "a.md"), "--device", "cpu"]) == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 2
    assert (tmp_path / "a.md").read_text().startswith("# Networks compared\n")


def test_the_order_of_the_classes_does_not_matter(runs, tmp_path):
    """The same network with its classes turned round, in a weight file without a run."""
    net, metadata = load_weights(runs[0] / "model.safetensors")
    names = json.loads(metadata["classes"])
    last = next(module for module in reversed(list(net.modules())) if isinstance(module, torch.nn.Linear))
    last.weight.data, last.bias.data = last.weight.data.flip(0), last.bias.data.flip(0)
    turned = tmp_path / "turned.safetensors"
    save_weights(turned, net, {**metadata, "classes": json.dumps(names[::-1])})
    comparison = compare([turned, runs[0], runs[1]], device="cpu")
    assert comparison.pairs[0]["only_first"] == comparison.pairs[0]["only_second"] == 0
    assert comparison.pairs[1]["only_first"] == comparison.pairs[2]["only_first"] > 0
    assert comparison.networks[0].evaluation.top5 == comparison.networks[1].evaluation.top5
    for index, label, taken in comparison.disagreements():
        image = open_data("fashion-mnist-sample").held_out
        assert label == comparison.data.classes[image.labels[index]]
        assert taken[0] == taken[1]
    assert "turned" not in comparison.curves()


def test_what_cannot_be_compared(runs, tmp_path):
    with pytest.raises(UserError, match="expected at least 2 models to compare, got 1"):
        compare(runs[:1])
    with pytest.raises(UserError, match="expected --data with weight files alone, got"):
        compare([shutil.copy(runs[0] / "model.safetensors", tmp_path / f"{name}.safetensors") for name in "xy"])
