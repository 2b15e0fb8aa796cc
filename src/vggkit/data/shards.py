"""Parquet files and tar shards: which there are, of which split, and the images in them, at random or in a stream."""

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
from vggkit.data.samples import MAX_CLASSES, SPLIT_WORDS, Account, Images, ImageSource, StoredImages, split_named
from vggkit.data.streams import StreamImages
from vggkit.data.tables import Table, describe, read_table
from vggkit.data.tars import Label, Row, check_whole, read_tar
from vggkit.errors import DataError, one_line, shown

SUFFIXES = (".parquet", ".tar")
CLASSES_FILE = "classes.txt"


@dataclass(frozen=True)
class Shards:
    """Files of one kind, by split."""

    name: str
    is_parquet: bool
    """Parquet files, or else tars."""
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
    tables: Mapping[str, Table] = field(default_factory=dict)
    """What each parquet file says of itself."""

    def described(self) -> "Shards":
        """These with their tables and names of classes; raises `DataError` for a file that is damaged."""
        tables = {}
        for file in (file for part in self.files.values() for file in part):
            if self.is_parquet:
                with self._opened(file, shown(file, 200)) as opened:
                    tables[file] = describe(opened, shown(file, 200))
            elif not self.identity:  # near enough to look at its end
                with self._opened(file, shown(file, 200)) as opened:
                    check_whole(opened, shown(file, 200))
        names = [table.class_names for table in tables.values() if table.class_names]
        return replace(self, tables=tables, class_names=self.class_names or (names[0] if names else None))

    def rows(self, file: str, with_content: bool = True) -> Iterator[Row]:
        """The samples of a file, in order, perhaps without images; raises `DataError`."""
        name = shown(file.rpartition("/")[2])
        with self._opened(file, name) as opened:
            if self.is_parquet:
                yield from read_table(opened, name, self.tables[file], with_content)
            else:
                yield from read_tar(opened, name, with_content)

    @contextmanager
    def _opened(self, file: str, name: str) -> Iterator[BinaryIO]:
        try:
            with self.open_file(file) as opened:
                yield opened
        except OSError as error:
            raise DataError(f"{name}: expected to read it, got: {one_line(error, 200)}") from None


def find_shards(path: Path) -> Shards | None:
    """The parquet files or tar shards in the folder `path`, or the one file `path`; None if there are none.

    In a folder they are looked for in itself and in those of its folders that are called `data` or like a split.

    Raises:
        DataError: there are both kinds, or a name says two splits.
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
    found = list(filter(_is_shard, top + below))
    if not found:
        return None
    if len(set(map(_is_parquet, found))) > 1:
        raise DataError(f"{name}: expected parquet files or tar shards, got both, try a folder for each")
    splits = {file: _split_of(file.relative_to(path).as_posix()) for file in found}
    files = {split: [str(file) for file in found if splits[file] == split] for split in SPLIT_WORDS}
    if not any(splits.values()):
        files["train"] = list(map(str, found))
    taken = {Path(file) for part in files.values() for file in part} | {path / CLASSES_FILE, *inner}
    others = [shown(str(file.relative_to(path))) for file in top + below if file not in taken]
    files = {split: part for split, part in files.items() if part}
    return Shards(name, _is_parquet(found[0]), files, others, _read_class_names(path))


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _is_shard(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


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
        names = tuple(shown(line.strip(), 200) for line in path.read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{shown(path, limit=500)}: expected a text in UTF-8, got: {error}") from None
    if len(names) > MAX_CLASSES or not all(names):
        raise DataError(
            f"{shown(path, limit=500)}: expected the name of a class in each line, {MAX_CLASSES:,} at most, got "
            f"{len(names):,} lines, {sum(not name for name in names)} of them empty"
        )
    return names


def open_shards(shards: Shards, is_measured: bool, stream: bool, epoch_images: int) -> ImageSource:
    """The images of `shards`; if a validation or test split alone will do, since it is measured, it is called train.

    Raises:
        DataError: a file is damaged, or its columns, fields, labels, classes or splits are not clear.
    """
    if "train" not in shards.files and shards.files and is_measured:
        shards = replace(shards, files={"train": next(iter(shards.files.values()))})
    if "train" not in shards.files:
        raise DataError(f"{shards.name}: expected a split called train, got {', '.join(shards.files) or 'none'}")
    shards, account = shards.described(), Account(shards.other_files)
    splits, classes = _streams(shards, epoch_images, account) if stream else _at_random(shards, account)
    root = os.path.commonpath([os.path.dirname(file) for part in shards.files.values() for file in part])  # noqa: PTH120
    account.digest.update("\0".join([*classes, shards.identity]).encode())
    account.stamp.update(shards.identity.encode())
    for split, part in shards.files.items():
        files = []
        for file in part if not shards.identity else []:
            status = os.stat(file)  # noqa: PTH116
            files.append((os.path.relpath(file, root), status.st_size, status.st_mtime_ns))
        account.add_files(split, files)
    for images in splits.values():
        if isinstance(images, StoredImages):
            account.digest.update(images.labels.tobytes())
    return account.source(shards.name, classes, splits)


def _classes(given: tuple[str, ...] | None, labels: list[list[Label]]) -> tuple[tuple[str, ...], Callable[..., int]]:
    """The names of the classes, and the function from a label and its image's name to a class; it raises `DataError`.

    If no names are `given`, the classes are the texts among all `labels`, or else the numbers up to the highest.
    """
    distinct = {label for some in labels for label in some if not isinstance(label, DataError)}
    is_by_name = given is None and any(isinstance(label, str) for label in distinct)  # then a number is a name too
    if given is not None:
        names = given
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


def _scanned(shards: Shards, file: str, account: Account) -> list[Row]:
    """The samples of a file without their images."""
    rows = list(shards.rows(file, with_content=False))
    account.unused += [name for row in rows for name in row.unused]
    return rows


def _at_random(shards: Shards, account: Account) -> tuple[dict[str, Images], tuple[str, ...]]:
    """The splits as images that can be read in any order, and the classes."""
    found = {
        split: [(file, row) for file in files for row in _scanned(shards, file, account)]
        for split, files in shards.files.items()
    }
    classes, index_of = _classes(shards.class_names, [[row.label for _, row in rows] for rows in found.values()])
    splits: dict[str, Images] = {}
    for split, rows in found.items():
        try:
            labels = np.array([index_of(row.label, split) for _, row in rows], np.uint16)
        except DataError as error:
            if split != "test" or "validation" not in shards.files:
                raise
            account.remarks.append(f"the test split is left out: {error}")  # its labels may be a secret, as ImageNet's
        else:
            copied = functools.cache(functools.partial(_copied, shards, shards.files[split]))
            splits[split] = StoredImages(
                copied if shards.is_parquet else _in_place(rows), labels, np.arange(len(labels))
            )
    return splits, classes


def _in_place(rows: list[tuple[str, Row]]) -> Callable[[], Callable[[int], tuple[str, bytes]]]:
    """Images that stay where they are, in tars; see `StoredImages.open`."""
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


def _copied(shards: Shards, files: list[str]) -> Callable[[int], tuple[str, bytes]]:
    """The images of parquet files, copied to where they can be read in any order.

    The copy is a file without a name in the folder for temporary files, and so ends with this process.
    """
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


def _streams(shards: Shards, epoch_images: int, account: Account) -> tuple[dict[str, Images], tuple[str, ...]]:
    """The splits as images that are read in their order, and the classes; how many there are must be known before."""
    if list(shards.files) == ["train"]:
        raise DataError(
            f"{shards.name}: expected a validation or test split, which a stream needs, got none, try without --stream"
        )
    given, labels, counts = shards.class_names, list[list[Label]](), dict[str, list[int] | None]()
    for split, files in shards.files.items():
        if shards.is_parquet and given:
            counts[split] = [shards.tables[file].num_rows for file in files]
        elif not shards.is_parquet and (shards.identity or (split == "train" and epoch_images and given)):
            counts[split] = None
        else:
            found = [_scanned(shards, file, account) for file in files]
            counts[split] = list(map(len, found))
            labels += [[row.label for row in rows] for rows in found]
    if not given and not labels:
        raise DataError(f"{shards.name}: expected the names of the classes, which a stream needs, got none")
    classes, index_of = _classes(given, labels)
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
        splits[split] = StreamImages(split, files, known, length, shards.rows, index_of)
    return splits, classes
