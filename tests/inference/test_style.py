"""Style and dreams on a small random network; the oracle is what is minimised, written out by hand."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vggkit import VGG, Architecture, Classifier, Preprocessing, cli, dream, save_weights, stylize
from vggkit.errors import UserError, WeightsError
from vggkit.inference.style import with_average_pools, with_colours_of

STYLE = ["relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"]


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    net = VGG(Architecture.parse("1x8 1x8 1x8 2x8 1x8", image_size=32, hidden=(), num_classes=2)).eval()
    return Classifier(net, ("a", "b"), Preprocessing(32, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), order="bgr"))


def picture(seed, width=60, height=40):
    """Coloured blobs."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


PHOTO, PAINTING = picture(0), picture(1, 40, 50)


@torch.no_grad()
def errors(classifier, image, photo, painting, pool=None):
    """The relative errors of content and style, with sums and products as the paper writes them."""

    def maps(of, size):
        scale = size / max(of.size)
        of = of.resize((round(of.width * scale), round(of.height * scale)), Image.Resampling.LANCZOS)
        x = torch.from_numpy(np.array(of)).float().permute(2, 0, 1)[None] / 255
        x = (x.flip(1) - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
        found = {}
        for block in list(classifier.net)[:5]:
            for name, layer in block.named_children():
                found[name] = x = (pool if pool and name.startswith("pool") else layer)(x)
        return found

    def gram(y):
        return torch.einsum("bihw,bjhw->ij", y, y) / (y.shape[2] * y.shape[3])

    ours, content, style = maps(image, 64), maps(photo, 64), maps(painting, 64)
    of_style = [((gram(ours[n]) - gram(style[n])) ** 2).sum() / (gram(style[n]) ** 2).sum() for n in STYLE]
    content_error = ((ours["relu4_2"] - content["relu4_2"]) ** 2).sum() / (content["relu4_2"] ** 2).sum()
    return content_error.item(), sum(of_style).item() / 5


@pytest.mark.parametrize("average_pooling", [False, True])
def test_the_errors_that_are_told_are_those_of_the_paper_and_shrink(classifier, average_pooling):
    said, pool = [], nn.AvgPool2d(2) if average_pooling else None
    how = {"sizes": (32, 64), "steps": 20, "average_pooling": average_pooling}
    painted = stylize(classifier, PHOTO, PAINTING, **how, report=said.append)
    assert painted.size == (64, 43)
    content, style = errors(classifier, painted, PHOTO, PAINTING, pool)
    assert style < errors(classifier, PHOTO, PHOTO, PAINTING, pool)[1] / 2
    assert said[0].startswith("32 px, step 1/20: content error 0.000, style error ")
    assert said[-1].startswith("64 px, step 20/20: ") and said[-1].endswith("(of relu4_2, and of relu1_1 to relu5_1)")
    told = [float(word.strip(",")) for word in said[-1].split() if "." in word]
    assert told == pytest.approx([content, style], rel=0.5, abs=0.05)  # before it is rounded to 8 bits
    assert stylize(classifier, PHOTO, PAINTING, **how) == painted


def test_a_photo_in_its_own_style_stays_as_it_is(classifier):
    painted = stylize(classifier, PHOTO, PHOTO, sizes=(60,), steps=5)
    assert np.abs(np.array(painted).astype(int) - np.array(PHOTO)).max() <= 1


@torch.no_grad()
def test_average_pools_stand_where_the_max_pools_were_and_all_else_is_shared(classifier):
    net, x = classifier.net, torch.rand(1, 3, 32, 32)
    other = with_average_pools(net)
    y = torch.nn.functional.avg_pool2d(net.block1.relu1_1(net.block1.conv1_1(x)), 2)
    torch.testing.assert_close(other.features(x, ["pool1"])["pool1"], y)
    assert other.block5.conv5_1.weight is net.block5.conv5_1.weight


def test_original_colours_are_the_photos_below_the_paintings_luminance():
    grey = picture(2, 80, 30).convert("L").convert("RGB")
    photo = Image.new("RGB", (20, 20), (130, 110, 120))
    mixed = np.array(with_colours_of(grey, photo).convert("YCbCr")).astype(int)
    assert np.abs(mixed[..., 0] - np.array(grey)[..., 0]).max() <= 2
    chroma = np.array(photo.convert("YCbCr"))[0, 0, 1:].astype(int)
    assert np.median(np.abs(mixed[..., 1:] - chroma), axis=(0, 1)).max() <= 2


def test_a_dream_excites_its_layer(classifier):
    def response(image):
        x = torch.from_numpy(np.array(image.resize((64, 43)))).permute(2, 0, 1)[None]
        return (
            classifier.net.features(classifier.preprocessing.normalize(x / 255), ["conv3_1"])["conv3_1"].square().mean()
        )

    dreamt = dream(classifier, PHOTO, layer="conv3_1", size=64, octaves=2, steps=5)
    assert dreamt.size == (64, 43)
    assert response(dreamt) > 1.5 * response(PHOTO)
    with torch.no_grad():  # as in a caller's evaluation
        assert dream(classifier, PHOTO, layer="conv3_1", size=64, octaves=2, steps=5) == dreamt


@pytest.mark.parametrize(
    ("network", "content", "deepest"),
    [
        ("1x8", "relu1_1", "relu1_1"),
        ("2x8 2x8 2x8 1x8", "relu4_1", "relu4_1"),
        ("1x8 1x8 1x8 2x8", "relu4_2", "relu4_1"),
    ],
)
def test_a_shallow_network_paints_with_the_layers_that_it_has(network, content, deepest):
    net = VGG(Architecture.parse(network, in_channels=1, image_size=32, head="gap", hidden=()))
    said, model = [], Classifier(net, tuple("0123456789"), Preprocessing(32, 1, (0.5,), (0.5,)))
    assert stylize(model, PHOTO, PAINTING, sizes=(32,), steps=1, report=said.append).mode == "L"
    assert dream(model, PHOTO, size=32, octaves=1, steps=1, report=said.append) == dream(
        model, PHOTO, layer=deepest, size=32, octaves=1, steps=1
    )
    assert said[0].endswith(f"(of {content}, and of relu1_1 to {deepest})") and f" {deepest} " in said[-1]


def test_what_cannot_be_painted_is_refused(classifier):
    with pytest.raises(UserError, match=r"expected sizes from 32 to 4096 pixels, got \(32, 8\), try 512"):
        stylize(classifier, PHOTO, PAINTING, sizes=(32, 8))
    with pytest.raises(UserError, match="expected steps from 1, got 0"):
        dream(classifier, PHOTO, steps=0)
    with pytest.raises(UserError, match="expected a style weight above 0, got nan"):
        stylize(classifier, PHOTO, PAINTING, style_weight=float("nan"))
    with pytest.raises(ValueError, match="expected layers of .*, got 'relu9_1', try relu"):
        dream(classifier, PHOTO, layer="relu9_1", size=32, octaves=1)
    bad = VGG(classifier.net.architecture)
    nn.init.constant_(bad.block1.conv1_1.bias, torch.nan)
    with pytest.raises(WeightsError, match="expected weights that give finite errors and gradients"):
        dream(Classifier(bad, ("a", "b"), classifier.preprocessing), PHOTO, size=32, octaves=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 32}, "octaves of at least 32 pixels, got 12 as the first of 4 up to --size 32, try --octaves 1"),
        ({"octaves": 0}, "expected octaves from 1 to 15, got 0, try --octaves 4"),
        ({"octaves": 1000}, "expected octaves from 1 to 15, got 1000"),
        ({"size": None}, "expected a size in pixels, got NoneType"),
        ({"size": float("nan")}, "expected a size in pixels, got float"),
        ({"size": 5000}, "expected sizes from 32 to 4096 pixels"),
        ({"steps": "x"}, "expected a number of steps, got str"),
        ({"sizes": 5}, "expected sizes in pixels, got int"),
        ({"sizes": ("x",)}, "expected sizes from 32 to 4096 pixels"),
        ({"style_weight": "x"}, "expected a style weight, got str"),
    ],
)
def test_wrong_numbers_get_one_line(classifier, given, message):
    images, paint = ((PHOTO, PAINTING), stylize) if {"sizes", "style_weight"} & given.keys() else ((PHOTO,), dream)
    with pytest.raises(UserError, match=message):
        paint(classifier, *images, **given)


@pytest.mark.parametrize(
    ("verb", "options"),
    [("style", ["--sizes", "32", "--original-colours"]), ("dream", ["--size", "45", "--octaves", "2"])],
)
def test_the_verbs_write_an_image_and_say_how_it_went(classifier, verb, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    metadata = {"classes": json.dumps(classifier.classes), "preprocessing": classifier.preprocessing.to_json()}
    save_weights("m.safetensors", classifier.net, metadata)
    PHOTO.save("photo.png")
    PAINTING.save("painting.png")
    images = ["photo.png", "painting.png"][: 2 if verb == "style" else 1]
    command = [verb, *images, "--model", "m.safetensors", "--steps", "2", *options]
    assert cli.main([*command, "-o", "out.png"]) == 0
    last, out = capsys.readouterr().out.splitlines()
    assert "step 2/2: " in last and " in " in last and out == "out.png"
    with Image.open("out.png") as image:
        assert image.size in ((32, 21), (45, 30))
    assert cli.main([*command, "-o", "out.gif"]) == 2
    assert "expected a .png or .jpg or .webp file" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "out.png", "painting.png", "photo.png"]
