"""Weight files as people have them, saved by the programs that they come from; the oracle is the network that was saved."""

import io
import zipfile

import h5py
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.peers import peer
from tests.weights.test_containers import refused
from tests.weights.test_translation import relative_error
from vggkit.errors import WeightsError
from vggkit.weights.files import load_weights, save_weights
from vggkit.weights.preparation import preprocessing_for


class CifarVGG(nn.Module):
    """A VGG for images of 32 pixels, as in many repositories: other numbers and widths in its classifier."""

    def __init__(self, *classifier):
        super().__init__()
        layers, channels = [], 3
        for width in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
            if width == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(*classifier)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def made(*classifier):
    torch.manual_seed(0)
    dropped = (nn.Dropout(), nn.Linear(512, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 16), nn.ReLU())
    return CifarVGG(*(classifier or (*dropped, nn.Linear(16, 10)))).eval()


@pytest.fixture(scope="module")
def net():
    return made()


def training_checkpoint(net):
    optimizer = torch.optim.SGD(net.classifier.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60])
    net.classifier(torch.rand(2, 512)).sum().backward()
    optimizer.step()
    schedule.step()
    return {
        "epoch": 3,
        "arch": "vgg11",
        "best_acc1": torch.tensor(71.5),
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
    }


def parallel_features(net):
    other = made()
    other.features = nn.DataParallel(other.features)
    return other.state_dict()


SAVED = {
    "alone": lambda net: net.state_dict(),
    "as parameters": lambda net: net.state_dict(keep_vars=True),
    "of a training program": training_checkpoint,
    "beside an average": lambda net: {"model": net.state_dict(), "ema": made().double().state_dict()},
    "two deep": lambda net: {"checkpoint": {"model_state_dict": net.state_dict()}, "epoch": 1},
    "in net": lambda net: {"net": net.state_dict(), "acc": 93.1},
    "of DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "of DataParallel features": parallel_features,
    "of torch.compile": lambda net: {"model": torch.compile(net, backend="eager").state_dict()},
    "of Lightning": lambda net: {"state_dict": {f"model.{k}": v for k, v in net.state_dict().items()}},
    "in float64": lambda net: {name: tensor.double() for name, tensor in net.state_dict().items()},
}


@pytest.mark.parametrize("way", SAVED)
@torch.no_grad()
def test_a_state_dict_is_read_however_it_was_saved(tmp_path, way):
    net = made()
    with torch.enable_grad():
        torch.save(SAVED[way](net), tmp_path / "x.pth")
    loaded, metadata = load_weights(str(tmp_path / "x.pth"))
    x = torch.randn(2, 3, 32, 32)
    assert relative_error(loaded(x), net(x)) < 1e-5
    arch = loaded.architecture
    assert (arch.hidden, arch.num_classes, arch.image_size) == ((32, 16), 10, 32)
    assert metadata["preprocessing_guessed_from"] == "torchvision"


@pytest.mark.parametrize(
    "classifier",
    [(nn.Linear(512, 7),), (nn.Linear(512, 4), nn.ReLU(), nn.Linear(4, 7)), (nn.Flatten(), nn.Linear(512, 7))],
    ids=len,
)
@torch.no_grad()
def test_other_classifiers_are_read_by_their_order(tmp_path, classifier):
    net = made(*classifier)
    for state in (
        net.state_dict(),
        {k.replace("classifier.0.", "classifier."): v for k, v in net.state_dict().items()},
    ):
        torch.save(state, tmp_path / "x.pth")
        x = torch.randn(2, 3, 32, 32)
        assert relative_error(load_weights(tmp_path / "x.pth")[0](x), net(x)) < 1e-5


def without_top(net, way, path):
    state = net.state_dict()
    if way == "its features":
        torch.save(net.features.state_dict(), path)
    elif way == "names":
        torch.save({name: tensor for name, tensor in state.items() if name.startswith("features")}, path)
    else:
        top = {n: torch.full_like(t, torch.nan) for n, t in state.items() if n.startswith("classifier")}
        torch.save(state | top, path)


@pytest.mark.parametrize("way", ["its features", "names", "NaN"])
@torch.no_grad()
def test_a_file_without_its_top_has_features(tmp_path, net, way):
    without_top(net, way, tmp_path / "x.pth")
    loaded, metadata = load_weights(tmp_path / "x.pth")
    x = torch.randn(2, 3, 64, 64)
    assert relative_error(loaded.features(x, ["pool5"])["pool5"], net.features(x)) < 1e-5
    assert (metadata["classes"], loaded.architecture.head) == ("[]", "gap")
    save_weights(tmp_path / "ours.safetensors", loaded, metadata)
    again, same = load_weights(tmp_path / "ours.safetensors")
    assert torch.equal(again.block5.conv5_2.weight, loaded.block5.conv5_2.weight)
    assert same["classes"] == "[]"


def test_torchvisions_features_only_weights_have_their_own_preprocessing(tmp_path, net):
    without_top(net, "NaN", tmp_path / "vgg16_features-amdegroot-88682ab5.pth")
    loaded, metadata = load_weights(tmp_path / "vgg16_features-amdegroot-88682ab5.pth")
    found = preprocessing_for(loaded, metadata)
    published = peer("torchvision").models.VGG16_Weights.IMAGENET1K_FEATURES.transforms()
    assert found.mean == pytest.approx(published.mean)
    assert found.std == pytest.approx(published.std)


def test_keras_files_without_their_top_have_features(tmp_path):
    with h5py.File(tmp_path / "notop.h5", "w") as file:
        channels = 3
        for block, (count, width) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)], start=1):
            for number in range(1, count + 1):
                layer = f"block{block}_conv{number}"
                kernel = np.full((3, 3, channels, width), block + number / 8, np.float16)
                file[f"{layer}/{layer}_W_1:0"], file[f"{layer}/{layer}_b_1:0"] = kernel, kernel[0, 0, 0]
                channels = width
    loaded, metadata = load_weights(tmp_path / "notop.h5")
    assert (metadata["source"], metadata["classes"]) == ("keras/vgg16", "[]")
    assert (loaded.block3.conv3_2.weight == 3.25).all()


def test_what_is_guessed_is_said_and_what_is_given_is_taken(tmp_path, net):
    torch.save(net.state_dict(), tmp_path / "x.pth")
    loaded, metadata = load_weights(tmp_path / "x.pth")
    said = []
    guessed = preprocessing_for(loaded, metadata, said.append)
    assert guessed.mean == (0.485, 0.456, 0.406) and guessed.image_size == 32
    assert said == [
        "note: these weights do not say how to prepare images, but have torchvision's names: taken as "
        "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 --order rgb"
    ]
    x = torch.rand(1, 3, 32, 32)
    given = preprocessing_for(loaded, metadata, said.append, mean=(0.5, 0.25, 0), std=(0.5, 1, 2), order="bgr")
    by_hand = (x.flip(1) - torch.tensor([0.5, 0.25, 0]).view(3, 1, 1)) / torch.tensor([0.5, 1, 2]).view(3, 1, 1)
    torch.testing.assert_close(given.normalize(x), by_hand)
    caffe = preprocessing_for(loaded, metadata, mean=(103.939, 116.779, 123.68), std=(1, 1, 1), order="bgr")
    assert caffe == preprocessing_for(loaded, metadata, preprocessing="caffe")
    del metadata["preprocessing"]
    assert preprocessing_for(loaded, metadata) is None
    assert preprocessing_for(loaded, metadata, mean=(0.5,) * 3, std=(0.5,) * 3).scale == 1
    with pytest.raises(WeightsError, match="expected 3 means and stds, got 2 and 3"):
        preprocessing_for(loaded, metadata, mean=(0.5, 0.5), std=(0.5,) * 3)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n<!DOCTYPE html><html>Sign in</html>", "got a web page .*try downloading the file itself"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "got a web page or another text in HTML or XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "got a pointer of Git LFS, try 'git lfs pull'"),
        (b'{"message": "Not Found"}', "got a text in JSON, try downloading the file itself"),
        (b'{"data":{"error": [1]}}', "got a text in JSON"),  # a brace where safetensors has one
        (b"Entry not found", "got the text 'Entry not found', try downloading the file itself"),
        (b"", "got an empty file, try downloading the file itself"),
    ],
)
def test_files_that_are_none_are_called_what_they_are(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    refused(tmp_path / "x.pth", f".*{message}")


def test_what_cannot_be_read_is_refused_with_what_would_work(tmp_path, net):
    path = tmp_path / "x.pth"
    torch.save(net, path)
    refused(path, r".*asks for tests.weights.test_found CifarVGG, try torch.save\(net.state_dict\(\), path\)")
    state = net.state_dict()
    torch.save({"generator": state, "critic": {"a": torch.zeros(1)}}, path)
    refused(path, "expected a state dict of tensors, got several: critic, generator, try torch.save")
    torch.save({"epoch": 3}, path)
    refused(path, "expected a state dict of tensors, got a dict: 'epoch' is a int, try")
    torch.save([state], path)
    refused(path, "expected a state dict of tensors, got a list, try")
    torch.save(state | {"features.3.weight": state["features.3.weight"] / 0}, path)
    refused(path, "expected finite values as 'features.3.weight', got NaN or infinite ones")
    torch.save({name: t.double() * 1e300 for name, t in state.items()}, path)
    refused(path, "expected finite values as 'features.0.weight'")
    del state["features.8.bias"]
    torch.save(state, path)
    refused(path, "expected the tensors of torchvision/vgg11, got no 'features.8.bias', try")
    torch.save({"\x1b[31mred\n": torch.zeros(1)}, path)
    refused(path, r"expected the tensors of vggkit, torchvision, timm, keras, caffe, got \\x1b\[31mred\\n, try save_w")


def test_no_small_file_asks_for_much_memory(tmp_path):
    """3.5 GB each, by fill values, by compression and by strides of 0; nothing is allocated."""
    shape, message = (512 * 49, 2**15), "expected at most 268,435,456 values in a file of this size, got 822,"
    with h5py.File(tmp_path / "x", "w") as file:
        file.create_dataset("fc1/kernel", shape, "f4", chunks=(1024, 1024), fillvalue=1)
    refused(tmp_path / "x", message)
    torch.save({"features.0.weight": torch.zeros(1).expand(shape)}, tmp_path / "x")
    refused(tmp_path / "x", message)
    header, shape = io.BytesIO(), (2**16, 2**12 + 1)
    np.lib.format.write_array_header_1_0(header, {"descr": "|i1", "fortran_order": False, "shape": shape})
    with (
        zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("fc7.weight.npy", "w") as member,
    ):
        member.write(header.getvalue())
        for _ in range(shape[1]):
            member.write(bytes(shape[0]))
    refused(tmp_path / "x", "expected at most 268,435,456 values in a file of this size, got 268,500,992")


names = st.sampled_from(
    ["features", "classifier", "module", "block1_conv1/kernel", "0", "3", "²", "9" * 5, "weight", "bias"]
)
tensors = st.builds(
    torch.zeros, st.lists(st.integers(0, 3), max_size=4), dtype=st.sampled_from([torch.float16, torch.long])
)
leaves = tensors | st.none() | st.integers() | st.floats() | st.text(max_size=3)
loadable = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.lists(names, max_size=4).map(".".join) | st.integers() | st.text(max_size=2), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(loadable)
@example({"": torch.zeros(()), "features.classifier.features": torch.zeros(())})
def test_whatever_torch_saves_is_refused_in_one_line(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "fuzz.pth"
    torch.save(value, path)
    refused(path, "expected ")
