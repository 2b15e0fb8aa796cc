"""Parquet files and tar shards: which there are, of which split, and the images in them, at random or in a stream."""

import hashlib
import json
import os
import re
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
import numpy.typing as npt

from vggkit.data.files import MAX_IMAGE_BYTES
from vggkit.data.samples import (
    MAX_CLASSES,
    MAX_NAMED_FILES,
    SPLIT_WORDS,
    Images,
    ImageSource,
    Names,
    Sample,
    kept_out,
    split_named,
)
from vggkit.data.streams import StreamImages
from vggkit.data.tables import Table, describe, most_bytes, read_labels, read_table
from vggkit.data.tars import Label, Row, check_whole, read_tar
from vggkit.errors import DataError, one_line, shown

KINDS: dict[str, Literal["parquet", "webdataset"]] = {".parquet": "parquet", ".tar": "webdataset"}
"""By suffix; the kinds are called as the library `datasets` calls them."""

CLASSES_FILE = "classes.txt"
MAX_CLASSES_BYTES = 2**24


@dataclass(frozen=True)
class Shards:
    """Files of one kind, by split."""

    name: str
    kind: Literal["parquet", "webdataset"]
    files: Mapping[str, list[str]]
    """Paths, or addresses that `open_file` takes, by split."""
    other_files: list[str] = field(default_factory=list)
    """Relative names of what was not taken, printable."""
    class_names: tuple[str, ...] | None = None
    open_file: Callable[[str], BinaryIO] = lambda path: open(path, "rb")  # noqa: PTH123, SIM115
    totals: Mapping[str, int] = field(default_factory=dict)
    """Images of each split, for files that are too far away to be counted."""
    identity: str = ""
    """What tells the content from others if the files are not the user's own; else their names and sizes do."""
    is_temporary: bool = False
    """Whether the files will be removed once they are read."""


def find_shards(path: Path) -> Shards | None:
    """The parquet files or tar shards in the folder `path`, or the one file `path`; None if there are none.

    In a folder they are looked for in itself and in those of its folders that are called `data` or like a split.

    Raises:
        DataError: there are both kinds, or a name says two splits.
    """
    name, path = shown(path, 200), path.absolute()
    if path.suffix.lower() in KINDS and path.is_file():
        return Shards(name, KINDS[path.suffix.lower()], {"train": [str(path)]}, [], _read_class_names(path.parent))
    try:
        top = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        inner = [folder for folder in top if folder.is_dir() and (folder.name == "data" or _splits_in(folder.name))]
        below = sorted(entry for folder in inner for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{name}: expected to read it, got: {error.strerror}") from None
    found = [file for file in top + below if file.suffix.lower() in KINDS and file.is_file()]
    if not found:
        return None
    kinds = {KINDS[file.suffix.lower()] for file in found}
    if len(kinds) > 1:
        raise DataError(f"{name}: expected parquet files or tar shards, got both, try a folder for each")
    splits = {file: _split_of(file.relative_to(path).as_posix()) for file in found}
    files = {split: [str(file) for file in found if splits[file] == split] for split in SPLIT_WORDS}
    if not any(splits.values()):
        files["train"] = list(map(str, found))
    taken = {Path(file) for part in files.values() for file in part} | {path / CLASSES_FILE, *inner}
    others = [shown(str(file.relative_to(path))) for file in top + below if file not in taken]
    return Shards(
        name, kinds.pop(), {split: part for split, part in files.items() if part}, others, _read_class_names(path)
    )


def _split_of(name: str) -> str | None:
    """The split that the folder in a relative name says, else the one that its file name says."""
    folder, _, file_name = name.rpartition("/")
    found = _splits_in(folder) or _splits_in(file_name)
    if len(found) > 1:
        raise DataError(f"{shown(name)}: expected the name of one split in it, got {' and '.join(found)}")
    return found[0] if found else None


def _splits_in(name: str) -> list[str]:
    found = {split_named(word) for word in re.split(r"[-._ 0-9/]+", name)}
    return [split for split in SPLIT_WORDS if split in found]


def _read_class_names(folder: Path) -> tuple[str, ...] | None:
    """The lines of `classes.txt`; None if there is none. Raises `DataError`."""
    path = folder / CLASSES_FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CLASSES_BYTES + 1)
        names = tuple(shown(line.strip(), 200) for line in content.decode("utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{shown(path, limit=500)}: expected a text in UTF-8, got: {error}") from None
    if len(content) > MAX_CLASSES_BYTES or len(names) > MAX_CLASSES or not all(names):
        raise DataError(
            f"{shown(path, limit=500)}: expected the name of a class in each line, {MAX_CLASSES:,} at most, got "
            f"{len(names):,} lines, {sum(not name for name in names)} of them empty"
        )
    return names


class Content(Protocol):
    """The encoded images of a split, by their number in its files."""

    def open(self) -> Callable[[int], tuple[str, bytes]]:
        """The function from a number to the name and the content of an image; it raises `DataError`."""
        ...


@dataclass(frozen=True, eq=False)
class TarContent:
    """Images that stay where they are, in tars."""

    files: list[str]
    file_of: npt.NDArray[np.int32]
    """(images,): an index into `files`."""
    spans: npt.NDArray[np.int64]
    """(images, 2): where each one begins, and its bytes."""
    names: Names

    def open(self) -> Callable[[int], tuple[str, bytes]]:
        """See `Content`."""

        def read(number: int) -> tuple[str, bytes]:
            name = self.names[number].decode()
            offset, size = self.spans[number].tolist()
            if not 0 < size <= MAX_IMAGE_BYTES:
                raise DataError(f"{name}: expected an image of 1 to {MAX_IMAGE_BYTES:,} bytes, got {size:,}")
            try:
                with open(self.files[self.file_of[number]], "rb") as file:  # noqa: PTH123
                    return name, os.pread(file.fileno(), size, offset)
            except OSError as error:
                raise DataError(f"{name}: expected to read it, got: {error.strerror}") from None

        return read


@dataclass(eq=False)
class TableContent:
    """Images in a column of parquet files, of which the first reader makes a copy that can be read in any order.

    The copy is a file without a name in the folder for temporary files, and so ends with this process.
    """

    shards: "Shards"
    tables: dict[str, Table]
    files: list[str]
    _copy: BinaryIO | None = None
    _names: list[str] = field(default_factory=list)
    _ends: list[int] = field(default_factory=lambda: [0])

    def open(self) -> Callable[[int], tuple[str, bytes]]:
        """See `Content`."""
        copy = self._copy = self._copy or self._copied()

        def read(number: int) -> tuple[str, bytes]:
            name, start, size = self._names[number], self._ends[number], self._ends[number + 1] - self._ends[number]
            if not 0 < size <= MAX_IMAGE_BYTES:
                raise DataError(f"{name}: expected an image's bytes in the table, got none")
            return name, os.pread(copy.fileno(), size, start)

        return read

    def _copied(self) -> BinaryIO:
        copy = tempfile.TemporaryFile(prefix="vggkit-")  # noqa: SIM115 (it lives as long as the images)
        weakref.finalize(self, copy.close)
        for file in self.files:
            limit = self._ends[-1] + most_bytes(os.path.getsize(file))  # noqa: PTH202
            for row in _rows(self.shards, self.tables, file, with_content=True):
                content = row.content or b""
                self._names.append(row.name)
                self._ends.append(self._ends[-1] + len(content))
                if self._ends[-1] > limit:
                    raise DataError(f"{row.name}: expected images, got {limit:,} bytes or more in a far smaller file")
                try:
                    copy.write(content)
                except OSError as error:
                    raise DataError(
                        f"{self.shards.name}: expected room for a temporary copy in {tempfile.gettempdir()}, got: "
                        f"{error.strerror}, try another TMPDIR, or --stream"
                    ) from None
        copy.flush()
        return copy


@dataclass(frozen=True, eq=False)
class PackedImages:
    """Encoded images in parquet files or tars, to be read in any order."""

    content: Content
    numbers: npt.NDArray[np.int64]
    """(images,): those of the content that are meant."""
    labels: npt.NDArray[np.uint16]
    """(images,)."""
    is_stream: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def reader(self, seed: int, epoch: int) -> Callable[[int], Sample]:
        """See `Images`."""
        read = self.content.open()

        def sample(position: int) -> Sample:
            name, content = read(int(self.numbers[position]))
            return Sample(name, int(self.labels[position]), content)

        return sample

    def subset(self, chosen: npt.NDArray[np.bool_]) -> "PackedImages":
        """The images of which `chosen`, (images,), says so."""
        return replace(self, numbers=self.numbers[chosen], labels=self.labels[chosen])


@dataclass(frozen=True)
class _Classes:
    """The classes that labels stand for."""

    names: tuple[str, ...]
    is_by_name: bool
    """Whether a number is a name too, since some of the labels are no numbers."""

    @classmethod
    def of(cls, given: tuple[str, ...] | None, labels: Iterable[list[Label]]) -> "_Classes":
        """The classes that were `given` a name; else the texts among `labels`, or the numbers up to the highest."""
        if given is not None:
            return cls(given, False)
        distinct = {label for some in labels for label in some if not isinstance(label, DataError)}
        if any(isinstance(label, str) for label in distinct):
            return cls(tuple(sorted(map(str, distinct))), True)
        return cls(tuple(map(str, range(min(MAX_CLASSES, 1 + max(map(int, distinct), default=-1))))), False)

    def index(self, label: Label, where: str) -> int:
        """The index of the class; raises `DataError`."""
        if isinstance(label, DataError):
            raise label
        if isinstance(label, str) or self.is_by_name:
            if str(label) not in self._indices:
                raise DataError(f"{where}: expected the name of one of {len(self.names):,} classes, got {label}")
            return self._indices[str(label)]
        if not 0 <= label < len(self.names):
            raise DataError(f"{where}: expected a label from 0 to {len(self.names) - 1}, got {label}")
        return label

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}


def open_shards(shards: Shards, *, holdout: float, seed: int, stream: bool, epoch_images: int) -> ImageSource:
    """The images of `shards`; see `open_data`.

    Raises:
        DataError: a file is damaged, or its columns, fields, labels, classes or splits are not clear.
    """
    if "train" not in shards.files and shards.files and not holdout:
        shards = replace(shards, files={"train": next(iter(shards.files.values()))})
    if "train" not in shards.files:
        raise DataError(f"{shards.name}: expected a split called train, got {', '.join(shards.files) or 'none'}")
    tables = _tables(shards)
    given = shards.class_names or next((table.class_names for table in tables.values() if table.class_names), None)
    open_splits = partial(_streams, epoch_images=epoch_images) if stream else _at_random
    splits, classes, remarks = open_splits(shards, tables, given)
    fingerprint, stamp = _identity(shards, splits, classes)
    train = splits["train"]
    is_whole = list(splits) == ["train"] and isinstance(train, PackedImages)
    if isinstance(train, PackedImages) and is_whole:
        chosen = kept_out(train.labels, holdout, seed) if holdout else None
        splits = {"all": train}
        if chosen is not None:
            splits = {"train": train.subset(~chosen), "validation": train.subset(chosen)}
    return ImageSource(
        shards.name,
        classes.names,
        splits,
        fingerprint,
        tuple(shards.other_files[:MAX_NAMED_FILES]),
        len(shards.other_files),
        tuple(remarks),
        is_whole and holdout > 0,
        stamp,
    )


def _tables(shards: Shards) -> dict[str, Table]:
    """What every parquet file says of itself; of tars nothing, but that they are whole."""
    tables = {}
    for file in (file for part in shards.files.values() for file in part):
        if shards.kind == "webdataset" and shards.identity:
            continue  # too far away to look at its end
        try:
            with shards.open_file(file) as opened:
                if shards.kind == "parquet":
                    tables[file] = describe(opened, shown(file, 200))
                else:
                    check_whole(opened, shown(file, 200))
        except OSError as error:
            raise DataError(f"{shown(file, 200)}: expected to read it, got: {one_line(error, 200)}") from None
    return tables


def _rows(shards: Shards, tables: dict[str, Table], file: str, with_content: bool) -> Iterator[Row]:
    name = shown(file.rpartition("/")[2])
    try:
        with shards.open_file(file) as opened:
            if shards.kind == "parquet":
                yield from read_table(opened, name, tables[file])
            else:
                yield from read_tar(opened, name, with_content)
    except OSError as error:
        raise DataError(f"{name}: expected to read it, got: {one_line(error, 200)}") from None


Opened = tuple[dict[str, Images], _Classes, list[str]]
"""The splits, the classes, and lines for the user."""


def _at_random(shards: Shards, tables: dict[str, Table], given: tuple[str, ...] | None) -> Opened:
    """The splits as images that can be read in any order."""
    remarks, content, labels = [], dict[str, Content](), dict[str, list[Label]]()
    unused: list[str] = []
    for split, files in shards.files.items():
        if shards.kind == "parquet":
            labels[split] = [label for file in files for label in _table_labels(shards, tables, file)]
            content[split] = TableContent(shards, tables, files)
        else:
            labels[split], content[split], _ = _tar_content(shards, files, unused)
    classes = _Classes.of(given, labels.values())
    splits: dict[str, Images] = {}
    for split in shards.files:
        try:
            indices = np.array([classes.index(label, split) for label in labels[split]], np.uint16)
        except DataError as error:
            if split != "test" or "validation" not in shards.files:
                raise
            remarks.append(f"the test split is left out: {error}")  # its labels may be a secret, as ImageNet's are
        else:
            splits[split] = PackedImages(content[split], np.arange(len(indices)), indices)
    return splits, classes, remarks + _not_used(unused)


def _not_used(unused: list[str]) -> list[str]:
    named = ", ".join(unused[:3]) + ", ..." * (len(unused) > 3)
    return [f"{len(unused):,} images beside the one of their sample are not used ({named})"] if unused else []


def _tar_content(shards: Shards, files: list[str], unused: list[str]) -> tuple[list[Label], TarContent, list[int]]:
    """The labels in tars, where their images lie, and how many each file has; the images are passed over."""
    labels: list[Label] = []
    names, spans, counts = list[bytes](), list[tuple[int, int]](), []
    for file in files:
        before = len(labels)
        for row in _rows(shards, {}, file, with_content=False):
            labels.append(row.label)
            names.append(row.name.encode())
            spans.append((row.offset, row.size))
            unused += row.unused
        counts.append(len(labels) - before)
    file_of = np.repeat(np.arange(len(files), dtype=np.int32), counts)
    content = TarContent(files, file_of, np.array(spans, np.int64).reshape(-1, 2), Names.of(names))
    return labels, content, counts


def _table_labels(shards: Shards, tables: dict[str, Table], file: str) -> list[Label]:
    with shards.open_file(file) as opened:
        return read_labels(opened, shown(file.rpartition("/")[2]), tables[file])


def _streams(shards: Shards, tables: dict[str, Table], given: tuple[str, ...] | None, *, epoch_images: int) -> Opened:
    """The splits as images that are read in their order; how many there are must be known before."""
    if list(shards.files) == ["train"]:
        raise DataError(
            f"{shards.name}: expected a validation or test split, which a stream needs, got none, try without --stream"
        )
    labels: list[list[Label]] = []
    counts: dict[str, list[int] | None] = {}
    unused: list[str] = []
    for split, files in shards.files.items():
        if shards.kind == "parquet":
            counts[split] = [tables[file].num_rows for file in files]
            labels += [] if given else [_table_labels(shards, tables, file) for file in files]
        elif shards.identity or (split == "train" and epoch_images and given):
            counts[split] = None
        else:
            some, _, counts[split] = _tar_content(shards, files, unused)
            labels.append(some)
    if not given and not labels:
        raise DataError(f"{shards.name}: expected the names of the classes, which a stream needs, got none")
    classes = _Classes.of(given, labels)
    splits: dict[str, Images] = {}
    for split, files in shards.files.items():
        known = counts[split]
        total = sum(known) if known is not None else shards.totals.get(split, 0)
        if split == "train" and 0 < total < epoch_images:
            raise DataError(f"{shards.name}: expected at most its {total:,} images in an epoch, got {epoch_images:,}")
        length = epoch_images or total if split == "train" else total or epoch_images
        if not length:
            raise DataError(
                f"{shards.name}: expected a stream that says its length, got none, try --epoch-images 100000"
            )
        rows = partial(_rows, shards, tables, with_content=True)
        splits[split] = StreamImages(split, files, known, length, rows, classes.index)
    return splits, classes, _not_used(unused)


def _identity(shards: Shards, splits: Mapping[str, Images], classes: _Classes) -> tuple[str, str]:
    """The fingerprint, which does not depend on where files lie or when they were written, and the stamp."""
    root = os.path.commonpath([os.path.dirname(file) for part in shards.files.values() for file in part])  # noqa: PTH120
    stamp = hashlib.sha256(shards.identity.encode())
    told: list[Any] = [shards.kind, classes.names, shards.identity]
    for split, part in shards.files.items():
        told.append([split, len(part)])
        for file in part if not shards.identity else []:
            status = os.stat(file)  # noqa: PTH116
            told.append([os.path.relpath(file, root), status.st_size])
            stamp.update(f"{file.rpartition('/')[2]} {status.st_size} {status.st_mtime_ns}\0".encode(errors="replace"))
    digest = hashlib.sha256(json.dumps(told).encode())
    for images in splits.values():
        if isinstance(images, PackedImages):
            digest.update(images.labels.tobytes())
    return digest.hexdigest(), stamp.hexdigest()
