"""Data sets on the Hugging Face hub: the library `datasets` finds their files, which are read as any others are."""

import re
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from vggkit.data.samples import ImageSource, split_named
from vggkit.data.shards import Shards, open_shards
from vggkit.errors import DataError, one_line, shown

HUB_PREFIX = "hub:"
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?", re.ASCII)


def open_hub(data: str, *, holdout: float, seed: int, stream: bool, epoch_images: int) -> ImageSource:
    """The images of `hub:owner/name` or `hub:owner/name:config`; see `open_data`.

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
    options: dict[str, Any] = {"holdout": holdout, "seed": seed, "stream": stream, "epoch_images": epoch_images}
    with tempfile.TemporaryDirectory(prefix="vggkit-") as folder:
        try:
            # With hf:// no folder of that name beside the user is taken for it.
            builder = library.load_dataset_builder(f"hf://datasets/{name}", config or None)
            shards = _shards(library, builder, where, stream, Path(folder))
        except DataError:
            raise
        except Exception as error:  # of the network, of files, of the library
            told = f"{type(error).__name__}: {one_line(error, 300)}"
            raise DataError(f"{where}: expected images that can be read, got {told}") from None
        source = open_shards(shards, **options)
        for images in source.splits.values() if shards.is_temporary else ():
            images.reader(seed, epoch=0)  # which copies what is in the folder
        return source


def _shards(library: ModuleType, builder: Any, where: str, stream: bool, folder: Path) -> Shards:
    kinds: tuple[Literal["parquet", "webdataset"], ...] = ("parquet", "webdataset")
    kind = next((kind for kind in kinds if f".{kind}." in type(builder).__module__), None)
    features = builder.info.features or {}
    named = [feature.names for feature in features.values() if isinstance(feature, library.ClassLabel)]
    names = tuple(shown(name, 200) for name in named[0]) if len(named) == 1 and named[0] else None
    totals = {split_named(name) or name: info.num_examples for name, info in (builder.info.splits or {}).items()}
    if kind is not None:
        files = {split_named(name) or name: list(map(str, part)) for name, part in builder.config.data_files.items()}
        if stream:
            return Shards(where, kind, files, [], names, _open_afar, totals, builder.hash)
        manager = library.DownloadManager(dataset_name=builder.dataset_name)
        files = {split: manager.download(part) for split, part in files.items()}
        return Shards(where, kind, files, [], names, totals=totals, identity=builder.hash)
    if stream:
        raise DataError(
            f"{where}: expected parquet files or tar shards to stream, got another kind, try without --stream"
        )
    tables = folder / "tables"
    builder.download_and_prepare(tables, file_format="parquet")
    files = {}
    for name in builder.info.splits:
        files[split_named(name) or name] = sorted(map(str, tables.glob(f"*-{name}*.parquet")))
    return Shards(where, "parquet", files, [], names, identity=builder.hash, is_temporary=True)


def _open_afar(address: str) -> Any:
    from fsspec.core import open as open_address  # type: ignore[import-untyped]

    return open_address(address, "rb").open()


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"expected the library datasets, got: {one_line(error)}, try pip install '.[data]'") from None
    return datasets  # type: ignore[no-any-return]
