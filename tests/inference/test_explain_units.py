"""What a unit looks for, where that is known; and what `vgg explain` writes."""

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.inference.conftest import make_weights
from vggkit import VGG, Architecture, Classifier, Preprocessing, cli, explain, load_classifier
from vggkit.inference.explain_check import check
from vggkit.inference.explain_units import exciting_patches, first_filters, maximised

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 28, 3), np.uint8)
GREY = Preprocessing(16, 1, (0.5,), (0.25,))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Classifier(
        VGG(Architecture.parse("1x4 2x6", image_size=16, in_channels=1, num_classes=3, hidden=())).eval(),
        ("a", "b", "c"),
        GREY,
    )


def answer(model, unit, pixels):
    """What a unit's layer puts out in the middle of an image, or as the only thing that it puts out."""
    layer, number = unit.split(":")
    x = model.preprocessing.normalize(torch.tensor(pixels).movedim(-1, 0)[None] / 255)
    with torch.no_grad():
        output = model.net.features(x, [layer])[layer][0, int(number)]
    return output[output.shape[0] // 2, output.shape[1] // 2].item() if output.ndim else output.item()


@pytest.mark.parametrize("unit", ["conv1_1:2", "relu2_1:3", "conv2_2:5", "fc3:1"])
def test_the_maximised_image_excites_the_unit_more_than_others_do(model, unit):
    image = maximised(model, unit)
    noise = np.random.default_rng(0).integers(0, 256, (50, *image.shape), np.uint8)
    assert answer(model, unit, image) > max(answer(model, unit, other) for other in noise)
    assert np.array_equal(image, maximised(model, unit))
    if unit == "conv2_2:5":
        assert not np.array_equal(image, maximised(model, unit, seed=1))
    assert all(parameter.grad is None for parameter in model.net.parameters())


def test_a_unit_of_a_known_filter_gets_its_picture(model):
    """A filter for edges is answered to most by dark beside bright."""
    conv = model.net.block1.conv1_1
    with torch.no_grad():
        conv.weight[0] = torch.tensor([-1.0, 0, 1]).expand(1, 3, 3)
    image = maximised(model, "conv1_1:0")[..., 0]
    assert image.shape == (4, 4)
    assert image[1:, 1].max() + 60 < image[1:, 3].min()


@pytest.mark.parametrize(("layer", "side", "stride"), [("conv1_1", 3, 1), ("pool1", 4, 2), ("relu2_1", 8, 2)])
def test_the_patches_are_where_the_layer_is_most_active(model, layer, side, stride):
    """A patch alone, put where its centre meets a place of the map, gives the value again."""
    images = list(np.random.default_rng(0).integers(0, 256, (12, 16, 16), np.uint8))
    maps = model.net.features(model.preprocessing.scaled(torch.tensor(np.array(images))[:, None]), [layer])[layer][:, 1]
    best = exciting_patches(model, f"{layer}:1", images)
    assert [patch.value for patch in best] == pytest.approx(sorted(maps.amax((1, 2)).tolist(), reverse=True)[:9])
    assert [patch.image for patch in best] == [f"image {n}" for n in maps.amax((1, 2)).argsort(descending=True)[:9]]
    for patch in best:
        row, column = divmod(int(maps[int(patch.image[6:])].argmax()), maps.shape[2])
        top, left = (index * stride + (stride - side) // 2 for index in (row, column))
        if min(top, left) >= 0 and max(top, left) + side <= 16:
            assert np.array_equal(
                patch.pixels[..., 0], images[int(patch.image[6:])][top : top + side, left : left + side]
            )
        assert patch.pixels.shape == (side, side, 1)


def test_a_patch_holds_all_that_its_unit_sees(model):
    """Noise around the patch changes nothing."""
    rng, inside = np.random.default_rng(0), 0
    for image in rng.integers(0, 256, (20, 16, 16), np.uint8):
        (patch,) = exciting_patches(model, "conv2_1:0", [image])
        for y, x in np.ndindex(9, 9):
            window = (slice(y, y + 8), slice(x, x + 8))
            if np.array_equal(image[window], patch.pixels[..., 0]):
                other = rng.integers(0, 256, (16, 16), np.uint8)
                other[window] = image[window]
                pixels = model.preprocessing.scaled(torch.tensor(other)[None, None])
                values = model.net.features(pixels, ["conv2_1"])["conv2_1"][0, 0].detach()
                assert np.isclose(values, patch.value, atol=1e-5).any()
                inside += 1
    assert inside > 3


def test_filters_are_in_rgb_and_grey_where_they_are_zero():
    torch.manual_seed(0)
    net = VGG(Architecture.parse("1x4", image_size=16, num_classes=3, head="gap")).eval()
    net.block1.conv1_1.weight.data.copy_(torch.tensor([1.0, 0, -2]).view(3, 1, 1).expand(4, 3, 3, 3))
    for order, expected in (("rgb", [0.75, 0.5, 0]), ("bgr", [0, 0.5, 0.75])):
        model = Classifier(net, ("a", "b", "c"), Preprocessing(16, 3, (0.5,) * 3, (0.25,) * 3, order))
        filters = first_filters(model)
        assert filters.shape == (4, 3, 3, 3) and np.allclose(filters, expected)


@pytest.fixture
def at(weights, tmp_path, monkeypatch):
    """A folder with an image; the function runs `vgg explain` there."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PIXELS).save("photo.png")
    return lambda *words: cli.main(["explain", str(weights), "--device", "cpu", *words])


def test_the_verb_writes_a_picture_and_says_what_it_shows(at, weights, capsys):
    assert at("photo.png", "--methods", "grad-cam", "lrp", "--classes", "dog", "0", "-o", "why.png") == 0
    best = {p.label: p.probability for p in load_classifier(weights)("photo.png")}
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"photo.png: dog {best['dog']:.1%}, grad-cam at relu2_1"
    assert out[3:] == [f"photo.png: cat {best['cat']:.1%}, lrp", "why.png"]
    with Image.open("why.png") as picture:
        assert picture.width > picture.height > 300
        assert len(picture.convert("RGB").getcolors(2**20)) > 200


def test_the_numbers_are_those_of_the_library(at, weights, capsys):
    assert at("photo.png", "--methods", "saliency", "occlusion", "--classes", "owl", "-o", "map.npy", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    heat = np.load("map.npy", allow_pickle=False)
    assert heat.shape == (1, 2, 16, 16) and heat.dtype == np.float32
    for one, method, fact in zip(heat[0], ("saliency", "occlusion"), told["maps"], strict=True):
        expected = explain(weights, "photo.png", method, "owl")
        assert np.array_equal(one, expected.heat)
        assert (fact["method"], fact["label"], fact["layer"]) == (method, "owl", None)
        assert (fact["most"], fact["probability"]) == pytest.approx((expected.heat.max(), expected.probability))


def test_the_verb_checks_each_map(at, capsys):
    assert at("photo.png", "--methods", "grad-cam", "guided-backprop", "--check", "-o", "why.png") == 0
    out = capsys.readouterr().out
    assert "reinitialised down to block1" in out and out.count("no: ") + out.count("yes: ") == 2
    assert at("photo.png", "--check", "-o", "why.png", "--json") == 0
    found = json.loads(capsys.readouterr().out)["maps"][0]["check"]
    assert list(found["correlation"]) == ["fc4", "fc3", "block2", "block1"]
    assert found["passes"] is found["verdict"].startswith("yes")


@pytest.mark.parametrize("method", ["grad-cam", "layer-cam", "saliency"])
def test_a_map_of_nothing_says_so(method, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PIXELS).save("photo.png")
    weights = make_weights(tmp_path / "w.safetensors", change=lambda net: torch.nn.init.zeros_([*net.parameters()][-2]))
    assert (
        cli.main(["explain", str(weights), "photo.png", "--methods", method, "--check", "-o", "a.png", "--json"]) == 0
    )
    told = capsys.readouterr()
    (fact,) = json.loads(told.out)["maps"]
    where = "in the image" if method == "saliency" else "at relu2_1"
    assert fact["note"].startswith(f"nothing {where} speaks for {fact['label']}, try ") and "check" not in fact
    assert told.err == f"vgg explain: {fact['note']}\n"
    with pytest.raises(ValueError, match="expected a map to check, got none: nothing"):
        check(weights, explain(weights, "photo.png", method))


def test_units_and_filters_are_drawn(at, capsys, tmp_path):
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        Image.fromarray(PIXELS[:, :20]).save(tmp_path / "photos" / label / "1.png")
    assert at("--unit", "conv2_1:3", "--data", "photos", "-o", "unit.png", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["patches"]) == 2
    assert at("--unit", "conv2_1:3", "--data", "photos", "-o", "unit.png") == 0
    _size, heading, _rule, *rows, _out = capsys.readouterr().out.splitlines()
    assert heading.split() == ["image", "output"] and all(re.search(r" -?\d+\.\d{3}$", row) for row in rows)
    assert at("--filters", "-o", "filters.png") == 0
    assert capsys.readouterr().out == "4 filters of conv1_1, 3x3x3\nfilters.png\n"
    for name in ("unit.png", "filters.png"):
        Image.open(io.BytesIO((tmp_path / name).read_bytes())).verify()


REFUSED = [
    ("photo.png -o why.txt", "expected a .png or .npy file in a folder that exists for --out, got why.txt"),
    ("photo.png -o none/why.png", "expected a .png or .npy file in a folder that exists for --out"),
    ("-o why.png", "expected an image, --unit or --filters, one of the three"),
    ("photo.png --filters -o why.png", "expected an image, --unit or --filters, one of the three"),
    ("photo.png --data photos -o why.png", "expected --data with --unit, got it without"),
    (". -o why.png", "expected an image file after MODEL, got the folder ."),
    ("none.png -o why.png", "none.png: expected an image file, got nothing there"),
    ("map.npy -o why.png", "map.npy: expected"),
    ("photo.png --classes horse -o why.png", "expected a class of 3 classes"),
    ("photo.png --layer relu9_9 -o why.png", "expected a layer of the blocks of 1x4 1x8_bn, got 'relu9_9'"),
    ("photo.png --layer relu1_1 --methods lrp -o why.png", "expected --layer with grad-cam or layer-cam, got it with lrp"),
    ("photo.png --methods gradcam -o why.png", "got 'gradcam', try grad-cam"),
    ("photo.png --seed -1 -o why.png", "expected a --seed from 0 to 4294967295, got -1, try 0"),
    ("photo.png --layer= -o why.png", "expected a value for --layer, got an empty text"),
    ("--unit conv1_1:0 --check -o why.png", "expected --check with an image, got it with --unit or --filters"),
    ("--unit conv1_1:0 --classes 1 -o why.png", "expected --classes with an image"),
    ("--filters --layer relu1_1 -o why.png", "expected --layer with an image"),
    ("--unit conv2_1:8 -o why.png", "expected a unit of conv2_1 from 0 to 7, got 'conv2_1:8', try conv2_1:0"),
    ("--unit conv2_9:1 -o why.png", "expected a unit of a layer of 1x4 1x8_bn, got 'conv2_9:1', try conv2_1:0"),
    ("--unit conv2_1 -o why.png", "expected a unit of conv2_1 from 0 to 7, got 'conv2_1'"),
    ("--unit conv2_1:1 --data none -o why.png", "got 'none'"),
    ("--unit conv2_1:1 -o why.npy", "expected a .png file in a folder that exists for --out"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_mistakes_are_told_in_one_line(at, words, message, capsys, tmp_path):
    (tmp_path / "map.npy").write_bytes(b"no image")
    assert at(*words.split()) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert not (tmp_path / "why.png").exists()


def test_weights_without_classes_have_units_and_no_maps(tmp_path, capsys):
    path = make_weights(tmp_path / "w.safetensors", classes="[]")
    assert cli.main(["explain", str(path), "--unit", "conv1_1:0", "-o", str(tmp_path / "unit.png")]) == 0
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    assert cli.main(["explain", str(path), str(tmp_path / "photo.png"), "-o", str(tmp_path / "why.png")]) == 2
    assert "expected weights with fully connected layers" in capsys.readouterr().err
