"""Fashion-MNIST: finding, fetching, verifying and reading it without trusting its files.

Source: Xiao, Rasul & Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", arXiv 1708.07747. Its files are in LeCun's IDX format: a zero, a zero, the type (8 is uint8), the
number of dimensions, each dimension as a big-endian 32-bit number, then the values.
"""

import contextlib
import gzip
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vggkit.data.download import download
from vggkit.data.files import user_cache, why_not_a_file
from vggkit.data.samples import ArrayImages, ImageSource
from vggkit.errors import DataError, one_line

OFFICIAL_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_PLACE = Path("/usr/share/datasets/fashion-mnist")
SAMPLE_PLACE = Path(__file__).parent / "fashion_mnist_sample"

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
"""The book's names of the labels 0 to 9."""

FULL_NAME, SAMPLE_NAME = "fashion-mnist", "fashion-mnist-sample"

# SHA-256 of the decompressed files, in the order of FILES.
SHA256 = {
    FULL_NAME: (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    SAMPLE_NAME: (
        "a724cd72799a6b1c3a81c4263865a75a73bb6473673b3394e34adf222930f19e",
        "4738fd437c0f8d6498ae7f6f5c86f1cc3c878d4116ff169fc5635bd6847899cc",
        "7cee33c3c6414b1b86c25e665a6c4f41584269de3b7cc9768b1d351922845eef",
        "3128d790775889812b73c4f13923559c8b9e281d112c6ea7862acf60a206a909",
    ),
}

SAMPLE_WARNING = (
    "WARNING: this is the sample of 2,000 training and 1,000 test images that comes with vggkit, not Fashion-MNIST: "
    "its numbers are not comparable with anybody's"
)

MAX_IDX_BYTES = 2**28  # far above the 47 MB of Fashion-MNIST; a larger file is refused before it is unpacked

Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Dataset:
    """Images and labels as stored in the files."""

    name: str
    train_images: Array  # (images, height, width)
    train_labels: Array  # (images,)
    test_images: Array
    test_labels: Array
    classes: tuple[str, ...]

    @property
    def source(self) -> ImageSource:
        """These images in the form that `open_data` returns."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(f"{array.shape}".encode() + array.tobytes())
        train = ArrayImages(self.train_images, self.train_labels)
        test = ArrayImages(self.test_images, self.test_labels)
        return ImageSource(self.name, self.classes, {"train": train, "test": test}, digest.hexdigest())


def load(name: str = FULL_NAME, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set `name`, verified; raises `DataError`.

    It is `fashion-mnist`, in `data_dir` or where `find` looks; `fashion-mnist-sample`, which comes with vggkit (the
    first 200 images of each class of the training set and 100 of the test set); or a folder with the same four file
    names, such as MNIST's, which is only checked for consistency.
    """
    if name in SHA256:
        return verify(name, SAMPLE_PLACE if name == SAMPLE_NAME else find(Path(data_dir) if data_dir else None))
    folder = Path(name)
    train_images, train_labels, test_images, test_labels = arrays = _read_all(folder, (None,) * 4)
    shapes = [array.shape for array in arrays]
    if [len(train_labels), len(test_labels)] != [len(train_images), len(test_images)] or 0 in train_images.shape:
        raise DataError(f"{folder}: expected as many labels as images, and some, got arrays of {shapes}")
    if train_images.shape[1:] != test_images.shape[1:] or not len(test_images):
        raise DataError(f"{folder}: expected images of one size to train and to test on, got arrays of {shapes}")
    num_classes = max(2, 1 + int(max(train_labels.max(), test_labels.max())))
    return Dataset(folder.resolve().name, *arrays, tuple(map(str, range(num_classes))))


def verify(name: str, place: Path) -> Dataset:
    """The data set `name` in `place`, verified by SHA-256; raises `DataError` that names a missing or wrong file."""
    return Dataset(name, *_read_all(place, SHA256[name]), CLASSES)


def cache_dir() -> Path:
    """The folder that `fetch` writes to, in the user's cache."""
    return user_cache() / FULL_NAME


def find(data_dir: Path | None = None) -> Path:
    """The first folder with all four files, plain or as .gz, not verified; raises `DataError` if there is none.

    Candidates are `data_dir` alone if given, otherwise `$VGGKIT_DATA`, the user's cache and Debian's folder.
    """
    environment = os.environ.get("VGGKIT_DATA")
    places = [data_dir] if data_dir else [*([Path(environment)] if environment else []), cache_dir(), DEBIAN_PLACE]
    for place in places:
        missing = [file for file in FILES if not _has_file(place, file)]
        if not missing:
            return place
    if data_dir:
        raise DataError(f"expected the four files of Fashion-MNIST in {data_dir}, got no {missing[0]}(.gz)")
    raise DataError(f"Fashion-MNIST is in none of {', '.join(map(str, places))}, try 'vgg data fetch {FULL_NAME}'")


def fetch(report: Callable[[str], None] = lambda line: None, url: str = OFFICIAL_URL) -> Path:
    """Fetch Fashion-MNIST, unless it is there, into the user's cache and return its folder.

    It comes from `url` or else from the Debian package; only files with the pinned SHA-256 are stored. `report` takes
    lines of progress. Raises `DataError` with the reasons if both fail.
    """
    target = cache_dir()
    with contextlib.suppress(DataError):
        verify(FULL_NAME, target)
        return target
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"expected a cache folder that can be made, got {target}: {error.strerror}") from None
    reasons = []
    for source, fetch_into in ((url, _download), (f"the Debian package {DEBIAN_PACKAGE}", _unpack_debian_package)):
        report(f"fetching Fashion-MNIST from {source}")
        try:
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as temporary:
                folder = fetch_into(Path(temporary), url, report)
                verify(FULL_NAME, folder)
                for file in FILES:
                    (folder / f"{file}.gz").replace(target / f"{file}.gz")
            return target
        except (OSError, subprocess.SubprocessError, HTTPException, ValueError) as error:
            reasons.append(f"{source}: {one_line(error)}")
            report(f"  not from there: {one_line(error)}")
    raise DataError(
        f"could not fetch Fashion-MNIST ({'; '.join(reasons)}); put its four files into a folder and name it "
        f"with --data-dir or VGGKIT_DATA, or try --data {SAMPLE_NAME}"
    )


def read_idx(path: Path, ndim: int, sha256: str | None = None) -> Array:
    """The uint8 array of `ndim` dimensions in an IDX file, plain or gzip.

    The header is checked against `ndim`, `MAX_IDX_BYTES` and the size of the content before an array is made.

    Raises:
        DataError: it is not such a file, or its content has another digest than `sha256`; the file is named.
    """
    if reason := why_not_a_file(path):
        raise DataError(f"{path}: expected a whole, readable file, got {reason}")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content: bytes = file.read(MAX_IDX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a whole, readable file, got: {one_line(error)}") from None
    if len(content) > MAX_IDX_BYTES:
        raise DataError(f"{path}: expected at most {MAX_IDX_BYTES} bytes, got more")
    got = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, got):
        raise DataError(
            f"{path}: expected content with SHA-256 {str(sha256)[:16]}..., got {got[:16]}..., try to fetch it anew"
        )
    header_bytes = 4 + 4 * ndim
    if content[:4] != bytes([0, 0, 8, ndim]) or len(content) < header_bytes:
        raise DataError(
            f"{path}: expected an IDX file of uint8 in {ndim} dimensions, which starts 0000080{ndim} and has "
            f"{header_bytes} bytes or more, got one of {len(content)} that starts {content[:4].hex()}"
        )
    shape = np.frombuffer(content[4:header_bytes], ">u4").tolist()
    expected_bytes = header_bytes + math.prod(shape)
    if expected_bytes != len(content) or max(shape) > MAX_IDX_BYTES:
        raise DataError(f"{path}: expected {expected_bytes} bytes for the shape {tuple(shape)}, got {len(content)}")
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape).copy()


def _read_all(place: Path, digests: Sequence[str | None]) -> tuple[Array, Array, Array, Array]:
    arrays = []
    for file, digest in zip(FILES, digests, strict=True):
        if not _has_file(place, file):
            raise DataError(f"expected {file} or {file}.gz in {place}, got neither")
        zipped = place / f"{file}.gz"
        arrays.append(read_idx(zipped if zipped.is_file() else place / file, 3 if "images" in file else 1, digest))
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _has_file(place: Path, file: str) -> bool:
    return (place / f"{file}.gz").is_file() or (place / file).is_file()


def _download(temporary: Path, url: str, report: Callable[[str], None]) -> Path:
    for file in FILES:
        download(f"{url}/{file}.gz", temporary / f"{file}.gz", MAX_IDX_BYTES, report)
    return temporary


def _unpack_debian_package(temporary: Path, url: str, report: Callable[[str], None]) -> Path:
    """Download and unpack the package without root, with private package lists if the system has none."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise DataError(f"there is no {tool} on this machine")
    for folder in ("lists/partial", "cache/archives/partial"):
        (temporary / folder).mkdir(parents=True)
    options = [f"Dir::State::Lists={temporary}/lists", f"Dir::Cache={temporary}/cache", "APT::Sandbox::User="]
    private_lists = [word for option in options for word in ("-o", option)]
    try:
        _run(["apt-get", "download", DEBIAN_PACKAGE], temporary)
    except DataError:
        _run(["apt-get", *private_lists, "update"], temporary)
        _run(["apt-get", *private_lists, "download", DEBIAN_PACKAGE], temporary)
    (package,) = temporary.glob(f"{DEBIAN_PACKAGE}_*.deb")
    _run(["dpkg", "-x", str(package), "unpacked"], temporary)
    return temporary / "unpacked" / DEBIAN_PLACE.relative_to("/")


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise DataError(f"'{' '.join(command[:1] + command[-2:])}' failed: {last}")
