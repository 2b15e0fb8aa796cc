"""The names of ImageNet's 1000 classes (ILSVRC 2012), in the order that all published weights have them."""

from pathlib import Path

_NAMES = Path(__file__).parent / "imagenet_classes.txt"


def class_names(num_classes: int) -> list[str]:
    """ImageNet's names for 1000 classes; `class 0`, `class 1`, ... for any other number."""
    names = _NAMES.read_text().splitlines()
    return names if num_classes == len(names) else [f"class {index}" for index in range(num_classes)]
