"""Training on image files: what comes into the network, and what comes out of it."""

import functools
import io
import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vggkit import Recipe, cli, load_classifier, predict, train
from vggkit.data.fashion_mnist import load
from vggkit.data.loading import Split
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.sources import open_data
from vggkit.errors import DataError, RunError
from vggkit.inference.evaluate import evaluate
from vggkit.networks.baselines import build
from vggkit.training import run_data
from vggkit.training.distributed import Team
from vggkit.training.evaluate import evaluate as measure
from vggkit.training.progress import Progress
from vggkit.training.run_data import open_run_data
from vggkit.training.step import augmented_input

quiet_train = functools.partial(train, device="cpu", progress=False)


TEAM = Team(torch.device("cpu"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of 40 and 12 images: coloured, of several sizes, one of them a grey PNG of 16 bits."""
    folder = tmp_path_factory.mktemp("photos")
    sample = load("fashion-mnist-sample")
    generator = np.random.default_rng(0)
    for label in range(3):
        chosen = sample.train_images[sample.train_labels == label]
        for split, images in (("train", chosen[:40]), ("val", chosen[40:52])):
            place = folder / split / sample.classes[label]
            place.mkdir(parents=True)
            for index, image in enumerate(images):
                colour = np.stack([image, image // 2, 255 - image], axis=-1)
                width, height = generator.integers(24, 60, 2)
                Image.fromarray(colour).resize((width, height)).save(place / f"{index}.jpg", quality=95)
    first = sorted((folder / "train" / sample.classes[0]).iterdir())[0]
    Image.fromarray(np.asarray(Image.open(first).convert("L")).astype(np.uint16) * 257).save(first.with_suffix(".png"))
    first.unlink()
    return folder


@pytest.fixture(scope="module")
def recipe(photos):
    return replace(
        Recipe.named("quick"),
        data=str(photos),
        architecture="1x8 1x16_bn",
        image_size=16,
        batch_size=20,
        epochs=2,
        learning_rate=0.01,
    )


def test_pixels_are_what_pillow_gives_for_the_file(recipe, photos):
    data = open_run_data(recipe, TEAM, num_workers=0)
    assert data.classes == ("pullover", "t-shirt", "trouser")
    assert (data.train.num_images, data.held_out.num_images, data.held_out_name) == (120, 36, "validation")
    paths = sorted((photos / "val").rglob("*.jpg"), key=lambda p: (p.parent.name, p.name))
    seen = {}
    for batch in data.held_out.batches(epoch=0):
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            seen.setdefault(label, []).append(image.permute(1, 2, 0).numpy().astype(int))
    for path in paths:
        expected = np.asarray(Image.open(path).convert("RGB").resize((16, 16), Image.Resampling.BILINEAR), int)
        label = data.classes.index(path.parent.name)
        assert min(abs(expected - image).max() for image in seen[label]) <= 1
    pixels = torch.cat([b.images for b in data.train.batches(epoch=0)]).double() / 255
    assert data.preprocessing.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), rel=1e-9)
    assert data.preprocessing.std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist(), rel=1e-9)


def test_images_in_memory_and_from_workers_train_the_same_network(recipe, tmp_path, monkeypatch):
    first = quiet_train(recipe, out=tmp_path / "memory")
    monkeypatch.setattr(run_data, "MEMORY_SHARE", 0.0)
    second = quiet_train(recipe, out=tmp_path / "workers", num_workers=1)
    for a, b in zip(first.net.state_dict().values(), second.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_what_was_trained_is_evaluated_and_predicts_from_the_file_alone(recipe, photos, tmp_path):
    run = quiet_train(replace(recipe, epochs=4), out=tmp_path / "run")
    classifier = load_classifier(tmp_path / "run")
    measured = evaluate(classifier, open_data(str(photos)), batch_size=7)
    assert measured.accuracy == run.history[-1].test_accuracy
    assert measured.confusion.sum(axis=1).tolist() == [12, 12, 12]
    right = 0
    for path in (photos / "val").rglob("*.jpg"):
        ((best,),) = predict(classifier, [path], top=1)
        right += best.label == path.parent.name
    assert abs(right / 36 - measured.accuracy) <= 1 / 36  # uint8 in between there, not here
    assert measured.accuracy > 0.6


def test_bad_images_end_a_run_or_are_left_out_and_named(recipe, photos, tmp_path, capsys):
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    victims = sorted((copy / "train").rglob("*.jpg"))[:5]
    for path in victims[:4]:
        path.write_bytes(path.read_bytes()[:100])
    victims[4].write_text("no image")
    broken = replace(recipe, data=str(copy))
    with pytest.raises(DataError, match=r"got 5 in a batch of .* try --bad-images skip"):
        quiet_train(broken, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run = train(replace(broken, bad_images="skip"), out=tmp_path / "run", device="cpu")
    out = capsys.readouterr().out
    assert "120 training and 36 validation images, including bad ones, which are skipped, on " in out
    assert "skipped 5 bad images so far: " in out
    count = round(run.history[0].examples_per_second * run.history[0].train_seconds)
    assert count == 115


def test_the_middle_is_measured_and_random_crops_are_trained_on(recipe, photos):
    mine = replace(recipe, shorter_side=(20, 28))
    data = open_run_data(mine, TEAM, num_workers=0)
    expected = {"resize": "crop", "crop_fraction": 16 / 24, "image_size": 16}
    assert {name: getattr(data.preprocessing, name) for name in expected} == expected
    first, again, later = (torch.cat([batch.images for batch in data.train.batches(epoch)]) for epoch in (1, 1, 2))
    assert first.shape == (120, 3, 16, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first.sort(dim=0).values, later.sort(dim=0).values)


def test_colours_are_shifted_along_their_principal_components(recipe):
    data = open_run_data(replace(recipe, color_shift=0.1), TEAM, num_workers=0)
    pixels = torch.cat([b.images for b in data.train.batches(epoch=0)]).movedim(1, -1).flatten(0, -2).double() / 255
    axes = torch.tensor(data.color_axes, dtype=torch.float64)
    # Their outer products add up to the covariance, and they are orthogonal: what principal components are.
    torch.testing.assert_close(axes.t() @ axes, torch.cov(pixels.t()), rtol=1e-6, atol=1e-9)
    assert (axes @ axes.t()).fill_diagonal_(0).abs().max() < 1e-9
    shifted = []
    batch = next(data.train.batches(epoch=1))
    plain = data.preprocessing.scaled(batch.images)
    for seed in range(300):
        draws = torch.Generator().manual_seed(seed)
        x = augmented_input(batch, replace(recipe, color_shift=0.1, flip=False), data, draws)
        difference = (x - plain) * torch.tensor(data.preprocessing.std).view(-1, 1, 1)
        assert difference.std(dim=(2, 3)).max() < 1e-5  # the same for all pixels of an image
        shifted.append(difference.mean(dim=(2, 3)))
    found = torch.cat(shifted).double()
    torch.testing.assert_close(found.t() @ found / len(found), 0.01 * axes.t() @ axes, rtol=0.1, atol=1e-6)


def test_grey_arrays_become_colour_and_files_become_grey(recipe):
    rgb = open_run_data(replace(recipe, data="fashion-mnist-sample", channels="rgb"), TEAM)
    batch = next(rgb.train.batches(epoch=1))
    assert batch.images.shape == (20, 3, 28, 28)
    assert torch.equal(batch.images[:, 0], batch.images[:, 2])
    grey = open_run_data(replace(recipe, channels="grey"), TEAM, num_workers=0)
    assert next(grey.train.batches(epoch=1)).images.shape == (20, 1, 16, 16)
    assert len(grey.preprocessing.mean) == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"validation": 10}, RunError, "expected a holdout with image files, got validation 10, try --holdout"),
        ({"translate": 16}, RunError, "expected translate below the 16 pixels of an image, got 16"),
        ({"erase": 100}, RunError, "expected erase below the 16 pixels of an image, got 100"),
        ({"data": "fashion-mnist-sample", "erase": 28}, RunError, "expected erase below the 28 pixels of an image"),
        ({"data": "fashion-mnist-sample", "shorter_side": (20,)}, RunError, "expected image files with shorter_side"),
        ({"data": "fashion-mnist-sample", "stream": True}, DataError, "expected parquet files, tar shards or the hub"),
        ({"stream": True}, DataError, "expected parquet files, tar shards or the hub to stream, got a folder"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(recipe, change, error, message):
    with pytest.raises(error, match=message):
        open_run_data(replace(recipe, **change), TEAM, num_workers=0)


@pytest.mark.parametrize("kind", ["in memory", "decoded ahead", "tar"])
def test_what_was_trained_on_is_known_by_its_content(recipe, photos, tmp_path, kind):
    """Bytes of an image or of a tar that change at the same size, and files that only look changed."""
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    mine = replace(recipe, data=str(copy), shorter_side=(16,) if kind != "in memory" else ())
    if kind == "tar":
        for split in ("train", "val"):
            with tarfile.open(copy / f"{split}.tar", "w") as tar:
                for number, path in enumerate(sorted((copy / split).rglob("*.*"))):
                    tar.add(path, f"{number}{path.suffix}")
                    label = tarfile.TarInfo(f"{number}.cls")
                    label.size = len(path.parent.name)
                    tar.addfile(label, io.BytesIO(path.parent.name.encode()))
    data = open_run_data(mine, TEAM, num_workers=2)
    unknown = json.loads(json.dumps(data.facts))
    for _ in data.train.batches(1):
        pass
    for _ in data.held_out.batches(0):
        pass
    facts = json.loads(json.dumps(data.facts))
    victim = copy / "train.tar" if kind == "tar" else sorted((copy / "train").rglob("*.jpg"))[7]
    said = []

    def reopen(facts):
        said.clear()
        return open_run_data(mine, TEAM, num_workers=2, facts=facts, say=said.append)

    assert reopen(facts).facts == facts
    assert not any("compare their content" in line for line in said)
    victim.touch()
    again = reopen(facts)
    assert again.notes == data.notes
    assert {**again.facts, "stamp": ""} == {**facts, "stamp": ""}
    assert any("compare their content" in line for line in said) == (kind != "in memory")
    content = bytearray(victim.read_bytes())
    content[content.index(b"\xff\xda") + 40] ^= 1  # within the picture
    victim.write_bytes(content)
    with pytest.raises(
        DataError, match="expected the images that the run began with in .*, got others, try to put back"
    ):
        reopen(facts)
    if kind != "in memory":  # its content is known from the start
        assert "the images' times have changed before their content was known" in reopen(unknown).notes[-1]


def test_fine_tuning_starts_from_all_but_the_last_layer_which_learns_first(recipe, photos, tmp_path):
    base = quiet_train(replace(recipe, data="fashion-mnist-sample", channels="rgb", epochs=1), out=tmp_path / "base")
    tuned = replace(
        recipe, pretrained=str(base.folder), head_epochs=1, epochs=1, optimizer="sgd", momentum=0.9, learning_rate=0.05
    )
    head_only = quiet_train(tuned, out=tmp_path / "head")
    before, after = base.net.state_dict(), head_only.net.state_dict()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) == (not name.startswith("fc")), name
    classifier = load_classifier(tmp_path / "head")
    expected = load_classifier(base.folder).preprocessing
    assert (classifier.preprocessing.mean, classifier.preprocessing.std) == (expected.mean, expected.std)
    both = quiet_train(replace(tuned, epochs=2), out=tmp_path / "both")
    assert not any(
        torch.equal(tensor, before[name]) for name, tensor in both.net.state_dict().items() if name.endswith("weight")
    )
    with pytest.raises(
        ValueError, match=r"expected conv1_1.weight in the shape that 1x4 1x16_bn has, \(4, 3, 3, 3\), got"
    ):
        quiet_train(replace(tuned, architecture="1x4 1x16_bn"), out=tmp_path / "wrong")


def test_grey_weights_start_a_colour_network_with_the_same_outputs(recipe, tmp_path):
    base = quiet_train(replace(recipe, data="fashion-mnist-sample", epochs=1), out=tmp_path / "base")
    tuned = replace(recipe, data="fashion-mnist-sample", channels="rgb", pretrained=str(base.folder), head_epochs=1,
                    epochs=1)  # fmt: skip
    run = quiet_train(tuned, out=tmp_path / "colour")
    images = torch.from_numpy(load("fashion-mnist-sample").test_images[:8]).unsqueeze(1)
    grey, colour = load_classifier(base.folder), load_classifier(run.folder)
    assert isinstance(colour.preprocessing, Preprocessing)
    with torch.no_grad():
        a = grey.net.features(grey.preprocessing(images), ["pool2"])["pool2"]
        b = colour.net.features(colour.preprocessing(images.expand(-1, 3, -1, -1)), ["pool2"])["pool2"]
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_statistics_take_little_more_memory_than_their_images():
    """In a process of its own, whose peak is measured: 1,000 images of 151 MB once took 2.4 GB."""
    script = """
import resource, torch
from vggkit.training.run_data import _color_axes, _moments
images = torch.zeros(1_000, 3, 224, 224, dtype=torch.uint8).random_(256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_moments(images), _color_axes(images)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 600  # MiB


def test_no_step_waits_longer_for_images_than_it_takes(recipe, tmp_path, monkeypatch):
    """Of the first step of an epoch too."""
    shares = []
    monkeypatch.setattr(
        Progress, "step", lambda self, step: shares.append(self._state.loading_seconds / self._state.train_seconds)
    )
    quiet_train(recipe, out=tmp_path / "run")
    assert len(shares) == 12
    assert 0 < max(shares) <= 1


def test_held_out_images_that_are_all_bad_end_a_run_in_one_line(recipe, photos):
    data = open_run_data(recipe, TEAM, num_workers=0)
    split = data.held_out.split
    bad = replace(data.held_out, split=Split(split.images, torch.full_like(split.labels, -100)))
    with pytest.raises(DataError, match="expected an image to measure by that can be read, got none"):
        measure(build(recipe.network(3, 3), recipe.init), bad, data.preprocessing, TEAM)


def test_measuring_on_what_was_trained_on_is_told(recipe, photos, tmp_path, capsys):
    run = quiet_train(replace(recipe, data=str(photos / "train"), epochs=1, seed=5), out=tmp_path / "run")
    own = ["--data", str(photos / "train")]
    for data, count, is_told in ((own, 120, True), ([*own, "--split", "val"], 12, False), ([], 12, False)):
        assert cli.main(["eval", str(run.folder), *data, "--workers", "0", "--device", "cpu"]) == 0
        out = capsys.readouterr().out
        assert f"on the {count} " in out
        assert ("the run was trained on most of these images" in out) == is_told


def test_the_classes_travel_in_the_model_file(recipe, photos, tmp_path):
    quiet_train(replace(recipe, epochs=1), out=tmp_path / "run")
    assert load_classifier(tmp_path / "run").classes == tuple(sorted(p.name for p in (photos / "train").iterdir()))
    assert len(evaluate(tmp_path / "run", "fashion-mnist-sample").labels) == 300  # of the three classes that it knows
