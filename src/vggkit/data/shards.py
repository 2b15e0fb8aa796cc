"""Parquet files and tar shards: finding them, their splits and classes, and random or sequential access to images."""

import functools
import os
import re
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vggkit.data.files import MAX_IMAGE_BYTES
from vggkit.data.samples import MAX_CLASSES, SPLIT_WORDS, Images, ImageSource, SourceBuilder, StoredImages, split_named
from vggkit.data.streams import StreamImages
from vggkit.data.tables import Table, describe, read_table
from vggkit.data.tars import Label, Row, check_whole, read_tar
from vggkit.errors import DataError, one_line, shown

SUFFIXES = (".parquet", ".tar")
CLASSES_FILE = "classes.txt"


@dataclass(frozen=True)
class Shards:
    """Files of one kind by split."""

    name: str
    is_parquet: bool  # whether these are parquet files; otherwise they are tars
    files: Mapping[str, list[str]]  # paths or addresses for `open_file`, by split
    other_files: list[str] = field(default_factory=list)  # printable relative names of ignored files
    class_names: tuple[str, ...] | None = None
    open_file: Callable[[str], BinaryIO] = lambda path: open(path, "rb")  # noqa: PTH123, SIM115
    totals: Mapping[str, int] = field(default_factory=dict)  # images in each split of remote files, if stated
    identity: str = ""  # identifies the content of files from the hub; local files are identified by names and sizes
    tables: Mapping[str, Table] = field(default_factory=dict)  # the metadata of each parquet file

    def with_metadata(self) -> "Shards":
        """These shards with their tables and class names; raises `DataError` for a damaged file."""
        tables = {}
        for file in (file for part in self.files.values() for file in part):
            name = shown(file, 200)
            if self.is_parquet or not self.identity:  # the end of a remote tar is not read
                with self._open_named(file, name) as opened:
                    if self.is_parquet:
                        tables[file] = describe(opened, name)
                    else:
                        check_whole(opened, name)
        names = [table.class_names for table in tables.values() if table.class_names]
        return replace(self, tables=tables, class_names=self.class_names or (names[0] if names else None))

    def rows(self, file: str, with_content: bool = True) -> Iterator[Row]:
        """The samples of a file in order, without images on request; raises `DataError`."""
        name = shown(file.rpartition("/")[2])
        with self._open_named(file, name) as opened:
            if self.is_parquet:
                yield from read_table(opened, name, self.tables[file], with_content)
            else:
                yield from read_tar(opened, name, with_content)

    @contextmanager
    def _open_named(self, file: str, name: str) -> Iterator[BinaryIO]:
        try:
            with self.open_file(file) as opened:
                yield opened
        except OSError as error:
            raise DataError(f"{name}: expected to read it, got: {one_line(error, 200)}") from None


def find_shards(path: Path) -> Shards | None:
    """The parquet files or tar shards in the folder `path`, or the one file `path`; None if there are none.

    A folder is searched together with its subfolders that are called `data` or like a split.

    Raises:
        DataError: there are both kinds, or a name contains two splits.
    """
    name, path = shown(path, 200), path.absolute()
    if _is_shard(path):
        return Shards(name, _is_parquet(path), {"train": [str(path)]}, [], _read_class_names(path.parent))
    try:
        top = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        inner = [folder for folder in top if folder.is_dir() and (folder.name == "data" or _splits_in(folder.name))]
        below = sorted(entry for folder in inner for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{name}: expected to read it, got: {error.strerror}") from None
    shards = list(filter(_is_shard, top + below))
    if not shards:
        return None
    if len(set(map(_is_parquet, shards))) > 1:
        raise DataError(f"{name}: expected parquet files or tar shards, got both, try a folder for each")
    splits = {file: _split_of(file.relative_to(path).as_posix()) for file in shards}
    files = {split: [str(file) for file in shards if splits[file] == split] for split in SPLIT_WORDS}
    if not any(splits.values()):
        files["train"] = list(map(str, shards))
    taken = {Path(file) for part in files.values() for file in part} | {path / CLASSES_FILE, *inner}
    others = [shown(str(file.relative_to(path))) for file in top + below if file not in taken]
    files = {split: part for split, part in files.items() if part}
    return Shards(name, _is_parquet(shards[0]), files, others, _read_class_names(path))


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _is_shard(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _split_of(name: str) -> str | None:
    """The split in the folder of a relative name, else the one in its file name; None without one."""
    folder, _, file_name = name.rpartition("/")
    splits = _splits_in(folder) or _splits_in(file_name)
    if len(splits) > 1:
        raise DataError(f"{shown(name)}: expected the name of one split in it, got {' and '.join(splits)}")
    return splits[0] if splits else None


def _splits_in(name: str) -> list[str]:
    named = {split_named(word) for word in re.split(r"[-._ 0-9/]+", name)}
    return [split for split in SPLIT_WORDS if split in named]


def _read_class_names(folder: Path) -> tuple[str, ...] | None:
    """The lines of `classes.txt`; None if there is none. Raises `DataError`."""
    path = folder / CLASSES_FILE
    if not path.is_file():
        return None
    try:
        names = tuple(shown(line.strip(), 200) for line in path.read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{shown(path, limit=500)}: expected a text in UTF-8, got: {error}") from None
    if len(names) > MAX_CLASSES or not all(names):
        raise DataError(
            f"{shown(path, limit=500)}: expected the name of a class in each line, {MAX_CLASSES:,} at most, got "
            f"{len(names):,} lines, {sum(not name for name in names)} of them empty"
        )
    return names


def open_shards(shards: Shards, only_evaluate: bool, stream: bool, epoch_images: int) -> ImageSource:
    """The images of `shards`; with `only_evaluate`, any split may be taken for training. Raises `DataError`."""
    if "train" not in shards.files and shards.files and only_evaluate:
        shards = replace(shards, files={"train": next(iter(shards.files.values()))})
    if "train" not in shards.files:
        raise DataError(f"{shards.name}: expected a split called train, got {', '.join(shards.files) or 'none'}")
    shards, builder = shards.with_metadata(), SourceBuilder(shards.other_files)
    splits, classes = _streams(shards, epoch_images, builder) if stream else _random_access(shards, builder)
    root = os.path.commonpath([os.path.dirname(file) for part in shards.files.values() for file in part])  # noqa: PTH120
    builder.digest.update("\0".join([*classes, shards.identity]).encode())
    builder.stamp.update(shards.identity.encode())
    for split, part in shards.files.items():
        files = []
        for file in part if not shards.identity else []:
            status = os.stat(file)  # noqa: PTH116
            files.append((os.path.relpath(file, root), status.st_size, status.st_mtime_ns))
        builder.add_files(split, files)
    for images in splits.values():
        if isinstance(images, StoredImages):
            builder.digest.update(images.labels.tobytes())
    return builder.build(shards.name, classes, splits)


def _classes(stated: tuple[str, ...] | None, labels: list[list[Label]]) -> tuple[tuple[str, ...], Callable[..., int]]:
    """The class names, and the function from a label and its image's name to a class index; it raises `DataError`.

    Without `stated` names, the classes are the texts among all `labels`, or the numbers up to the highest.
    """
    distinct = {label for of_split in labels for label in of_split if not isinstance(label, DataError)}
    is_by_name = stated is None and any(isinstance(label, str) for label in distinct)  # numbers then are names too
    if stated is not None:
        names = stated
    elif is_by_name:
        names = tuple(sorted(map(str, distinct)))
    else:
        names = tuple(map(str, range(min(MAX_CLASSES, 1 + max(map(int, distinct), default=-1)))))
    indices = {name: index for index, name in enumerate(names)}

    def index_of(label: Label, where: str) -> int:
        if isinstance(label, DataError):
            raise label
        if isinstance(label, str) or is_by_name:
            if str(label) not in indices:
                raise DataError(f"{where}: expected the name of one of {len(names):,} classes, got {label}")
            return indices[str(label)]
        if not 0 <= label < len(names):
            raise DataError(f"{where}: expected a label from 0 to {len(names) - 1}, got {label}")
        return label

    return names, index_of


def _label_rows(shards: Shards, file: str, builder: SourceBuilder) -> list[Row]:
    """The samples of a file, to learn their labels."""
    rows = list(shards.rows(file, with_content=False))
    builder.unused_images += [name for row in rows for name in row.unused]
    return rows


def _random_access(shards: Shards, builder: SourceBuilder) -> tuple[dict[str, Images], tuple[str, ...]]:
    """The splits with random access to their images, and the classes."""
    rows_of = {
        split: [(file, row) for file in files for row in _label_rows(shards, file, builder)]
        for split, files in shards.files.items()
    }
    classes, index_of = _classes(shards.class_names, [[row.label for _, row in rows] for rows in rows_of.values()])
    splits: dict[str, Images] = {}
    for split, rows in rows_of.items():
        try:
            labels = np.array([index_of(row.label, split) for _, row in rows], np.uint16)
        except DataError as error:
            if split != "test" or "validation" not in shards.files:
                raise
            builder.remarks.append(f"the test split is left out: {error}")  # its labels may be withheld
        else:
            reader = functools.cache(functools.partial(_parquet_reader, shards, shards.files[split]))
            splits[split] = StoredImages(
                reader if shards.is_parquet else _tar_reader(rows), labels, np.arange(len(labels))
            )
    return splits, classes


def _tar_reader(rows: list[tuple[str, Row]]) -> Callable[[], Callable[[int], tuple[str, bytes]]]:
    """Reads images in place from tars; see `StoredImages.open`."""
    files = {file: number for number, file in enumerate(dict(rows))}
    paths, file_of = list(files), np.array([files[file] for file, _ in rows], np.int32)
    spans, names = np.array([row.span for _, row in rows], np.int64), np.array([row.name.encode() for _, row in rows])

    def read(number: int) -> tuple[str, bytes]:
        name = bytes(names[number]).decode()
        offset, size = spans[number].tolist()
        if not 0 < size <= MAX_IMAGE_BYTES:
            raise DataError(f"{name}: expected an image of 1 to {MAX_IMAGE_BYTES:,} bytes, got {size:,}")
        try:
            with open(paths[file_of[number]], "rb") as file:  # noqa: PTH123
                return name, os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"{name}: expected to read it, got: {error.strerror}") from None

    return lambda: read


def _parquet_reader(shards: Shards, files: list[str]) -> Callable[[int], tuple[str, bytes]]:
    """Copies the images of parquet files into an unnamed temporary file, and reads them there in any order."""
    copy, names, ends = tempfile.TemporaryFile(prefix="vggkit-"), list[str](), [0]  # noqa: SIM115

    def read(number: int) -> tuple[str, bytes]:
        name, start, size = names[number], ends[number], ends[number + 1] - ends[number]
        if not 0 < size <= MAX_IMAGE_BYTES:
            raise DataError(f"{name}: expected an image's bytes in the table, got none")
        return name, os.pread(copy.fileno(), size, start)

    weakref.finalize(read, copy.close)
    try:
        for file in files:
            for row in shards.rows(file):
                names.append(row.name)
                ends.append(ends[-1] + copy.write(row.content or b""))
        copy.flush()
    except OSError as error:
        raise DataError(
            f"{shards.name}: expected room for a temporary copy in {tempfile.gettempdir()}, got: {error.strerror}, "
            "try another TMPDIR, or --stream"
        ) from None
    return read


def _streams(shards: Shards, epoch_images: int, builder: SourceBuilder) -> tuple[dict[str, Images], tuple[str, ...]]:
    """The splits as streams, and the classes, which must be known before reading."""
    if list(shards.files) == ["train"]:
        raise DataError(
            f"{shards.name}: expected a validation or test split, which a stream needs, got none, try without --stream"
        )
    class_names, labels, counts = shards.class_names, list[list[Label]](), dict[str, list[int] | None]()
    for split, files in shards.files.items():
        if shards.is_parquet and class_names:
            counts[split] = [shards.tables[file].num_rows for file in files]
        elif not shards.is_parquet and (shards.identity or (split == "train" and epoch_images and class_names)):
            counts[split] = None
        else:
            rows_of_files = [_label_rows(shards, file, builder) for file in files]
            counts[split] = list(map(len, rows_of_files))
            labels += [[row.label for row in rows] for rows in rows_of_files]
    if not class_names and not labels:
        raise DataError(f"{shards.name}: expected the names of the classes, which a stream needs, got none")
    classes, index_of = _classes(class_names, labels)
    splits: dict[str, Images] = {}
    for split, files in shards.files.items():
        file_counts = counts[split]
        total = sum(file_counts) if file_counts is not None else shards.totals.get(split, 0)
        if split == "train" and 0 < total < epoch_images:
            raise DataError(f"{shards.name}: expected at most its {total:,} images in an epoch, got {epoch_images:,}")
        length = epoch_images or total if split == "train" else total or epoch_images
        if not length:
            raise DataError(
                f"{shards.name}: expected a stream that says its length, got none, try --epoch-images 100000"
            )
        splits[split] = StreamImages(split, files, file_counts, length, shards.rows, index_of)
    return splits, classes
