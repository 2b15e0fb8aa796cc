"""Data sets on the Hugging Face hub: the library `datasets` finds their files, which are read as any others are."""

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


def open_hub(data: str, is_measured: bool, stream: bool, epoch_images: int) -> ImageSource:
    """The images of `hub:owner/name` or `hub:owner/name:config`; see `open_shards`.

    Parquet files and tar shards are kept in the hub's own cache, or read from afar in a stream. The library writes
    any other kind into a temporary folder as parquet files.

    Raises:
        DataError: it cannot be had, or its columns, labels, classes or splits are not clear.
    """
    where = shown(data, 120)
    if not _NAME.fullmatch(data.removeprefix(HUB_PREFIX)):
        raise DataError(f"expected hub:owner/name or hub:owner/name:config, got {where!r}")
    library = _library()
    name, _, config = data.removeprefix(HUB_PREFIX).partition(":")
    with tempfile.TemporaryDirectory(prefix="vggkit-") as folder:
        try:
            # With hf:// no folder of that name beside the user is taken for it.
            builder = library.load_dataset_builder(f"hf://datasets/{name}", config or None)
            shards = _shards(library, builder, where, stream, Path(folder, "tables"))
        except DataError:
            raise
        except Exception as error:  # of the network, of files, of the library
            told = f"{type(error).__name__}: {one_line(error, 300)}"
            raise DataError(f"{where}: expected images that can be read, got {told}") from None
        source = open_shards(shards, is_measured, stream, epoch_images)
        for images in source.splits.values() if Path(folder, "tables").exists() else ():
            images.reader(seed=0, epoch=0)  # which copies what is in the folder
        return source


def _shards(library: ModuleType, builder: Any, where: str, stream: bool, tables: Path) -> Shards:
    kind = next((kind for kind in ("parquet", "webdataset") if f".{kind}." in type(builder).__module__), None)
    features = (builder.info.features or {}).values()
    named = [feature.names for feature in features if isinstance(feature, library.ClassLabel)]
    names = tuple(shown(name, 200) for name in named[0]) if len(named) == 1 and named[0] else None
    if kind is not None:
        files = {split_named(name) or name: list(map(str, part)) for name, part in builder.config.data_files.items()}
        shards = Shards(where, kind == "parquet", files, [], names, identity=builder.hash)
        if stream:
            counts = {name: info.num_examples for name, info in (builder.info.splits or {}).items()}
            totals = {split_named(name) or name: count for name, count in counts.items()}
            return replace(shards, open_file=_open_afar, totals=totals)
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


def _open_afar(address: str) -> Any:
    from fsspec.core import open as open_address  # type: ignore[import-untyped]

    return open_address(address, "rb").open()


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"expected the library datasets, got: {one_line(error)}, try pip install 'vggkit[data]'"
        ) from None
    return datasets  # type: ignore[no-any-return]
