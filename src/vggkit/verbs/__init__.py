"""The verbs of `vgg`: a module each, imported on use, with `run` and `Flags`, whose docstring is the help."""

from importlib import import_module
from types import ModuleType

VERBS = (
    "describe", "draw", "data", "train", "runs", "eval", "predict", "explain", "features", "style", "dream", "weights",
    "export", "compare", "experiment", "search", "chapter", "doctor", "bench", "app", "completion",
)  # fmt: skip


def module_of(verb: str) -> ModuleType:
    """The module of one of `VERBS`."""
    return import_module(f"vggkit.verbs.{verb}")
