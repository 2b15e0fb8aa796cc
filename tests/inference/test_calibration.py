import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from tests.inference.conftest import CLASSES, make_weights
from tests.inference.test_evaluate import write_images
from tests.peers import peer
from vggkit import VGG, Architecture, Preprocessing, Recipe, cli, evaluate, load_classifier, open_data
from vggkit.inference.calibration import Temperature, fit_temperature, reliability, save_calibrated
from vggkit.inference.confusion import draw_mistakes, draw_reliability, write_predictions
from vggkit.inference.predict import Classifier
from vggkit.networks.baselines import lenet

ONCE = Temperature(2.5, 0.1, 0.1)


def drawn(images, temperature, classes=7):
    """Log probabilities that are `temperature` times too sharp, and labels drawn from what they should have been."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (images, classes))
    labels = np.array([random.choice(classes, p=p) for p in softmax(logits, axis=1)])
    return log_softmax(logits * temperature, axis=1).astype(np.float32), labels


def test_a_reliability_diagram_is_that_of_scikit_learn():
    log_p, labels = drawn(2000, 1.7)
    confidence, is_right = np.exp(log_p.max(axis=1)), log_p.argmax(axis=1) == labels
    bins = reliability(confidence, is_right)
    share, mean = peer("sklearn.calibration").calibration_curve(is_right, confidence, n_bins=15)
    assert [one.right / one.images for one in bins] == pytest.approx(share)
    assert [one.confidence for one in bins] == pytest.approx(mean, abs=1e-6)
    assert sum(one.images for one in bins) == 2000


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_temperature_has_the_least_log_loss(temperature):
    log_p, labels = drawn(4000, temperature)
    fitted, log_loss = fit_temperature(log_p, labels), peer("sklearn.metrics").log_loss
    best = minimize_scalar(lambda t: log_loss(labels, softmax(log_p / t, axis=1)), bounds=(0.1, 10), method="bounded")
    assert fitted.value == pytest.approx(best.x, abs=1e-4)
    assert fitted.value == pytest.approx(temperature, rel=0.1)
    assert fitted.error_after < 0.03
    assert fitted.error_before == pytest.approx(fitted.error_after, abs=0.02) or temperature != 1


@pytest.mark.parametrize("labels", [[0, 1] * 20, [1, 0] * 20, [0]])
def test_a_temperature_needs_mistakes_and_right_answers(labels):
    log_p = log_softmax(np.eye(2)[[0, 1] * 20][: len(labels)], axis=1).astype(np.float32)
    with pytest.raises(ValueError, match=r"expected (images that a temperature from 0.05 to 20|two images)"):
        fit_temperature(log_p, np.array(labels))


@pytest.fixture
def photos(tmp_path):
    write_images(tmp_path / "photos", dict.fromkeys(CLASSES, 8))
    return tmp_path / "photos"


def test_each_image_is_in_the_table_and_the_sheet(photos, weights, tmp_path, capsys):
    files = {name: tmp_path / name for name in ("p.csv", "m.png", "r.png")}
    flags = ["--predictions", files["p.csv"], "--mistakes", files["m.png"], "--reliability", files["r.png"]]
    assert cli.main(["eval", str(weights), "--data", str(photos), *map(str, flags)]) == 0
    printed = capsys.readouterr().out
    assert all(str(path) in printed.splitlines() for path in files.values())
    with files["p.csv"].open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "label", *(f"{what}_{n}" for n in (1, 2, 3) for what in ("class", "probability"))]
    assert sorted(row[0] for row in rows) == sorted(f"{name}/{n}.png" for name in CLASSES for n in range(8))
    model = load_classifier(weights)
    for path, label, *pairs in rows:
        assert path.startswith(label)
        expected = [value for p in model(photos / path) for value in p]
        assert pairs[::2] == expected[::2]
        assert list(map(float, pairs[1::2])) == pytest.approx(expected[1::2], abs=1e-5)
    wrong = sum(row[1] != row[2] for row in rows)
    with Image.open(files["m.png"]) as sheet, Image.open(files["r.png"]) as diagram:
        assert sheet.size == (880, 250 * -(-wrong // 4))
        assert diagram.size == (600, 672)
    evaluation = evaluate(model, photos, keep_outputs=True)
    assert evaluation.errors in printed
    assert [m.name for m in evaluation.mistakes] == [
        row[0] for row in sorted(rows, key=lambda row: -float(row[3])) if row[1] != row[2]
    ]


def test_top5_is_that_of_scikit_learn(tmp_path):
    names = tuple("abcdefgh")
    write_images(tmp_path / "photos", dict.fromkeys(names, 5))
    evaluation = evaluate(
        make_weights(tmp_path / "x.safetensors", labels=names), tmp_path / "photos", keep_outputs=True
    )
    assert evaluation.top5 == pytest.approx(
        peer("sklearn.metrics").top_k_accuracy_score(evaluation.labels, evaluation.outputs.log_probabilities, k=5)
    )
    assert f"top-5 {1 - evaluation.top5:.1%}" in repr(evaluation)


def test_an_ensemble_is_the_mean_of_its_probabilities(photos, weights, tmp_path, capsys):
    def turn(net):
        net.fc4.weight.data.mul_(-3)

    other = make_weights(tmp_path / "other.safetensors", change=turn)
    both, one, two = (evaluate(m, photos, keep_outputs=True) for m in ([weights, other], weights, [str(other)]))
    mean = (np.exp(one.outputs.log_probabilities) + np.exp(two.outputs.log_probabilities)) / 2
    np.testing.assert_allclose(np.exp(both.outputs.log_probabilities), mean, atol=1e-6)
    assert both.predicted.tolist() == mean.argmax(axis=1).tolist()
    arguments = ["eval", str(weights), "--ensemble", str(other), "--data", str(photos), "--json"]
    assert cli.main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["accuracy"], told["ensemble"]) == (both.accuracy, [str(other)])
    assert told["class_intervals"]["cat"] == pytest.approx(both.class_intervals[0])
    stranger = make_weights(tmp_path / "stranger.safetensors", labels=("cat", "dog"))
    with pytest.raises(
        ValueError, match=r"expected models of the same classes .* 2 classes \(cat, dog\) in .*stranger"
    ):
        evaluate([weights, stranger], photos)
    with pytest.raises(ValueError, match="expected a model to evaluate, got an empty list"):
        evaluate([], photos)


@pytest.fixture
def sorted_by_the_network(photos, weights):
    """The images in the folders of the classes that the network gives them, but for one of three."""
    model = load_classifier(weights)
    for number, path in enumerate(sorted(photos.glob("*/*.png"))):
        guess = model(path)[0].label if number % 3 else CLASSES[number % 9 // 3]
        path.rename(photos / guess / f"{number}-moved.png")
    return photos


def test_a_calibrated_file_says_the_same_less_surely(sorted_by_the_network, weights, tmp_path, capsys):
    data, out = sorted_by_the_network, tmp_path / "calibrated.safetensors"
    assert cli.main(["eval", str(weights), "--data", str(data), "--fit-temperature", str(out)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    before, after = (evaluate(path, data, keep_outputs=True) for path in (weights, out))
    temperature = fit_temperature(before.outputs.log_probabilities, before.labels).value
    assert line.startswith(f"{out}: temperature {temperature:.3f}; ECE {before.calibration_error:.1%}, with")
    assert after.predicted.tolist() == before.predicted.tolist()
    expected = log_softmax(before.outputs.log_probabilities / temperature, axis=1)
    np.testing.assert_allclose(after.outputs.log_probabilities, expected, atol=1e-5)
    again = tmp_path / "again.safetensors"
    assert cli.main(["eval", str(out), "--data", str(data), "--fit-temperature", str(again)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(
        f"{again}: temperature {temperature:.3f} (calibrated already: {temperature:.3f} times 1.000)"
    )
    assert load_classifier(again).temperature == pytest.approx(temperature, rel=1e-4)


@pytest.mark.parametrize(("text", "message"), [("warm", "could not convert"), ("nan", "temperature above 0, got nan")])
def test_a_temperature_that_is_none_is_refused(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_classifier(make_weights(tmp_path / "x.safetensors", temperature=text))


@pytest.mark.parametrize("head", ["flatten", "adaptive", "conv", "gap", "lenet"])
def test_the_logits_of_every_head_are_divided(head, tmp_path):
    shape = {"image_size": 32, "in_channels": 1, "num_classes": 3}
    net = (
        lenet(**shape)
        if head == "lenet"
        else VGG(Architecture.parse("1x4 1x8", head=head, hidden=(6,) * (head != "gap"), **shape))
    )
    model = Classifier(net.eval(), CLASSES, Preprocessing(32, 1, (0.5,), (0.5,)))
    save_calibrated(tmp_path / "x.safetensors", model, ONCE)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_classifier(tmp_path / "x.safetensors").net(x), net(x) / 2.5)


def test_a_run_is_calibrated_on_what_it_kept_out(tmp_path, capsys):
    make_weights(tmp_path / "model.safetensors", channels=1, labels=open_data("fashion-mnist-sample").classes)
    (tmp_path / "recipe.json").write_text(Recipe.named("quick", data="fashion-mnist-sample", validation=400).to_json())
    sizes = {}
    for split in (None, "val", "train", "test"):
        assert cli.main(["eval", str(tmp_path), "--json", *(["--split", split] if split else [])]) == 0
        told = json.loads(capsys.readouterr().out)
        sizes[split] = told["images"], told["measured_on"].split()[0]
    assert sizes == {
        None: (1000, "test"), "val": (400, "validation"), "train": (1600, "train"), "test": (1000, "test")
    }  # fmt: skip


def test_what_cannot_be_written_is_refused_before_the_work(photos, weights, tmp_path, capsys):
    for flags, message in (
        (["--predictions", "p.txt"], "expected a .csv file in a folder that exists for --predictions"),
        (["--mistakes", str(photos)], "expected a .png file in a folder that exists for --mistakes"),
        (
            ["--fit-temperature", str(tmp_path / "no" / "x.safetensors")],
            "expected a .safetensors file in a folder that exists",
        ),
        (
            ["--fit-temperature", "x.safetensors", "--ensemble", "y"],
            "expected one model for --fit-temperature, got an ensemble",
        ),
        (
            ["--plot", f"{tmp_path}/x.png", "--mistakes", f"{tmp_path}/../{tmp_path.name}/x.png"],
            "expected a file of its own for --mistakes, got that of --plot",
        ),
        (["--workers", "-1"], "expected --workers from 0 to 1024, got -1"),
    ):
        assert cli.main(["eval", "no such model", *flags]) == 2
        assert message in capsys.readouterr().err
    evaluation = evaluate(weights, photos)
    with pytest.raises(ValueError, match="expected an evaluation with outputs"):
        write_predictions(evaluation, tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize("name", ["model", "best", "link", "measured"])
def test_the_weights_of_a_run_are_not_replaced(name, tmp_path, capsys):
    files = {one: tmp_path / f"{one}.safetensors" for one in ("model", "best", "link", "measured")}
    (tmp_path / "recipe.json").write_text(Recipe.named("quick").to_json())
    for one in ("model", "measured"):
        make_weights(files[one])
    files["link"].symlink_to(files["model"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    model = files["measured"] if name == "measured" else tmp_path
    assert cli.main(["eval", str(model), "--data", "nothing", "--fit-temperature", str(files[name])]) == 2
    assert "expected a new file for --fit-temperature, got " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_evaluation_stands_without_its_calibration(weights, tmp_path, capsys):
    out, table = tmp_path / "x.safetensors", tmp_path / "p.csv"
    write_images(tmp_path / "photos", {"cat": 1})
    flags = ["--data", str(tmp_path / "photos"), "--fit-temperature", str(out), "--predictions", str(table)]
    assert cli.main(["eval", str(weights), *flags, "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["written"] == [str(table)]
    assert "expected two images or more to fit a temperature on, got 1" in printed.err
    assert not out.exists()


def test_a_last_layer_without_bias_is_divided(tmp_path):
    net = VGG(Architecture.parse("1x4", image_size=32, in_channels=1, num_classes=3, hidden=(6,))).eval()
    last = [layer for layer in net.modules() if isinstance(layer, torch.nn.Linear)][-1]
    last.bias = None
    save_calibrated(tmp_path / "x", Classifier(net, CLASSES, Preprocessing(32, 1, (0.5,), (0.5,))), ONCE)
    key = next(key for key, value in net.state_dict().items() if value is last.weight or value.equal(last.weight))
    torch.testing.assert_close(load_file(tmp_path / "x")[key], last.weight.detach() / 2.5)


def test_no_mistakes_and_strange_names_are_drawn(tmp_path):
    from dataclasses import replace

    from vggkit import Evaluation
    from vggkit.inference.evaluation import Mistake

    labels = np.arange(4)
    names = ("$\\bad$", "猫", "a$b$c", "x" * 10_000)
    evaluation = Evaluation(names, labels, labels, confidence=np.full(4, 0.9, np.float32))
    draw_reliability(evaluation, tmp_path / "r.png")
    draw_mistakes(evaluation, tmp_path / "m.png")
    odd = Mistake("猫" * 500, names[0], names[3], 0.5, np.zeros((28, 28, 1), np.uint8))
    draw_mistakes(replace(evaluation, mistakes=(odd,) * 24), tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as picture:
        assert max(picture.size) < 2000
