"""ImageNet's 1000 classes (ILSVRC 2012), in the order that all published weights have them."""

from pathlib import Path


def class_names(num_classes: int) -> list[str]:
    """ImageNet's names for 1000 classes; `class 0`, `class 1`, ... for any other number."""
    names = _lines("imagenet_classes.txt")
    return names if num_classes == len(names) else [f"class {index}" for index in range(num_classes)]


def synsets() -> list[str]:
    """The WordNet numbers of the classes, such as `n01440764`, which ImageNet's folders are called by."""
    return _lines("imagenet_synsets.txt")


def _lines(file: str) -> list[str]:
    return (Path(__file__).parent / file).read_text().splitlines()
