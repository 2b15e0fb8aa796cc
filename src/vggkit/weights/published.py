"""Published weights by name: where their publishers keep them, and how a download is known to be the right one."""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal

from vggkit.data.download import download
from vggkit.data.files import user_cache
from vggkit.errors import WeightsError, one_line

MAX_WEIGHTS_BYTES = 2**30
"""Far above VGG-19's 575 MB."""


@dataclass(frozen=True)
class Published:
    """Weights that their publisher offers for download."""

    name: str
    """`torchvision/vgg16`."""
    url: str
    algorithm: Literal["sha256", "md5"]
    """Of the hash that the publisher gives: all there is to check a download by."""
    digest: str
    """That hash in hexadecimal, or its beginning, as torchvision has it in the file's name."""

    @property
    def path(self) -> Path:
        """Where it lies in the user's cache once it is fetched."""
        return user_cache() / "weights" / self.name.partition("/")[0] / self.url.rpartition("/")[2]


_TORCHVISION = {
    "vgg11": "8a719046",
    "vgg11_bn": "6002323d",
    "vgg13": "19584684",
    "vgg13_bn": "abd245e5",
    "vgg16": "397923af",
    "vgg16_bn": "6c64b313",
    "vgg19": "dcbb9e9d",
    "vgg19_bn": "c79401a0",
}
_KERAS = {"vgg16": "64373286793e3c8b2b4e3219cbf3544b", "vgg19": "cbe5617147190e668d6c5d5026f83318"}
_TORCHVISION_URL = "https://download.pytorch.org/models"
_KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications"
_KERAS_SUFFIX = "weights_tf_dim_ordering_tf_kernels.h5"

PUBLISHED: dict[str, Published] = {}
"""By name. timm's `tv_in1k` are torchvision's own numbers; Caffe's are published in a format that needs Caffe."""

for _name, _digest in _TORCHVISION.items():
    _entry = Published(f"torchvision/{_name}", f"{_TORCHVISION_URL}/{_name}-{_digest}.pth", "sha256", _digest)
    PUBLISHED[_entry.name] = _entry
for _name, _digest in _KERAS.items():
    _entry = Published(f"keras/{_name}", f"{_KERAS_URL}/{_name}/{_name}_{_KERAS_SUFFIX}", "md5", _digest)
    PUBLISHED[_entry.name] = _entry


def fetch_weights(name: str, report: Callable[[str], None] = lambda line: None) -> Path:
    """Bring published weights into the user's cache, unless they lie there, and return where.

    Args:
        name: a key of `PUBLISHED`.
        report: is told in a line what is being done.

    Raises:
        WeightsError: no such name; they could not be had; or what came has another hash than the publisher says.
    """
    if name not in PUBLISHED:
        same = ", ".join(known for known in PUBLISHED if known.endswith(f"/{name}"))
        hint = f", try {same}" if same else ""
        raise WeightsError(f"expected one of {', '.join(PUBLISHED)}, got {name!r}{hint}")
    entry = PUBLISHED[name]
    if entry.path.is_file() and _hash_of(entry).startswith(entry.digest):
        return entry.path
    report(f"fetching {name} from {entry.url}")
    try:
        entry.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.path.parent, prefix=".fetch-") as temporary:
            part = Path(temporary) / entry.path.name
            download(entry.url, part, MAX_WEIGHTS_BYTES, report)
            got = _hash_of(entry, part)
            if not got.startswith(entry.digest):
                raise WeightsError(
                    f"{entry.url}: expected content of {entry.algorithm} {entry.digest}, got {got[: len(entry.digest)]}"
                )
            part.replace(entry.path)
    except (OSError, HTTPException) as error:
        raise WeightsError(
            f"could not fetch {name} from {entry.url}: {one_line(error)}; put the file at {entry.path} or name your own"
        ) from None
    return entry.path


def is_published(name: str) -> bool:
    """Whether `name` begins with a publisher, as in `torchvision/vgg16`; there may be no such weights."""
    return name.partition("/")[0] in {known.partition("/")[0] for known in PUBLISHED}


def _hash_of(entry: Published, path: Path | None = None) -> str:
    with (path or entry.path).open("rb") as file:
        return hashlib.file_digest(file, entry.algorithm).hexdigest()
