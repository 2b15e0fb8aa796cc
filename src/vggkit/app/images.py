"""Images from the browser: bounded before they are decoded, checked before they are kept, soon forgotten."""

import io
import secrets
import threading
from collections import OrderedDict
from typing import Any

from PIL import Image, ImageOps

from vggkit.app.addresses import as_address, as_png
from vggkit.errors import DataError, UserError, shown

MAX_PIXELS = 50_000_000
PREVIEW_PIXELS = 320
KEPT_IMAGES, KEPT_BYTES = 16, 64_000_000
"""Of the latest uploads, which are kept as files in memory."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class Uploads:
    """The latest image files, by the ids that the page was given for them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, content: bytes) -> dict[str, Any]:
        """Keep an image file, if it can be decoded; raises `DataError`."""
        from vggkit.data.images import decoded  # which needs torch

        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
                width, height = opened.size
        except Exception:  # a damaged header makes Pillow raise almost anything; `decoded` says what is wrong
            width = height = 0
        if width * height > MAX_PIXELS:
            raise DataError(f"expected an image of at most {MAX_PIXELS:,} pixels, got {width} x {height}")
        with self._lock:  # one at a time bounds the memory
            image = decoded(content, 3, "the image")
            width, height = image.size
            image.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
            image_id = secrets.token_hex(8)
            self._kept[image_id] = content
            while len(self._kept) > KEPT_IMAGES or sum(map(len, self._kept.values())) > KEPT_BYTES:
                self._kept.popitem(last=False)
        return {"image": image_id, "width": width, "height": height, "preview": as_address(image)}

    def content(self, image_id: object) -> bytes:
        """The file with the id that `add` gave; raises `UserError`."""
        with self._lock:
            content = self._kept.get(image_id) if isinstance(image_id, str) else None
        if content is None:
            raise UserError(f"expected an image that was just sent, got {shown(str(image_id))}, try to send it again")
        return content


def inverted(content: bytes) -> bytes:
    """The negative of an image file, as a PNG file."""
    from vggkit.data.images import decoded

    return as_png(ImageOps.invert(decoded(content, 3, "the image")))
