import json

import pytest
import torch

from vggkit import VGG, Architecture, Preprocessing, save_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A weight file of a small network for RGB images of 16 pixels, as `make_weights` makes it."""
    return make_weights(tmp_path_factory.mktemp("weights") / "rgb.safetensors")


def make_weights(path, channels=3, labels=CLASSES, change=lambda net: None, **metadata):
    torch.manual_seed(0)
    net = VGG(
        Architecture.parse("1x4 1x8_bn", image_size=16, in_channels=channels, num_classes=len(labels), hidden=(6,))
    )
    change(net)
    preprocessing = Preprocessing(16, channels, MEAN[:channels], STD[:channels])
    save_weights(path, net, {"classes": json.dumps(labels), "preprocessing": preprocessing.to_json(), **metadata})
    return path
