"""Parquet files with a column of encoded images and one of labels, read a few rows at a time."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from vggkit.data.tars import LABEL_NAMES, Row, as_label
from vggkit.errors import DataError, one_line, shown

MAX_BATCH_ROWS = 1_000
ROW_BYTES = 8  # bytes that a row counts for beside its texts and images
MAX_EXPANSION, SMALL_BYTES = 100, 2**26
"""A file may unpack to 100 times its size, or to 64 MiB if that is more; images are compressed already."""


class Table(NamedTuple):
    """The metadata of a parquet file."""

    num_rows: int
    image: str
    """Name of the column of images."""
    label: str
    """Name of the column of labels."""
    class_names: tuple[str, ...] | None
    """Names for integer labels, if the metadata of the library `datasets` has them."""


def describe(file: BinaryIO, name: str) -> Table:
    """Read the metadata of a parquet file; raises `DataError` if it is damaged, ambiguous or unpacks to too much."""
    parquet = _open_parquet(file, name)
    schema = parquet.schema_arrow
    features: dict[str, Any] = {}
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # not written by `datasets`
        features = dict(json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"])
    images = _columns_of(features, "Image") or [field.name for field in schema if _may_hold_images(field.type)]
    if len(images) != 1:
        raise DataError(f"{name}: expected one column of images, got {_join(images)} among {_join(schema.names)}")
    class_labels = _columns_of(features, "ClassLabel")
    labels = class_labels or [field.name for field in schema if _may_be_label(field)]
    if len(labels) != 1:
        raise DataError(
            f"{name}: expected one column of labels, as class labels or as numbers or names called "
            f"{', '.join(LABEL_NAMES)}, got {_join(labels)} among {_join(schema.names)}"
        )
    names = features[labels[0]].get("names") if class_labels else None
    file_bytes, unpacked = file.seek(0, 2), max(_unpacked_bytes(parquet, [images[0], labels[0]]), default=0)
    if unpacked > max_unpacked_bytes(file_bytes):
        raise DataError(f"{name}: expected images, got a group of {unpacked:,} bytes in a file of {file_bytes:,}")
    class_names = tuple(shown(str(text), 200) for text in names) if isinstance(names, list) and names else None
    return Table(parquet.metadata.num_rows, images[0], labels[0], class_names)


def read_table(file: BinaryIO, name: str, table: Table, with_content: bool) -> Iterator[Row]:
    """The rows of a parquet file in order; raises `DataError` if it is damaged or unpacks to too much."""
    number, space = 0, max_unpacked_bytes(file.seek(0, 2))
    columns = [table.label, table.image] if with_content else [table.label]
    parquet = _open_parquet(file, name)
    # A value that a dictionary holds once may be repeated in every row, and take memory there.
    batch_rows = max(1, min(MAX_BATCH_ROWS, SMALL_BYTES // max(1, *_unpacked_bytes(parquet, columns))))
    try:
        for batch in parquet.iter_batches(batch_rows, columns=columns, use_threads=False):
            labels = batch.column(table.label).to_pylist()
            images = batch.column(table.image).to_pylist() if with_content else [None] * len(labels)
            for image, label in zip(images, labels, strict=True):
                where = f"{name} row {number}"
                content = image["bytes"] if isinstance(image, dict) else image
                space -= ROW_BYTES + sum(len(value) for value in (content, label) if isinstance(value, bytes | str))
                if space < 0:
                    raise DataError(
                        f"{where}: expected images and labels, got far more bytes than a file of its size can hold"
                    )
                yield Row(where, as_label(label, where), content)
                number += 1
    except DataError:
        raise
    except Exception as error:  # pyarrow raises almost anything on a damaged file
        raise _damaged(name, error) from None


def _damaged(name: str, error: Exception) -> DataError:
    return DataError(f"{name}: expected a whole .parquet file, got: {one_line(error, 200)}")


def _open_parquet(file: BinaryIO, name: str) -> Any:
    try:
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(file)
    except ImportError as error:
        raise DataError(
            f"{name}: expected the library pyarrow, got: {one_line(error)}, try pip install 'vggkit[data]'"
        ) from None
    except Exception as error:
        raise _damaged(name, error) from None


def _columns_of(features: dict[str, Any], kind: str) -> list[str]:
    return [name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == kind]


def _may_hold_images(type_: Any) -> bool:
    """Whether a column has bytes, or the struct of bytes and path of `datasets` without its metadata."""
    import pyarrow.types as types

    if types.is_struct(type_):
        return {type_.field(index).name for index in range(type_.num_fields)} == {"bytes", "path"}
    return bool(types.is_binary(type_) or types.is_large_binary(type_))


def _may_be_label(field: Any) -> bool:
    import pyarrow.types as types

    is_text = types.is_string(field.type) or types.is_large_string(field.type)
    return field.name in LABEL_NAMES and bool(types.is_integer(field.type) or is_text)


def _unpacked_bytes(parquet: Any, columns: list[str]) -> list[int]:
    """The uncompressed size of the columns in each row group according to the metadata."""
    groups = (parquet.metadata.row_group(group) for group in range(parquet.metadata.num_row_groups))
    chunks_of_groups = ([group.column(index) for index in range(group.num_columns)] for group in groups)
    return [
        sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in columns)
        for chunks in chunks_of_groups
    ]


def max_unpacked_bytes(file_bytes: int) -> int:
    """How many bytes the images in a file of `file_bytes` may take unpacked."""
    return max(SMALL_BYTES, MAX_EXPANSION * file_bytes)


def _join(names: list[str]) -> str:
    """The first ten names of columns for a message."""
    return ", ".join([shown(name, 60) for name in names[:10]] + ["..."] * (len(names) > 10)) or "none"
