"""The peers of the parity tests: the module, or a skip that says why."""

import sys
import warnings
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from peers import import_peer


def peer(name):
    """The peer's module, or a skip that says what to install."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, not ours
        try:
            return import_peer(name)
        except ImportError as error:
            pytest.skip(f"needs the peer {name}, see requirements-peers.txt: {error}")
