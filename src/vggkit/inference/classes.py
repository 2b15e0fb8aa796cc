"""The classes of data found among those of a network, whatever their names are in, and however many there are."""

import re
from collections import Counter
from collections.abc import Callable

from vggkit.data.imagenet import class_names, synsets
from vggkit.errors import DataError
from vggkit.inference.predict import few


def matched_classes(known: tuple[str, ...], found: tuple[str, ...]) -> list[int | None]:
    """For each class of the data, `found`, the index of the same class of the network, `known`; None if unknown.

    Classes are the same by name, without regard to case and to spaces, `_` and `-`; for a network of ImageNet's
    classes, by synset (`n01440764`); or by number (`0` is the first class). The way that finds most is taken; if none
    finds any, it is a `DataError`.

    >>> matched_classes(("cat", "dog", "great owl"), ("Great_Owl", "cow", "cat"))
    [2, None, 0]
    """
    if known == found:  # even if two of them have one name
        return list(range(len(known)))
    names = Counter(map(_plain, known))
    index = {_plain(name): number for number, name in enumerate(known)}
    of_synset = {name: number for number, name in enumerate(synsets())} if list(known) == class_names(1000) else {}
    ways: list[Callable[[str], int | None]] = [
        lambda name: index[_plain(name)] if names[_plain(name)] == 1 else None,
        of_synset.get,
        lambda name: int(name) if re.fullmatch(r"\d{1,6}", name, re.ASCII) and int(name) < len(known) else None,
    ]
    matches = max(([way(name) for name in found] for way in ways), key=lambda some: len(some) - some.count(None))
    if all(match is None for match in matches):
        raise DataError(f"expected data of {few(known)}, got {few(found)}, try folders with the same names")
    return matches


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
