"""Published weights: the addresses are the peers' own; what is fetched is checked; nothing half stays."""

import hashlib
import inspect

import pytest

from tests.peers import peer
from vggkit.errors import WeightsError
from vggkit.weights import published
from vggkit.weights.published import PUBLISHED, Published, fetch_weights


@pytest.fixture
def tiny(tmp_path, own_cache, monkeypatch):
    """A publisher on this machine."""
    source = tmp_path / "vgg1-12345678.pth"
    source.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    entry = Published("tiny/vgg1", source.as_uri(), "sha256", digest)
    monkeypatch.setitem(PUBLISHED, entry.name, entry)
    return entry, source


def test_the_addresses_and_hashes_are_torchvisions_own():
    models = peer("torchvision").models
    names = [name for name in models.list_models() if name.startswith("vgg")]
    published = {weights.url for name in names for weights in models.get_model_weights(name)}
    ours = [entry for name, entry in PUBLISHED.items() if name.startswith("torchvision")]
    assert {entry.url for entry in ours} == published
    assert all(entry.url.endswith(f"-{entry.digest}.pth") for entry in ours)


def test_the_addresses_and_hashes_are_keras_own():
    applications = peer("keras").applications
    for name, entry in PUBLISHED.items():
        if name.startswith("keras"):
            module = inspect.getmodule(getattr(applications, name[6:11].upper()))
            assert entry.url == (module.WEIGHTS_PATH_NO_TOP if name.endswith("_notop") else module.WEIGHTS_PATH)
            assert f'file_hash="{entry.digest}"' in inspect.getsource(module)


def test_what_is_fetched_lies_in_the_cache_and_is_not_fetched_again(tiny):
    entry, source = tiny
    said = []
    path = fetch_weights("tiny/vgg1", said.append)
    assert path == entry.path
    assert path.read_bytes() == b"weights"
    assert said[0] == f"fetching tiny/vgg1 from {entry.url}"
    source.unlink()
    assert fetch_weights("tiny/vgg1", said.append) == path
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_damaged_file_in_the_cache_is_fetched_again(tiny):
    path = fetch_weights("tiny/vgg1")
    path.write_bytes(b"weight")
    assert fetch_weights("tiny/vgg1").read_bytes() == b"weights"


def test_other_content_than_published_never_gets_the_files_name(tiny):
    entry, source = tiny
    source.write_bytes(b"evil")
    with pytest.raises(WeightsError, match=f"expected content of sha256 {entry.digest}, got "):
        fetch_weights("tiny/vgg1")
    assert list(entry.path.parent.iterdir()) == []


def test_more_than_any_network_needs_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(published, "MAX_WEIGHTS_BYTES", 3)
    with pytest.raises(WeightsError, match="could not fetch tiny/vgg1 from .*: expected at most 3 bytes, got more"):
        fetch_weights("tiny/vgg1")


def test_what_cannot_be_had_is_said_in_one_line(tiny, monkeypatch):
    entry, source = tiny
    source.unlink()
    with pytest.raises(WeightsError, match=f"could not fetch tiny/vgg1 .*put the file at {entry.path}") as caught:
        fetch_weights("tiny/vgg1")
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match="expected one of torchvision/vgg11, .*, got 'torchvision/resnet18'"):
        fetch_weights("torchvision/resnet18")
    monkeypatch.setitem(PUBLISHED, "tiny/vgg1", entry._replace(url="http://127.0.0.1:9/x.pth"))
    with pytest.raises(WeightsError, match="could not fetch tiny/vgg1 from http://127.0.0.1:9/x.pth"):
        fetch_weights("tiny/vgg1")
