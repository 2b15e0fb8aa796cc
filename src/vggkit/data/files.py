"""Files that are never half written, and what is asked of a path before it is opened."""

import io
import os
import tempfile
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
    """Write `content` to `path` so that a reader sees all of it or what was there before."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    path.chmod(0o644)


def as_png(figure: "Figure") -> bytes:
    """The picture of `figure` as a PNG file's bytes; no display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
