"""Nearly equal images in two splits; the oracle is a loop over all pairs."""

import json

import numpy as np
import pytest
from PIL import Image

from vggkit import cli
from vggkit.data.duplicates import near_duplicates


def test_the_nearest_of_all_pairs_is_found():
    rng = np.random.default_rng(0)
    others = rng.integers(0, 256, (500, 3, 16, 16), np.uint8)
    images = rng.integers(0, 256, (30, 3, 16, 16), np.uint8)
    for row, like, noise in [(3, 400, 2), (7, 0, 0), (8, 499, 5), (20, 400, 20)]:
        images[row] = np.clip(others[like] + rng.normal(0, noise, (3, 16, 16)), 0, 255)
    expected = []
    for row, image in enumerate(images):
        differences = np.sqrt(((others - image.astype(float)) ** 2).mean(axis=(1, 2, 3)))
        if differences.min() <= 4:
            expected.append((row, int(differences.argmin()), pytest.approx(differences.min())))
    assert [tuple(found) for found in near_duplicates(images, others)] == expected
    assert [found.image for found in near_duplicates(images, others)] == [3, 7]
    assert near_duplicates(images, others[:0]) == near_duplicates(images[:0], others) == []


def test_a_photo_saved_again_in_the_test_folder_is_named(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 3)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
                Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC).save(
                    tmp_path / split / label / f"{number}.png"
                )
    with Image.open(tmp_path / "train/cat/2.png") as image:
        image.resize((80, 60)).save(tmp_path / "test/dog/again.jpg", quality=60)
    (tmp_path / "train/cat/bad.png").write_bytes(b"x")
    (tmp_path / "test/cat/bad.png").write_bytes(b"x")  # no image is a duplicate of none
    assert cli.main(["data", "check", str(tmp_path), "--duplicates"]) == 1
    out = capsys.readouterr().out
    assert "1 images kept out of training that nearly equal a training image:" in out
    assert out.splitlines()[-1] == "  test/dog/again.jpg (test): train/cat/2.png"
    assert cli.main(["data", "check", str(tmp_path), "--duplicates", "--json"]) == 1
    (pair,) = json.loads(capsys.readouterr().out)["duplicates"]
    assert (pair["split"], pair["image"], pair["like"]) == ("test", "test/dog/again.jpg", "train/cat/2.png")
    assert 0 < pair["difference"] < 4


def test_arrays_are_compared_too(capsys):
    assert cli.main(["data", "check", "fashion-mnist-sample", "--duplicates", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["duplicates"] == []
