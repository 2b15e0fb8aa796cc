"""Images in parquet files, tar shards and on the hub, against what was written into them."""

import io
import json
import sys
import tarfile
import tempfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.own_images import SAMPLE, open_images, pixels, png, read_all, touch, write
from vggkit.data.samples import SPLIT_WORDS
from vggkit.data.shards import find_shards
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
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # in which nothing is left
    yield datasets
    assert not list(tmp_path.glob("vggkit-*"))


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


def tar_of(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_tar(path, indices, label="cls"):
    labels = {index: int(SAMPLE.train_labels[index]) for index in indices}
    texts = {index: str(value) if label == "cls" else json.dumps({"label": value}) for index, value in labels.items()}
    pairs = ([(f"{n:05}.png", png(n)), (f"{n:05}.{label}", text.encode())] for n, text in texts.items())
    tar_of(path, [file for pair in pairs for file in pair])


def check(images, indices, in_any_order=False, **how):
    """Every image and label is the one that was written; a stream of several files takes from them in turn."""
    samples = read_all(images, **how)
    assert len(samples) == len(indices)
    if in_any_order:
        samples.sort(key=lambda sample: sample.name)
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
    check(source.train, [n for pair in zip(range(40), range(60, 100), strict=True) for n in pair] + list(range(40, 60))
          if stream else range(100))  # fmt: skip
    check(source.held_out, range(100, 130))
    assert len(source.fingerprint) == 64
    if not stream:
        read = source.train.reader(0, 0)
        assert [read(n).name for n in (99, 3)] == [
            f"train-0000{n}-of-00002.parquet row {m}" for n, m in ((1, 39), (0, 3))
        ]


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
    check(source.train, range(50), in_any_order=stream)
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
    assert order(0, 0) == order(1, 0) == [written[part * 60 + n] for n in range(60) for part in range(3)]
    first = order(0, 1)
    assert first == order(0, 1)
    assert sorted(first) == sorted(written)
    assert len({tuple(order(seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (0, 2), (1, 1))}) == 4
    read = train.reader(0, 1)
    assert [read(position).content for position in (2, 3, 70, 179)] == [first[n] for n in (2, 3, 70, 179)]
    with pytest.raises(ValueError, match="expected positions of a stream in ascending order, got 179 after 179"):
        read(179)


def test_the_length_of_a_stream(tmp_path, library):
    write_tar(tmp_path / "train.tar", range(20))
    write_tar(tmp_path / "val.tar", range(20, 27))
    (tmp_path / "classes.txt").write_text("\n".join(SAMPLE.classes))
    assert len(open_images(tmp_path, stream=True).train) == 20
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
    source = open_images(tmp_path, stream=True)
    assert source.classes == tuple(map(str, range(10)))  # the labels are read before


@pytest.mark.parametrize("stream", [False, True])
def test_labels_that_cannot_be(tmp_path, library, stream):
    (tmp_path / "classes.txt").write_text("a\nb\n")
    write_parquet(tmp_path / "val.parquet", range(2), labels=[0, 1])
    for labels, message in (
        ([0, 2], "expected a label from 0 to 1, got 2"),
        ([0, -1], "expected a label from 0 to 1, got -1"),
        ([0, 70_000], "expected a label from 0 to 1, got 70000"),
        ([0, None], "train.parquet row 1: expected a label, as a number or a name, got None"),
        (["a", "c"], "expected the name of one of 2 classes, got c"),
    ):
        write_parquet(tmp_path / "train.parquet", range(2), labels=labels)
        with pytest.raises(DataError, match=message):
            read_all(open_images(tmp_path, stream=stream).train)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (
            {"picture": [{"bytes": b"x", "path": None}] * 4},
            "expected one column of images, got image, picture among image, label, picture",
        ),
        ({"label": [0.5, 1.5, 2.5, 3.5]}, "expected one column of labels, .* got none among image, label"),
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
    with pytest.raises(DataError, match=r"train.parquet row 1: expected an image"):
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
def test_a_tar_that_is_cut_between_two_images_or_damaged_inside(tmp_path, library, stream):
    (tmp_path / "classes.txt").write_text("\n".join(SAMPLE.classes))
    for split in ("train", "val"):
        write_tar(tmp_path / f"{split}.tar", range(40))
    content = (tmp_path / "train.tar").read_bytes()
    with tarfile.open(tmp_path / "train.tar") as tar:
        end, label = tar.getmembers()[20].offset, tar.getmembers()[1].offset_data
    (tmp_path / "train.tar").write_bytes(content[:end])
    with pytest.raises(DataError, match="/train.tar: expected a whole .tar file, .* one that does not end in 1,024"):
        open_images(tmp_path, stream=stream, epoch_images=40)
    (tmp_path / "train.tar").write_bytes(content[:label] + b"x" + content[label + 1 :])
    with pytest.raises(DataError, match="expected the name of one of 10 classes, got x"):
        read_all(open_images(tmp_path, stream=stream, epoch_images=40).train)


def test_class_names_beside_the_shards(tmp_path, library):
    write_tar(tmp_path / "train.tar", range(20))
    for content, message in (
        (b"a\n\nb\n", "classes.txt: expected the name of a class in each line, .* got 3 lines, 1 of them empty"),
        (b"\xff\xfe", "classes.txt: expected a text in UTF-8, got"),
        (b"a\nb\n", "expected a label from 0 to 1, got 9"),
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
        assert {k: sorted(v) for k, v in ours.items()} == {str(k): sorted(v) for k, v in theirs.items()}


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


def test_a_hub_of_another_kind_is_written_as_tables_first(tmp_path, library, monkeypatch):
    write(tmp_path / "photos", [f"{split}/{c}/{n}.png" for split in ("train", "test") for c in "ab" for n in range(3)])
    builder = library.load_dataset_builder("imagefolder", data_dir=str(tmp_path / "photos"), cache_dir=tmp_path / "c")
    monkeypatch.setattr(library, "load_dataset_builder", lambda *arguments: builder)
    with pytest.raises(DataError, match="expected parquet files or tar shards to stream, got another kind"):
        open_images("hub:owner/name", stream=True)
    source = open_images("hub:owner/name")
    assert source.classes == ("a", "b")
    assert [len(images) for images in source.splits.values()] == [6, 6]
    shown = sorted(pixels(sample).tobytes() for sample in read_all(source.train))
    assert shown == sorted(SAMPLE.train_images[index].tobytes() for index in range(6))


def test_a_hub_that_cannot_be_reached(library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ["owner/name/train/a/1.png", "owner/name/train/b/1.png"])  # a folder is not taken for it
    with pytest.raises(DataError, match="hub:owner/name: expected images that can be read, got .*owner/name") as raised:
        open_images("hub:owner/name")
    assert "\n" not in str(raised.value)


def test_without_the_libraries(tmp_path, monkeypatch):
    for name in ("datasets", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"expected the library datasets, got: .*, try pip install 'vggkit\[data\]'"):
        open_images("hub:owner/name")
    touch("parquet/train.parquet")(tmp_path)
    with pytest.raises(DataError, match=r"expected the library pyarrow, got: .*, try pip install 'vggkit\[data\]'"):
        open_images(tmp_path / "parquet")
    write_tar(tmp_path / "train.tar", range(20))  # which need neither
    assert len(open_images(tmp_path / "train.tar").train) == 15


@pytest.mark.parametrize("stream", [False, True])
def test_labels_as_texts_and_images_of_several_kinds(tmp_path, library, stream):
    """jpg and png in one shard, texts in .cls and JSON, and in a table's column."""
    jpeg = io.BytesIO()
    Image.fromarray(SAMPLE.train_images[0]).save(jpeg, "JPEG")
    samples = []
    for index, name in enumerate(("cat", "dog", "cat", "bird")):
        image = (f"{index}.JPG", jpeg.getvalue()) if index % 2 else (f"{index}.png", png(index))
        label = (
            (f"{index}.cls", name.encode()) if index < 2 else (f"{index}.json", json.dumps({"class": name}).encode())
        )
        samples += [image, label]
    for split in ("train", "val"):
        tar_of(tmp_path / f"{split}.tar", samples)
        write_parquet(tmp_path / "table" / f"{split}.parquet", range(4), labels=["cat", "dog", "cat", "bird"])
    for folder in (tmp_path, tmp_path / "table"):
        source = open_images(folder, stream=stream)
        assert source.classes == ("bird", "cat", "dog")
        assert [sample.label for sample in read_all(source.train)] == [1, 2, 1, 0]


def test_samples_whose_keys_have_dots(tmp_path, library):
    """By the format's rule x.1.jpg and x.2.jpg have one key, x."""
    tar_of(tmp_path / "a.tar", [("x.1.jpg", png(0)), ("x.1.cls", b"0"), ("x.2.jpg", png(1)), ("x.2.cls", b"1")])
    with pytest.raises(DataError, match="a.tar/x: expected one image in a sample, got 1.jpg and 2.jpg; the key .* dot"):
        open_images(tmp_path / "a.tar")
    files = [(f"{n}.{field}", content) for n in range(4) for field, content in
             (("jpg", png(n)), ("cls", b"%d" % (n % 2)), ("aug1.jpg", png(n)), ("aug1.cls", b"7"))]  # fmt: skip
    tar_of(tmp_path / "b.tar", files)
    source = open_images(tmp_path / "b.tar", holdout=0.5)
    assert len(source.train) + len(source.held_out) == 4
    assert source.notes == (
        "4 images beside the one of their sample are not used "
        "(b.tar/0.aug1.jpg, b.tar/1.aug1.jpg, b.tar/2.aug1.jpg, ...)",
    )
    tar_of(tmp_path / "c.tar", [("cats/1.jpg", png(0)), ("dogs/2.jpg", png(1))])
    with pytest.raises(DataError, match="c.tar/cats/1: expected one label, in a field label, .* or json, got jpg"):
        open_images(tmp_path / "c.tar")


def test_little_files_that_are_huge_are_refused_before_memory_is_taken(tmp_path, library):
    """A sparse member that says 8 GB, and tables of few kB that unpack to a GB."""
    write_tar(tmp_path / "train.tar", range(20))
    content = (tmp_path / "train.tar").read_bytes()
    sparse = tarfile.TarInfo("sparse.png")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410], header[483:495] = b"%011o\0" % 0, b"%011o\0" % 0, b"%011o\0" % (8 * 2**30 - 1)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    label = tarfile.TarInfo("sparse.cls")
    label.size = 1
    (tmp_path / "train.tar").write_bytes(bytes(header) + label.tobuf() + b"3".ljust(512, b"\0") + content)
    (tmp_path / "classes.txt").write_text("\n".join(SAMPLE.classes))
    read = open_images(tmp_path, holdout=0).held_out.reader(0, 0)
    with pytest.raises(
        DataError, match="train.tar/sparse: expected an image of 1 to 536,870,912 bytes, got 536,870,913"
    ):
        read(0)
    assert read(1).name == "train.tar/00000"
    import pyarrow
    import pyarrow.parquet

    big, repeated = bytes(2**26), bytes(2**20)
    for name, images, labels, dictionary, message in (
        ("plain", [big] * 4, [0, 1] * 2, False, "expected images, got a group of 2.* bytes in a file of"),
        ("dictionary", [repeated] * 200, [0, 1] * 100, True, "row [0-9]+: expected images and labels, got far more"),
        ("text", [b"x"] * 200, [repeated.decode()] * 200, True, "row [0-9]+: expected images and labels, got far more"),
    ):
        table, path = pyarrow.table({"image": images, "label": labels}), tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(table, path, use_dictionary=dictionary, compression="zstd")
        assert path.stat().st_size < 200_000
        with pytest.raises(DataError, match=message):
            read_all(open_images(path).train)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("size", [2, 3])
def test_one_file_or_several_give_every_image_once_to_several_processes(tmp_path, library, kind, size):
    """Each process reads only files of its own while whole batches last, and the order is the same for any number."""
    write_one = write_parquet if kind == "parquet" else write_tar
    for part, indices in enumerate((range(12), range(12, 30), range(30, 36), range(36, 60))):
        write_one(tmp_path / f"train-{part}.{kind}", indices)
    write_one(tmp_path / f"val.{kind}", range(60, 66))
    for stream in (False, True):
        train = open_images(tmp_path, stream=stream).train
        whole = [sample.content for sample in read_all(train, seed=3, epoch=1)]
        assert sorted(whole) == sorted(png(index) for index in range(60))
        for rank in range(size):
            read = train.reader(3, 1)
            assert [read(position).content for position in range(rank, 60, size)] == whole[rank::size]
        if stream and size == 2:
            opened = set()
            train = replace(train, rows=lambda file, rows=train.rows, opened=opened: opened.add(file) or rows(file))
            read = train.reader(3, 1)
            [read(position) for position in range(0, 24, 2)]
            assert len(opened) == 2


@given(st.binary(max_size=200), st.integers(0, 3_000), st.sampled_from(["tar", "parquet"]), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_raise_what_is_declared(tmp_path, library, damage, start, kind, stream):
    folder = tmp_path / kind
    if not folder.exists():
        for split in ("train", "val"):
            (write_parquet if kind == "parquet" else write_tar)(folder / f"{split}.{kind}", range(4))
        (folder / "whole").write_bytes((folder / f"train.{kind}").read_bytes())
    content = bytearray((folder / "whole").read_bytes())
    start = start % len(content)
    content[start : start + len(damage)] = damage
    (folder / f"train.{kind}").write_bytes(content)
    try:
        read_all(open_images(folder, stream=stream).train)
    except DataError as error:
        assert "\n" not in str(error)


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
