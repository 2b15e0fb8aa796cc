"""Files that are never half written, and what is asked of a path before it is opened."""

import io
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def why_not_a_file(path: Path) -> str | None:
    """What `path` is if it is no regular file, in words; None if it is one. A FIFO would be waited for."""
    if path.is_file():
        return None
    return "no regular file" if path.exists() else "nothing there"


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
            write_synced(temporary, content)
            os.rename(temporary, path)  # noqa: PTH104 (one call of os for each thing that can fail)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_synced(path: Path, content: bytes) -> None:
    """Write `content` to a new file at `path`, and return once it is on the disk; raises `OSError`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Return once the names in `folder` are on the disk; raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_png(figure: "Figure") -> bytes:
    """The picture of `figure` as a PNG file's bytes; no display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
