"""Matching of the classes of a data set to those of a network."""

import re
from collections import Counter
from collections.abc import Callable

from vggkit.data.imagenet import class_names, synsets
from vggkit.errors import DataError
from vggkit.inference.predict import few


def matched_classes(classes: tuple[str, ...], data_classes: tuple[str, ...]) -> list[int | None]:
    """For each of `data_classes`, the index of the same class among the network's `classes`; None if unknown.

    Classes are matched by name, regardless of case, spaces, `_` and `-`; for a network with ImageNet's classes, by
    synset (`n01440764`); or by number (`0` is the first class): by whichever matches most. Raises `DataError` if none
    matches any.

    >>> matched_classes(("cat", "dog", "great owl"), ("Great_Owl", "cow", "cat"))
    [2, None, 0]
    """
    if classes == data_classes:  # names may then be ambiguous
        return list(range(len(classes)))
    counts = Counter(map(_normalized, classes))
    indices = {_normalized(name): index for index, name in enumerate(classes) if counts[_normalized(name)] == 1}
    synset_indices = {name: i for i, name in enumerate(synsets())} if list(classes) == class_names(1000) else {}
    lookups: list[Callable[[str], int | None]] = [
        lambda name: indices.get(_normalized(name)),
        synset_indices.get,
        lambda name: int(name) if re.fullmatch(r"\d{1,6}", name, re.ASCII) and int(name) < len(classes) else None,
    ]
    matches = max(
        ([lookup(name) for name in data_classes] for lookup in lookups), key=lambda row: len(row) - row.count(None)
    )
    if all(match is None for match in matches):
        raise DataError(f"expected data of {few(classes)}, got {few(data_classes)}, try folders with the same names")
    return matches


def _normalized(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
