"""Files that Keras itself writes of a network without VGG's fully connected layers; the oracle is that network."""

import warnings
import zipfile

import numpy as np
import pytest
import torch

from tests.peers import peer
from tests.weights.test_containers import refused
from tests.weights.test_translation import relative_error
from vggkit import load_classifier
from vggkit.errors import WeightsError
from vggkit.weights.files import load_weights


@pytest.fixture(scope="module")
def blocks():
    keras = peer("keras")
    keras.utils.set_random_seed(0)
    return keras.applications.VGG16(weights=None, include_top=False, input_shape=(64, 64, 3))


@pytest.fixture(scope="module")
def classifier(blocks):
    """The blocks below a classifier of the user's own, trained for a step: its file holds the optimizer's state."""
    keras = peer("keras")
    net = keras.Sequential([blocks, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4)])
    net.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # theirs, not ours
        net.train_on_batch(np.zeros((1, 64, 64, 3)), np.ones((1, 4)))
    return net


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras", ".h5"])
@pytest.mark.parametrize("which", ["blocks", "classifier"])
@torch.no_grad()
def test_the_blocks_in_a_file_of_keras_are_those_of_its_network(which, suffix, blocks, request, tmp_path):
    path, net = tmp_path / f"x{suffix}", request.getfixturevalue(which)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.save_weights(path) if suffix == ".weights.h5" else net.save(path)
    loaded, metadata = load_weights(path)
    assert (metadata["source"], metadata["classes"]) == ("keras/vgg16", "[]")
    x = torch.rand(1, 3, 64, 64)
    expected = torch.as_tensor(blocks(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    assert relative_error(loaded.features(x, ["pool5"])["pool5"], expected) < 1e-5
    with pytest.raises(WeightsError, match="with fully connected layers of a VGG, got .* without, try 'vgg features'"):
        load_classifier(path)(np.zeros((8, 8, 3), np.uint8))


def test_a_compressed_keras_file_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(1000))
    refused(tmp_path / "x.keras", "expected a file of Keras, which compresses nothing, got compressed parts")
