"""Networks side by side: the same figures as `evaluate`, McNemar's test as scipy has it, the front by brute force."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
from scipy import stats

from vggkit import cli, costs, evaluate, train
from vggkit.errors import UserError
from vggkit.lab.compare import compare


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
    names = [str(run) for run in runs[:2]]
    assert cli.main(["compare", *names, "--csv", "-o", str(tmp_path / "a.html"), "--device", "cpu"]) == 0
    first, _ = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert first["model"] == names[0]
    assert float(first["top1"]) + float(first["top1_err"]) == pytest.approx(100)
    page = (tmp_path / "a.html").read_text()
    assert page.count("<svg") == 1
    assert "<script" not in page
    assert not re.search(r'(src=|href="[^#]|url\((?!#)|@import)', page)  # nothing is fetched
    assert cli.main(["compare", *names, "--json", "-o", str(tmp_path / "a.md"), "--device", "cpu"]) == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 2
    assert (tmp_path / "a.md").read_text().startswith("# Networks compared\n")


def test_what_cannot_be_compared(runs, tmp_path):
    with pytest.raises(UserError, match="expected at least 2 models to compare, got 1"):
        compare(runs[:1])
    with pytest.raises(UserError, match="expected --data with a weight file alone, got"):
        compare([shutil.copy(runs[0] / "model.safetensors", tmp_path / "x.safetensors"), runs[1]])
