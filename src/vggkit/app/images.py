"""Images that a browser sends: bounded before they are read, checked before they are kept, forgotten soon."""

import io
import secrets
import threading
from collections import OrderedDict
from typing import Any

from PIL import Image

from vggkit.app.addresses import as_address
from vggkit.errors import DataError, UserError, shown

MAX_PIXELS = 50_000_000
PREVIEW_PIXELS = 320
KEPT_IMAGES, KEPT_BYTES = 16, 64_000_000
"""The last images that were sent are kept, as the files that they are."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class Uploads:
    """The image files that were sent last, by the numbers that the page got for them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, content: bytes) -> dict[str, Any]:
        """Keep an image file, which the project's own reader can decode; raises `DataError`."""
        from vggkit.data.images import decoded  # which needs torch

        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
                width, height = opened.size
        except Exception:  # a damaged header makes Pillow raise almost anything; the reader says what is wrong
            width = height = 0
        if width * height > MAX_PIXELS:
            raise DataError(f"expected an image of at most {MAX_PIXELS:,} pixels, got {width} x {height}")
        with self._lock:  # one at a time, so that memory is bounded
            image = decoded(content, 3, "the image")
            width, height = image.size
            image.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
            number = secrets.token_hex(8)
            self._kept[number] = content
            while len(self._kept) > KEPT_IMAGES or sum(map(len, self._kept.values())) > KEPT_BYTES:
                self._kept.popitem(last=False)
        return {"image": number, "width": width, "height": height, "preview": as_address(image)}

    def content(self, number: object) -> bytes:
        """The file that `add` gave `number`; raises `UserError`."""
        with self._lock:
            content = self._kept.get(number) if isinstance(number, str) else None
        if content is None:
            raise UserError(f"expected an image that was just sent, got {shown(str(number))}, try to send it again")
        return content
