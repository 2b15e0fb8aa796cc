import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from vggkit import fold_preprocessing, load_classifier, vgg, warm_start, with_head
from vggkit.errors import WeightsError
from vggkit.weights.files import load_weights, save_weights


@pytest.fixture
def net():
    torch.manual_seed(0)
    return vgg("1x4 1x8_bn", image_size=8, hidden=(8,))


@pytest.fixture
def path(tmp_path, net):
    save_weights(tmp_path / "model.safetensors", net, {"classes": "[]"})
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, path: load_weights(3), "expected the path of a weight file, got int, try"),
        (lambda net, path: save_weights(net, path), "expected a path to write weights to, got VGG, try save_weights"),
        (lambda net, path: save_weights(path, net.state_dict()), "expected a network of vggkit to save, got OrderedD"),
        (lambda net, path: save_weights(path, net, {"classes": ["a"]}), "expected metadata of texts, got .*json.dumps"),
        (lambda net, path: save_weights("nodir/y.safetensors", net), "a folder that exists, got nodir/y.safetensors"),
        (lambda net, path: save_weights(path.parent, net), "expected a file in a folder that exists, got"),
        (lambda net, path: with_head(load_classifier, "conv"), "expected a VGG network, got function, try load_classi"),
        (lambda net, path: fold_preprocessing(net, 3), "expected a Preprocessing, got int, try"),
        (lambda net, path: warm_start(net, path), "expected a network, got PosixPath, try warm_start"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_one_line(net, path, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(net, path)
    assert str(caught.value).isprintable()


def test_what_is_written_is_read_back(net, path):
    net.to(memory_format=torch.channels_last)
    save_weights(path, net, {"classes": "[1]"})
    loaded, metadata = load_weights(path)
    assert loaded.architecture == net.architecture
    assert metadata["classes"] == "[1]"
    assert not loaded.training
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded(x), net.eval()(x))
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("start", [b"\x80\x02", b"PK"])
def test_a_header_whose_length_reads_like_another_kind_of_file(path, net, start):
    """The first bytes are the length of what follows: 640 as little-endian bytes is how a pickle starts."""
    save_weights(path, net, {"padding": " "})
    missing = (int.from_bytes(start, "little") - int.from_bytes(path.read_bytes()[:2], "little")) % 65536
    save_weights(path, net, {"padding": " " * (1 + missing)})
    assert path.read_bytes().startswith(start)
    assert load_weights(path)[0].architecture == net.architecture


def test_a_header_decides_nothing_that_is_allocated(net, path):
    huge = json.loads(net.architecture.to_json()) | {"notation": "300x1024", "hidden": [65536] * 99}
    wider = net.architecture.to_json().replace('"hidden": [8]', '"hidden": [9]')
    for architecture, message in [
        (json.dumps(huge), "expected .* got 'block1.bn1_1"),
        ('{"notation": "vgg11"}', "model.safetensors: expected the keys"),
        (wider, r"expected 'fc3.weight' of shape \(9, 32\), got \(8, 32\)"),
    ]:
        path.write_bytes(save(dict(net.state_dict()), {"architecture": architecture}))
        with pytest.raises(WeightsError, match=message):
            load_weights(path)


class Hostile:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_nothing_is_ever_unpickled(tmp_path, new, inside):
    hostile = Hostile(tmp_path / "made")
    path = tmp_path / "vgg16-397923af.pth"
    torch.save({"features.0.weight": hostile} if inside else hostile, path, _use_new_zipfile_serialization=new)
    with pytest.raises(WeightsError, match="of tensors alone, got a pickle that asks for __builtin__ getattr"):
        load_weights(path)
    assert not (tmp_path / "made").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "made").exists()  # it would have been


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(WeightsError, match="other.safetensors: expected a run or a weight file, got nothing there"):
        load_weights(tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="got a folder"):
        load_weights(tmp_path)


@settings(max_examples=150, deadline=None)
@given(cut=st.floats(0, 0.999), flip=st.one_of(st.none(), st.floats(0, 0.999)))
def test_a_damaged_file_is_refused_or_has_all_its_parts(tmp_path_factory, cut, flip):
    folder = tmp_path_factory.mktemp("weights")
    net = vgg("1x2", image_size=2, hidden=())
    path = folder / "model.safetensors"
    save_weights(path, net, {})
    content = bytearray(path.read_bytes())
    if flip is None:
        content = content[: int(cut * len(content))]
    else:
        content[int(flip * len(content))] ^= 1 << int(cut * 8)
    path.write_bytes(content)
    try:
        loaded, _ = load_weights(path)
    except WeightsError as error:
        assert str(path) in str(error)
    else:  # a flipped bit among the values themselves
        assert flip is not None
        assert loaded.state_dict().keys() == net.state_dict().keys()


def test_a_write_that_fails_leaves_what_was_there(path, net, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, net, {})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]
