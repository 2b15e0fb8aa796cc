"""The check of a map against what is known: a network that has learned, the same one untrained, a map of edges."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from vggkit import VGG, Architecture, Classifier, Preprocessing, explain, open_data, train
from vggkit.inference.explain_check import check, rank_correlation

ARCH = Architecture.parse("1x8 2x16", image_size=28, num_classes=4, head="gap")


def images_of(count, seed):
    """Noise with two plain squares, whose edges are strong, and a small one, whose colour is the class: red, green, blue or grey."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 166, (count, 28, 28, 1)).repeat(3, axis=3).astype(np.uint8)
    labels = rng.integers(0, 4, count)
    for image, label in zip(pixels, labels, strict=True):
        for colour in (0, 255):
            top, left = rng.integers(0, 16, 2)
            image[top : top + 12, left : left + 12] = colour
        top, left = rng.integers(0, 21, 2)
        image[top : top + 7, left : left + 7] = 100
        image[top : top + 7, left : left + 7, label : label + 1] = 200
    return pixels, labels


def classifier(net):
    return Classifier(net.eval(), ("red", "green", "blue", "grey"), Preprocessing(28, 3, (0.5,) * 3, (0.25,) * 3))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    net = VGG(ARCH)
    model = classifier(net)
    pixels, labels = images_of(512, seed=0)
    x, y = model.preprocessing.scaled(torch.from_numpy(pixels).movedim(-1, 1)), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for step in range(160):
        rows = torch.arange(32) + 32 * (step % 16)
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    test, labels = images_of(100, seed=1)
    assert (
        np.mean([model(image)[0].label == model.classes[label] for image, label in zip(test, labels, strict=True)])
        > 0.9
    )
    return model


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return classifier(VGG(ARCH))


def checks(model, method):
    return [check(model, explanation) for explanation in explain(model, list(images_of(4, seed=2)[0]), method)]


def test_grad_cam_tells_something_about_a_network_that_has_learned(trained):
    for found in checks(trained, "grad-cam"):
        assert found.passes and found.verdict.startswith("yes: ")
        assert found.gain["map"] > max(found.gain["edges"], found.gain["random"])


@pytest.mark.parametrize("method", ["grad-cam", "saliency"])
def test_no_map_tells_something_about_a_network_that_has_not(untrained, method):
    assert not any(found.passes for found in checks(untrained, method))


def test_guided_backprop_is_flagged(tmp_path):
    run = train("quick", data="fashion-mnist-sample", epochs=1, out=tmp_path / "run", progress=False)
    images = list(open_data("fashion-mnist-sample").held_out.pixels[:3])
    for explanation in explain(run, images, "guided-backprop"):
        found = check(run, explanation)
        assert found.mean_correlation > 0.55 and not found.passes
        assert found.verdict.startswith("no: the map hardly depends on the weights")


def test_the_parts_are_randomised_from_the_last_to_the_first(trained):
    before = {name: tensor.clone() for name, tensor in trained.net.state_dict().items()}
    state = torch.get_rng_state()
    found = checks(trained, "saliency")[0]
    assert list(found.correlation) == ["fc3", "block2", "block1"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert found.deletion == checks(trained, "saliency")[0].deletion  # the same seed


def test_the_curves_lead_from_the_image_to_nothing_and_back(trained):
    explanation = explain(trained, images_of(1, seed=2)[0][0])
    found = check(trained, explanation)
    for name in ("map", "edges", "random"):
        assert found.deletion[name][0] == pytest.approx(explanation.probability, abs=1e-5)
        assert found.insertion[name][-1] == pytest.approx(explanation.probability, abs=1e-5)
        assert found.insertion[name][0] == pytest.approx(found.deletion[name][-1], abs=1e-5)
        assert found.gain[name] == pytest.approx(
            np.mean(found.insertion[name]) - np.mean(found.deletion[name]), abs=0.1
        )
    # The order turned round exchanges the two curves.
    turned = check(trained, replace(explanation, heat=-explanation.heat))
    assert turned.gain["map"] == pytest.approx(-found.gain["map"], abs=0.05)


def test_the_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    for steps in (3, 10**6):  # with ties and without
        a, b = rng.integers(0, steps, (2, 12, 12)).astype(np.float32)
        expected = stats.spearmanr(a.ravel(), (a + b).ravel()).statistic
        assert rank_correlation(a, a + b) == pytest.approx(expected, abs=1e-5)
    assert rank_correlation(a, np.zeros_like(a)) == 0
