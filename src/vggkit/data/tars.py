"""Tar shards of the WebDataset kind: files that share a key, up to the first dot of their name, are one sample."""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from vggkit.data.files import MAX_IMAGE_BYTES
from vggkit.data.samples import IMAGE_SUFFIXES
from vggkit.errors import DataError, one_line, shown

LABEL_NAMES = ("label", "labels", "cls", "class", "target")
"""What a field of a sample, of its JSON file or of a table is called if it is the label."""

MAX_LABEL_BYTES = 2**20
"""Of a file that holds a label."""

END_BYTES = 1_024
"""Of zeros, at least, behind the last member (POSIX pax format)."""

Label = int | str | DataError
"""A number, a name, or why there is none."""


class Row(NamedTuple):
    """A sample as it was found in a file."""

    name: str
    label: Label
    content: bytes | None
    """None if it was not read."""
    span: tuple[int, int] = (0, 0)
    """Where the encoded image begins in the file, and its bytes."""
    unused: tuple[str, ...] = ()
    """Images that the sample has beside it, which are not taken."""


class _Member(NamedTuple):
    field: str
    """What follows the first dot of the name."""
    span: tuple[int, int]
    content: bytes | None

    @property
    def is_image(self) -> bool:
        return f".{self.field}".lower().endswith(IMAGE_SUFFIXES)


def check_whole(file: BinaryIO, name: str) -> None:
    """Look at the end of a tar: one that was cut between two images would be read as a shorter one.

    Raises:
        DataError: it is cut, compressed or something else; it is named.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END_BYTES))
    if file.read() != bytes(END_BYTES):
        raise DataError(
            f"{name}: expected a whole .tar file, not compressed, got one that does not end in {END_BYTES:,} zeros, "
            "try to copy or write it anew"
        )


def read_tar(file: BinaryIO, name: str, with_content: bool) -> Iterator[Row]:
    """The samples of a tar, in order.

    Args:
        file: read from its start to its end; without content the images are passed over.
        name: what errors and rows call it.
        with_content: read the images.

    Raises:
        DataError: the file is damaged, or a sample has no image to be told from others.
    """
    key, members = "", list[_Member]()
    try:
        with tarfile.open(fileobj=file, mode="r|" if with_content else "r:", bufsize=2**20) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would remember every member
                folder, slash, file_name = member.name.rpartition("/")
                if not member.isreg() or file_name.startswith((".", "__")) or "." not in file_name:
                    continue
                stem, _, field = file_name.partition(".")
                if folder + slash + stem != key:
                    yield from _sample(name, key, members)
                    key, members = folder + slash + stem, []
                members.append(_read_member(tar, member, field, with_content))
        yield from _sample(name, key, members)
    except DataError:
        raise
    except (OSError, tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DataError(f"{name}: expected a whole .tar file, got: {one_line(error, 200)}") from None


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, field: str, with_content: bool) -> _Member:
    # A sparse member, which says that it is larger than it is, is as one that is too large.
    found = _Member(field, (member.offset_data, MAX_IMAGE_BYTES + 1 if member.issparse() else member.size), None)
    limit = MAX_IMAGE_BYTES if found.is_image else MAX_LABEL_BYTES
    is_wanted = with_content if found.is_image else field in (*LABEL_NAMES, "json")
    stream = tar.extractfile(member) if is_wanted and found.span[1] <= limit else None
    return found._replace(content=stream.read()) if stream is not None else found


def _sample(file: str, key: str, members: list[_Member]) -> Iterator[Row]:
    """The sample of the members with one key, if there is an image among them."""
    images = [member for member in members if member.is_image]
    if not images:
        return
    plain = [member for member in images if "." not in member.field] or images
    where = f"{file}/{shown(key)}"
    if len(plain) > 1:
        fields = " and ".join(shown(member.field, 40) for member in plain[:3])
        raise DataError(
            f"{where}: expected one image in a sample, got {fields}; the key of a sample ends at the first dot of its "
            "files' names, try names without another dot"
        )
    unused = tuple(f"{where}.{shown(member.field, 40)}" for member in images if member is not plain[0])
    yield Row(where, _label(where, members), plain[0].content, plain[0].span, unused)


def _label(where: str, members: list[_Member]) -> Label:
    found = [member.content for member in members if member.field in LABEL_NAMES]
    if len(found) == 1 and found[0] is not None:
        return as_label(found[0], where)
    texts = [member.content for member in members if member.field == "json" and member.content is not None]
    if texts:
        try:
            values = json.loads(texts[0])
        except (ValueError, RecursionError) as error:
            return DataError(f"{where}: expected JSON, got: {one_line(error, 100)}")
        given = [values[name] for name in LABEL_NAMES if name in values] if isinstance(values, dict) else []
        if len(given) == 1:
            return as_label(given[0], where)
    fields = ", ".join(shown(member.field, 40) for member in members[:10])
    return DataError(f"{where}: expected one label, in a field {', '.join(LABEL_NAMES)} or json, got {fields}")


def as_label(value: object, where: str) -> Label:
    """The label that a file or a table says: a whole number, or a name of a class."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace").strip()
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value):
        return int(value)
    if isinstance(value, str) and value:
        return shown(value, 200)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return DataError(f"{where}: expected a label, as a number or a name, got {shown(str(value), 60)}")
