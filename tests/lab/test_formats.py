"""`vgg bench --formats`: every format of one network, each measured by its own runtime."""

import json
import re
import sys

import pytest

from tests.inference.conftest import make_weights
from vggkit import cli, evaluate, open_data
from vggkit.lab.formats import bench_formats

ALWAYS = ["vggkit", "PyTorch", "vggkit, head bfloat16", "vggkit, head int8", "torch.export"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    sample = open_data("fashion-mnist-sample")
    return make_weights(tmp_path_factory.mktemp("formats") / "net.safetensors", channels=1, labels=sample.classes)


def test_every_format_is_measured_and_what_is_missing_is_named(weights, capsys):
    pytest.importorskip("onnxruntime")
    flags = ["--formats", "--data", "fashion-mnist-sample", "--num-images", "1000", "--batch-size", "3", "--json"]
    assert cli.main(["bench", str(weights), *flags]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["format"]: row for row in told["rows"]}
    assert set(ALWAYS) | {"ONNX", "ONNX, int8", "ONNX, int8 head"} <= rows.keys()
    accuracy = evaluate(weights, "fashion-mnist-sample").accuracy
    assert rows["PyTorch"]["largest_difference"] == 0
    assert rows["vggkit"]["file_bytes"] == weights.stat().st_size
    for name in ("vggkit", "ONNX", "torch.export"):
        assert rows[name]["top1"] == pytest.approx(accuracy, abs=0.002)
        assert rows[name]["largest_difference"] < 1e-4
    for name in ("ONNX, int8", "ONNX, int8 head", "vggkit, head int8", "vggkit, head bfloat16"):
        assert 1e-5 < rows[name]["largest_difference"] < 0.2
        assert rows[name]["top1"] == pytest.approx(accuracy, abs=0.03)
    assert all(len(row["seconds"]) == 5 and min(row["seconds"]) > 0 for row in rows.values())
    assert "timm" in told["left_out"]  # which has no such network, or is not there
    assert told["measured_on"] == "1,000 test images of fashion-mnist-sample"


def test_classes_of_something_else_have_no_accuracy(tmp_path, monkeypatch):
    monkeypatch.setattr("vggkit.lab.formats.EXPORTED", {"torch.export": ("net.pt2", None)})
    rows = bench_formats(make_weights(tmp_path / "x.safetensors"), images=3).rows
    assert {row.format: row.top1 for row in rows} == dict.fromkeys(ALWAYS)


def test_large_rates_are_whole_numbers_and_a_missing_package_is_named(weights, capsys, monkeypatch):
    monkeypatch.setattr("vggkit.lab.formats.EXPORTED", {"OpenVINO": ("net.xml", None)})
    monkeypatch.setitem(sys.modules, "openvino", None)
    flags = ["--formats", "--data", "fashion-mnist-sample", "--num-images", "3", "--batch-size", "64"]
    assert cli.main(["bench", str(weights), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"PyTorch +0\.\d +\d+\.\d\d +[\d,]+ +\d+\.\d% +0e\+00", lines[4])
    assert lines[-1] == "not measured: OpenVINO, needs openvino, try pip install 'openvino'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--formats", "--train"], "expected inference on the CPU for --formats"),
        (["vgg16", "--data", "photos"], "expected --formats with --data"),
        (["no such file", "--formats"], "no such file"),
        (["WEIGHTS", "--formats", "--num-images", "0"], "expected images from 1, got 0"),
        (["WEIGHTS", "--formats", "--data", "no such data"], "got 'no such data'"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments, message, weights, capsys):
    assert cli.main(["bench", *[str(weights) if word == "WEIGHTS" else word for word in arguments]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
