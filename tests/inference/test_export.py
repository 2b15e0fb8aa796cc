"""Exported files in their own runtimes. Oracles: plain torch on the same weights, torch's adaptive pooling, Pillow."""

import hashlib
import json
import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.inference.conftest import CLASSES, make_weights
from tests.peers import peer
from tests.weights.test_translation import filled
from vggkit import VGG, Architecture, Classifier, Preprocessing, cli, evaluate, load_classifier, open_data
from vggkit.errors import ExportError
from vggkit.inference.export import export
from vggkit.inference.export_formats import FORMATS
from vggkit.inference.export_graph import Average, Prepare
from vggkit.inference.export_int8 import compare_accuracy

RNG = np.random.default_rng(0)
PREPROCESSING = Preprocessing(16, 3, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), order="bgr", resize="crop", crop_fraction=0.8)


def photo(height, width):
    coarse = Image.fromarray(RNG.integers(0, 256, (height // 5 + 2, width // 5 + 2, 3), np.uint8))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))


def classifier(text, preprocessing=PREPROCESSING, **options):
    torch.manual_seed(0)
    arch = Architecture.parse(text, image_size=16, in_channels=preprocessing.channels, num_classes=3, **options)
    return Classifier(VGG(arch).eval(), CLASSES, preprocessing)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 23])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_average_is_that_of_torch_at_every_size(length, size):
    x = torch.randn(2, 3, length, 11, dtype=torch.float64)
    torch.testing.assert_close(Average(size)(x), F.adaptive_avg_pool2d(x, size))
    fit = F.adaptive_avg_pool2d(x, (max(length, size), 11))
    torch.testing.assert_close(Average(size, at_least=True)(x), fit)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(16, 16), (28, 28), (60, 45), (9, 200)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_preprocessing_in_the_graph_is_that_of_pillow(shape, interpolation, channels):
    image = Image.fromarray(photo(*shape))
    side, short = 16, 20  # the shorter side becomes 16 / 0.8
    wide, high = (short * length // min(shape) for length in shape[::-1])
    left, top = round((wide - side) / 2), round((high - side) / 2)
    box = (
        left * shape[1] / wide,
        top * shape[0] / high,
        (left + side) * shape[1] / wide,
        (top + side) * shape[0] / high,
    )
    filtered = image.convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(filtered.resize((side, side), Image.Resampling[interpolation.upper()], box)).reshape(
        side, side, -1
    )
    expected = (pixels / 255 - 0.5) / 0.25
    how = Preprocessing(
        side,
        channels,
        (0.5,) * channels,
        (0.25,) * channels,
        resize="crop",
        crop_fraction=0.8,
        interpolation=interpolation,
    )
    got = Prepare(how)(torch.from_numpy(np.array(image))[None])[0].permute(1, 2, 0).numpy()
    levels = np.abs(got - expected) * 0.25 * 255
    assert levels.max() < 2.01  # where float32 and Pillow's integers round a half to two sides, in both passes
    assert levels.mean() < 0.25


def test_a_file_of_onnx_gives_the_networks_logits_at_every_size(tmp_path):
    model = classifier("1x4+lrn 1x8_bn", head="conv", hidden=(6,), pooled_size=3)
    done = export(model, tmp_path / "net.onnx", "fashion-mnist-sample")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for shape in ((1, 3, 16, 16), (3, 3, 47, 21), (2, 3, 8, 30)):
        x = torch.randn(shape)
        (logits,) = session.run(None, {"images": x.numpy()})
        with torch.no_grad():
            expected = model.net.double()(x.double())
        torch.testing.assert_close(torch.from_numpy(logits), expected.float(), rtol=1e-4, atol=1e-5)
    assert [check["batch"] for check in done.manifest["checks"]] == [
        [count, 3, *size] for size in ((16, 16), (20, 25)) for count in (1, 2, 7)
    ]
    assert {tuple(sorted(path.name for path in tmp_path.iterdir()))} == {("net.onnx", "net.onnx.json")}


def test_openvino_gives_the_networks_logits_at_every_size_and_knows_the_classes(tmp_path):
    openvino = peer("openvino")
    model = classifier("1x4 1x8_bn", head="conv", hidden=(6,), pooled_size=3)
    export(model, tmp_path / "net.xml", "fashion-mnist-sample")
    read = openvino.Core().read_model(tmp_path / "net.xml")
    compiled = openvino.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for shape in ((1, 3, 16, 16), (3, 3, 47, 21)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(compiled(x.numpy())[0]), model.net(x), rtol=1e-4, atol=1e-4)
    assert json.loads(read.get_rt_info(["vggkit", "classes"]).astype(str)) == list(CLASSES)


@pytest.mark.parametrize("test_flip", [False, True])
def test_a_file_with_preprocessing_takes_photos_and_says_what_it_is(test_flip, tmp_path, capsys):
    how = Preprocessing(16, 1, (0.5,), (0.25,), test_flip=test_flip)
    weights = make_weights(tmp_path / "grey.safetensors", channels=1, preprocessing=how.to_json())
    out = tmp_path / "net.onnx"
    assert cli.main(["export", str(weights), "-o", str(out), "--with-preprocessing", "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest == json.loads((tmp_path / "net.onnx.json").read_text())
    assert manifest["files"] == {
        "net.onnx": {"bytes": out.stat().st_size, "sha256": hashlib.sha256(out.read_bytes()).hexdigest()}
    }
    assert manifest["weights"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert manifest["versions"]["onnxruntime"] == onnxruntime.__version__
    texts = {entry.key: json.loads(entry.value) for entry in onnx.load(out).metadata_props}
    assert texts["classes"] == manifest["classes"] == list(CLASSES)
    assert texts["preprocessing"] == manifest["preprocessing"]
    session, model = onnxruntime.InferenceSession(out), load_classifier(weights)
    for shape in ((16, 16), (40, 75)):
        image = photo(*shape)
        (probabilities,) = session.run(None, {"images": np.stack([image, image[::-1]])})
        for row, one in zip(probabilities, (image, image[::-1]), strict=True):
            expected = {p.label: p.probability for p in model(np.ascontiguousarray(one))}
            assert dict(zip(CLASSES, row, strict=True)) == pytest.approx(expected, abs=0.01)


def test_a_program_of_torch_is_written_whole(tmp_path, capsys):
    weights = make_weights(tmp_path / "net.safetensors")
    assert cli.main(["export", str(weights), "-o", str(tmp_path / "net.pt2")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("logits (batch, 3) for float32 (batch, 3, 16, 16)")
    assert second.startswith(f"torch {torch.__version__} on 7 images of fashion-mnist-sample, 3 batches: same top-1")
    run, x = torch.export.load(tmp_path / "net.pt2").module(), torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(run(x), load_classifier(weights).net(x))


@pytest.mark.parametrize("which", ["all", "head"])
def test_int8_is_measured_on_images_kept_out(tmp_path, which):
    sample = open_data("fashion-mnist-sample")
    how = Preprocessing(16, 1, (0.3,), (0.35,))
    torch.manual_seed(0)
    head = {"head": "adaptive", "pooled_size": 3} if which == "head" else {}
    arch = Architecture.parse("1x4 1x8_bn", image_size=16, in_channels=1, num_classes=10, hidden=(64,), **head)
    model = Classifier(VGG(arch).eval(), sample.classes, how)
    out = tmp_path / "net.onnx"
    known = export(model, out, "fashion-mnist-sample", int8=which, max_drop=100).manifest["int8"]
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(out).graph.initializer}
    int8 = {name.removesuffix("_quantized") for name, kind in kinds.items() if kind == onnx.TensorProto.INT8}
    assert {"fc3.weight", "fc4.weight"} <= int8
    assert ("block1.conv1_1.weight" in int8) == (which == "all")
    x = how(torch.from_numpy(sample.held_out.pixels.copy())[:, None])
    (logits,) = onnxruntime.InferenceSession(out).run(None, {"images": x.contiguous().numpy()})
    with torch.no_grad():
        plain = model.net(x).numpy()
    is_right, was_right = (outputs.argmax(1) == sample.held_out.labels for outputs in (logits, plain))
    assert known["top1_int8"] == pytest.approx(is_right.mean(), abs=0.002)
    assert known["top1_float32"] == pytest.approx(was_right.mean(), abs=0.002)
    assert known["measured_on"] == "1,000 test images of fashion-mnist-sample"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.json"]


def test_int8_beyond_its_limit_is_refused_with_the_numbers():
    sample = open_data("fashion-mnist-sample")
    net = VGG(Architecture.parse("1x4", image_size=8, in_channels=1, num_classes=10, hidden=())).eval()
    model = Classifier(net, sample.classes, Preprocessing(8, 1, (0.3,), (0.35,)))
    always_the_first = torch.eye(10)[:1]
    was_right = (evaluate(model, sample).predicted == sample.held_out.labels).sum()
    with pytest.raises(
        ExportError,
        match=f"expected int8 to lose at most -50 points of top-1, got {was_right / 10:.2f}% to 10.00% on 1,000 test images of "
        r"fashion-mnist-sample \(McNemar's p .*\), and wrote nothing",
    ):
        compare_accuracy(lambda x: always_the_first.expand(len(x), -1), model, sample, max_drop=-50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"int8": "half"}, "expected int8 as all or head, for .onnx without preprocessing in the graph, got 'half'"),
        ({"int8": "all", "with_preprocessing": True}, "expected int8 as all or head, for .onnx without preprocessing"),
        ({"int8": "all"}, "expected data with training images to calibrate int8, got none, try --calibrate DATA"),
    ],
)
def test_int8_that_cannot_be_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(classifier("1x4"), tmp_path / "net.onnx", **options)


@pytest.mark.parametrize("wrong", [lambda x: torch.zeros(len(x), 3), lambda x: torch.full((len(x), 3), torch.nan)])
def test_a_file_whose_runtime_says_something_else_is_never_written(tmp_path, monkeypatch, wrong):
    monkeypatch.setitem(FORMATS, ".pt2", FORMATS[".pt2"]._replace(open=lambda path: wrong))
    with pytest.raises(
        ExportError, match=r"expected torch to give the network's outputs, got a difference of .* wrote nothing"
    ):
        export(classifier("1x4"), tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("net.safetensors", "expected a format of another library, got .*, try 'vgg weights convert'"),
        ("net.tflite", "expected a .onnx, .pt2, .xml file or a new folder for timm"),
        ("missing/net.onnx", "in a folder that exists, got .*missing"),
        ("", "or a new folder for timm"),
        ("\udcff.onnx", r"expected a name in UTF-8, got .*\\xff.onnx"),
        (3, "expected a path to export to, got int"),
    ],
)
def test_a_path_that_cannot_be_is_refused_before_the_work(tmp_path, path, message):
    with pytest.raises(ValueError, match=message):
        export("no such model", path if path == 3 else tmp_path / path)


@pytest.mark.parametrize("max_drop", [math.nan, math.inf, -0.1, 100.1, "1"])
def test_a_drop_that_cannot_be_is_refused_before_the_work(tmp_path, max_drop):
    with pytest.raises(ValueError, match="expected (max_drop from 0 to 100 points|points) of top-1"):
        export("no such model", tmp_path / "net.onnx", int8="all", max_drop=max_drop)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(
        ValueError,
        match="expected the packages onnx, onnxscript, onnxruntime for ONNX, got no onnxscript installed, try pip install 'vggkit\\[export\\]'",
    ):
        export("no such model", tmp_path / "net.onnx")


@pytest.mark.torture  # a file of 530 MB
def test_timm_loads_the_folder_with_its_classes_and_preprocessing(tmp_path, monkeypatch):
    timm = peer("timm")
    net = filled(lambda: VGG(Architecture.parse("vgg11", num_classes=3)))
    how = Preprocessing(224, 3, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0), "bgr", 255.0, "crop", 0.875)
    model = Classifier(net, CLASSES, how)
    export(model, tmp_path / "vgg11")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'vgg11'}", pretrained=True).eval()
    assert theirs.pretrained_cfg["label_names"] == list(CLASSES)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    image = Image.fromarray(photo(300, 400))
    with torch.no_grad():
        got = theirs(transform(image)[None]).softmax(dim=1)[0]
    expected = {p.label: p.probability for p in model(image)}
    assert dict(zip(CLASSES, got.tolist(), strict=True)) == pytest.approx(expected, abs=0.02)
    with pytest.raises(ValueError, match="expected one of timm's networks"):
        export(classifier("1x4"), tmp_path / "small")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vgg11", "vgg11.json"]

    # From the hub, of which the library keeps what it has fetched in this layout.
    commit, repository = "0" * 40, tmp_path / "hub" / "models--someone--vgg11"
    for folder in ("refs", "snapshots"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (tmp_path / "vgg11").rename(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fetched = timm.create_model("hf-hub:someone/vgg11", pretrained=True, cache_dir=tmp_path / "hub").eval()
    assert fetched.pretrained_cfg["label_names"] == list(CLASSES)
    with torch.no_grad():
        assert fetched(transform(image)[None]).softmax(dim=1)[0].equal(got)
