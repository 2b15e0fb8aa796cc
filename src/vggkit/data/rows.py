"""Rows of a table, and of a stream, as labelled images that are not opened yet."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vggkit.data.samples import Sample, kept_out, printable
from vggkit.errors import DataError, one_line

SHUFFLE_BUFFER_IMAGES = 1_000
"""Encoded images that a shuffled stream holds in memory; the library's own default."""


@dataclass(frozen=True)
class Columns:
    """Where things are in a row."""

    image: str
    label: tuple[str, ...]
    """A column, and in `json` also the field."""
    names: tuple[str, ...]
    """The columns that name a sample: the shard and the key of a tar; else none."""


@dataclass(frozen=True, eq=False)
class TableImages:
    """Rows of a memory-mapped table."""

    dataset: Any
    """The library's `Dataset` of the whole split."""
    split: str
    columns: Columns
    rows: npt.NDArray[np.int64]
    """(images,): those that are meant."""
    labels: npt.NDArray[np.uint16]
    """(images,)."""
    trusted: tuple[Path, ...]
    """Folders out of which a row may name an image's file: none, for a table of unknown origin."""
    is_stream: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def parted(self, holdout: float, seed: int) -> tuple["TableImages", "TableImages"]:
        """These without what is kept out, and what is kept out."""
        chosen = kept_out(self.labels, holdout, seed)
        rest = replace(self, rows=self.rows[~chosen], labels=self.labels[~chosen])
        return rest, replace(self, rows=self.rows[chosen], labels=self.labels[chosen])

    def reader(self, seed: int, epoch: int) -> Callable[[int], Sample]:
        """See `Images`."""

        def read(position: int) -> Sample:
            number = int(self.rows[position])
            try:
                row = self.dataset[number]
            except Exception as error:
                raise unreadable(f"row {number} of {self.split}", error) from None
            name = _name(row, self.columns) or f"row {number} of {self.split}"
            return Sample(name, int(self.labels[position]), _content(row[self.columns.image], name, self.trusted))

        return read


@dataclass(frozen=True, eq=False)
class StreamImages:
    """Rows that come one after another."""

    dataset: Any
    """The library's `IterableDataset`."""
    split: str
    columns: Columns
    length: int
    num_classes: int
    is_stream: bool = True

    def __len__(self) -> int:
        return self.length

    def reader(self, seed: int, epoch: int) -> Callable[[int], Sample]:
        """See `Images`; a position that is not above the last one raises `ValueError`."""
        dataset = self.dataset
        if epoch:
            dataset = dataset.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER_IMAGES)
            dataset.set_epoch(epoch)
        rows = enumerate(self._rows(dataset))
        next_position = 0

        def read(position: int) -> Sample:
            nonlocal next_position
            if position < next_position:
                raise ValueError(
                    f"expected positions of a stream in ascending order, got {position} after {next_position - 1}"
                )
            for reached, row in rows:
                next_position = reached + 1
                if reached == position:
                    name = _name(row, self.columns) or f"image {position} of {self.split} in epoch {epoch}"
                    return Sample(name, self._label(row, name), _content(row[self.columns.image], name, ()))
            raise DataError(
                f"{self.split}: expected {self.length:,} images, got a stream of {next_position:,}, "
                f"try --epoch-images {next_position}"
            )

        return read

    def _rows(self, dataset: Any) -> Iterator[dict[str, Any]]:
        try:
            # Not iter(dataset): in a worker process of torch's that gives only this worker's share of the shards.
            for batch in dataset.iter(batch_size=1):
                yield {column: values[0] for column, values in batch.items()}
        except Exception as error:  # of the network, of files, of the library
            raise unreadable(self.split, error) from None

    def _label(self, row: dict[str, Any], name: str) -> int:
        label: Any = row
        for field in self.columns.label:
            label = label.get(field) if isinstance(label, dict) else None
        if not isinstance(label, int) or not 0 <= label < self.num_classes:
            raise DataError(f"{name}: expected a label from 0 to {self.num_classes - 1}, got {short(label)}")
        return label


def _name(row: dict[str, Any], columns: Columns) -> str:
    if not columns.names:
        return ""
    shard, key = (str(row[column]) for column in columns.names)
    return printable(f"{shard.rpartition('/')[2]}/{key}")


def _content(image: object, name: str, trusted: tuple[Path, ...]) -> Path | bytes:
    match image:
        case {"bytes": bytes(content)} if content:
            return content
        case {"path": str(path)} if path:
            if any(Path(path).resolve().is_relative_to(folder) for folder in trusted):
                return Path(path)
            raise DataError(f"{name}: expected an image's bytes in the table, got only a path, {short(path)}")
    raise DataError(f"{name}: expected an image's bytes in the table, got none")


def unreadable(where: str, error: Exception) -> DataError:
    """An error of the library's, which raises almost anything, as one of ours in one line."""
    if isinstance(error, DataError):
        return error
    told = f"{type(error).__name__}: {one_line(error)}"
    if error.__cause__:
        told += f" ({one_line(Exception(error.__cause__))})"
    return DataError(f"{where}: expected images that can be read, got {printable(told)[:400]}")


def short(value: object) -> str:
    """`value` for a message."""
    text = printable(str(value))
    return text if len(text) <= 60 else "..." + text[-57:]
