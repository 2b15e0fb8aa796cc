"""What a public function cannot take is told in one line, by vggkit's own error, before any work."""

import numpy as np
import pytest
import torch

from tests.inference.conftest import make_weights
from vggkit import draw, evaluate, explain, largest_batch, load_classifier, open_data, predict, save_weights, vgg
from vggkit.errors import VggkitError
from vggkit.inference.views import Views
from vggkit.lab.doctor import examine

LONG = "x" * 100_000
NET = vgg("1x4 1x8", image_size=16, num_classes=3)
IMAGE, LABELS = np.zeros((16, 16, 3), np.uint8), torch.tensor([0, 1])
CALLS = {
    "examine, int images": (lambda c: examine(NET, 3, 3), "expected a tensor of images"),
    "examine, NumPy": (lambda c: examine(NET, IMAGE, LABELS), "expected a tensor of images .* got ndarray"),
    "examine, uint8": (lambda c: examine(NET, torch.zeros(2, 1, 16, 16).byte(), LABELS), "expected float images"),
    "examine, no network": (lambda c: examine("x", torch.zeros(2, 1, 16, 16), LABELS), "expected a network, got str"),
    "evaluate, views": (lambda c: evaluate(c, "fashion-mnist-sample", views="flop"), "expected views of flip"),
    "evaluate, views 3": (lambda c: evaluate(c, "fashion-mnist-sample", views=3), "expected views of images, got int"),
    "evaluate, bad_images": (
        lambda c: evaluate(c, "fashion-mnist-sample", bad_images=5),
        "expected bad_images as fail",
    ),
    "evaluate, workers": (
        lambda c: evaluate(c, "fashion-mnist-sample", num_workers="x"),
        "expected num_workers from 0",
    ),
    "explain, 3": (lambda c: explain(c, IMAGE, layer=3), "expected the name of a layer, got int"),
    "explain, tuple": (lambda c: explain(c, IMAGE, layer=(1,)), "expected the name of a layer, got tuple"),
    "explain, list": (lambda c: explain(c, IMAGE, layer=[]), "expected the name of a layer, got list"),
    "explain, empty": (lambda c: explain(c, IMAGE, layer=""), "expected a layer of the blocks .* got ''"),
    "long model": (lambda c: predict(LONG, IMAGE), "expected a run or a weight file, got: File name too long"),
    "long image": (lambda c: predict(c, LONG), "expected an image file, got File name too long"),
    "long images": (lambda c: predict(c, [LONG]), "expected an image file, got File name too long"),
    "largest_batch": (lambda c: largest_batch("vgg11", "x"), "expected bytes of memory, got str"),
    "open_data, seed": (lambda c: open_data("fashion-mnist-sample", seed=-1), "expected a seed from 0 to .* got -1"),
    "open_data, None": (lambda c: open_data(None), "expected the name or the folder of data, got NoneType"),
    "save_weights": (lambda c: save_weights("x.safetensors", NET, metadata=5), "expected metadata .* got int"),
    "draw": (lambda c: draw(None), "expected networks to draw, got NoneType"),
}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return load_classifier(make_weights(tmp_path_factory.mktemp("weights") / "w.safetensors"))


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_argument_gets_one_line(call, classifier):
    run, message = CALLS[call]
    with pytest.raises((VggkitError, ValueError), match=message) as caught:
        run(classifier)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_the_kind_of_views_is_enough(tmp_path):
    labels = open_data("fashion-mnist-sample").classes
    model = load_classifier(make_weights(tmp_path / "w.safetensors", channels=1, labels=labels))
    by_name, by_views = (evaluate(model, "fashion-mnist-sample", views=views) for views in ("flip", Views("flip")))
    assert by_name.accuracy == by_views.accuracy
    assert by_name.notes == ("mean of each image and the mirror image",)
