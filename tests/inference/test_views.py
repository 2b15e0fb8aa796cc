"""Views of images. Oracle: the paper's procedure in plain torch and float64, one window at a time."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from tests.inference.conftest import CLASSES
from vggkit import VGG, Architecture, Classifier, Preprocessing, evaluate, open_data
from vggkit.inference.views import Views, viewed

SIZE = 16
HOW = Preprocessing(SIZE, 3, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), resize="crop", crop_fraction=0.8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng, place = np.random.default_rng(0), tmp_path_factory.mktemp("photos")
    for number, name in enumerate(CLASSES):
        (place / name).mkdir()
        coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), np.uint8))
        coarse.resize((31 + 5 * number, 26), Image.Resampling.BICUBIC).save(place / name / "0.png")
    return place


def classifier(head):
    torch.manual_seed(0)
    options = {} if head == "gap" else {"hidden": (6,)}
    pooled = {"pooled_size": 4} if head in ("adaptive", "conv") else {}
    arch = Architecture.parse("1x4 1x8_bn", image_size=SIZE, num_classes=3, head=head, **options, **pooled)
    return Classifier(VGG(arch).eval(), CLASSES, HOW)


def posterior(net, x):
    return net(x[None]).softmax(dim=1)[0]


def windows(net, x):
    """The class map of the fully connected layers at every window of the last map, one after the other, averaged."""
    maps = net[:2](x[None])
    layers = [layer for layer in net[2:] if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    side = 1 if len(layers) == 1 else 4
    logits = []
    for top in range(maps.shape[2] - side + 1):
        for left in range(maps.shape[3] - side + 1):
            y = maps[:, :, top : top + side, left : left + side].flatten()
            for number, layer in enumerate(layers):
                y = layer.weight.flatten(1) @ y + layer.bias
                y = y.relu() if number < len(layers) - 1 else y
            logits.append(y)
    return torch.stack(logits).mean(0).softmax(0)


def by_the_paper(net, image, kind, scales):
    parts = []
    for scale in scales or (20,):
        width, height = (scale * side // min(image.size) for side in image.size)
        pixels = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
        x = (torch.from_numpy(pixels).double() / 255 - torch.tensor(HOW.mean).double()) / torch.tensor(HOW.std).double()
        x = x.permute(2, 0, 1)
        tops, lefts = ([round(k * (side - SIZE) / 4) for k in range(5)] for side in (height, width))
        if kind == "flip":
            tops, lefts = ([round((side - SIZE) / 2)] for side in (height, width))
        both = [x, x.flip(-1)]
        if "dense" in kind:
            parts.append(torch.stack([windows(net, one) for one in both]).mean(0))
        if kind != "dense":
            crops = [
                one[:, y : y + SIZE, left : left + SIZE]
                for y in sorted(set(tops))
                for left in sorted(set(lefts))
                for one in [x]
            ]
            parts.append(torch.stack([posterior(net, one) for crop in crops for one in (crop, crop.flip(-1))]).mean(0))
    return torch.stack(parts).mean(0)


@pytest.mark.parametrize("kind", ["flip", "multi-crop", "dense", "dense+crop"])
@pytest.mark.parametrize("scales", [(), (20, 28)])
@pytest.mark.parametrize("head", ["flatten", "adaptive", "conv", "gap"])
def test_views_are_those_of_the_paper(folder, head, kind, scales):
    model, source = classifier(head), open_data(folder, holdout=0)
    got = [logits.exp()[0] for _, logits in viewed(model, source.train, Views(kind, scales), {})]
    plain = copy.deepcopy(model.net).double()
    with torch.no_grad():
        for name, one in zip(CLASSES, got, strict=True):
            expected = by_the_paper(plain, Image.open(folder / name / "0.png"), kind, scales)
            torch.testing.assert_close(one.double(), expected, rtol=1e-4, atol=1e-5)
    outcome = evaluate(model, source, views=Views(kind, scales))
    assert outcome.predicted.tolist() == [int(one.argmax()) for one in got]
    assert outcome.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("kind", "scales", "message"),
    [
        ("all", (), "expected views of flip, multi-crop, dense, dense\\+crop, got 'all'"),
        ("flip", (0,), "expected scales in pixels from 1 to 4,096, got \\(0,\\)"),
        ("flip", (9,), "expected scales from 16, the size of the network's images, got \\(9,\\)"),
    ],
)
def test_views_that_cannot_be_are_refused(folder, kind, scales, message):
    with pytest.raises(ValueError, match=message):
        evaluate(classifier("gap"), folder, views=Views(kind, scales))


def test_a_strip_is_refused_before_it_takes_memory(tmp_path):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (30_000, 1)).save(tmp_path / "cat" / "strip.png")
    with pytest.raises(ValueError, match="strip.png: expected at most 16,777,216 pixels in a view, got 840000 x 28"):
        evaluate(classifier("gap"), tmp_path, views=Views("dense", (28,)))
