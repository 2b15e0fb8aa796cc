"""Data sets on the Hugging Face hub: the library `datasets` finds their files, which `vggkit.data.shards` reads."""

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from vggkit.data.samples import ImageSource, split_named
from vggkit.data.shards import Shards, open_shards
from vggkit.errors import DataError, one_line, shown

HUB_PREFIX = "hub:"
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?", re.ASCII)


def open_hub(data: str, only_evaluate: bool, stream: bool, epoch_images: int) -> ImageSource:
    """The images of `hub:owner/name` or `hub:owner/name:config`; see `open_shards`.

    Parquet files and tar shards are kept in the hub's cache, or read remotely in a stream. The library converts any
    other kind to parquet files in a temporary folder.

    Raises:
        DataError: the data set is unavailable, or its columns, labels, classes or splits are ambiguous.
    """
    where = shown(data, 120)
    if not _NAME.fullmatch(data.removeprefix(HUB_PREFIX)):
        raise DataError(f"expected hub:owner/name or hub:owner/name:config, got {where!r}")
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"expected the library datasets, got: {one_line(error)}, try pip install 'vggkit[data]'"
        ) from None
    name, _, config = data.removeprefix(HUB_PREFIX).partition(":")
    with tempfile.TemporaryDirectory(prefix="vggkit-") as folder:
        try:
            # hf:// excludes a local folder of that name.
            builder = datasets.load_dataset_builder(f"hf://datasets/{name}", config or None)
            shards = _shards(datasets, builder, where, stream, Path(folder, "tables"))
        except DataError:
            raise
        except Exception as error:  # of the network, of files, of the library
            got = f"{type(error).__name__}: {one_line(error, 300)}"
            raise DataError(f"{where}: expected images that can be read, got {got}") from None
        source = open_shards(shards, only_evaluate, stream, epoch_images)
        for images in source.splits.values() if Path(folder, "tables").exists() else ():
            images.reader(seed=0, epoch=0)  # copies the images before the folder is removed
        return source


def _shards(library: ModuleType, builder: Any, where: str, stream: bool, tables: Path) -> Shards:
    kind = next((kind for kind in ("parquet", "webdataset") if f".{kind}." in type(builder).__module__), None)
    features = (builder.info.features or {}).values()
    label_names = [feature.names for feature in features if isinstance(feature, library.ClassLabel)]
    names = tuple(shown(name, 200) for name in label_names[0]) if len(label_names) == 1 and label_names[0] else None
    if kind is not None:
        files = {split_named(name) or name: list(map(str, part)) for name, part in builder.config.data_files.items()}
        shards = Shards(where, kind == "parquet", files, [], names, identity=builder.hash)
        if stream:
            counts = {name: info.num_examples for name, info in (builder.info.splits or {}).items()}
            totals = {split_named(name) or name: count for name, count in counts.items()}
            return replace(shards, open_file=_open_remote, totals=totals)
        manager = library.DownloadManager(dataset_name=builder.dataset_name)
        return replace(shards, files={split: manager.download(part) for split, part in files.items()})
    if stream:
        raise DataError(
            f"{where}: expected parquet files or tar shards to stream, got another kind, try without --stream"
        )
    builder.download_and_prepare(tables, file_format="parquet")
    files = {
        split_named(name) or name: sorted(map(str, tables.glob(f"*-{name}*.parquet"))) for name in builder.info.splits
    }
    return Shards(where, True, files, [], names, identity=builder.hash)


def _open_remote(address: str) -> Any:
    from fsspec.core import open as open_address  # type: ignore[import-untyped]

    return open_address(address, "rb").open()
