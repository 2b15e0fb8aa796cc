"""ImageNet's validation images in one folder, and the models of three libraries on the same images."""

import shutil
import struct
import zlib

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat

from vggkit import evaluate, open_data
from vggkit.data.imagenet import DEVKIT, META, TRUTH, class_names, synsets
from vggkit.weights.translation import architecture_of, entries

SYNSETS = synsets()
ORDER = np.random.default_rng(0).permutation(SYNSETS).tolist()
"""Of the development kit's numbers 1 to 1000, as this test's kit has them; 860 groups of classes follow."""
IDS = np.random.default_rng(1).integers(1, 1001, 500).tolist()


def write_kit(place, order=ORDER, ids=IDS, compressed=True):
    place.mkdir(parents=True, exist_ok=True)
    (place / TRUTH).write_text("".join(f"{number}\n" for number in ids))
    kit = np.zeros((1860, 1), [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O")])
    for row, synset in enumerate([*order, *(f"n{90_000_000 + n}" for n in range(1860 - len(order)))]):
        kit[row, 0] = (row + 1, synset, "kit fox, Vulpes macrotis", "small grey fox")
    savemat(place / META, {"synsets": kit}, do_compression=compressed)


def write_images(folder, numbers):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(2)
    for number in numbers:
        pixels = random.integers(0, 256, (8, 8, 3), np.uint8).repeat(32, 0).repeat(40, 1)
        Image.fromarray(pixels).save(folder / f"ILSVRC2012_val_{number:08d}.JPEG")


@pytest.mark.parametrize("place", [".", "..", f"../{DEVKIT}/data", f"{DEVKIT}/data"])
def test_images_in_one_folder_have_the_labels_of_the_kit(tmp_path, place):
    write_images(tmp_path / "val", (3, 1, 500))
    write_kit((tmp_path / "val" / place).resolve(), compressed=place != ".")
    source = open_data(tmp_path / "val", holdout=0)
    read = source.splits["all"].reader(0, 0)
    found = {sample.name: source.classes[sample.label] for sample in map(read, range(3))}
    assert found == {f"ILSVRC2012_val_{number:08d}.JPEG": ORDER[IDS[number - 1] - 1] for number in (1, 3, 500)}


@pytest.mark.parametrize(
    ("kit", "message"),
    [
        (None, f"val: expected {TRUTH} and {META} of ImageNet's development kit in or beside .*, try to unpack"),
        ({"ids": IDS[:100]}, "expected the labels and classes of ILSVRC 2012"),
        ({"ids": ["x"]}, "expected the labels and classes of ILSVRC 2012"),
        ({"ids": ["1_0"] * 500}, "expected the labels and classes of ILSVRC 2012"),
        ({"ids": [0] * 500}, "expected the labels and classes of ILSVRC 2012"),
        ({"order": ORDER[:-1]}, "expected the labels and classes of ILSVRC 2012"),
    ],
)
def test_a_kit_of_something_else_is_refused(tmp_path, kit, message):
    write_images(tmp_path / "val", (101,))
    if kit is not None:
        write_kit(tmp_path, **kit)
    with pytest.raises(ValueError, match=message):
        open_data(tmp_path / "val", holdout=0)
    if kit is not None:
        (tmp_path / META).write_bytes(b"\0" * 128 + b"\x0f\0\0\0\xff\0\0\0 no stream")
        with pytest.raises(ValueError, match="expected the labels and classes of ILSVRC 2012"):
            open_data(tmp_path / "val", holdout=0)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_kit_that_grows_without_end_is_refused(tmp_path, compressed):
    write_images(tmp_path / "val", (1,))
    write_kit(tmp_path)
    zeros = zlib.compress(bytes(2**22)) if compressed else bytes(2**22)
    element = struct.pack("<II", 15 if compressed else 14, len(zeros)) + zeros
    (tmp_path / META).write_bytes(bytes(128) + 5 * element)  # each below the bound
    with pytest.raises(ValueError, match=r"meta.mat: expected the file of ILSVRC 2012, at most 16,777,216 bytes"):
        open_data(tmp_path / "val", holdout=0)
    (tmp_path / TRUTH).write_text("1\n" * 2**20)
    with pytest.raises(ValueError, match=r"ground_truth.txt: expected the file of ILSVRC 2012, at most 1,048,576"):
        open_data(tmp_path / "val", holdout=0)


def test_a_stray_image_beside_folders_of_classes_is_one_of_the_others(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / name, (1, 2))
    write_images(tmp_path, (1,))
    write_kit(tmp_path)
    assert open_data(tmp_path, holdout=0).classes == ("cat", "dog")


def test_only_files_with_numbers_of_their_own_are_images(tmp_path):
    write_images(tmp_path, (1, 2))
    write_kit(tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "recipe.json").write_text("{}")
    (tmp_path / "ILSVRC2012_val_00000003.JPEG").mkdir()
    assert len(open_data(tmp_path, holdout=0).splits["all"]) == 2
    shutil.copy(tmp_path / "ILSVRC2012_val_00000002.JPEG", tmp_path / "ILSVRC2012_val_00000002.jpg")
    with pytest.raises(ValueError, match=r"expected one image of each number, got several of 2,"):
        open_data(tmp_path, holdout=0)


def three_files(folder):
    """One VGG-16 with narrow fully connected layers, as each of three libraries has it, in three files."""
    torch.manual_seed(0)
    tables = {s: entries(s, architecture_of(s, "vgg16", hidden=(8, 16))) for s in ("torchvision", "timm", "keras")}
    state = {}
    for key, entry in tables["torchvision"].items():
        bound = (6 / max(1, int(np.prod(entry.shape[1:])))) ** 0.5
        state[key] = torch.empty(entry.shape).uniform_(-bound, bound) * (0.1 if key.endswith("bias") else 1)
    paths = {}
    for source in ("torchvision", "timm"):
        named = {entry.name: state[key].reshape(entry.shape).contiguous() for key, entry in tables[source].items()}
        paths[source] = folder / f"{source}.safetensors"
        save_file(named, paths[source])
    with h5py.File(folder / "keras.h5", "w") as file:  # which takes BGR in [0, 255], and channels last
        for key, entry in tables["keras"].items():
            tensor = state[key]
            if key == "block1.conv1_1.weight":
                tensor = (tensor / 255 / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)).flip(1)
            if key == "fc6.weight":
                tensor = tensor.view(8, 512, 7, 7).permute(2, 3, 1, 0).reshape(-1, 8)
            elif tensor.ndim == 4:
                tensor = tensor.permute(2, 3, 1, 0)
            file[entry.name] = (tensor.T if key in ("fc7.weight", "fc8.weight") else tensor).numpy()
    return {**paths, "keras": folder / "keras.h5"}, state


def by_hand(state, colour):
    """The class that VGG-16 in torch's functions gives an image of one colour."""
    x = torch.tensor(colour).view(1, 3, 1, 1) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        1, 3, 1, 1
    )
    x = x.expand(1, 3, 224, 224)
    for block, convs in enumerate((2, 2, 3, 3, 3), 1):
        for conv in range(1, convs + 1):
            name = f"block{block}.conv{block}_{conv}"
            x = torch.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).relu()
        x = torch.max_pool2d(x, 2)
    x = x.flatten(1)
    for name in ("fc6", "fc7", "fc8"):
        x = torch.nn.functional.linear(x.relu(), state[f"{name}.weight"], state[f"{name}.bias"])
    return x.argmax().item()


@torch.no_grad()
def test_models_of_three_libraries_agree_on_the_same_folders(tmp_path):
    """Images of one colour, on which resizing and cropping do nothing, labelled by what the network in torch says."""
    paths, state = three_files(tmp_path)
    colours = [(250, 20, 20), (20, 20, 250), (20, 240, 20), (240, 240, 10), (10, 10, 10)]
    ids = []
    for number, colour in enumerate(colours, 1):
        label = by_hand(state, colour)
        ids.append(ORDER.index(SYNSETS[label]) + 1)
        for place in (tmp_path / "flat", tmp_path / "sorted" / SYNSETS[label]):
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (260, 230), colour).save(place / f"ILSVRC2012_val_{number:08d}.JPEG", quality=100)
    assert len(set(ids)) > 1
    write_kit(tmp_path / "flat", ids=ids)
    for path in paths.values():
        for folder in ("flat", "sorted"):
            evaluation = evaluate(path, tmp_path / folder)
            assert evaluation.accuracy == 1
            assert evaluation.classes == tuple(class_names(1000))
            assert sorted(evaluation.labels) == sorted(SYNSETS.index(ORDER[number - 1]) for number in ids)
