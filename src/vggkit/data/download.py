"""Downloads of whole files."""

import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from vggkit.errors import one_line

TIMEOUT_SECONDS = 20
TRIES = 3


def download(url: str, target: Path, max_bytes: int, report: Callable[[str], None]) -> None:
    """Download `url` to `target` in at most three tries; raises `OSError` or `HTTPException` of the last one."""
    for attempt in range(1, TRIES + 1):
        try:
            return _download_once(url, target, max_bytes, report)
        except (OSError, HTTPException) as error:  # urllib's errors and timeouts are OSErrors too
            if attempt == TRIES:
                raise
            report(f"  try {attempt} of {TRIES} failed: {one_line(error)}")
    return None


def _download_once(url: str, target: Path, max_bytes: int, report: Callable[[str], None]) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, target.open("wb") as file:  # noqa: S310
        length, next_report = response.headers.get("Content-Length") or "0", 0.0
        total_bytes = int(length) if length.isdecimal() else 0
        while chunk := response.read(1 << 18):
            file.write(chunk)
            if file.tell() > max_bytes:
                raise ConnectionError(f"{url}: expected at most {max_bytes} bytes, got more")
            if total_bytes and file.tell() >= next_report * total_bytes:
                report(f"  {target.name}: {file.tell() / 1e6:.1f} of {total_bytes / 1e6:.1f} MB")
                next_report = file.tell() / total_bytes + 0.25
        if total_bytes and file.tell() != total_bytes:
            raise ConnectionError(f"{url}: expected {total_bytes} bytes, got {file.tell()}")
