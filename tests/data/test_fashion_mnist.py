import functools
import gzip
import http.server
import shutil
import struct
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggkit.data import fashion_mnist
from vggkit.data.fashion_mnist import FILES, SAMPLE_PLACE, load, read_idx
from vggkit.errors import DataError


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_folder(folder, images=5, size=28, labels=None):
    folder.mkdir(exist_ok=True)
    for file in FILES:
        array = (
            np.arange(labels or images, dtype=np.uint8) if "labels" in file else np.ones((images, size, size), np.uint8)
        )
        (folder / file).write_bytes(idx(array))
    return folder


@pytest.fixture
def sample_copy(tmp_path):
    return shutil.copytree(SAMPLE_PLACE, tmp_path / "sample")


def test_the_sample_is_the_first_images_of_each_class_of_the_whole_set(full_place):
    whole, sample = load("fashion-mnist", full_place), load("fashion-mnist-sample")
    assert (len(whole.train_labels), len(whole.test_labels)) == (60_000, 10_000)
    for split, per_class in (("train", 200), ("test", 100)):
        images, labels = getattr(whole, f"{split}_images"), getattr(whole, f"{split}_labels")
        keep = np.zeros(len(labels), bool)
        for label in range(10):
            keep[np.flatnonzero(labels == label)[:per_class]] = True
        assert np.array_equal(getattr(sample, f"{split}_images"), images[keep])
        assert np.array_equal(getattr(sample, f"{split}_labels"), labels[keep])


def test_the_sample_is_small_and_carries_its_licence():
    assert sum(file.stat().st_size for file in SAMPLE_PLACE.iterdir()) < 1.5e6
    assert "Zalando SE" in (SAMPLE_PLACE / "LICENSE").read_text()


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "not gzip", "empty"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named_and_never_used(sample_copy, monkeypatch, file, damage):
    path = sample_copy / f"{file}.gz"
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(
        {
            "cut": path.read_bytes()[:-20],
            "flipped": gzip.compress(content[:-1] + bytes([content[-1] ^ 1])),
            "other": gzip.compress(idx(np.zeros((2, 28, 28), np.uint8))),
            "not gzip": b"<html>not found</html>",
            "empty": b"",
        }[damage]
    )
    monkeypatch.setattr(fashion_mnist, "SAMPLE_PLACE", sample_copy)
    with pytest.raises(DataError, match=f"{file}.gz: expected") as caught:
        load("fashion-mnist-sample")
    assert "\n" not in str(caught.value)


def test_it_is_looked_for_in_order(own_cache, tmp_path, monkeypatch):
    places = [tmp_path / name for name in ("asked", "environment")] + [own_cache, tmp_path / "debian"]
    monkeypatch.setenv("VGGKIT_DATA", str(places[1]))
    with pytest.raises(DataError, match="in none of .*environment.*debian.*try 'vgg data fetch fashion-mnist'"):
        fashion_mnist.find()
    for place in reversed(places[1:]):
        place.mkdir(parents=True)
        write_folder(place)
        assert fashion_mnist.find() == place
    with pytest.raises(DataError, match=f"in {places[0]}, got no train-images-idx3-ubyte"):
        fashion_mnist.find(places[0])
    write_folder(places[0])
    assert fashion_mnist.find(places[0]) == places[0]


@pytest.fixture
def server(full_place):
    """The official address, played by a server on this machine that can fail as asked."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        failures: list[str] = []  # noqa: RUF012
        requests = 0

        def do_GET(self):
            type(self).requests += 1
            if not self.failures:
                return super().do_GET()
            failure = self.failures.pop(0)
            if failure == "404":
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", "1000" if failure == "cut" else "4")
            self.end_headers()
            self.wfile.write(b"evil")
            return None

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(full_place))
    ) as http_server:
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}", Handler
        http_server.shutdown()
        thread.join()


@pytest.fixture
def gzipped(full_place):
    if not (full_place / f"{FILES[0]}.gz").is_file():
        pytest.skip("the data set lies here unzipped; the server hands out .gz files")


@pytest.mark.usefixtures("gzipped")
def test_a_download_survives_failures_and_is_verified(own_cache, server):
    url, handler = server
    handler.failures[:] = ["404", "cut"]
    said = []
    assert fashion_mnist.fetch(said.append, url) == own_cache
    fashion_mnist.verify("fashion-mnist", own_cache)
    assert handler.requests == 2 + 4
    assert any("try 2 of 3 failed" in line for line in said)
    assert any("26.4 MB" in line for line in said)
    assert fashion_mnist.fetch(said.append, url) == own_cache
    assert handler.requests == 2 + 4  # what is there is not fetched again
    assert [path.name for path in own_cache.parent.iterdir()] == ["fashion-mnist"]


@pytest.mark.usefixtures("gzipped")
def test_wrong_bytes_never_get_a_data_files_name(own_cache, server, monkeypatch):
    url, handler = server
    handler.failures[:] = ["wrong"]
    monkeypatch.setenv("PATH", "")  # no apt-get
    with pytest.raises(
        DataError, match=r"could not fetch .*train-images.*; .*no apt-get.*try --data fashion-mnist-sample"
    ):
        fashion_mnist.fetch(url=url)
    assert list(own_cache.iterdir()) == []


def test_an_address_that_does_not_answer_is_an_error_in_one_line(own_cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match=r"could not fetch Fashion-MNIST \(http://127.0.0.1:9: ") as caught:
        fashion_mnist.fetch(url="http://127.0.0.1:9")
    assert "\n" not in str(caught.value)


def test_the_debian_package_takes_over(own_cache, full_place, tmp_path, monkeypatch):
    """With an apt-get and a dpkg that do what the real ones do, from a package of our own."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "apt-get").write_text(
        "#!/bin/sh\n"
        'case "$*" in "download dataset-fashion-mnist") echo "E: no lists" >&2; exit 100;; '
        "*update) exit 0;; *download*) touch dataset-fashion-mnist_1_all.deb;; esac\n"
    )
    place = fashion_mnist.DEBIAN_PLACE.relative_to("/")
    files = " ".join(str(path) for path in full_place.iterdir())
    (tools / "dpkg").write_text(f"#!/bin/sh\nmkdir -p $3/{place} && cp {files} $3/{place}\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    said = []
    assert fashion_mnist.fetch(said.append, "http://127.0.0.1:9") == own_cache
    assert "fetching Fashion-MNIST from the Debian package dataset-fashion-mnist" in said
    fashion_mnist.verify("fashion-mnist", own_cache)


def test_the_whole_name_never_falls_back(own_cache):
    with pytest.raises(DataError, match="in none of"):
        load("fashion-mnist")


def test_a_folder_of_idx_files_is_a_data_set(tmp_path):
    dataset = load(str(write_folder(tmp_path / "mine", images=5, size=20)))
    assert dataset.train_images.shape == (5, 20, 20)
    assert dataset.classes == ("0", "1", "2", "3", "4")
    assert dataset.name == "mine"


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        (1, None, "expected train-labels-idx1-ubyte or train-labels-idx1-ubyte.gz in"),
        (1, np.zeros(4, np.uint8), r"expected as many labels as images, .*\(5, 28, 28\), \(4,\)"),
        (2, np.zeros((5, 9, 9), np.uint8), r"images of one size .*\(5, 28, 28\), .* \(5, 9, 9\)"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused(tmp_path, file, array, message):
    folder = write_folder(tmp_path / "mine")
    (folder / FILES[file]).unlink() if array is None else (folder / FILES[file]).write_bytes(idx(array))
    with pytest.raises(DataError, match=message):
        load(str(folder))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@given(array=st.integers(1, 3).flatmap(lambda n: st.tuples(*[st.integers(0, 5)] * n)).map(np.ones))
def test_idx_round_trip(tmp_path_factory, array, suffix):
    array = (array * 7).astype(np.uint8)
    path = tmp_path_factory.mktemp("idx") / f"file{suffix}"
    path.write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
    assert np.array_equal(read_idx(path, array.ndim), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "which starts 00000803 and has 16 bytes or more, got one of 0 that starts $"),
        (
            b"\0\0\x08\x01" + b"\0" * 20,
            "expected an IDX file of uint8 in 3 dimensions, .* got one of 24 that starts 00000801",
        ),
        (b"\0\0\x0d\x03" + b"\0" * 20, "got one of 24 that starts 00000d03"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"x", r"for the shape \(4294967295, 4294967295, 4294967295\), got 17"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 1, 2, 2) + b"12345", "expected 20 bytes for the shape .* got 21"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 0, 2**32 - 1, 2**32 - 1), "expected 16 bytes for the shape .* got 16"),
    ],
)
def test_an_idx_header_is_not_trusted(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path, 3)


def test_a_gzip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "MAX_IDX_BYTES", 10_000)
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx(np.zeros((1000, 28, 28), np.uint8))))
    with pytest.raises(DataError, match="expected at most 10000 bytes, got more"):
        read_idx(path, 3)


@given(
    content=st.binary(max_size=64) | st.lists(st.sampled_from([0, 1, 3, 2**16, 2**32 - 1]), max_size=4),
    ndim=st.integers(1, 3),
    start=st.booleans(),
    zipped=st.booleans(),
)
def test_the_reader_refuses_or_returns_what_is_there(tmp_path_factory, content, ndim, start, zipped):
    if isinstance(content, list):  # a header's sizes
        content = struct.pack(f">{len(content)}I", *content)
    content = bytes([0, 0, 8, ndim]) * start + content
    path = tmp_path_factory.mktemp("idx") / ("file.gz" if zipped else "file")
    path.write_bytes(gzip.compress(content)[: len(content) + 12] if zipped else content)
    try:
        array = read_idx(path, ndim)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert array.ndim == ndim
        assert array.tobytes() == content[4 + 4 * ndim :]
