"""The libraries that vggkit is compared with, imported beside any build of torch."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch

PEERS = Path(sys.prefix) / "peers"
"""Where `make test` installs them, so that nobody else finds them."""

_defined: list[torch.library.Library] = []


def import_peer(name: str) -> Any:
    """The module `name`; a torchvision for another build of torch gets the operators that it asks for at import.

    They are defined only once an import has failed for the lack of them: where torchvision's compiled part is whole,
    it defines them itself, and a second definition ends the process.

    Raises:
        ImportError, RuntimeError: it is not installed, or does not fit the torch that is.
    """
    if PEERS.is_dir() and str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if _defined or "operator torchvision::" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _defined.append(library)  # what it defines goes when it goes
    return importlib.import_module(name)
