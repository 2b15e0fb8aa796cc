"""Files that are never half written, and what is asked of a path before it is opened."""

import errno
import io
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vggkit.errors import DataError

MAX_IMAGE_BYTES = 2**29
"""Of an image file: more than 64 million pixels of 16 bits take without compression."""

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def why_not_a_file(path: Path) -> str | None:
    """What `path` is if it is no regular file, in words; None if it is one. A FIFO would be waited for."""
    try:
        if path.is_file():
            return None
        if path.is_symlink() and not path.is_dir():
            path.stat()
    except OSError as error:
        known = {errno.ELOOP: "a link to itself", errno.ENOENT: "a link to nothing"}
        return known.get(error.errno or 0, os.strerror(error.errno or 0))
    return "a folder" if path.is_dir() else "no regular file" if path.exists() else "nothing there"


def read_image_file(path: Path, name: str) -> bytes:
    """The content of an image file, which `name` calls it; raises `DataError`. A FIFO or a device is not opened."""
    if found := why_not_a_file(path):
        raise DataError(f"{name}: expected an image file, got {found}")
    return read_at_most(path, name, MAX_IMAGE_BYTES)


def read_at_most(path: Path, name: str, most_bytes: int, kind: str = "") -> bytes:
    """The content of a file of at most `most_bytes`, which `name` and `kind` describe in the `DataError` of others."""
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise DataError(f"{name}: expected to read it, got: {error.strerror}") from None
    if len(content) > most_bytes:
        raise too_long(name, most_bytes, kind)
    return content


def too_long(name: str, most_bytes: int, kind: str = "") -> DataError:
    """The error of a file that holds more than `most_bytes`."""
    return DataError(f"{name}: expected {kind}at most {most_bytes:,} bytes, got more")


def read_regular(path: Path) -> bytes:
    """The content of a regular file; raises `OSError`.

    Not of a link, which leads elsewhere, nor of a FIFO or a device, which may not end.
    """
    with open_regular(path) as file:
        return file.read()


def open_regular(path: Path) -> BinaryIO:
    """A regular file, open for reading, and nothing else, also if it is replaced meanwhile; raises `OSError`."""
    no_file = OSError(errno.EINVAL, "no regular file", str(path))
    if not stat.S_ISREG(path.lstat().st_mode):
        raise no_file
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a FIFO would be waited for
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise no_file
    return os.fdopen(descriptor, "rb")


def user_cache() -> Path:
    """The folder for what was downloaded: `$XDG_CACHE_HOME/vggkit`, or `~/.cache/vggkit`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vggkit"


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees all of it or what was there before, also after a power cut.

    Raises:
        OSError: it could not be written; `path` is named, and is as it was before.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        try:
            write_synced(temporary, [content])
            os.rename(temporary, path)  # noqa: PTH104 (one call of os for each thing that can fail)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_synced(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write `pieces` to a new file at `path`, and return once they are on the disk; raises `OSError`."""
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        for piece in pieces:
            write_all(descriptor, piece)
        os.fsync(descriptor)


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write all of `content`, of which one call may take a part; raises `OSError`."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Return once the names in `folder` are on the disk; raises `OSError`."""
    with _opened(folder, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of `path`, which the errors of its calls then name."""
    try:
        descriptor = os.open(path, flags, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from None


def as_png(figure: "Figure") -> bytes:
    """The picture of `figure` as a PNG file's bytes; no display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
