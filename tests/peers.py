"""The peers of the parity tests: imported as they can be beside a CPU build of torch, or the test skips, saying why."""

import os
import warnings

import pytest
import torch

_LIBRARY = []


def _define_missing_operators():
    """torchvision's compiled part is missing beside a CPU build; its Python asks for these two at import."""
    if not _LIBRARY:
        library = torch.library.Library("torchvision", "DEF")
        boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(f"nms{boxes}")
        library.define(f"qnms{boxes}")
        _LIBRARY.append(library)


def peer(name):
    """The peer's module, or a skip that says what to install."""
    if name in ("torchvision", "timm"):
        _define_missing_operators()
    os.environ.setdefault("KERAS_BACKEND", "torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, not ours
        return pytest.importorskip(name, reason=f"needs the peer {name}, see requirements-peers.txt")
