import json
import re
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.killing import newest
from vggkit import Recipe, train, vgg
from vggkit.app.runs import Runs
from vggkit.cli import main
from vggkit.data.fashion_mnist import load
from vggkit.data.loading import Augmentation, Split, epoch_order
from vggkit.data.preprocessing import Preprocessing
from vggkit.errors import DataError, DivergedError, RecipeError, RunError
from vggkit.inference.evaluate import evaluate as confusion_of
from vggkit.inference.predict import load_classifier
from vggkit.training.hardware import choose_device
from vggkit.training.step import train_step


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    return train(recipe, out=tmp_path_factory.mktemp("runs") / "run", device="cpu", progress=False)


def test_a_run_folder_holds_what_it_should(run, recipe):
    assert sorted(file.name for file in run.folder.iterdir()) == [
        "checkpoints",
        "curves.png",
        "metrics.jsonl",
        "model.safetensors",
        "recipe.json",
    ]
    assert Recipe.from_json((run.folder / "recipe.json").read_text()) == recipe
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["event"] == "start"
    assert lines[0]["torch"] == torch.__version__
    counted = [line["counts"] for line in lines if line["event"] == "confusion"]
    assert len(counted) == 3 and counted[-1] == confusion_of(run.folder).confusion.tolist()
    epochs = [line for line in lines if line.pop("event") == "epoch"]
    assert epochs == [asdict(metrics) for metrics in run.history]
    assert [metrics.step for metrics in run.history] == [63, 126, 189]


def test_it_learns(run):
    losses = [metrics.train_loss for metrics in run.history]
    assert losses[0] > losses[1] > losses[2]
    assert run.history[-1].test_accuracy > 0.6  # ten classes
    assert all(0 < metrics.loading_seconds < metrics.train_seconds for metrics in run.history)


def test_the_summary_is_the_books_two_lines(run):
    last = run.history[-1]
    first, second = run.summary.splitlines()
    assert first == (
        f"loss {last.train_loss:.3f}, train acc {last.train_accuracy:.3f}, test acc {last.test_accuracy:.3f}"
    )
    speed, _, rest = second.partition(" ")
    assert rest == "examples/sec on cpu"
    assert min(m.examples_per_second for m in run.history) <= float(speed) + 0.1
    assert float(speed) - 0.1 <= max(m.examples_per_second for m in run.history)


def test_the_saved_network_is_the_trained_one(run):
    classifier = load_classifier(run.folder)
    sample = load("fashion-mnist-sample")
    images = torch.from_numpy(sample.test_images).unsqueeze(1)
    x = classifier.preprocessing(images)
    with torch.no_grad():
        torch.testing.assert_close(classifier.net(x), run.net(x), rtol=1e-4, atol=1e-4)  # each by its engine
        singly = [classifier.preprocessing(i[None]) for i in images[:200]]
        guesses = [(classifier.net(i) + classifier.net(i.flip(-1))).argmax().item() for i in singly]  # test_flip
        by_hand = np.mean(guesses == sample.test_labels[:200])
    measured = confusion_of(classifier, sample.source)
    assert measured.accuracy == run.history[-1].test_accuracy
    first = replace(sample, test_images=sample.test_images[:200], test_labels=sample.test_labels[:200])
    assert confusion_of(classifier, first.source).accuracy == by_hand
    assert measured.confusion.sum(axis=1).tolist() == [100] * 10
    assert np.mean(measured.class_accuracy) == pytest.approx(measured.accuracy)


def test_the_same_seed_gives_the_same_weights_and_another_one_others(recipe, run, tmp_path):
    again = train(recipe, out=tmp_path / "again", device="cpu", progress=False)
    for a, b in zip(run.net.state_dict().values(), again.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    other = train(replace(recipe, seed=1, epochs=1), out=tmp_path / "other", device="cpu", progress=False)
    assert not torch.equal(other.net.fc3.weight, run.net.fc3.weight)


def test_a_step_is_the_textbooks():
    """SGD by hand, in float64: w - lr * (gradient + weight decay * w)."""
    net = vgg("1x4", image_size=8, hidden=(), num_classes=3).double()
    x, labels = torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    expected_loss = nn.functional.cross_entropy(net(x), labels)
    gradients = torch.autograd.grad(expected_loss, list(net.parameters()))
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=99.0, weight_decay=0.01, fused=True)
    correct = (net(x).argmax(1) == labels).sum().item()
    sums = train_step(net, optimizer, x, labels, learning_rate=0.1)
    assert sums.tolist() == pytest.approx([5 * expected_loss.item(), correct, 5, 0, 0])
    for p, old, gradient in zip(net.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.1 * (gradient + 0.01 * old))


def test_the_loss_of_mixed_images_is_that_of_their_mixed_targets():
    net = vgg("1x4", image_size=8, hidden=(), num_classes=3)
    x, labels, shares = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1]), torch.rand(5)
    own, before = (nn.functional.one_hot(some, 3) for some in (labels, torch.tensor([1, 0, 1, 2, 0])))
    targets = own * (1 - shares.unsqueeze(1)) + before * shares.unsqueeze(1)
    expected = nn.functional.cross_entropy(net(x), targets, label_smoothing=0.1).item()
    optimizer = torch.optim.SGD(net.parameters(), fused=True)
    loss_sum, _, count, *_ = train_step(net, optimizer, x, labels, 0.1, 0.1, shares=shares).tolist()
    assert loss_sum / count == pytest.approx(expected)


@pytest.mark.parametrize(("average", "weight"), [(1.0, 1 / 4), (0.5, 1 / 2), (1e-6, 1)])
def test_the_result_is_an_average_of_the_weights(average, weight, recipe, tmp_path):
    """In its last step of four: over 4, 2 or 1 of them, as a mean as long as fewer are taken."""
    mine = replace(recipe, average=average, batch_size=2000, epochs=4)
    train(mine, resume=tmp_path / "run", until_epoch=3, device="cpu", progress=False)
    before = load_file(newest(tmp_path / "run") / "network.safetensors")
    run = train(mine, resume=tmp_path / "run", device="cpu", progress=False)
    last = load_file(newest(run.folder) / "optimizer.safetensors")
    assert any("running_mean" in name for name in before)
    for name, tensor in load_classifier(run).net.state_dict().items():
        trained = last[f"{name}.trained"]
        expected = before[name].double().lerp(trained.double(), weight).to(tensor.dtype)
        torch.testing.assert_close(tensor, trained if "num_batches" in name else expected, msg=name)


def test_validation_keeps_images_out_of_training(recipe, tmp_path, monkeypatch):
    seen = []
    original = Split.on
    monkeypatch.setattr(Split, "on", lambda device, x, y: seen.append((x, y)) or original(device, x, y))
    run = train(replace(recipe, validation=500, epochs=1), out=tmp_path / "run", progress=False)
    sample = load("fashion-mnist-sample")
    (train_x, train_y), (held_x, held_y) = seen
    assert np.array_equal(np.concatenate([train_x, held_x]), sample.train_images)
    assert np.array_equal(np.concatenate([train_y, held_y]), sample.train_labels)
    assert len(held_y) == 500
    assert "validation acc" in run.summary
    with pytest.raises(DataError, match="expected validation below the 2000 training images, got 2000"):
        train(replace(recipe, validation=2000), out=tmp_path / "other", progress=False)


def test_an_existing_run_is_never_overwritten(run, recipe):
    before = {file.name: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()}
    with pytest.raises(RunError, match="expected a run folder that does not exist yet, got .*, try another --out"):
        train(recipe, out=run.folder, progress=False)
    assert {file.name: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()} == before


def test_a_diverging_run_stops_and_says_what_to_try(recipe, tmp_path, capsys):
    wild = replace(recipe, architecture="1x8 1x16", learning_rate=1e6, optimizer="sgd")
    with pytest.raises(
        DivergedError,
        match="got a loss of .* at step [0-9]+, in epoch 1, which was not taken; try a lower --learning-rate or --architecture with _bn",
    ):
        train(wild, out=tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "recipe.json").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert main(["runs", str(tmp_path)]) == 0
    assert "failed" in (out := capsys.readouterr().out) and "run diverged: expected a finite loss" in out
    (listed,) = Runs(tmp_path).listed()
    assert listed["state"] == "failed" and listed["error"] in out
    with pytest.raises(DivergedError, match="expected a finite loss"):
        train(wild, resume=tmp_path / "run")
    assert "with the same recipe it will most likely diverge again" in capsys.readouterr().out
    # The loss of the only step is finite, what comes out of the network after it is not.
    last_step = replace(wild, architecture="1x4 1x4", image_size=8, batch_size=2000, weight_decay=1e6, epochs=1)
    with pytest.raises(
        DivergedError, match="expected finite outputs, got others after step 1; try a lower --learning-rate"
    ):
        train(replace(last_step, warmup=0.0), out=tmp_path / "last", progress=False)


def test_a_run_that_diverges_with_finite_losses_is_told_once(recipe, tmp_path, capsys):
    train(
        replace(recipe, optimizer="adamw", learning_rate=30.0, momentum=0.0, nesterov=False, epochs=1),
        out=tmp_path / "run",
        device="cpu",
    )
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "diverges" in line]
    assert re.fullmatch(
        r"the loss is \S+ over the last 10 steps, at step [0-9]+, and guessing has 2.3: training diverges; "
        "try a lower --learning-rate",  # and no _bn, which the network has
        line,
    )


def test_epochs_of_few_steps_are_warned_of(recipe, tmp_path, capsys):
    train(replace(recipe, batch_size=1000, epochs=1), out=tmp_path / "run", device="cpu")
    assert (
        "an epoch is only 2 steps of up to 1000 images, 2 in all: try --batch-size 128 --epochs 63\n"
        in capsys.readouterr().out
    )


def test_a_finished_run_is_trained_on_as_a_new_run(run, recipe, tmp_path, capsys):
    command = ["train", "--resume", str(run.folder), "--more-epochs", "1", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "more")]) == 0
    assert f"continues from the weights of {run.folder}" in capsys.readouterr().out
    more = Recipe.from_json((tmp_path / "more" / "recipe.json").read_text())
    assert more == replace(recipe, continues=str(run.folder), epochs=1)
    (epoch,) = [json.loads(line) for line in (tmp_path / "more" / "metrics.jsonl").read_text().splitlines()][-1:]
    assert epoch["train_loss"] < run.history[0].train_loss / 1.5  # it does not begin anew
    with pytest.raises(RunError, match="expected a run of the same network to continue, got .*try --pretrained"):
        train(more, hidden=(32,), out=tmp_path / "other", progress=False)
    assert main(["train", "--more-epochs", "1"]) == 2
    assert "expected --resume with a finished run for --more-epochs, got " in capsys.readouterr().err


def test_a_run_is_used_as_it_is(run):
    sample = load("fashion-mnist-sample")
    assert run.evaluate().accuracy == run.history[-1].test_accuracy
    images = list(sample.test_images[:20])
    labels = [best.label for best, *_ in run.predict(images, top=1)]
    by_file = load_classifier(run)
    assert labels == [best.label for best, *_ in by_file(images, top=1)]
    assert str(run) == f"{run.folder}: {run.net.architecture.name}, " + run.summary.replace("\n", ", ")
    assert run._repr_html_().count("<tr>") == 4


def test_a_recipe_is_taken_by_its_name(tmp_path):
    small = {"data": "fashion-mnist-sample", "architecture": "1x8", "image_size": 8, "progress": False}
    run = train("quick", epochs=1, out=str(tmp_path / "run"), **small)
    assert (run.recipe.name, run.recipe.epochs) == ("quick", 1)
    for call, got in ((lambda: train("qiuck"), "'qiuck', try quick"), (lambda: train(epoch=1), "'epoch', try epochs")):
        with pytest.raises(RecipeError, match=f"expected .* got {got}"):
            call()


def test_the_device_is_chosen_or_refused():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(None).type in ("cpu", "cuda", "mps")
    for name in ("tpu", "cuda:99", "xpu"):
        with pytest.raises(RunError, match=f"expected a device of this machine, got '{name}'"):
            choose_device(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_step_never_waits_for_the_gpu():
    device = torch.device("cuda", 0)
    sample = load("fashion-mnist-sample")
    split = Split.on(device, sample.train_images, sample.train_labels)
    net = vgg("vgg11_bn/4", image_size=32).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    preprocessing = Preprocessing(32, 1, (0.3,), (0.3,))
    augment = Augmentation(flip=True, translate=2, erase=4)
    draws, order = torch.Generator(device).manual_seed(0), epoch_order(len(split), 0, 1).to(device)
    sums = torch.zeros(5, device=device)
    for mode in ("default", "error"):  # once to warm up
        torch.cuda.set_sync_debug_mode(mode)
        try:
            for index in order.split(128):
                images, labels = augment(split.images[index], draws), split.labels[index]
                sums += train_step(net, optimizer, preprocessing(images), labels, 0.01)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sums.isfinite().all()


def test_at_224_pixels_a_step_at_batch_128_stays_under_3_gb(tmp_path):
    """The chapter's recipe: the whole process, data included, as the kernel counts it."""
    program = r"""
import re, signal, sys, torch
from pathlib import Path
from vggkit.training import step
from vggkit import train
steps = []
original = step.train_step
def two_steps(*args, **options):
    steps.append(args[2].shape)
    if len(steps) == 1:
        signal.raise_signal(signal.SIGTERM)
    return original(*args, **options)
step.train_step = two_steps
train("d2l", data="fashion-mnist-sample", out=sys.argv[1], progress=False, device="cpu")
assert steps == [(128, 1, 224, 224)] * 2, steps
# Not getrusage, which begins at what the process that started this one has.
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    gib = float(done.stdout)
    assert 0.5 < gib < 3


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "lenet", "image_size": 28, "init": "xavier"},
        {"architecture": "alexnet", "image_size": 65, "init": "xavier", "learning_rate": 1e-3},
        {"architecture": "1x8 2x8_bn", "head": "conv", "pooled_size": 2, "hidden": (16,)},
        {"architecture": "1x8 2x8", "head": "gap", "recompute": True},
        {"architecture": "1x8 2x8", "head": "adaptive", "pooled_size": 3, "dropout": 0.5, "hidden": (16,)},
    ],
)
def test_every_kind_of_network_is_trained_saved_and_used(change, tmp_path):
    recipe = replace(
        Recipe.named("quick"), **{"data": "fashion-mnist-sample", "epochs": 1, "image_size": 16, "hidden": ()} | change
    )
    run = train(recipe, out=tmp_path / "run", device="cpu", progress=False)
    assert run.history[0].train_loss < 4
    classifier = load_classifier(tmp_path / "run")
    assert classifier.net.architecture == run.net.architecture
    for name, tensor in run.net.state_dict().items():
        assert torch.equal(classifier.net.state_dict()[name], tensor)
