"""Images of one's own, against what was written: labels from names, pixels by Pillow, counts by hand."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from vggkit.data import sources
from vggkit.data.fashion_mnist import DataError, load
from vggkit.data.samples import kept_out, printable
from vggkit.data.shards import SPLIT_WORDS, find_shards

SAMPLE = load("fashion-mnist-sample")


def png(index):
    """The image of the sample of Fashion-MNIST at `index`, as a file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(SAMPLE.train_images[index]).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(sample):
    content = sample.content if isinstance(sample.content, bytes) else sample.content.read_bytes()
    return np.asarray(Image.open(io.BytesIO(content)))


def write(folder, names, first=0):
    for offset, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(first + offset))


def open_images(data, holdout=0.25, seed=0, stream=False, epoch_images=0):
    return sources.open_images(str(data), holdout=holdout, seed=seed, stream=stream, epoch_images=epoch_images)


def read_all(images, seed=0, epoch=0):
    read = images.reader(seed, epoch)
    return [read(position) for position in range(len(images))]


def names(images):
    return [sample.name for sample in read_all(images)]


# Folders


def test_train_and_val_folders(tmp_path):
    write(tmp_path, ["train/cat/b.png", "train/cat/a.PNG", "train/dog/c.png", "val/dog/d.png"])
    source = open_images(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.held_out_name == "validation"
    assert [(s.name, s.label) for s in read_all(source.train)] == [
        ("train/cat/a.PNG", 0), ("train/cat/b.png", 0), ("train/dog/c.png", 1)]  # fmt: skip
    (kept,) = read_all(source.held_out)
    assert (kept.name, kept.label, kept.content) == ("val/dog/d.png", 1, tmp_path / "val/dog/d.png")
    for position, index in enumerate([1, 0, 2]):
        assert (pixels(source.train.reader(5, 7)(position)) == SAMPLE.train_images[index]).all()
    assert not source.train.is_stream


@pytest.mark.parametrize(
    ("folders", "said", "taken"),
    [
        (["test"], "test", "test"),
        (["valid"], "validation", "valid"),
        (["validation"], "validation", "validation"),
        (["test", "val"], "validation", "val"),
    ],
)
def test_which_folder_is_held_out(tmp_path, folders, said, taken):
    write(tmp_path, ["train/a/1.png", "train/b/1.png", *(f"{name}/b/2.png" for name in folders)])
    source = open_images(tmp_path)
    assert source.held_out_name == said
    assert names(source.held_out) == [f"{taken}/b/2.png"]


def test_a_share_of_each_class_is_kept_out(tmp_path):
    write(tmp_path, [f"{c}/{n}.png" for c, count in (("a", 8), ("b", 20), ("c", 1), ("d", 2)) for n in range(count)])
    source = open_images(tmp_path, holdout=0.25)
    kept, rest = names(source.held_out), names(source.train)
    assert [sum(name.startswith(c) for name in kept) for c in "abcd"] == [2, 5, 0, 1]
    assert sorted(kept + rest) == sorted(
        f"{c}/{n}.png" for c, count in zip("abcd", (8, 20, 1, 2), strict=True) for n in range(count)
    )
    assert all(name[0] == "abcd"[s.label] for name, s in zip(kept, read_all(source.held_out), strict=True))
    again = open_images(tmp_path, holdout=0.25)
    assert names(again.held_out) == kept
    other = open_images(tmp_path, holdout=0.25, seed=1)
    assert names(other.held_out) != kept
    assert other.fingerprint == source.fingerprint  # of the data, not of the choice
    assert source.held_out_name == "validation"


def test_the_choice_is_the_same_everywhere_and_for_ever():
    chosen = kept_out(np.repeat(np.arange(2, dtype=np.uint16), 10), 0.3, seed=3)
    assert np.flatnonzero(chosen).tolist() == [0, 1, 9, 11, 13, 15]  # a run that is resumed in years needs it


def test_train_without_val_is_shared_out(tmp_path):
    write(tmp_path, [f"train/{c}/{n}.png" for c in "ab" for n in range(4)])
    source = open_images(tmp_path)
    assert (len(source.train), len(source.held_out)) == (6, 2)
    assert all(name.startswith("train/") for name in names(source.held_out))


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path, [f"{c}/{n}.png" for c in ("car", "train") for n in range(4)])
    assert open_images(tmp_path).classes == ("car", "train")


def test_what_is_not_taken_is_told(tmp_path):
    write(
        tmp_path, ["train/a/1.png", "train/b/1.jpeg", "val/a/1.webp", "loose.png", "train/loose.png", "extra/z/1.png"]
    )
    for name in (
        "notes.txt",
        "train/a/Thumbs.db",
        "train/b/two\nlines.csv",
        "train/a/.hidden.png",
        ".DS_Store",
        "val/x",
    ):
        (tmp_path / name).write_text("no image")
    (tmp_path / ".git").mkdir()
    (tmp_path / "train/a/deeper").mkdir()
    source = open_images(tmp_path)
    assert sorted(source.other_files) == sorted(
        ["loose.png", "notes.txt", "extra/", "train/loose.png", "train/a/Thumbs.db", "train/a/deeper/",
         "train/b/two\\nlines.csv", "val/x"]
    )  # fmt: skip
    assert source.num_other_files == 8
    assert len(source.train) == 2


def test_at_most_a_thousand_other_files_are_named(tmp_path):
    write(tmp_path, ["a/1.png", "a/2.png", "b/1.png"])
    for number in range(1_003):
        (tmp_path / "b" / f"{number}.xml").touch()
    source = open_images(tmp_path)
    assert (len(source.other_files), source.num_other_files) == (1_000, 1_003)


def test_names_that_are_not_text(tmp_path):
    odd = os.fsdecode(b"\xff\xfe\n.png")
    write(tmp_path, ["a/1.png", f"a/{odd}", "b/ü.png", "b/2.png"])
    source = open_images(tmp_path, holdout=0.5)
    samples = {s.name: s for s in read_all(source.train) + read_all(source.held_out)}
    assert samples.keys() == {"a/1.png", "a/\\xff\\xfe\\n.png", "b/ü.png", "b/2.png"}
    assert (pixels(samples["a/\\xff\\xfe\\n.png"]) == SAMPLE.train_images[1]).all()


def test_class_names_are_printable(tmp_path):
    write(tmp_path, [f"{c}/{n}.png" for c in ("a\nb", os.fsdecode(b"\xe9"), "\x1b[31m") for n in (1, 2)])
    assert open_images(tmp_path, 0.5).classes == ("\\x1b[31m", "a\\nb", "\\xe9")


def test_printable_is_one_line_of_valid_text():
    for name in (b"\xff", "a\u2028b", "\udcff", "tab\t", b"plain.png"):
        assert printable(name).isprintable()
        printable(name).encode()
    assert printable("Käse.png") == "Käse.png"


def test_links(tmp_path):
    write(tmp_path, ["data/a/1.png", "data/b/1.png", "elsewhere/2.png", "elsewhere/3.png"])
    (tmp_path / "data/a/2.png").symlink_to(tmp_path / "elsewhere/2.png")
    (tmp_path / "data/c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/a/loop").symlink_to(tmp_path / "data")
    source = open_images(tmp_path / "data", holdout=0.5)
    assert source.classes == ("a", "b", "c")
    assert sorted(names(source.train) + names(source.held_out)) == [
        "a/1.png",
        "a/2.png",
        "b/1.png",
        "c/2.png",
        "c/3.png",
    ]
    assert source.other_files == ("a/loop/",)


@pytest.mark.parametrize("target", ["missing.png", "x.png"])
def test_links_to_nothing_and_to_themselves(tmp_path, target):
    write(tmp_path, ["a/1.png", "b/1.png"])
    (tmp_path / "b/x.png").symlink_to(target)
    with pytest.raises(DataError, match=r"b/x.png: expected to read it, got: (No such file|Too many levels)"):
        open_images(tmp_path)


def test_a_pipe_is_no_image_file(tmp_path):
    write(tmp_path, ["a/1.png", "b/1.png"])
    os.mkfifo(tmp_path / "b/2.png")
    with pytest.raises(DataError, match=r"b/2.png: expected an image file, got no regular file"):
        open_images(tmp_path)


def test_the_fingerprint_sees_names_labels_and_sizes(tmp_path):
    def fingerprint(change):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write(folder, ["train/a/1.png", "train/b/2.png", "val/b/3.png"])
        change(folder)
        return open_images(folder).fingerprint

    first = fingerprint(lambda folder: None)
    assert len(first) == 64
    assert fingerprint(lambda folder: os.utime(folder / "train/a/1.png", (0, 0))) == first
    assert fingerprint(lambda folder: (folder / "notes.txt").touch()) == first
    others = [
        fingerprint(lambda folder: (folder / "train/a/1.png").rename(folder / "train/a/4.png")),
        fingerprint(lambda folder: (folder / "train/a/1.png").write_bytes(b"other size")),
        fingerprint(lambda folder: (folder / "train/a").rename(folder / "train/c")),
        fingerprint(lambda folder: write(folder, ["val/a/5.png"])),
        fingerprint(lambda folder: (folder / "val/b").rename(folder / "val/a")),
    ]
    assert len({first, *others}) == 6


def nothing(folder):
    pass


def touch(*names):
    def make(folder):
        for name in names:
            path = folder / name
            path.mkdir(parents=True) if name.endswith("/") else (
                path.parent.mkdir(parents=True, exist_ok=True),
                path.touch(),
            )

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, "expected a folder for each class with its images in it, got an empty folder"),
        (
            touch("1.png", "2.png", "x.txt"),
            "expected a folder for each class .* got 2 images and 1 other files, try <folder>/<class>/image.jpg",
        ),
        (touch("train/1.png", "val/2.png"), "/train: expected a folder for each class .* got 1 images"),
        (touch("a/1.png"), "expected 2 to 65,536 classes, got a$"),
        (
            touch("a/1.png", "b/"),
            "/b: expected image files in the folder of a class, got none, 0 folders and 0 other files",
        ),
        (touch("data/train/a/1.png"), "/data: expected image files in the folder of a class, got none, 1 folders"),
        (touch("a/1.png", "b/1.png"), "expected images for validation, got none"),
        (
            touch("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"),
            "/val/c: expected a class that the training images have, got another one",
        ),
        (touch("train/a/1.png", "train/b/1.png", "val/a/"), "/val/a: expected image files in the folder of a class"),
        (
            touch("train/a/1.png", "train/b/1.png", "val/"),
            "/val: expected a folder for each class .* got an empty folder",
        ),
        (
            touch("train/a/1.png", "val/a/1.png", "valid/a/1.png"),
            "expected one folder for validation, got val and valid",
        ),
        (touch("a.parquet", "b.tar"), "expected parquet files or tar shards, got both"),
        (touch("train-test.tar"), "train-test.tar: expected the name of one split in it, got train and test"),
    ],
)
def test_what_is_no_folder_of_images(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message) as raised:
        open_images(tmp_path)
    assert "\n" not in str(raised.value)


def test_other_wrong_names(tmp_path):
    (tmp_path / "cat.png").write_bytes(png(0))
    with pytest.raises(
        DataError, match=r"cat.png: expected a folder of images, a .parquet or a .tar file, got another file"
    ):
        open_images(tmp_path / "cat.png")
    for data in (tmp_path / "nowhere", "a\0b", "x" * 5_000):
        with pytest.raises(DataError, match="expected a folder of images or hub:owner/name, got "):
            open_images(data)
    for data in ("hub:", "hub:mnist", "hub:../etc/passwd", "hub:a/b/c", "hub:a/..", "hub:a/b:", "hub:a/b\n"):
        with pytest.raises(DataError, match="expected hub:owner/name or hub:owner/name:config, got "):
            open_images(data)
    write(tmp_path, ["a/1.png", "a/2.png", "b/1.png"])
    with pytest.raises(DataError, match="expected a share to hold out above 0 and below 1, got 1.0, try 0.1"):
        open_images(tmp_path, holdout=1.0)
    with pytest.raises(DataError, match="expected parquet files, tar shards or the hub to stream, got a folder"):
        open_images(tmp_path, stream=True)


def test_too_many_classes(tmp_path, monkeypatch):
    monkeypatch.setattr("vggkit.data.folders.MAX_CLASSES", 2)
    write(tmp_path, ["a/1.png", "b/1.png", "c/1.png"])
    with pytest.raises(DataError, match="expected at most 2 classes, got 3"):
        open_images(tmp_path)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    write(tmp_path, ["a/1.png", "b/1.png"])
    scandir = os.scandir

    def refuse(path):
        if os.fsencode(path).endswith(b"/b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root, who may read everything
    with pytest.raises(DataError, match=r"/b: expected to read it, got: Permission denied"):
        open_images(tmp_path)


def test_a_pickled_listing_is_small_and_the_same(tmp_path):
    for c in "ab":
        (tmp_path / c).mkdir()
        for number in range(2_000):
            (tmp_path / c / f"{number:08}.png").touch()
    source = open_images(tmp_path)
    written = pickle.dumps(source.train)
    assert len(written) < 3_000 * (12 + 2 + 8) + 2_000
    assert names(pickle.loads(written)) == names(source.train)


# Parquet files, tar shards and the hub


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The library `datasets` with a cache of its own, and nobody to ask."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 seconds after each shuffled stream
    datasets.disable_progress_bars()
    return datasets


def write_parquet(path, indices, features=None, labels=None, **others):
    """Images of the sample with their labels; the library's description of the columns only if it is given."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "image": [{"bytes": png(index), "path": f"{index}.png"} for index in indices],
        "label": labels if labels is not None else [int(SAMPLE.train_labels[index]) for index in indices],
        **others,
    }
    table = pyarrow.table(columns)
    if features:
        info = json.dumps({"info": {"features": features.to_dict()}})
        table = table.cast(features.arrow_schema).replace_schema_metadata({"huggingface": info})
    pyarrow.parquet.write_table(table, path, row_group_size=50)


def write_tar(path, indices, label="cls", suffix="png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for index in indices:
            value = int(SAMPLE.train_labels[index])
            text = str(value) if label == "cls" else json.dumps({"label": value})
            for name, content in ((f"{index:05}.{suffix}", png(index)), (f"{index:05}.{label}", text.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def check(images, indices, **how):
    """Every image and label is the one that was written."""
    samples = read_all(images, **how)
    assert len(samples) == len(indices)
    for sample, index in zip(samples, indices, strict=True):
        assert sample.label == SAMPLE.train_labels[index]
        assert (pixels(sample) == SAMPLE.train_images[index]).all()


def class_label_features(datasets):
    return datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(SAMPLE.classes))})


@pytest.mark.parametrize("stream", [False, True])
def test_parquet_files_of_the_library(tmp_path, library, stream):
    features = class_label_features(library)
    write_parquet(tmp_path / "d [1]*/data/train-00000-of-00002.parquet", range(60), features)
    write_parquet(tmp_path / "d [1]*/data/train-00001-of-00002.parquet", range(60, 100), features)
    write_parquet(tmp_path / "d [1]*/data/test-00000-of-00001.parquet", range(100, 130), features)
    source = open_images(tmp_path / "d [1]*", stream=stream)
    assert source.classes == SAMPLE.classes
    assert source.held_out_name == "test"
    assert source.train.is_stream is source.held_out.is_stream is stream
    check(source.train, range(100))
    check(source.held_out, range(100, 130))
    assert len(source.fingerprint) == 64
    if not stream:
        assert [source.train.reader(0, 0)(n).name for n in (99, 3)] == ["row 99 of train", "row 3 of train"]


@pytest.mark.parametrize("label", ["cls", "json"])
@pytest.mark.parametrize("stream", [False, True])
def test_tar_shards(tmp_path, library, label, stream):
    write_tar(tmp_path / "train-0000.tar", range(30), label)
    write_tar(tmp_path / "train-0001.tar", range(30, 50), label)
    write_tar(tmp_path / "val-0000.tar", range(50, 67), label)
    (tmp_path / "classes.txt").write_text("\n".join(SAMPLE.classes) + "\n")
    (tmp_path / "README.md").touch()
    source = open_images(tmp_path, stream=stream, epoch_images=50 if stream else 0)
    assert source.classes == SAMPLE.classes
    assert (source.held_out_name, source.other_files) == ("validation", ("README.md",))
    check(source.train, range(50))
    check(source.held_out, range(50, 67))
    assert source.train.reader(0, 0)(31).name == "train-0001.tar/00031"


def test_numbers_are_the_names_of_classes_without_names(tmp_path, library):
    write_tar(tmp_path / "train.tar", range(100))
    source = open_images(tmp_path / "train.tar")
    assert source.classes == tuple(map(str, range(10)))
    both = read_all(source.train) + read_all(source.held_out)
    assert sorted(s.name for s in both) == [f"train.tar/{index:05}" for index in range(100)]
    counts = np.bincount(SAMPLE.train_labels[:100])
    assert np.bincount([s.label for s in read_all(source.held_out)]).tolist() == [round(n * 0.25) for n in counts]
    check(source.held_out, [int(s.name[-5:]) for s in read_all(source.held_out)])


def test_a_stream_is_shuffled_by_seed_and_epoch(tmp_path, library):
    for part in range(3):
        write_parquet(
            tmp_path / f"train-{part}.parquet", range(part * 60, part * 60 + 60), class_label_features(library)
        )
    write_parquet(tmp_path / "validation.parquet", range(10), class_label_features(library))
    train = open_images(tmp_path, stream=True).train

    def order(seed, epoch, images=train):
        return [s.content for s in read_all(images, seed, epoch)]

    written = [png(index) for index in range(180)]
    assert order(0, 0) == order(1, 0) == written
    first = order(0, 1)
    assert first == order(0, 1) == order(0, 1, pickle.loads(pickle.dumps(train)))
    assert sorted(first) == sorted(written)
    assert len({tuple(order(seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (0, 2), (1, 1))}) == 4
    read = train.reader(0, 1)
    assert [read(position).content for position in (2, 3, 70, 179)] == [first[n] for n in (2, 3, 70, 179)]
    with pytest.raises(ValueError, match="expected positions of a stream in ascending order, got 179 after 179"):
        read(179)


WORKERS = """
import sys
import datasets, torch.utils.data
from vggkit.data.sources import open_images

class Share(torch.utils.data.IterableDataset):
    def __init__(self, images): self.images = images
    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        read = self.images.reader(0, 1)
        for position in range(worker.id, len(self.images), worker.num_workers):
            yield position, read(position).content

datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0

if __name__ == "__main__":
    images = open_images(sys.argv[1], holdout=0.5, seed=0, stream=sys.argv[2] == "stream", epoch_images=0).train
    read = images.reader(0, 1)
    alone = [read(position).content for position in range(len(images))]
    for context in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(Share(images), batch_size=None, num_workers=2, multiprocessing_context=context)
        assert [content for _, content in sorted(loader)] == alone, context
    print("same", len(alone))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stream", "table"])
def test_worker_processes_read_the_same(tmp_path, library, how):
    for part in range(3):
        write_parquet(
            tmp_path / f"train-{part}.parquet", range(part * 20, part * 20 + 20), class_label_features(library)
        )
    write_parquet(tmp_path / "test.parquet", range(10), class_label_features(library))
    (tmp_path / "workers.py").write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, tmp_path / "workers.py", tmp_path, how],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.stdout == "same 60\n", done.stderr


def test_the_length_of_a_stream(tmp_path, library):
    write_tar(tmp_path / "train.tar", range(20))
    write_tar(tmp_path / "val.tar", range(20, 27))
    (tmp_path / "classes.txt").write_text("\n".join(SAMPLE.classes))
    with pytest.raises(DataError, match="expected a stream that says its length, got none, try --epoch-images"):
        open_images(tmp_path, stream=True)
    short = open_images(tmp_path, stream=True, epoch_images=8)
    assert (len(short.train), len(short.held_out)) == (8, 7)
    long = open_images(tmp_path, stream=True, epoch_images=21).train.reader(0, 1)
    assert {long(position).label for position in range(20)} == set(SAMPLE.train_labels[:20].tolist())
    with pytest.raises(DataError, match="train: expected 21 images, got a stream of 20, try --epoch-images 20"):
        long(20)
    write_parquet(tmp_path / "p/train.parquet", range(20), class_label_features(library))
    write_parquet(tmp_path / "p/val.parquet", range(5), class_label_features(library))
    assert len(open_images(tmp_path / "p", stream=True).train) == 20
    assert len(open_images(tmp_path / "p", stream=True, epoch_images=6).train) == 6
    with pytest.raises(DataError, match="expected at most its 20 images in an epoch, got 21"):
        open_images(tmp_path / "p", stream=True, epoch_images=21)


def test_what_a_stream_lacks(tmp_path, library):
    write_tar(tmp_path / "train.tar", range(20))
    with pytest.raises(DataError, match="expected a validation or test split, .* got none, try without --stream"):
        open_images(tmp_path, stream=True, epoch_images=5)
    write_tar(tmp_path / "val.tar", range(5))
    with pytest.raises(DataError, match=r"expected the names of the classes, .* got none, try a classes.txt"):
        open_images(tmp_path, stream=True, epoch_images=5)


@pytest.mark.parametrize("stream", [False, True])
def test_labels_that_cannot_be(tmp_path, library, stream):
    (tmp_path / "classes.txt").write_text("a\nb\n")
    write_parquet(tmp_path / "val.parquet", range(2), labels=[0, 1])
    for labels, table_message, stream_message in (
        ([0, 2], "expected labels from 0 to 1, which have the names of classes, got 2", "expected a label from 0 to 1, got 2"),
        ([0, -1], "train: expected labels from 0 to 65535, got -1 in row 1 and 1 such in all", "expected a label from 0 to 1, got -1"),
        ([0, 70_000], "expected labels from 0 to 65535, got 70000", "expected a label from 0 to 1, got 70000"),
        ([0, None], "expected a label in every row, got 1 rows without one", "expected a label from 0 to 1, got None"),
    ):  # fmt: skip
        write_parquet(tmp_path / "train.parquet", range(2), labels=labels)
        with pytest.raises(DataError, match=stream_message if stream else table_message):
            read_all(open_images(tmp_path, stream=stream).train)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (
            {"picture": [{"bytes": b"x", "path": None}] * 4},
            "expected one column of images, got image, picture among image, label, picture",
        ),
        ({"label": ["a", "b", "c", "d"]}, "expected one column of labels, .* got none among image, label"),
        ({"cls": [0, 1, 0, 1]}, "expected one column of labels, .* got label, cls among image, label, cls"),
        ({"image": [1, 2, 3, 4]}, "expected one column of images, got none among image, label"),
    ],
)
def test_columns_that_are_not_clear(tmp_path, library, others, message):
    write_parquet(tmp_path / "train.parquet", range(4), **others)
    with pytest.raises(DataError, match=message):
        open_images(tmp_path)


@pytest.mark.parametrize("stream", [False, True])
def test_a_path_in_a_file_is_not_followed(tmp_path, library, stream):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(0))
    rows = [{"bytes": png(0), "path": None}, {"bytes": None, "path": str(secret)}]
    for split in ("train", "val"):
        write_parquet(tmp_path / f"{split}.parquet", range(2), class_label_features(library), image=rows, labels=[0, 1])
    read = open_images(tmp_path, stream=stream).train.reader(0, 0)
    assert read(0).content == png(0)
    with pytest.raises(DataError, match=r"expected an image's bytes in the table, got only a path, .*secret.png"):
        read(1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("suffix", ["parquet", "tar"])
def test_damaged_files(tmp_path, library, stream, suffix):
    (tmp_path / "classes.txt").write_text("a\nb\n")
    for split in ("train", "val"):
        (tmp_path / f"{split}.{suffix}").write_bytes(b"no such file" * 100)
    with pytest.raises(
        DataError, match="expected images that can be read, got|expected a whole .tar file, got"
    ) as raised:
        read_all(open_images(tmp_path, stream=stream, epoch_images=3).train)
    assert "\n" not in str(raised.value)


def test_a_cut_tar_is_told_where_it_is_read(tmp_path, library):
    (tmp_path / "classes.txt").write_text("\n".join(SAMPLE.classes))
    for split in ("train", "val"):
        write_tar(tmp_path / f"{split}.tar", range(40))
    whole = (tmp_path / "train.tar").read_bytes()
    (tmp_path / "train.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="expected images that can be read, got|expected 40 images, got a stream of"):
        read_all(open_images(tmp_path, stream=True, epoch_images=40).train)


def test_class_names_beside_the_shards(tmp_path, library):
    write_tar(tmp_path / "train.tar", range(20))
    for content, message in (
        (b"a\n\nb\n", "classes.txt: expected the name of a class in each line, .* got 3 lines, 1 of them empty"),
        (b"\xff\xfe", "classes.txt: expected a text in UTF-8, got"),
        (b"a\nb\n", "expected labels from 0 to 1, which have the names of classes, got 9"),
        (b"a\n" * 65_537, "expected the name of a class in each line, 65,536 at most, got 65,537 lines"),
    ):
        (tmp_path / "classes.txt").write_bytes(content)
        with pytest.raises(DataError, match=message):
            open_images(tmp_path)


def test_the_fingerprint_of_shards(tmp_path, library):
    found = []
    for folder, indices in (("a", range(20)), ("b", range(20)), ("c", range(21))):
        write_tar(tmp_path / folder / "train.tar", indices)
        found.append(open_images(tmp_path / folder).fingerprint)
    assert found[0] == found[1] != found[2]


def test_splits_are_named_as_the_library_names_them(tmp_path, library):
    from datasets.data_files import SPLIT_KEYWORDS, DataFilesDict, get_data_patterns

    assert {split: tuple(words) for split, words in SPLIT_WORDS.items()} == {
        str(split): tuple(words) for split, words in SPLIT_KEYWORDS.items()
    }
    for number, files in enumerate(
        [
            ["train-0.tar", "train-1.tar", "val-0.tar", "my-test_3.tar"],
            ["training 1.tar", "dev.tar", "eval.tar"],
            ["a.tar", "constraint.tar", "retest.tar"],
            ["data/train-00000-of-00002.tar", "data/train-00001-of-00002.tar", "data/validation-00000-of-00001.tar"],
            ["train/0.tar", "valid/0.tar"],
        ]
    ):
        folder = tmp_path / f"set {number}"
        touch(*files)(folder)
        theirs = DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))
        ours = find_shards(folder).files
        assert {k: sorted(map(str, v)) for k, v in ours.items()} == {str(k): sorted(v) for k, v in theirs.items()}


def test_the_hub_is_asked_for_the_name_only(tmp_path, library, monkeypatch):
    write_parquet(tmp_path / "train.parquet", range(20), class_label_features(library))
    write_parquet(tmp_path / "test.parquet", range(20, 30), class_label_features(library))
    files = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "test")}
    builder, asked = library.load_dataset_builder("parquet", data_files=files), []

    def load_dataset_builder(*arguments, **options):
        asked.append((arguments, options))
        return builder

    monkeypatch.setattr(library, "load_dataset_builder", load_dataset_builder)
    source = open_images("hub:owner/name:small")
    assert asked == [(("hf://datasets/owner/name", "small"), {})]
    assert source.name == "hub:owner/name:small"
    check(source.train, range(20))
    check(source.held_out, range(20, 30))
    builder.hash = "another commit"
    assert open_images("hub:owner/name:small").fingerprint != source.fingerprint


def test_the_hub_may_name_files_in_its_cache_only(tmp_path, library, monkeypatch):
    write(tmp_path / "cache/hub", ["0.png"])
    write(tmp_path, ["outside.png"])
    (tmp_path / "cache/hub/link.png").symlink_to(tmp_path / "outside.png")
    paths = [str(tmp_path / name) for name in ("cache/hub/0.png", "cache/hub/../../outside.png", "cache/hub/link.png")]
    rows = [{"bytes": None, "path": path} for path in paths]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", range(3), class_label_features(library), image=rows)
    files = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "test")}
    builder = library.load_dataset_builder("parquet", data_files=files)
    monkeypatch.setattr(library, "load_dataset_builder", lambda *arguments: builder)
    read = open_images("hub:owner/name").train.reader(0, 0)
    assert (pixels(read(0)) == SAMPLE.train_images[0]).all()
    for position in (1, 2):
        with pytest.raises(DataError, match="expected an image's bytes in the table, got only a path"):
            read(position)


def test_a_hub_that_cannot_be_reached(library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ["owner/name/train/a/1.png", "owner/name/train/b/1.png"])  # a folder is not taken for it
    with pytest.raises(DataError, match="hub:owner/name: expected images that can be read, got .*owner/name") as raised:
        open_images("hub:owner/name")
    assert "\n" not in str(raised.value)


def test_without_the_library(tmp_path, monkeypatch):
    touch("train.tar")(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"expected the library datasets, got: .*, try pip install 'vggkit\[data\]'"):
        open_images(tmp_path)


def test_folders_need_no_library_and_no_torch(tmp_path):
    write(tmp_path, ["train/a/1.png", "train/b/1.png", "val/a/1.png"])
    program = (
        "import sys; from vggkit.data.sources import open_images; "
        f"open_images({str(tmp_path)!r}, holdout=0.1, seed=0, stream=False, epoch_images=0); "
        "sys.exit(bool({'datasets', 'pyarrow', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
