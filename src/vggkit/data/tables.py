"""Images in the rows of parquet files, in tar shards and on the Hugging Face hub, read by the library `datasets`.

The library hands over bytes and never decodes an image; since its version 4 it runs no code that comes with data.
"""

import glob
import hashlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from vggkit.data.rows import Columns, StreamImages, TableImages, short, unreadable
from vggkit.data.samples import MAX_CLASSES, MAX_NAMED_FILES, HeldOut, ImageSource, printable
from vggkit.data.shards import Shards, check_whole, count_images, read_class_names
from vggkit.errors import DataError, one_line

HUB_PREFIX = "hub:"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?", re.ASCII)

LABEL_NAMES = ("label", "labels", "cls", "class", "target")
"""What a column of integers must be called to be taken for the labels."""

HELD_OUT: tuple[tuple[str, HeldOut], ...] = (
    ("validation", "validation"), ("valid", "validation"), ("val", "validation"), ("test", "test"),
)  # fmt: skip


def open_tables(
    data: str, shards: Shards | None, *, holdout: float, seed: int, stream: bool, epoch_images: int
) -> ImageSource:
    """The images of `shards`, or of the hub's data set that `data` names; see `open_images`.

    Raises:
        DataError: it cannot be had, or its columns, labels, classes or splits are not clear.
    """
    library, where = _library(), printable(data)
    if shards:
        check_whole(shards)
    builder, splits = _open(library, data, where, shards, stream)
    held_out = next(((name, role) for name, role in HELD_OUT if name in splits), None)
    if "train" not in splits:
        raise DataError(f"{where}: expected a split called train, got {_listed(splits)}")
    columns = _columns(library, splits["train"].features or {}, where)
    classes = _class_names(splits["train"].features, columns, shards)
    named = {"train": "train"}
    named |= {split: name for name, split in reversed(HELD_OUT) if name in splits}
    tables = {split: _undecoded(library, splits[name], columns, where) for split, name in named.items()}
    images: dict[str, Any] = {}
    if stream:
        if held_out is None:
            raise DataError(
                f"{where}: expected a validation or test split, which a stream needs, got none, try without --stream"
            )
        if classes is None:
            raise DataError(
                f"{where}: expected the names of the classes, which a stream needs, got none, "
                "try a classes.txt beside the shards"
            )
        names = [name for name in named.values() if name != "train"]
        lengths = _stream_lengths(builder, shards, names, epoch_images, where)
        for split, name in named.items():
            images[split] = StreamImages(tables[split], name, columns, lengths[name], len(classes))
    else:
        trusted = () if shards else _caches(library)
        for split, name in named.items():
            table = tables[split]
            labels = _labels(table, columns, f"{where}: {name}")
            images[split] = TableImages(table, name, columns, np.arange(len(table)), labels, trusted)
        classes = _fitting(classes, 1 + max(int(split.labels.max(initial=0)) for split in images.values()), where)
        if not held_out and holdout:
            images["train"], images["validation"] = images["train"].parted(holdout, seed)
        elif not held_out:
            images = {"all": images["train"]}
    num_rows = [] if stream else [len(table) for table in tables.values()]
    others = shards.other_files if shards else []
    fingerprint = _fingerprint(builder, data, shards, [columns.image, columns.label, classes, num_rows])
    return ImageSource(
        where,
        classes,
        images,
        fingerprint,
        tuple(others[:MAX_NAMED_FILES]),
        len(others),
        is_drawn=held_out is None and holdout > 0,
    )


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"expected the library datasets, got: {one_line(error)}, try pip install 'vggkit[data]'"
        ) from None
    return datasets  # type: ignore[no-any-return]


def _open(library: ModuleType, data: str, where: str, shards: Shards | None, stream: bool) -> tuple[Any, Any]:
    """The library's builder, and its data sets by split."""
    try:
        if shards:
            library.logging.set_verbosity(library.logging.CRITICAL)  # what it logs of a file is in its error too
            files = {name: [glob.escape(str(file)) for file in part] for name, part in shards.files.items()}
            builder = library.load_dataset_builder(shards.kind, data_files=files)
        else:
            name, _, config = data.removeprefix(HUB_PREFIX).partition(":")
            # With hf:// no folder of that name beside the user is taken for it.
            builder = library.load_dataset_builder(f"hf://datasets/{name}", config or None)
        if stream:
            return builder, builder.as_streaming_dataset()
        builder.download_and_prepare()
        return builder, builder.as_dataset()
    except Exception as error:  # of the network, of files, of the library
        raise unreadable(where, error) from None


def _columns(library: ModuleType, features: Any, where: str) -> Columns:
    images = [name for name, feature in features.items() if isinstance(feature, library.Image)] or [
        name for name, feature in features.items() if _may_hold_images(feature)
    ]
    if len(images) != 1:
        raise DataError(f"{where}: expected one column of images, got {_listed(images)} among {_listed(features)}")
    labels = [(name,) for name, feature in features.items() if isinstance(feature, library.ClassLabel)] or [
        (name,) for name in LABEL_NAMES if _is_integer(features.get(name))
    ]
    fields = features.get("json")
    if not labels and isinstance(fields, dict) and _is_integer(fields.get("label")):
        return Columns(images[0], ("json", "label"), _naming(features))
    if len(labels) != 1:
        raise DataError(
            f"{where}: expected one column of labels, as class labels or as integers called {', '.join(LABEL_NAMES)}, "
            f"got {_listed(name for (name,) in labels)} among {_listed(features)}"
        )
    return Columns(images[0], labels[0], _naming(features))


def _naming(features: Any) -> tuple[str, ...]:
    return ("__url__", "__key__") if "__url__" in features and "__key__" in features else ()


def _may_hold_images(feature: Any) -> bool:
    """A table that was not written by the library has bytes, or bytes and a path, without a word of images."""
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _is_integer(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint"))


def _class_names(features: Any, columns: Columns, shards: Shards | None) -> tuple[str, ...] | None:
    names = getattr(features[columns.label[0]], "names", None)
    if names:
        return tuple(printable(str(name)) for name in names)
    return read_class_names(shards) if shards else None


def _fitting(classes: tuple[str, ...] | None, num_labels: int, where: str) -> tuple[str, ...]:
    """`classes` if they are enough, numbers if there are none."""
    if classes is not None and num_labels > len(classes):
        raise DataError(
            f"{where}: expected labels from 0 to {len(classes) - 1}, which have the names of classes, "
            f"got {num_labels - 1}"
        )
    return classes or tuple(map(str, range(num_labels)))


def _undecoded(library: ModuleType, dataset: Any, columns: Columns, where: str) -> Any:
    try:
        wanted = [columns.image, columns.label[0], *columns.names]
        return dataset.select_columns(wanted).cast_column(columns.image, library.Image(decode=False))
    except Exception as error:  # a column that is no image, in the library's words
        raise unreadable(where, error) from None


def _stream_lengths(
    builder: Any, shards: Shards | None, held_out: list[str], epoch_images: int, where: str
) -> dict[str, int]:
    """Images in an epoch of training, and all that are held out."""
    infos = builder.info.splits or {}
    known = {name: infos[name].num_examples if name in infos else 0 for name in ("train", *held_out)}
    if shards:
        # To count what is in tars takes a look at all of them; what is held out is measured in whole and must be known.
        known = {
            name: count_images(shards, name) if shards.kind == "parquet" or name in held_out else 0 for name in known
        }
    if 0 < known["train"] < epoch_images:
        raise DataError(f"{where}: expected at most its {known['train']:,} images in an epoch, got {epoch_images:,}")
    wanted = max(0, epoch_images)
    lengths = {"train": wanted or known["train"]} | {name: known[name] or wanted for name in held_out}
    if not all(lengths.values()):
        raise DataError(f"{where}: expected a stream that says its length, got none, try --epoch-images 100000")
    return lengths


def _labels(dataset: Any, columns: Columns, where: str) -> npt.NDArray[np.uint16]:
    import pyarrow.compute

    column = dataset.data.column(columns.label[0])
    for field in columns.label[1:]:
        column = pyarrow.compute.struct_field(column, field)
    if column.null_count:
        raise DataError(f"{where}: expected a label in every row, got {column.null_count:,} rows without one")
    values = column.to_numpy()
    wrong = np.flatnonzero((values < 0) | (values >= MAX_CLASSES))
    if wrong.size:
        raise DataError(
            f"{where}: expected labels from 0 to {MAX_CLASSES - 1}, got {values[wrong[0]]} in row {wrong[0]} and "
            f"{wrong.size:,} such in all"
        )
    return np.asarray(values, np.uint16)


def _caches(library: ModuleType) -> tuple[Path, ...]:
    """Where the library puts a hub's image files that it does not write into a table."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE).resolve(), Path(library.config.HF_DATASETS_CACHE).resolve()


def _fingerprint(builder: Any, data: str, shards: Shards | None, contents: list[Any]) -> str:
    """It does not depend on the version of the library, nor on where files lie or when they were written."""
    if shards:
        identity: list[Any] = [[split, len(part)] for split, part in shards.files.items()]
        identity += [[str(file.relative_to(shards.folder)), file.stat().st_size] for file in shards.files_of_all_splits]
    else:
        identity = [data, builder.hash]  # of a hub's data set that is the commit
    return hashlib.sha256(json.dumps([identity, contents]).encode()).hexdigest()


def _listed(names: Any) -> str:
    """Names of columns or splits, for a message."""
    shown = [short(name) for name in names]
    return ", ".join(shown[:10] + ["..."] * (len(shown) > 10)) or "none"
