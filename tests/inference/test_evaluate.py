import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.inference.conftest import CLASSES, make_weights
from vggkit import Evaluation, Recipe, cli, evaluate, load_classifier, open_data, train
from vggkit.inference.classes import matched_classes
from vggkit.inference.confusion import draw_confusion


def write_images(folder, counts, seed=0):
    """`counts[name]` random images in a folder for each class; the paths by class."""
    random = np.random.default_rng(seed)
    written = {}
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        written[name] = [folder / name / f"{number}.png" for number in range(count)]
        for path in written[name]:
            Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return written


@pytest.fixture
def model(weights):
    return load_classifier(weights)


def confusion_by_hand(model, images, names=CLASSES):
    """What the network says of one image after the other; `names` are those of its classes in the data."""
    pairs = Counter((name, model(path)[0].label) for name, paths in images.items() for path in paths)
    return [[pairs[name, predicted] for predicted in CLASSES] for name in names]


def test_a_folder_is_measured_whole(model, weights, tmp_path, capsys):
    images = write_images(tmp_path / "photos", {"owl": 7, "cat": 5, "dog": 9})
    expected = confusion_by_hand(model, images)
    evaluation = evaluate(model, tmp_path / "photos", batch_size=4)
    assert evaluation.confusion.tolist() == expected
    right = sum(expected[i][i] for i in range(3))
    assert evaluation.accuracy == pytest.approx(right / 21)
    assert evaluation.class_accuracy == pytest.approx([expected[i][i] / n for i, n in enumerate((5, 9, 7))])
    assert len(evaluation.mistakes) == min(24, 21 - right)
    for mistake in evaluation.mistakes:
        assert model(tmp_path / "photos" / mistake.name)[0].label == mistake.predicted != mistake.label
        assert mistake.name.startswith(mistake.label)
        assert mistake.pixels.shape == (16, 16, 3)
    assert cli.main(["eval", str(weights), "--data", str(tmp_path / "photos"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["confusion"], data["images"], data["weights"]) == (expected, 21, str(weights))
    assert data["interval"][0] < data["accuracy"] < data["interval"][1]


def test_several_splits_are_chosen_from(model, weights, tmp_path, capsys):
    for split, count in (("train", 6), ("val", 4), ("test", 3)):
        write_images(tmp_path / "photos" / split, dict.fromkeys(CLASSES, count))
    sizes = {
        split: len(evaluate(model, tmp_path / "photos", split).labels)
        for split in (None, "train", "val", "validation", "test", "all")
    }
    assert sizes == {None: 9, "train": 18, "val": 12, "validation": 12, "test": 9, "all": 39}
    assert len(evaluate(model, open_data(tmp_path / "photos")).labels) == 12
    with pytest.raises(ValueError, match="photos: expected a split of train, validation, test, all, got 'dev2'"):
        evaluate(model, tmp_path / "photos", "dev2")
    with pytest.raises(ValueError, match="got 'val': training kept out none, try 'vgg train --validation N'"):
        evaluate(model, "fashion-mnist-sample", "val")
    assert cli.main(["eval", str(weights), "--data", str(tmp_path / "photos")]) == 0
    out = capsys.readouterr().out
    assert "on the 9 test images of photos" in out
    assert "18 train, 12 validation, 9 test images" in out


def test_a_run_knows_its_data(tmp_path):
    """What was kept out of its training: for the folder, for its weights, and for a classifier made of either."""
    write_images(tmp_path / "photos", dict.fromkeys(CLASSES, 10))
    path = make_weights(tmp_path / "model.safetensors")
    recipe = Recipe.named("quick", data=str(tmp_path / "photos"), holdout=0.3, seed=5)
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    expected = evaluate(path, open_data(tmp_path / "photos", holdout=0.3, seed=5))
    for model in (tmp_path, str(tmp_path), path, load_classifier(tmp_path)):
        evaluation = evaluate(model)
        assert evaluation.labels.tolist() == expected.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
        assert evaluation.predicted.tolist() == expected.predicted.tolist()


def test_what_cannot_be_counted_is_told(model, tmp_path):
    """A broken file, a class without images, one that the network does not know, names in another case."""
    images = write_images(tmp_path / "photos", {"Owl": 3, "CAT": 2, "yak": 2})
    (tmp_path / "photos" / "Owl" / "broken.png").write_text("no image")
    evaluation = evaluate(model, tmp_path / "photos", bad_images="skip")
    assert evaluation.confusion.tolist() == confusion_by_hand(model, images, ("CAT", "dog", "Owl"))
    assert evaluation.class_accuracy[1] is None
    unknown, bad = evaluation.notes
    assert unknown == "not counted, as the network has no such class: 2 of yak"
    assert bad.startswith("not counted, as they are bad: Owl/broken.png: expected a PNG")
    text = repr(evaluation)
    assert text.startswith(f"accuracy {evaluation.accuracy:.4f} (95%: ")
    assert "on the 5 images of photos" in text
    assert next(line for line in text.splitlines() if line.startswith("2 owl")).split()[2:5] == [
        f"{evaluation.class_accuracy[2]:.1%}", "of", "3",
    ]  # fmt: skip
    assert unknown in text
    assert ">2 owl</td>" in evaluation._repr_html_()
    with pytest.raises(ValueError, match=r"got 1 in a batch of 8 that cannot: Owl/broken.png"):
        evaluate(model, tmp_path / "photos")
    write_images(tmp_path / "others", {"yak": 1, "gnu": 1})
    with pytest.raises(ValueError, match=r"expected data of 3 classes \(cat, dog, owl\), got 2 classes \(gnu, yak\)"):
        evaluate(model, tmp_path / "others")


def test_classes_are_found_by_synset_and_by_number():
    """Against the numbers that ImageNet's classes are known by: 0 tench, 1 goldfish, 207 golden retriever, ..."""
    from vggkit.data.imagenet import class_names

    imagenet = tuple(class_names(1000))
    known = {"tench": 0, "goldfish": 1, "golden retriever": 207, "tiger": 292, "toilet tissue": 999}
    synsets = ("n01440764", "n01443537", "n02099601", "n02129604", "n15075141")
    numbers = list(known.values())
    assert matched_classes(imagenet, tuple(known)) == numbers
    assert matched_classes(imagenet, synsets[::-1]) == numbers[::-1]
    assert matched_classes(imagenet, (*synsets, "n00000000")) == [*numbers, None]
    assert matched_classes(imagenet, tuple(sorted(map(str, range(1000))))) == sorted(range(1000), key=str)
    assert matched_classes(imagenet, ("0001", "999", "1000")) == [1, 999, None]
    assert matched_classes(("4", "2", "0"), ("0", "2")) == [2, 1]  # names first
    for known_names, found in ((CLASSES, synsets), (("cat", "Cat"), ("CAT",)), (CLASSES, ("3", "-1"))):
        with pytest.raises(ValueError, match="try folders with the same names"):
            matched_classes(known_names, found)


@pytest.mark.parametrize(
    ("right", "images", "expected"),
    [(0, 10, (0, 0.278)), (5, 10, (0.237, 0.763)), (10, 10, (0.722, 1)), (81, 263, (0.255, 0.366))],
)
def test_an_interval_is_wilsons(right, images, expected):
    """The last is the example of Newcombe, "Two-sided confidence intervals for the single proportion", 1998."""
    labels = np.zeros(images, np.int64)
    predicted = (np.arange(images) >= right).astype(np.int64)
    assert Evaluation(("a", "b"), labels, predicted).interval == pytest.approx(expected, abs=0.001)


def test_weights_that_are_not_finite_have_no_accuracy(tmp_path, capsys):
    write_images(tmp_path / "photos", dict.fromkeys(CLASSES, 2))
    path = make_weights(tmp_path / "huge.safetensors", change=lambda net: net.block1.conv1_1.weight.data.fill_(3e38))
    assert cli.main(["eval", str(path), "--data", str(tmp_path / "photos")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected weights that give finite outputs" in line


def test_errors_are_drawn_on_a_scale_of_their_own(tmp_path):
    """One of 50 images of a class is wrong: its cell is as dark as any, and beside the diagonal."""
    labels, predicted = np.repeat(np.arange(4), 50), np.repeat(np.arange(4), 50)
    predicted[10] = 2
    draw_confusion(Evaluation(tuple("abcd"), labels, predicted), tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        colors = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    is_dark_red = (colors[:, 0] > 80) & (colors[:, 0] < 130) & (colors[:, 1:] < 30).all(axis=1)
    is_dark_blue = (colors[:, 2] > 80) & (colors[:, 2] < 130) & (colors[:, 0] < 30)
    assert 2.5 < is_dark_blue.sum() / is_dark_red.sum() < 5.5  # four cells and a bar, to one and a bar


def test_of_many_classes_the_worst_confusions_are_shown():
    labels = np.repeat(np.arange(50), 9)
    predicted = labels.copy()
    predicted[9:14], predicted[14:18] = 3, 0
    labels = np.append(labels, 49)
    predicted = np.append(predicted, 49)
    lines = repr(Evaluation(tuple(f"class {number}" for number in range(51)), labels, predicted)).splitlines()
    assert lines[3].split() == ["class", "0", "100.0%", "of", "9", "(70%", "to", "100%)"]
    assert lines[4].split()[-3:] == ["class", "3", "5"]
    assert not [line for line in lines if line.startswith("class 50")]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("count", [4, 300])
def test_any_names_and_numbers_of_classes_are_drawn(tmp_path, count):
    labels = np.arange(count)
    names = ("$\\bad$", "猫", "a$b$c", "x" * 10_000, *map(str, labels[4:]))
    draw_confusion(Evaluation(names, labels, labels // 2), tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert max(picture.size) < 4000


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_image_is_read_once_and_keeps_its_name(is_stream, weights, tmp_path):
    class Counted:
        def __init__(self, images):
            self.images, self.is_stream, self.reads = images, is_stream, []

        def __len__(self):
            return len(self.images)

        def reader(self, seed, epoch):
            read = self.images.reader(seed, epoch)
            return lambda position: self.reads.append(position) or read(position)

    write_images(tmp_path / "photos", dict.fromkeys(CLASSES, 4))
    source = open_data(tmp_path / "photos", holdout=0)
    counted = Counted(source.splits["all"])
    evaluation = evaluate(weights, replace(source, splits={"all": counted}), keep_outputs=True)
    assert sorted(counted.reads) == list(range(12))
    assert evaluation.outputs.names == tuple(f"{name}/{number}.png" for name in CLASSES for number in range(4))
    assert {mistake.name for mistake in evaluation.mistakes} == {
        name
        for name, label, predicted in zip(
            evaluation.outputs.names, evaluation.labels, evaluation.predicted, strict=True
        )
        if label != predicted
    }


def test_the_best_weights_of_a_run(tmp_path, capsys):
    make_weights(tmp_path / "model.safetensors")
    write_images(tmp_path / "photos", dict.fromkeys(CLASSES, 2))
    arguments = ["eval", str(tmp_path), "--data", str(tmp_path / "photos")]
    assert cli.main([*arguments, "--best"]) == 2
    assert "expected a run folder with best.safetensors for --best" in capsys.readouterr().err
    make_weights(tmp_path / "best.safetensors")
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"weights: {tmp_path / 'model.safetensors'}\n")
    assert "also has best.safetensors" in printed
    assert cli.main([*arguments, "--best"]) == 0
    assert capsys.readouterr().out.startswith(f"weights: {tmp_path / 'best.safetensors'}\n")


def test_a_run_that_kept_images_out_is_measured_on_them(tmp_path):
    options = {"architecture": "1x8", "data": "fashion-mnist-sample", "epochs": 1, "validation": 400}
    run = train("quick", out=tmp_path / "run", progress=False, **options)
    for evaluation in (run.evaluate(), evaluate(run.folder)):
        assert evaluation.accuracy == run.history[-1].test_accuracy
        assert (evaluation.measured_on, len(evaluation.labels)) == ("validation images of fashion-mnist-sample", 400)
