"""Published weights by name: their addresses, and the verification of downloads."""

import hashlib
import tempfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from vggkit.data.download import download
from vggkit.data.files import user_cache
from vggkit.design.costs import BYTES_PER_VALUE
from vggkit.design.network import costs
from vggkit.errors import WeightsError, nearest, one_line, shown

MAX_WEIGHTS_BYTES = 2**30  # far above VGG-19's 575 MB


class Published(NamedTuple):
    """Weights that a publisher offers for download, such as `torchvision/vgg16`."""

    name: str
    url: str
    algorithm: str  # of the published hash: `sha256` or `md5`
    digest: str  # the published hash in hexadecimal, or its beginning for torchvision

    @property
    def path(self) -> Path:
        """The path in the user's cache."""
        return user_cache() / "weights" / self.name.partition("/")[0] / self.url.rpartition("/")[2]

    @property
    def parameter_bytes(self) -> int:
        """Size of its parameters in float32."""
        name, _, part = self.name.partition("/")[2].partition("_")
        needs = costs(name + "_bn" * (part == "bn"))
        blocks = [layer for layer in needs.layers if layer.part.startswith("block")]
        return BYTES_PER_VALUE * sum(layer.parameters for layer in (needs.layers if part in ("", "bn") else blocks))

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` has the published hash."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, self.algorithm).hexdigest().startswith(self.digest)


def _torchvision(name: str, digest: str, file: str = "") -> Published:
    url = f"https://download.pytorch.org/models/{file or name}-{digest}.pth"
    return Published(f"torchvision/{name}", url, "sha256", digest)


def _keras(network: str, digest: str, suffix: str = "") -> Published:
    file = f"{network}/{network}_weights_tf_dim_ordering_tf_kernels{suffix}.h5"
    url = f"https://storage.googleapis.com/tensorflow/keras-applications/{file}"
    return Published(f"keras/{network}{suffix}", url, "md5", digest)


_ENTRIES = (
    _torchvision("vgg11", "8a719046"),
    _torchvision("vgg11_bn", "6002323d"),
    _torchvision("vgg13", "19584684"),
    _torchvision("vgg13_bn", "abd245e5"),
    _torchvision("vgg16", "397923af"),
    _torchvision("vgg16_bn", "6c64b313"),
    _torchvision("vgg16_features", "88682ab5", "vgg16_features-amdegroot"),
    _torchvision("vgg19", "dcbb9e9d"),
    _torchvision("vgg19_bn", "c79401a0"),
    _keras("vgg16", "64373286793e3c8b2b4e3219cbf3544b"),
    _keras("vgg16", "6d6bbae143d832006294945121d1f1fc", "_notop"),
    _keras("vgg19", "cbe5617147190e668d6c5d5026f83318"),
    _keras("vgg19", "253f8cb515780f3b799900260a226db6", "_notop"),
)
PUBLISHED = {entry.name: entry for entry in _ENTRIES}
"""By name. timm's `tv_in1k` are torchvision's; the format of Caffe's needs Caffe."""


def is_published(name: str) -> bool:
    """Whether `name` begins with a publisher, as in `torchvision/vgg16`; it may be unknown."""
    return name.partition("/")[0] in {known.partition("/")[0] for known in PUBLISHED}


def fetch_weights(name: str, report: Callable[[str], None] = lambda line: None) -> Path:
    """The cached file of published weights, downloaded if missing or damaged; raises `WeightsError`."""
    if name not in PUBLISHED:
        same = ", ".join(known for known in PUBLISHED if known.endswith(f"/{name}"))
        hint = f", try {same or nearest(name, PUBLISHED) or 'vgg weights'}"
        raise WeightsError(f"expected one of {', '.join(PUBLISHED)}, got '{shown(name)}'{hint}")
    entry = PUBLISHED[name]
    if entry.path.is_file() and entry.matches(entry.path):
        return entry.path
    report(f"fetching {name} from {entry.url}")
    try:
        entry.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.path.parent, prefix=".fetch-") as temporary:
            part = Path(temporary) / entry.path.name
            download(entry.url, part, MAX_WEIGHTS_BYTES, report)
            if not entry.matches(part):
                raise OSError(f"expected content of {entry.algorithm} {entry.digest}, got other content")
            part.replace(entry.path)
    except (OSError, HTTPException) as error:
        raise WeightsError(
            f"could not fetch {name} from {entry.url}: {one_line(error)}; put the file at {entry.path} or name your own"
        ) from None
    return entry.path
