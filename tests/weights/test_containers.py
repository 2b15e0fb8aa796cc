"""Weight files of other libraries: read whole, or refused in one line that names the key."""

import io
import warnings
import zipfile
from collections import OrderedDict

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.weights.test_translation import keras_weights, numpy_vgg
from vggkit.errors import WeightsError
from vggkit.weights.files import load_weights
from vggkit.weights.translation import NETWORKS, architecture_of, entries


def state_of(source, network, hidden=(4096, 4096), **changes):
    """A state dict with the names and shapes of `source`; each tensor is one value in memory. None deletes a tensor."""
    table = entries(source, architecture_of(source, network, hidden=hidden)).values()
    state = {entry.name: torch.full((), 0.5).expand(entry.shape) for entry in table}
    state |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


SMALL = (8, 16)
"""Widths of fully connected layers, where the published ones would take half a gigabyte."""


def refused(path, message):
    with pytest.raises(WeightsError, match=f"{path.name}: .*{message}") as caught:
        load_weights(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features__0__weight": None}, "expected the tensors of torchvision/vgg11, got no 'features.0.weight', try"),
        (
            {"features__99__weight": torch.zeros(1)},
            "the tensors of torchvision/vgg11, got 'features.99.weight' too, try",
        ),
        ({"features__0__bias": None, "features__zero__bias": torch.zeros(64)}, "expected .* got no 'features.0.bias'"),
        ({"features__0__bias": torch.zeros(65)}, r"expected 'features.0.bias' of shape \(64,\), got \(65,\)"),
        (
            {"classifier__0__weight": torch.zeros(1).expand(25088, 4096)},
            r"of shape \(4096, 2048\), got \(25088, 4096\)",
        ),
        ({"features__0__bias": torch.zeros(64).int()}, "expected 'features.0.bias' as floats, got torch.int32"),
        ({"features__0__bias": [1.0]}, "expected a state dict of tensors, got a dict: 'features.0.bias' is a list"),
        (
            {"features__0__bias": torch.zeros(64).to_sparse()},
            "alone, got a pickle that asks for torch._utils _rebuild_spa",
        ),
        ({"features__0__weight": torch.zeros(1).expand(64, 10**5, 3, 3)}, "in_channels from 1 to 65536, got 100000"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_with_its_key(tmp_path, changes, message):
    torch.save(state_of("torchvision", "vgg11", **changes), tmp_path / "vgg11.pth")
    refused(tmp_path / "vgg11.pth", message)


def test_a_compressed_state_dict_is_refused(tmp_path):
    """A member of zeros could grow a thousandfold; torch.save compresses nothing."""
    buffer = io.BytesIO()
    torch.save({"features.0.bias": torch.zeros(64)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(tmp_path / "x.pth", "expected a file of torch.save, which compresses nothing")


class Old:
    """A tensor as torch pickled it before version 0.4."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        tensor = self.tensor
        return (torch._utils._rebuild_tensor, (tensor.storage(), 0, tuple(tensor.shape), tensor.stride()))


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_torchvisions_oldest_files_have_no_counters_and_are_read(tmp_path):
    state = state_of("torchvision", "vgg11_bn", SMALL)
    state = OrderedDict((name, Old(tensor)) for name, tensor in state.items() if not name.endswith("_tracked"))
    torch.save(state, tmp_path / "vgg11_bn-6002323d.pth", _use_new_zipfile_serialization=False)
    net, metadata = load_weights(tmp_path / "vgg11_bn-6002323d.pth")
    assert metadata["source"] == "torchvision/vgg11_bn"
    assert net.block1.bn1_1.num_batches_tracked.item() == 0
    assert (net.fc8.weight == 0.5).all()
    assert not net.training


def test_timms_safetensors_are_read(tmp_path):
    state = {name: tensor.half().clone() for name, tensor in state_of("timm", "vgg11", SMALL).items()}
    save_file(state, tmp_path / "model.safetensors")
    net, metadata = load_weights(tmp_path / "model.safetensors")
    assert (metadata["source"], net.architecture.head) == ("timm/vgg11", "conv")
    assert net.fc6.weight.dtype == torch.float32
    assert net.fc6.weight.shape == (8, 512, 7, 7)


@pytest.mark.parametrize("network", NETWORKS["caffe"])
def test_caffes_names_are_read_from_npz(tmp_path, network):
    rng = np.random.default_rng(0)
    state = {name: rng.random(t.shape, np.float32) for name, t in state_of("caffe", network, SMALL).items()}
    save = np.savez_compressed if network == "vgg16" else np.savez
    save(tmp_path / "caffe.npz", **state)
    net, metadata = load_weights(tmp_path / "caffe.npz")
    assert metadata["source"] == f"caffe/{network}"
    assert '"order": "bgr"' in metadata["preprocessing"]
    assert torch.equal(net.block1.conv1_1.weight, torch.from_numpy(state["conv1_1.weight"]))
    assert torch.equal(net.fc7.bias, torch.from_numpy(state["fc7.bias"]))


def header(shape, version=1, descr="<f4"):
    file = io.BytesIO()
    write = getattr(np.lib.format, f"write_array_header_{version}_0")
    write(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((2**40, 2**10)), "expected an array of .* as 'conv1_1.weight.npy', got 128 bytes"),
        (header((1,), 2), r"expected an array of .npy version 1.0 as 'conv1_1.weight.npy', got \(2, 0\)"),
        (header((64, 3, 3, 3), 1, "|V80000"), "expected floats or integers as 'conv1_1.weight.npy', got .V80000"),
        (header((1,), 1, "|O"), "expected floats or integers as 'conv1_1.weight.npy', got object"),
        (b"not an array", "expected a whole weight file, got"),
    ],
)
def test_hostile_arrays_are_refused(tmp_path, content, message):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("conv1_1.weight.npy", content)
    refused(tmp_path / "x.npz", message)


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    state = {"features.0.bias": torch.arange(6.0), "features.0.weight": torch.arange(3.0)}
    np.savez_compressed(folder / "small.npz", **{"conv1_1.weight": np.arange(6.0), "fc6.bias": np.arange(3.0)})
    torch.save(state, folder / "small.pth")
    torch.save(state, folder / "small.old.pth", _use_new_zipfile_serialization=False)
    as_published({"block1_conv1/bias": np.arange(6.0)}, folder / "small.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.ReLU())
        torch.onnx.export(net.eval(), (torch.zeros(1, 1, 2, 2),), folder / "small.onnx", dynamo=False)
    return folder


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(["npz", "pth", "old.pth", "h5", "onnx"]),
    place=st.integers(0, 10**6),
    bit=st.none() | st.integers(0, 7),
    put_in=st.binary(max_size=8),
)
def test_a_damaged_file_is_refused_in_one_line(small_files, kind, place, bit, put_in):
    """A bit flipped, bytes exchanged, or the file cut. The whole files are refused for their names at the latest."""
    content = bytearray((small_files / f"small.{kind}").read_bytes())
    # libhdf5 itself can hang on a damaged heap, which docs/weights.md says; its header alone is tried.
    place %= 200 if kind == "h5" else len(content)
    if bit is not None:
        content[place] ^= 1 << bit
    else:
        content[place : place + len(put_in) if put_in else None] = put_in
    (small_files / "damaged").write_bytes(content)
    refused(small_files / "damaged", "expected ")


class Grown(dict):
    """Pickled as a call of bytearray with a number: as many bytes of memory as the file likes."""

    def __reduce__(self):
        return (bytearray, (2**40,))


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_that_would_take_memory_is_refused_before_it_is_read(tmp_path, new):
    torch.save(Grown(), tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    refused(tmp_path / "x.pth", "expected a state dict of tensors alone, .* asks for .* bytearray")


def test_a_tensor_without_data_is_refused(tmp_path):
    torch.save({"features.0.bias": torch.zeros(64, device="meta")}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "expected")


def test_counters_come_back_from_npz(tmp_path):
    """0-dimensional ones, of a state dict as NumPy keeps it."""
    state = state_of("torchvision", "vgg11_bn", SMALL)
    arrays = {name: np.broadcast_to(np.float32(0.5), tensor.shape) for name, tensor in state.items()}
    for name in [name for name in state if name.endswith("num_batches_tracked")]:
        arrays[name] = np.array(7)
    np.savez(tmp_path / "x.npz", **arrays)
    net, _ = load_weights(tmp_path / "x.npz")
    assert net.block5.bn5_2.num_batches_tracked.item() == 7
    assert net.block5.bn5_2.num_batches_tracked.shape == ()


def as_published(weights, path):
    """An HDF5 file as Keras published them: a group for each layer, `_W_1:0` and `_b_1:0` in it."""
    with h5py.File(path, "w") as file:
        file.create_group("input_1")
        for name, array in weights.items():
            layer, _, kind = name.partition("/")
            file.require_group(layer)[f"{layer}_{'W' if kind == 'kernel' else 'b'}_1:0"] = array


def as_keras_3(weights, path):
    """An HDF5 file as Keras 3 writes it: the layers' names in attributes."""
    with h5py.File(path, "w") as file:
        for index, layer in enumerate(dict.fromkeys(name.partition("/")[0] for name in weights)):
            group = file.create_group(f"layers/conv2d_{index}/vars")
            group.attrs["name"] = layer
            group["0"], group["1"] = weights[f"{layer}/kernel"], weights[f"{layer}/bias"]


def test_keras_files_give_what_numpy_gives_in_keras_own_layout(tmp_path):
    keras_arrays = keras_weights(architecture_of("keras", "vgg16", hidden=SMALL, image_size=64))
    images = np.random.default_rng(1).standard_normal((1, 64, 64, 3), np.float32)
    expected = numpy_vgg(keras_arrays, images, [2, 2, 3, 3, 3])
    as_published(keras_arrays, tmp_path / "vgg16.h5")
    net, metadata = load_weights(tmp_path / "vgg16.h5")
    assert metadata["source"] == "keras/vgg16"
    with torch.no_grad():
        got = net(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(got - expected).max() / np.abs(expected).max() < 1e-5


def test_keras_3s_files_are_the_same_network(tmp_path):
    shapes = {name: tensor.shape for name, tensor in state_of("keras", "vgg19", SMALL).items()}
    weights = {name: np.full(shape, index, np.float16) for index, (name, shape) in enumerate(shapes.items())}
    as_keras_3(weights, tmp_path / "vgg19.weights.h5")
    net, metadata = load_weights(tmp_path / "vgg19.weights.h5")
    assert metadata["source"] == "keras/vgg19"
    assert (net.block3.conv3_2.bias == weights["block3_conv2/bias"][0]).all()
    assert (net.fc7.weight == weights["fc2/kernel"][0, 0]).all()


def linked_in_a_thousand_ways(file):
    """Groups with sixty hard links each to the next: 60^4 paths through a few kilobytes."""
    group = file
    for depth in range(4):
        child = file.create_group(f"level{depth}") if depth == 0 else group.create_group("0")
        for index in range(1, 60):
            group[f"link{index}"] = child
        group = child


IN_THIS_FILE = "expected the data of '/fc1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.__setitem__("fc1", h5py.ExternalLink("other.h5", "/fc1")), f"{IN_THIS_FILE}' .* got a link"),
        (lambda f: f.__setitem__("fc1", h5py.SoftLink("/fc1")), f"{IN_THIS_FILE}' .* got a link"),
        (
            lambda f: f.create_dataset("fc1/a", (64,), "f4", external=[(f"{f.filename}.secret", 0, 256)]),
            "got another's",
        ),
        (lambda f: f.create_group("a/b/c/d/e/f/g/h"), "expected groups and tensors as Keras nests them"),
        (linked_in_a_thousand_ways, "expected groups and tensors as Keras nests them"),
        (lambda f: f.create_dataset("fc1/kernel", (64,), "V100000000", chunks=(1,)), "expected floats or integers"),
        (
            lambda f: f.create_dataset("fc1/a", (64,), "f4", chunks=(2**28,), maxshape=(None,), compression="gzip"),
            "expected chunks no larger than '/fc1/a', got",
        ),
        (lambda f: f.create_dataset("fc1/kernel", data=h5py.Empty("f4")), "expected a whole weight file, got"),
        (lambda f: f.create_dataset("fc1/kernel", data=np.zeros((2, 2))), "expected .* got no 'block1_conv1/bias'"),
        (lambda f: [f.create_dataset(f"fc1/{n}", data=np.zeros(2)) for n in "ab"], "one 'fc1/bias', got a second"),
    ],
)
def test_hostile_hdf5_is_refused(tmp_path, change, message):
    (tmp_path / "x.h5.secret").write_bytes(b"x" * 256)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        change(file)
    refused(tmp_path / "x.h5", message)


def test_without_h5py_it_says_what_to_install(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "x.h5", "w"):
        pass
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    refused(tmp_path / "x.h5", "expected h5py to read HDF5, got no such package, try pip install 'vggkit.keras.'")
