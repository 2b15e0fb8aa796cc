"""Parquet files and tar shards in a folder: which there are, of which split, and how many images they hold."""

import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vggkit.data.samples import MAX_CLASSES, printable
from vggkit.errors import DataError, one_line

KINDS: dict[str, Literal["parquet", "webdataset"]] = {".parquet": "parquet", ".tar": "webdataset"}
"""By suffix; the kinds are called as the library `datasets` calls them."""

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What stands between the signs and digits of a name, as the library `datasets` knows it."""

CLASSES_FILE = "classes.txt"
MAX_CLASSES_BYTES = 2**24

TAR_END_BYTES = 1_024
"""Of zeros, at least, behind the last member (POSIX pax format)."""


@dataclass(frozen=True)
class Shards:
    """Files of one kind, by split."""

    folder: Path
    """Absolute."""
    kind: Literal["parquet", "webdataset"]
    files: dict[str, list[Path]]
    """Sorted, of `train`, `validation` and `test`; all are `train` if no name says anything else."""
    other_files: list[str]
    """Relative names of what was not taken, printable."""

    @property
    def files_of_all_splits(self) -> list[Path]:
        """Split after split."""
        return [file for part in self.files.values() for file in part]


def find_shards(path: Path) -> Shards | None:
    """The parquet files or tar shards in the folder `path`, or the one file `path`; None if there are none.

    In a folder they are looked for in itself and in those of its folders that are called `data` or like a split.

    Raises:
        DataError: there are both kinds, or a name says two splits.
    """
    path = path.absolute()
    if path.suffix.lower() in KINDS and path.is_file():
        return Shards(path.parent, KINDS[path.suffix.lower()], {"train": [path]}, [])
    try:
        top = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        inner = [folder for folder in top if folder.is_dir() and (folder.name == "data" or _splits_in(folder.name))]
        below = sorted(entry for folder in inner for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{printable(str(path))}: expected to read it, got: {error.strerror}") from None
    shards = [file for file in top + below if file.suffix.lower() in KINDS and file.is_file()]
    if not shards:
        return None
    kinds = {KINDS[file.suffix.lower()] for file in shards}
    if len(kinds) > 1:
        raise DataError(
            f"{printable(str(path))}: expected parquet files or tar shards, got both, try a folder for each"
        )
    splits = {file: _split_of(file.relative_to(path).as_posix()) for file in shards}
    files = {split: [file for file in shards if splits[file] == split] for split in SPLIT_WORDS}
    if not any(splits.values()):
        files["train"] = shards
    taken = {file for part in files.values() for file in part} | {path / CLASSES_FILE, *inner}
    others = [printable(str(file.relative_to(path))) for file in top + below if file not in taken]
    return Shards(path, kinds.pop(), {split: part for split, part in files.items() if part}, others)


def _split_of(name: str) -> str | None:
    """The split that the folder in a relative name says, else the one that its file name says."""
    folder, _, file_name = name.rpartition("/")
    found = _splits_in(folder) or _splits_in(file_name)
    if len(found) > 1:
        raise DataError(f"{printable(name)}: expected the name of one split in it, got {' and '.join(found)}")
    return found[0] if found else None


def _splits_in(name: str) -> list[str]:
    words = set(re.split(r"[-._ 0-9/]+", name))
    return [split for split, known in SPLIT_WORDS.items() if words & set(known)]


def read_class_names(shards: Shards) -> tuple[str, ...] | None:
    """The lines of the `classes.txt` beside the shards; None if there is none.

    Raises:
        DataError: it is no text in UTF-8, too long, or has an empty line.
    """
    path = shards.folder / CLASSES_FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CLASSES_BYTES + 1)
        names = tuple(printable(line.strip()) for line in content.decode("utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{printable(str(path))}: expected a text in UTF-8, got: {error}") from None
    if len(content) > MAX_CLASSES_BYTES or len(names) > MAX_CLASSES or not all(names):
        raise DataError(
            f"{printable(str(path))}: expected the name of a class in each line, {MAX_CLASSES:,} at most, got "
            f"{len(names):,} lines, {sum(not name for name in names)} of them empty"
        )
    return names


def check_whole(shards: Shards) -> None:
    """Look at the end of every file, where a parquet file has its table of contents and a tar two blocks of zeros.

    A tar that was cut between two images would else be read as a shorter one.

    Raises:
        DataError: a file is damaged, cut, compressed or something else; it is named.
    """
    for file in shards.files_of_all_splits:
        if shards.kind == "parquet":
            _parquet_rows(file)
            continue
        try:
            with file.open("rb") as content:
                size = content.seek(0, os.SEEK_END)
                content.seek(max(0, size - TAR_END_BYTES))
                whole = content.read() == bytes(TAR_END_BYTES)
        except OSError as error:
            raise _not_whole(file, error) from None
        if not whole:
            raise DataError(
                f"{printable(str(file))}: expected a whole .tar file, not compressed, got one that does not end in "
                f"{TAR_END_BYTES:,} zeros, try to copy or write it anew"
            )


def count_images(shards: Shards, split: str) -> int:
    """How many images the files of `split` say they hold: in the parquet footers, or in all headers of the tars.

    Raises:
        DataError: a file is damaged; it is named.
    """
    return sum(map(_parquet_rows if shards.kind == "parquet" else _count_keys, shards.files[split]))


def _parquet_rows(file: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(file).num_rows)
    except (OSError, pyarrow.ArrowException) as error:
        raise _not_whole(file, error) from None


def _not_whole(file: Path, error: Exception) -> DataError:
    return DataError(f"{printable(str(file))}: expected a whole {file.suffix} file, got: {printable(one_line(error))}")


def _count_keys(file: Path) -> int:
    """Members with one key, up to the first dot of the name, follow each other and make one sample."""
    count, last_key = 0, None
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                if member.isreg() and not name.startswith((".", "__")) and "." in name:
                    key = (folder, name.partition(".")[0])
                    count += key != last_key
                    last_key = key
                tar.members = []  # type: ignore[attr-defined]  # it would remember every member
    except (OSError, tarfile.TarError) as error:
        raise _not_whole(file, error) from None
    return count
