import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.inference.conftest import CLASSES, MEAN, STD, make_weights
from vggkit import (
    Classifier,
    PerceptualLoss,
    cli,
    evaluate,
    features,
    load_classifier,
    load_weights,
    predict,
    save_weights,
    vgg,
)  # fmt: skip

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.fixture
def model(weights):
    return load_classifier(weights)


@pytest.fixture
def folder(tmp_path):
    """Three images, one of them in a folder of its own, and what is none."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.png", "more/c.png"]):
        Image.fromarray(np.roll(PIXELS, number, axis=0)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def by_hand(weights, pixels):
    """The probabilities that plain torch gives for uint8 (16, 16, 3)."""
    net, _ = load_weights(weights)
    x = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        return net(x.unsqueeze(0)).softmax(dim=1)[0]


def ways(pixels, path):
    """The same image in every way that a user may have it."""
    Image.fromarray(pixels).save(path)
    channels_first = torch.from_numpy(pixels).permute(2, 0, 1)
    with path.open("rb") as file:
        yield file
    yield from (
        path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), Image.open(path), Image.fromarray(pixels),
        pixels, np.asfortranarray(pixels), channels_first, channels_first / 255, channels_first.double() / 255,
        np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
    )  # fmt: skip


def test_an_image_may_come_in_every_way(model, weights, tmp_path):
    expected = by_hand(weights, PIXELS)
    images = []
    for image in ways(PIXELS, tmp_path / "image.png"):
        best = model(image, top=9)
        assert [p.label for p in best] == [CLASSES[i] for i in expected.argsort(descending=True)]
        assert [p.probability for p in best] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-5)
        if not hasattr(image, "read"):
            images.append(image)
    for several in (images, tuple(images), iter(images)):
        assert [best[0].label for best in predict(model, several)] == [CLASSES[expected.argmax()]] * len(images)
    for batch in (np.stack([PIXELS] * 2), torch.from_numpy(PIXELS).permute(2, 0, 1).expand(2, -1, -1, -1)):
        assert len(predict(model, batch)) == 2
    assert predict(weights, [tmp_path / "image.png"]) == [predict(str(weights), str(tmp_path / "image.png"))]


def test_grey_and_colour_become_what_the_network_takes(model, tmp_path):
    grey = PIXELS[..., 0]
    three = [p.probability for p in model(np.dstack([grey] * 3))]
    for image in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None] / 255):
        assert [p.probability for p in model(image)] == pytest.approx(three, abs=1e-6)
    narrow = load_classifier(make_weights(tmp_path / "grey.safetensors", channels=1))
    luminance = np.asarray(Image.fromarray(PIXELS).convert("L"))
    expected = [p.probability for p in narrow(luminance)]
    assert [p.probability for p in narrow(PIXELS)] == expected
    floats = torch.from_numpy(PIXELS).permute(2, 0, 1) / 255
    assert [p.probability for p in narrow(floats)] == pytest.approx(expected, abs=0.01)  # not rounded to 8 bits


def test_an_image_of_pillows_is_read_as_its_file_is_and_left_alone(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(PIXELS[:, :9]).save(tmp_path / "turned.png", exif=exif)
    opened = Image.open(tmp_path / "turned.png")
    assert model(opened) == model(tmp_path / "turned.png") != model(PIXELS[:, :9])
    assert opened.size == (9, 16)
    assert opened.getexif()[0x0112] == 6


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("https://a.org/cat.png", "https://a.org/cat.png: expected an image file, got an address, try to download"),
        ("nowhere.png", "nowhere.png: expected an image file, got nothing there"),
        (3, "the image: expected a path, bytes, an open file, a Pillow image, .* got int"),
        (None, "got NoneType"),
        ({"image": PIXELS}, "got dict"),
        ([PIXELS, [PIXELS]], "image 1: expected a path, .* got list"),
        (PIXELS / 255, r"got float64 ndarray of \(16, 16, 3\)"),
        (PIXELS.transpose(2, 0, 1), r"got uint8 ndarray of \(3, 16, 16\)"),
        (PIXELS[:0], r"got uint8 ndarray of \(0, 16, 3\)"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), r"got int64 Tensor of \(3, 4, 4\)"),
        (torch.full((3, 4, 4), 255.0), r"float in \[0, 1\], got .* from 255 to 255"),
        (torch.full((3, 4, 4), torch.nan), r"float in \[0, 1\], got .* from nan to nan"),
        (torch.zeros(2, 4, 4), r"got float32 Tensor of \(2, 4, 4\)"),
        (b"no image", "the image: expected a PNG, JPEG, WebP, GIF, BMP or TIFF image, got something else"),
        (io.StringIO("text"), "got StringIO"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(model, image, message):
    with pytest.raises(ValueError, match=message) as caught:
        model(image)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: load_classifier(3), "expected a run, a weight file or a classifier, got int, try"),
        (lambda model: predict(model.net, PIXELS), r"got VGG, try Classifier\(net, classes, preprocessing\)"),
        (lambda model: evaluate(model.net, "photos"), r"got VGG, try Classifier\(net, classes, preprocessing\)"),
        (lambda model: evaluate(model, [PIXELS]), "expected labelled images, got list, try open_data"),
        (lambda model: evaluate(model), r"expected data to measure on, .* try evaluate\(model, 'photos'\)"),
        (lambda model: predict(model, PIXELS, "3"), "expected a top from 1, got '3'"),
        (lambda model: features(model.net, PIXELS, ["relu1_1"]), "got VGG, try Classifier"),
        (lambda model: features(model, PIXELS, 3), "expected a list of layers, got int, try"),
        (lambda model: features(model, PIXELS, "relu1_1"), "expected a list of layers, got 'relu1_1', try"),
        (lambda model: features(model, 3, ["relu1_1"]), "the image: expected a path, .* got int"),
        (lambda model: load_classifier(model.source, mean=0.5), "expected a number for each channel as mean and std"),
        (lambda model: load_classifier(model.source, preprocessing="x"), "expected a preprocessing of torchvision"),
        (lambda model: PerceptualLoss(model, model.preprocessing), "expected a VGG network, got Classifier, try"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_one_line(model, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(model)
    assert str(caught.value).isprintable()


def test_a_network_in_memory_is_a_classifier_of_its_own(model):
    again = Classifier(model.net, model.classes, model.preprocessing)
    assert again(PIXELS) == model(PIXELS)
    assert repr(again).endswith("from memory")


def test_a_classifier_is_shown_in_a_line(model, weights):
    text = repr(model)
    assert text.startswith("1x4 1x8_bn: 3 classes (cat, dog, owl), 3 x 16 x 16 pixels, ")
    assert text.endswith(f"on cpu, from {weights}")
    assert model._repr_html_() == f"<code>{text}</code>"
    assert repr(model(PIXELS)[:1]) == f"[{model(PIXELS)[0].label} {model(PIXELS)[0].probability:.1%}]"


def test_a_folder_is_predicted_in_batches(model, folder, monkeypatch):
    monkeypatch.setattr("vggkit.inference.predict.BATCH_IMAGES", 2)
    alone = [model(folder / name) for name in ("a.png", "b.png", "more/c.png")]
    for expected, got in zip(alone, model(folder), strict=True):
        assert [p.label for p in got] == [p.label for p in expected]
        assert [p.probability for p in got] == pytest.approx([p.probability for p in expected], abs=1e-5)
    (folder / "more" / "none").mkdir()
    with pytest.raises(ValueError, match="more/none: expected image files in a folder, got none"):
        model(folder / "more" / "none")


def test_good_images_are_predicted_beside_a_bad_one_which_is_named(weights, folder, tmp_path, capsys):
    (folder / "bad.png").write_text("no")
    files = [str(folder / name) for name in ("b.png", "bad.png", "a.png")]
    assert cli.main(["predict", str(weights), *files]) == 2
    printed = capsys.readouterr()
    assert [line.partition(":")[0] for line in printed.out.splitlines()] == [files[0], files[2]]
    (line,) = printed.err.splitlines()
    assert line.startswith(f"vgg predict: {files[1]}: expected a PNG, JPEG, WebP, GIF, BMP or TIFF image")
    assert cli.main(["predict", str(weights), str(folder), "--json", "--top", "99"]) == 2
    data = json.loads(capsys.readouterr().out)
    assert [entry["image"] for entry in data] == [str(folder / name) for name in ("a.png", "b.png", "more/c.png")]
    for entry in data:
        assert sum(p["probability"] for p in entry["predictions"]) == pytest.approx(1, abs=1e-5)


def test_features_of_many_images_are_those_of_each(weights, model, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vggkit.inference.predict.BATCH_IMAGES", 2)
    (folder / "bad.png").write_text("no")
    out = tmp_path / "features.safetensors"
    assert cli.main(["features", str(weights), str(folder), "--layers", "relu2_1", "fc3", "-o", str(out)]) == 2
    printed = capsys.readouterr()
    assert "bad.png" in printed.err
    assert "3x8x8x8" in printed.out
    with safe_open(out, "pt") as file:
        names = json.loads(file.metadata()["images"])
        assert names == [str(folder / name) for name in ("a.png", "b.png", "more/c.png")]
        for layer in ("relu2_1", "fc3"):
            alone = torch.cat([features(model, name, [layer])[layer] for name in names])
            torch.testing.assert_close(file.get_tensor(layer), alone)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.safetensors", "photos"]


def test_values_that_are_not_finite_are_refused(folder, tmp_path, capsys):
    path = make_weights(tmp_path / "inf.safetensors", change=lambda net: net.fc3.weight.data.fill_(3e38))
    for arguments in (
        ["predict", str(path), str(folder)],
        ["features", str(path), str(folder), "--layers", "fc3", "-o", str(tmp_path / "out.safetensors")],
    ):
        assert cli.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "expected weights that give finite " in line
        assert "a.png" in line
    assert not (tmp_path / "out.safetensors").exists()
    features(path, folder / "a.png", ["relu2_1"])  # before the value that is not finite


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"classes": "[" * 100_000}, "expected a list of printable texts as 'classes'"),
        ({"classes": json.dumps(["\x1b[31mred"] * 3)}, "expected a list of printable texts as 'classes'"),
        ({"preprocessing": "{}"}, "expected image_size, channels, mean and std as JSON"),
        ({"classes": json.dumps(["a"])}, "expected classes and preprocessing that fit the architecture"),
    ],
)
def test_hostile_metadata_is_refused(tmp_path, capsys, metadata, message):
    path = make_weights(tmp_path / "hostile.safetensors", **metadata)
    assert cli.main(["predict", str(path), "x.png"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert line.isprintable()


def test_a_network_too_large_for_one_image_is_refused(tmp_path, capsys):
    net = vgg([(1, 1)] * 16, image_size=65536, hidden=(), num_classes=1)
    preprocessing = '{"image_size": 65536, "channels": 1, "mean": [0], "std": [1]}'
    save_weights(tmp_path / "huge.safetensors", net, {"classes": '["a"]', "preprocessing": preprocessing})
    assert cli.main(["predict", str(tmp_path / "huge.safetensors"), "x.png"]) == 2
    assert "expected a network whose activations take at most" in capsys.readouterr().err
