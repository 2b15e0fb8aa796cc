"""The verbs of `vgg`, a module each, imported when it is used: `Flags`, whose docstring is the help, and `run`."""

from importlib import import_module
from types import ModuleType

VERBS = {
    "describe": "describe",
    "draw": "draw",
    "data": "data",
    "train": "train",
    "runs": "runs",
    "eval": "evaluate",
    "predict": "predict",
    "features": "features",
    "weights": "weights",
    "doctor": "doctor",
    "bench": "bench",
    "completion": "completion",
}
"""Each verb with the name of its module."""


def module_of(verb: str) -> ModuleType:
    """The module of one of `VERBS`."""
    return import_module(f"vggkit.verbs.{VERBS[verb]}")
