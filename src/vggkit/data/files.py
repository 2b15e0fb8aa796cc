"""Atomic writes, and reads that accept only regular files of a bounded size."""

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

MAX_IMAGE_BYTES = 2**29  # of an image file: above the size of 64 million uncompressed pixels of 16 bits

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def why_not_a_file(path: Path) -> str | None:
    """Why `path` is not a regular file, for an error message; None if it is one. Opening a FIFO would block."""
    try:
        if path.is_file():
            return None
        if path.is_symlink() and not path.is_dir():
            path.stat()
    except OSError as error:
        links = {errno.ELOOP: "a link to itself", errno.ENOENT: "a link to nothing"}
        return links.get(error.errno or 0, os.strerror(error.errno or 0))
    return "a folder" if path.is_dir() else "no regular file" if path.exists() else "nothing there"


def read_image_file(path: Path, name: str) -> bytes:
    """The content of the image file at `path`, called `name` in messages; raises `DataError`."""
    if reason := why_not_a_file(path):
        raise DataError(f"{name}: expected an image file, got {reason}")
    return read_at_most(path, name, MAX_IMAGE_BYTES)


def read_at_most(path: Path, name: str, max_bytes: int, kind: str = "") -> bytes:
    """The content of a file of at most `max_bytes`; raises `DataError`, whose message has `name` and `kind`."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise DataError(f"{name}: expected to read it, got: {error.strerror}") from None
    if len(content) > max_bytes:
        raise DataError(f"{name}: expected {kind}at most {max_bytes:,} bytes, got more")
    return content


def read_regular(path: Path) -> bytes:
    """The content of a regular file; raises `OSError`, also for a link, a FIFO or a device."""
    with open_regular(path) as file:
        return file.read()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; raises `OSError` for anything else, even if it is exchanged meanwhile."""
    no_file = OSError(errno.EINVAL, "no regular file", str(path))
    if not stat.S_ISREG(path.lstat().st_mode):
        raise no_file
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # NONBLOCK: a FIFO
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise no_file
    return os.fdopen(descriptor, "rb")


def user_cache() -> Path:
    """The folder for downloads and compiled kernels: `$XDG_CACHE_HOME/vggkit`, or `~/.cache/vggkit`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vggkit"


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically and durably; raises `OSError` that names `path`, which is then unchanged."""
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
    """Write `pieces` to a new file at `path` and sync it to the disk; raises `OSError`."""
    with _descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        for piece in pieces:
            write_all(descriptor, piece)
        os.fsync(descriptor)


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write all of `content`, in as many calls as it takes; raises `OSError`."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Sync the directory entries of `folder` to the disk; raises `OSError`."""
    with _descriptor(folder, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _descriptor(path: Path, flags: int) -> Iterator[int]:
    """A file descriptor of `path`; an `OSError` in the body names `path`."""
    try:
        descriptor = os.open(path, flags, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from None


def as_png(figure: "Figure") -> bytes:
    """`figure` as the content of a PNG file; needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
