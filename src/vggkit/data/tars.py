"""Tar shards of the WebDataset kind: files that share a key, up to the first dot of their name, are one sample."""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from vggkit.data.files import MAX_IMAGE_BYTES
from vggkit.data.folders import IMAGE_SUFFIXES
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
    offset: int = 0
    size: int = 0
    """Where the encoded image lies in the file."""
    unused: tuple[str, ...] = ()
    """Images that the sample has beside it, which are not taken."""


class _Member(NamedTuple):
    field: str
    """What follows the first dot of the name."""
    offset: int
    size: int
    content: bytes | None


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
    file.seek(0)


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
                folder, _, file_name = member.name.rpartition("/")
                if not member.isreg() or file_name.startswith((".", "__")) or "." not in file_name:
                    continue
                stem, _, field = file_name.partition(".")
                this_key = f"{folder}/{stem}" if folder else stem
                if this_key != key:
                    yield from _sample(name, key, members)
                    key, members = this_key, []
                members.append(_read_member(tar, member, field, with_content))
        yield from _sample(name, key, members)
    except (OSError, tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: expected a whole .tar file, got: {one_line(error, 200)}") from None


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, field: str, with_content: bool) -> _Member:
    is_image = _is_image(field)
    size = member.size if not member.issparse() else MAX_IMAGE_BYTES + 1  # which says that it is larger than it is
    limit = MAX_IMAGE_BYTES if is_image else MAX_LABEL_BYTES
    wanted = with_content if is_image else field in LABEL_NAMES or field == "json"
    content = None
    if wanted and size <= limit:
        stream = tar.extractfile(member)
        content = stream.read() if stream is not None else None
    return _Member(field, member.offset_data, size, content)


def _is_image(field: str) -> bool:
    return f".{field}".lower().encode(errors="replace").endswith(IMAGE_SUFFIXES)


def _sample(file: str, key: str, members: list[_Member]) -> Iterator[Row]:
    """The sample of the members with one key, if there is an image among them."""
    images = [member for member in members if _is_image(member.field)]
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
    image = plain[0]
    unused = tuple(f"{where}.{shown(member.field, 40)}" for member in images if member is not image)
    yield Row(where, _label(where, members), image.content, image.offset, image.size, unused)


def _label(where: str, members: list[_Member]) -> Label:
    found = [member for member in members if member.field in LABEL_NAMES]
    if len(found) == 1 and found[0].content is not None:
        return as_label(found[0].content, where)
    for member in members:
        if member.field == "json" and member.content is not None:
            try:
                values = json.loads(member.content)
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
