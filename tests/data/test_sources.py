"""Images in folders, against what was written: labels from names, pixels by Pillow, counts by hand."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.own_images import SAMPLE, names, open_images, pixels, png, read_all, touch, write
from vggkit import Recipe, cli, train
from vggkit.data.samples import holdout_mask
from vggkit.errors import DataError


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
    [(["test"], "test", "test"), (["valid"], "validation", "valid"), (["test", "val"], "validation", "val")],
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
    chosen = holdout_mask(np.repeat(np.arange(2, dtype=np.uint16), 10), 0.3, seed=3)
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
    images = ["train/a/1.png", "train/b/1.jpeg", "val/a/1.webp", "loose.png", "train/loose.png", "extra/z/1.png"]
    write(tmp_path, images)
    others = ("notes.txt", "train/a/Thumbs.db", "train/b/two\nlines.csv", "train/a/.hidden.png", ".DS_Store", "val/x")
    for name in others:
        (tmp_path / name).write_text("no image")
    (tmp_path / ".git").mkdir()
    (tmp_path / "train/a/deeper").mkdir()
    source = open_images(tmp_path)
    assert sorted(source.other_files) == sorted(
        ["loose.png", "notes.txt", "extra/", "train/loose.png", "train/a/Thumbs.db", "train/a/deeper/",
         "train/b/two\\nlines.csv", "val/x"]
    )  # fmt: skip
    assert len(source.train) == 2


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


def test_any_other_error_while_checking_is_one_line(tmp_path, monkeypatch, capsys):
    write(tmp_path, [f"{c}/{n}.png" for c in "ab" for n in range(3)])

    def fail(*_, **__):
        raise RuntimeError("no room\nfor it")

    monkeypatch.setattr("vggkit.data.images.fitted", fail)
    assert cli.main(["data", "check", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"vgg data: expected [ab]/\d.png to be read, got RuntimeError: no room for it \(.*\)\n", error)


def test_links(tmp_path):
    write(tmp_path, ["data/a/1.png", "data/b/1.png", "elsewhere/2.png", "elsewhere/3.png"])
    (tmp_path / "data/a/2.png").symlink_to(tmp_path / "elsewhere/2.png")
    (tmp_path / "data/c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/a/loop").symlink_to(tmp_path / "data")
    source = open_images(tmp_path / "data", holdout=0.5)
    assert source.classes == ("a", "b", "c")
    found = sorted(names(source.train) + names(source.held_out))
    assert found == ["a/1.png", "a/2.png", "b/1.png", "c/2.png", "c/3.png"]
    assert source.other_files == ("a/loop/",)


def test_what_cannot_be_opened_is_a_bad_image_and_ends_nothing(tmp_path, capsys):
    """Links to nothing, a link to itself and a FIFO: named by `data check`, and left out by --bad-images skip."""
    write(tmp_path, [f"{split}/{c}/{n}.png" for split in ("train", "val") for c in "ab" for n in range(6)])
    (tmp_path / "train/b/nothing.png").symlink_to("missing.png")
    (tmp_path / "train/b/itself.png").symlink_to("itself.png")
    os.mkfifo(tmp_path / "val/a/fifo.png")
    assert cli.main(["data", "check", str(tmp_path), "--json"]) == 1
    bad = json.loads(capsys.readouterr().out)["bad_images"]
    assert bad == {
        "train/b/itself.png": "expected an image file, got a link to itself",
        "train/b/nothing.png": "expected an image file, got a link to nothing",
        "val/a/fifo.png": "expected an image file, got no regular file",
    }
    recipe = replace(Recipe.named("quick"), data=str(tmp_path), architecture="1x4", image_size=8, epochs=1)
    with pytest.raises(DataError, match="got 2 in a batch of 14 that cannot: .*itself.png.* try --bad-images skip"):
        train(recipe, out=tmp_path / "fails", device="cpu", progress=False)
    run = train(replace(recipe, bad_images="skip"), out=tmp_path / "skips", device="cpu", progress=False)
    assert len(run.history) == 1


def test_images_that_lie_too_deep_are_counted(tmp_path):
    write(tmp_path, ["a/1.png", "a/2.png", "b/1.png", "b/2.png"])
    write(tmp_path, [f"a/more/{n}.jpg" for n in range(5)] + [f"b/x/y/{n}.png" for n in range(3)])
    assert open_images(tmp_path).notes == (
        "not taken for images, by their names or places: 2 (a/more/, b/x/)",
        "8 images lie deeper than <class>/ and count nowhere, try to move them up into the folder of their class",
    )


def test_a_run_is_never_a_class(tmp_path, monkeypatch):
    """`cd photos; vgg train --data .` writes its runs there, and finds its images again."""
    write(tmp_path, [f"{c}/{n}.png" for c in ("cat", "dog") for n in range(6)])
    monkeypatch.chdir(tmp_path)
    recipe = replace(Recipe.named("quick"), data=".", architecture="1x4", image_size=8, epochs=1)
    train(recipe, device="cpu", progress=False)
    source = open_images(".")
    assert source.classes == ("cat", "dog")
    assert source.other_files == ("runs/",)
    assert cli.main(["eval", "runs/quick-1", "--data", ".", "--device", "cpu"]) == 0
    again = train(replace(recipe, data=str(tmp_path)), resume="runs/quick-1", device="cpu", progress=False)
    assert len(again.history) == 1
    (tmp_path / "runs/quick-1").rename(tmp_path / "mine")
    (tmp_path / "runs").rmdir()
    assert open_images(".").classes == ("cat", "dog")
    write(tmp_path, ["runs/9.png", "runs/8.png"])  # without a run in it, a class like any other
    assert open_images(".").classes == ("cat", "dog", "runs")


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["Training/a", "Training/b", "Testing/a"], {"train": 4, "test": 2}),
        (["Train/a", "Train/b", "Val/b", "Test/a"], {"train": 4, "validation": 2, "test": 2}),
        (["photos/train/a", "photos/train/b", "photos/val/a"], {"train": 4, "validation": 2}),
        (["photos/a", "photos/b"], {"train": 2, "validation": 2}),
        (["deep/deeper/a", "deep/deeper/b"], {"train": 2, "validation": 2}),
    ],
)
def test_layouts_that_are_unmistakable(tmp_path, files, splits):
    write(tmp_path, [f"{folder}/{n}.png" for folder in files for n in range(2)])
    source = open_images(tmp_path)
    assert source.classes == ("a", "b")
    assert {split: len(images) for split, images in source.splits.items()} == splits


def test_a_test_set_without_labels_beside_a_validation_set_is_left_out(tmp_path):
    write(tmp_path, ["train/a/1.png", "train/b/1.png", "val/a/1.png", "test/1.png", "test/2.png"])
    source = open_images(tmp_path)
    assert list(source.splits) == ["train", "validation"]
    assert source.other_files == ("test/",)


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["a/1.png", "a/2.png", "b/1.png"], {"all": 3}),
        (["only/1.png"], {"all": 1}),
        (["train/a/1.png", "val/a/1.png", "test/a/1.png"], {"train": 1, "validation": 1, "test": 1}),
        (["test/a/1.png", "test/b/1.png"], {"all": 2}),
    ],
)
def test_what_is_only_measured_on_is_taken_in_whole(tmp_path, files, splits):
    write(tmp_path, files)
    source = open_images(tmp_path, holdout=0)
    assert {split: len(images) for split, images in source.splits.items()} == splits


def test_data_check_shows_every_split(tmp_path, capsys):
    write(tmp_path, [f"{split}/{c}/{n}.png" for split in ("train", "val", "test") for c in "ab" for n in range(3)])
    (tmp_path / "test/b/2.png").unlink()
    assert cli.main(["data", "check", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["class", "training", "validation", "test"]
    assert lines[2:4] == [["a", "3", "3", "3"], ["b", "3", "3", "2"]]
    (tmp_path / "test/b/1.png").write_bytes(b"no image")
    assert cli.main(["data", "check", str(tmp_path)]) == 1
    assert "\n1 bad image, which --bad-images skip leaves out:\n  test/b/1.png: " in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (touch(), "expected a folder for each class with its images in it, got an empty folder"),
        (
            touch("1.png", "2.png", "x.txt"),
            "expected a folder for each class .* got 2 images and 1 other files, try <f",
        ),
        (touch("train/1.png", "val/2.png"), "/train: expected a folder for each class .* got 1 images"),
        (touch("a/1.png"), "expected 2 to 65,536 classes, got a$"),
        (touch("a/1.png", "b/"), "/b: expected image files in the folder .*, got none, 0 folders and 0 other files"),
        (touch("a/x/1.png", "b/y/1.png"), r"/a: expected image files .*, got none, 1 folders \(x\) and 0 other"),
        (touch("Val/a/1.png", "Test/a/1.png"), r"/Test: expected image files .*, 1 folders \(a\) .*, try <folder>/<cl"),
        (touch("train/a/1.png", "Train/b/1.png"), "expected one folder for train, got Train and train"),
        (touch("train/a/1.png", "val/a/1.png", "valid/a/1.png"), "one folder for validation, got val and valid"),
        (touch("a/1.png", "b/1.png"), "expected images for validation, got none"),
        (
            touch("train/a/1.png", "train/b/1.png", "val/c/1.png"),
            "/val/c: expected a class that the training images ha",
        ),
        (touch("train/a/1.png", "train/b/1.png", "val/a/"), "/val/a: expected image files in the folder of a class"),
        (touch("train/a/1.png", "train/b/1.png", "val/"), "/val: expected a folder for each .* got an empty folder"),
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
        with pytest.raises(DataError, match="a folder of images or hub:owner/name, got .*, try 'vgg data'"):
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


def test_folders_need_no_library_and_no_torch(tmp_path):
    write(tmp_path, ["train/a/1.png", "train/b/1.png", "val/a/1.png"])
    program = (
        "import sys; from vggkit import open_data; "
        f"open_data({str(tmp_path)!r}); "
        "sys.exit(bool({'datasets', 'pyarrow', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
