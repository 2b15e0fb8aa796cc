"""Stub of the images of a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Sample:
    """One image and its label."""

    name: str
    label: int
    content: Path | bytes


class Images(Protocol):
    """The images of a split."""

    is_stream: bool

    def __len__(self) -> int: ...

    def reader(self, seed: int, epoch: int) -> Callable[[int], Sample]:
        """What reads the sample at a position."""
        ...
