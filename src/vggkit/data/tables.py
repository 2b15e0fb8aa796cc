"""Parquet files with a column of encoded images and one of labels, read a few rows at a time."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from vggkit.data.tars import LABEL_NAMES, Row, as_label
from vggkit.errors import DataError, one_line, shown

ROWS_TOGETHER = 16
MAX_EXPANSION, SMALL_BYTES = 100, 2**26
"""A file may unpack to so many times its size, and to so many bytes in any case; images are compressed already."""


class Table(NamedTuple):
    """What a parquet file says of itself."""

    num_rows: int
    image: str
    label: str
    class_names: tuple[str, ...] | None
    """The names that its columns' description, of the library `datasets`, gives to numbers."""


def describe(file: BinaryIO, name: str) -> Table:
    """Read the description at the end of a parquet file.

    Raises:
        DataError: the file is damaged, its columns are not clear, or it would unpack to far more than its size.
    """
    parquet = _opened(file, name)
    schema, metadata = parquet.schema_arrow, parquet.metadata
    features: dict[str, Any] = {}
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # a table of another program
        features = dict(json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"])
    images = _columns_of(features, "Image") or [field.name for field in schema if _may_hold_images(field.type)]
    if len(images) != 1:
        raise DataError(f"{name}: expected one column of images, got {_listed(images)} among {_listed(schema.names)}")
    described = _columns_of(features, "ClassLabel")
    labels = described or [field.name for field in schema if _may_be_label(field)]
    if len(labels) != 1:
        raise DataError(
            f"{name}: expected one column of labels, as class labels or as numbers or names called "
            f"{', '.join(LABEL_NAMES)}, got {_listed(labels)} among {_listed(schema.names)}"
        )
    names = features[labels[0]].get("names") if described else None
    _refuse_too_large(parquet, (images[0], labels[0]), file, name)
    class_names = tuple(shown(str(each), 200) for each in names) if isinstance(names, list) and names else None
    return Table(metadata.num_rows, images[0], labels[0], class_names)


def read_table(file: BinaryIO, name: str, table: Table) -> Iterator[Row]:
    """The rows of a parquet file, in order; columns that nobody asked for are not read. Raises `DataError`."""
    number = 0
    try:
        for batch in _opened(file, name).iter_batches(
            batch_size=ROWS_TOGETHER, columns=[table.image, table.label], use_threads=False
        ):
            images, labels = (batch.column(column).to_pylist() for column in (table.image, table.label))
            for image, label in zip(images, labels, strict=True):
                where = f"{name} row {number}"
                yield Row(where, as_label(label, where), image["bytes"] if isinstance(image, dict) else image)
                number += 1
    except DataError:
        raise
    except Exception as error:  # of damaged files the library raises almost anything
        raise DataError(f"{name}: expected a whole .parquet file, got: {one_line(error, 200)}") from None


def read_labels(file: BinaryIO, name: str, table: Table) -> list[Any]:
    """The labels alone, which takes no look at the images; raises `DataError`."""
    try:
        column = _opened(file, name).read([table.label], use_threads=False).column(table.label)
        return [as_label(value, f"{name} row {number}") for number, value in enumerate(column.to_pylist())]
    except Exception as error:
        raise DataError(f"{name}: expected a whole .parquet file, got: {one_line(error, 200)}") from None


def _opened(file: BinaryIO, name: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{name}: expected the library pyarrow, got: {one_line(error)}, try pip install '.[data]'"
        ) from None
    try:
        return pyarrow.parquet.ParquetFile(file)
    except Exception as error:
        raise DataError(f"{name}: expected a whole .parquet file, got: {one_line(error, 200)}") from None


def _columns_of(features: dict[str, Any], kind: str) -> list[str]:
    return [name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == kind]


def _may_hold_images(type_: Any) -> bool:
    """A table that was not written by the library has bytes, or bytes and a path, without a word of images."""
    import pyarrow.types as types

    if types.is_struct(type_):
        return {type_.field(index).name for index in range(type_.num_fields)} == {"bytes", "path"}
    return bool(types.is_binary(type_) or types.is_large_binary(type_))


def _may_be_label(field: Any) -> bool:
    import pyarrow.types as types

    is_text = types.is_string(field.type) or types.is_large_string(field.type)
    return field.name in LABEL_NAMES and bool(types.is_integer(field.type) or is_text)


def _refuse_too_large(parquet: Any, columns: tuple[str, str], file: BinaryIO, name: str) -> None:
    """Raise `DataError` if the file says that it unpacks to far more than encoded images can."""
    file_bytes = file.seek(0, 2)
    for group in range(parquet.metadata.num_row_groups):
        row_group = parquet.metadata.row_group(group)
        chunks = [row_group.column(index) for index in range(row_group.num_columns)]
        unpacked = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in columns)
        if unpacked > most_bytes(file_bytes):
            raise DataError(f"{name}: expected images, got a group of {unpacked:,} bytes in a file of {file_bytes:,}")


def most_bytes(file_bytes: int) -> int:
    """How many bytes the images in a file of `file_bytes` may take."""
    return max(SMALL_BYTES, MAX_EXPANSION * file_bytes)


def _listed(names: list[str]) -> str:
    """Names of columns, for a message."""
    return ", ".join([shown(name, 60) for name in names[:10]] + ["..."] * (len(names) > 10)) or "none"
