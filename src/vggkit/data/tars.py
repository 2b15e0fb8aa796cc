"""Tar shards in WebDataset format: files whose names agree up to the first dot form one sample."""

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
"""Names of the label among the fields of a sample, of its JSON file or of a table."""

MAX_LABEL_BYTES = 2**20

END_BYTES = 1_024  # zeros at the end of a tar, at least (POSIX pax format)

Label = int | str | DataError
"""A number, a name, or the error of a missing label."""


class Row(NamedTuple):
    """A sample as it is stored."""

    name: str
    label: Label
    content: bytes | None  # the encoded image; None if it was not read
    span: tuple[int, int] = (0, 0)  # offset and size in bytes of the encoded image in the file
    unused: tuple[str, ...] = ()  # further images of the sample, which are ignored


class _Member(NamedTuple):
    field: str  # the name after its first dot
    span: tuple[int, int]
    content: bytes | None

    @property
    def is_image(self) -> bool:
        return f".{self.field}".lower().endswith(IMAGE_SUFFIXES)


def check_whole(file: BinaryIO, name: str) -> None:
    """Raise `DataError` unless a tar has its end: a truncated one would be read as a shorter one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END_BYTES))
    if file.read() != bytes(END_BYTES):
        raise DataError(
            f"{name}: expected a whole .tar file, not compressed, got one that does not end in {END_BYTES:,} zeros, "
            "try to copy or write it anew"
        )


def read_tar(file: BinaryIO, name: str, with_content: bool) -> Iterator[Row]:
    """The samples of a tar in order, without images on request; raises `DataError` if it is damaged or ambiguous."""
    key, members = "", list[_Member]()
    try:
        with tarfile.open(fileobj=file, mode="r|" if with_content else "r:", bufsize=2**20) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every member
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
    # A sparse member claims to be larger than it is; it counts as too large.
    unread = _Member(field, (member.offset_data, MAX_IMAGE_BYTES + 1 if member.issparse() else member.size), None)
    max_bytes = MAX_IMAGE_BYTES if unread.is_image else MAX_LABEL_BYTES
    is_needed = with_content if unread.is_image else field in (*LABEL_NAMES, "json")
    stream = tar.extractfile(member) if is_needed and unread.span[1] <= max_bytes else None
    return unread._replace(content=stream.read()) if stream is not None else unread


def _sample(file: str, key: str, members: list[_Member]) -> Iterator[Row]:
    """The sample of the members with one key, if they include an image."""
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
    labels = [member.content for member in members if member.field in LABEL_NAMES]
    if len(labels) == 1 and labels[0] is not None:
        return as_label(labels[0], where)
    texts = [member.content for member in members if member.field == "json" and member.content is not None]
    if texts:
        try:
            values = json.loads(texts[0])
        except (ValueError, RecursionError) as error:
            return DataError(f"{where}: expected JSON, got: {one_line(error, 100)}")
        json_labels = [values[name] for name in LABEL_NAMES if name in values] if isinstance(values, dict) else []
        if len(json_labels) == 1:
            return as_label(json_labels[0], where)
    fields = ", ".join(shown(member.field, 40) for member in members[:10])
    return DataError(f"{where}: expected one label, in a field {', '.join(LABEL_NAMES)} or json, got {fields}")


def as_label(value: object, where: str) -> Label:
    """A value from a file or a table as a label: a whole number or the name of a class."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace").strip()
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value):
        return int(value)
    if isinstance(value, str) and value:
        return shown(value, 200)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return DataError(f"{where}: expected a label, as a number or a name, got {shown(str(value), 60)}")
