"""Images in parquet files, tar shards and on the hub, against what was written into them."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from tests.own_images import SAMPLE, open_images, pixels, png, read_all, touch, write
from vggkit.data.shards import SPLIT_WORDS, find_shards
from vggkit.errors import DataError


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
from vggkit import open_data

class Share(torch.utils.data.IterableDataset):
    def __init__(self, images): self.images = images
    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        read = self.images.reader(0, 1)
        for position in range(worker.id, len(self.images), worker.num_workers):
            yield position, read(position).content

datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0

if __name__ == "__main__":
    images = open_data(sys.argv[1], holdout=0.5, stream=sys.argv[2] == "stream").train
    read = images.reader(0, 1)
    alone = [read(position).content for position in range(len(images))]
    for context in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(Share(images), batch_size=None, num_workers=2, multiprocessing_context=context)
        assert [content for _, content in sorted(loader)] == alone, context
    print("same", len(alone))
"""


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
    with pytest.raises(DataError, match=f"/train.{suffix}: expected a whole .{suffix} file, .*got") as raised:
        open_images(tmp_path, stream=stream, epoch_images=3)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tar_that_is_cut_between_two_images(tmp_path, library, stream):
    (tmp_path / "classes.txt").write_text("\n".join(SAMPLE.classes))
    for split in ("train", "val"):
        write_tar(tmp_path / f"{split}.tar", range(40))
    with tarfile.open(tmp_path / "train.tar") as tar:
        end = tar.getmembers()[20].offset
    content = (tmp_path / "train.tar").read_bytes()
    (tmp_path / "train.tar").write_bytes(content[:end])
    with pytest.raises(
        DataError, match="/train.tar: expected a whole .tar file, .* got one that does not end in 1,024"
    ):
        open_images(tmp_path, stream=stream, epoch_images=40)


@pytest.mark.parametrize("stream", [False, True])
def test_damage_inside_a_file_is_told_when_it_is_read(tmp_path, library, stream):
    (tmp_path / "classes.txt").write_text("\n".join(SAMPLE.classes))
    for split in ("train", "val"):
        write_tar(tmp_path / f"{split}.tar", range(40))
    with tarfile.open(tmp_path / "train.tar") as tar:
        label = tar.getmembers()[1]
    content = bytearray((tmp_path / "train.tar").read_bytes())
    content[label.offset_data : label.offset_data + 1] = b"x"
    (tmp_path / "train.tar").write_bytes(content)
    with pytest.raises(DataError, match="expected images that can be read, got .*invalid literal for int"):
        read_all(open_images(tmp_path, stream=stream, epoch_images=40).train)


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


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_stream_trains_to_the_same_bits_with_any_number_of_workers_and_after_a_stop(kind, library, tmp_path):
    from vggkit import Recipe, train
    from vggkit.training import step

    folder = tmp_path / "shards"
    for split, shards in (("train", 2), ("validation", 1)):
        for shard in range(shards):
            indices = range(100 * shard, 100 * shard + 100)
            if kind == "parquet":
                write_parquet(folder / f"{split}-{shard:05}.parquet", indices, class_label_features(library))
            else:
                write_tar(folder / f"{split}-{shard:05}.tar", indices)
    (folder / "classes.txt").write_text("\n".join(SAMPLE.classes) + "\n")
    recipe = Recipe(
        name="stream", architecture="1x4 1x8_bn", image_size=16, data=str(folder), stream=True, channels="grey",
        hidden=(), epochs=2, batch_size=30, shorter_side=(16, 20), flip=True, momentum=0.9, epoch_images=200,
    )  # fmt: skip

    def weights(name, **options):
        run = train(recipe, device="cpu", progress=False, **{"out": tmp_path / name, "num_workers": 0} | options)
        return run.net.state_dict()

    expected = weights("whole")
    steps = []
    original = step.train_step

    def stopping(*arguments, **options):
        steps.append(options["wants_stop"])
        return original(*arguments, **{**options, "wants_stop": len(steps) == 10})  # in the second epoch of 7 steps

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "train_step", stopping)
        weights("stopped")
    assert len(steps) == 10
    for found in (weights("workers", num_workers=2), weights("stopped", out=None, resume=tmp_path / "stopped")):
        assert all((found[name] == tensor).all() for name, tensor in expected.items())
