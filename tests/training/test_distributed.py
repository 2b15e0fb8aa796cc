"""Several processes train as one does, and end together, whatever happens to one of them."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.teams import Members, together, trained, vgg
from vggkit.design.scaling import gradient_buckets, message_bytes


@pytest.fixture(scope="module")
def recipe(recipe):
    """No dropout, batch norm or mixing, which differ by process; 500 images in batches of 48 leave 20."""
    changes = {"architecture": "1x4 1x8", "hidden": (16,), "dropout": 0.0, "batch_size": 48, "epochs": 1, "cutmix": 0.0}
    return replace(recipe, validation=1500, **changes)


def in_float64(recipe, folder, num_workers=None):
    """Train in float64, which no file of ours holds; the first process writes what came of it."""
    from vggkit import train
    from vggkit.data.preprocessing import Preprocessing
    from vggkit.training import loop

    build, standardised = loop.build, Preprocessing._standardize_
    loop.build = lambda *given, **options: build(*given, **options).double()
    Preprocessing._standardize_ = lambda self, x: standardised(self, x).double()
    loop.Saver.save = loop.save_weights = lambda *given: None
    loop.read_checkpoint = lambda path: {"network.safetensors": b""}
    run = train(recipe, out=folder, device="cpu", progress=False, num_workers=num_workers)
    torch.save(run.net.state_dict(), f"weights-{os.environ['RANK']}.pt")
    return 0


def results(place, size):
    weights = [torch.load(place / f"folder-{r}" / f"weights-{r}.pt", weights_only=True) for r in range(size)]
    lines = [json.loads(line) for line in (place / "folder-0" / "run" / "metrics.jsonl").read_text().splitlines()]
    return weights, lines


COLOURED = {"channels": "rgb", "color_shift": 0.1, "label_smoothing": 0.1, "optimizer": "adamw", "momentum": 0.0}


@pytest.mark.parametrize(
    ("sizes", "changes"),
    [
        ((2, 3), {}),
        ((2,), {"batch_size": 499, "epochs": 3}),  # a last batch of one image, for two processes
        ((2,), COLOURED),
    ],
)
def test_several_processes_train_as_one_does(sizes, changes, recipe, tmp_path):
    recipe = replace(recipe, **changes)
    (expected,), lines = results(together(1, in_float64, recipe, "run", place=tmp_path / "1"), 1)
    for size in sizes:
        weights, others = results(together(size, in_float64, recipe, "run", place=tmp_path / str(size)), size)
        for own in weights:
            for name, tensor in own.items():
                torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-13, msg=name)
        assert [line["event"] for line in others] == [line["event"] for line in lines]
        for line, other in zip(lines[1:], others[1:], strict=True):
            for name in {"train_loss", "train_accuracy", "test_accuracy", "step"} & set(line):
                assert line[name] == pytest.approx(other[name], rel=1e-5), name


def test_processes_average_the_leaders_batch_norms(recipe, tmp_path):
    mine = replace(recipe, architecture="1x4 1x8_bn", cutmix=0.5)
    (first, second), _ = results(together(2, in_float64, mine, "run", place=tmp_path), 2)
    assert all(torch.equal(first[name], second[name]) for name in first)


TINY = [
    "train", "--data", "fashion-mnist-sample", "--architecture", "1x4 1x8_bn", "--image-size", "16", "--batch-size",
    "120", "--dropout", "0.2", "--head", "flatten", "--hidden", "64", "--erase", "4", "--epochs", "2",
    "--device", "cpu", "--cutmix", "0.5", "--average", "0.2",
]  # fmt: skip


class Signalled:
    """Sends a signal to some processes of a team in their 10th step."""

    def __init__(self, ranks, number):
        self.ranks, self.number, self.steps = ranks, number, 0

    def __call__(self):
        from vggkit.training import step

        real = step.train_step

        def counted(*given, **options):
            self.steps += 1
            if self.steps == 10 and int(os.environ["RANK"]) in self.ranks:
                signal.raise_signal(self.number)
            return real(*given, **options)

        step.train_step = counted


def final(run):
    """The last checkpoint's tensors, byte for byte."""
    last = max((run / "checkpoints").glob("step-*"))
    return last.name, [(last / f"{part}.safetensors").read_bytes() for part in ("network", "optimizer")]


@pytest.mark.parametrize(("size", "signalled", "compression"), [(2, [0, 1], "bf16"), (3, [2], "none")])
def test_a_signal_to_some_ends_all_after_the_same_step(size, signalled, compression, tmp_path):
    """Of three processes, gradients are added in an order that torch's buckets decide."""
    run = tmp_path / "run"
    arguments = [*TINY, "--compression", compression]
    together(size, vgg, [*arguments, "--out", str(tmp_path / "unbroken")], place=tmp_path / "0")
    stopping = Signalled(signalled, signal.SIGUSR1)
    with Members(size, vgg, [*arguments, "--resume", str(run)], stopping, place=tmp_path / "1") as team:
        assert team.ended() == [75] * size, [team.printed(rank) for rank in range(size)]
        assert "".join(team.printed(rank) for rank in range(size)) == ""
    together(size, vgg, [*arguments, "--resume", str(run)], place=tmp_path / "2")
    assert "bit for bit" in (tmp_path / "2" / "out-0").read_text()
    assert final(run) == final(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("size", "compression", "reason"),
    [(1, "none", "it had processes 2, now 1"), (2, "powersgd", "PowerSGD forgets")],
)
def test_what_cannot_go_on_exactly_says_so(size, compression, reason, tmp_path):
    run = tmp_path / "run"
    arguments = [*TINY, "--compression", compression, "--resume", str(run)]
    with Members(2, vgg, arguments, Signalled([1], signal.SIGTERM), place=tmp_path / "0") as team:
        assert team.ended() == [75, 75]
    together(size, vgg, arguments, place=tmp_path / "1")
    assert f"may differ from those of an uninterrupted run, since {reason}" in (tmp_path / "1" / "out-0").read_text()
    assert (run / "model.safetensors").exists()


def counts_images(sizes):
    """Evaluate sets of odd sizes in which an image is right if its number is even; nobody may count twice."""
    from vggkit.data.feed import DeviceFeed
    from vggkit.data.loading import Split
    from vggkit.data.preprocessing import Preprocessing
    from vggkit.training.distributed import join_team
    from vggkit.training.evaluate import evaluate

    class Reads(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot((x.mean(dim=(1, 2, 3)) * 255).round().long(), 256).float()

    with join_team("cpu") as team:
        for size in sizes:
            numbers = torch.arange(size)
            images = numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
            labels = torch.where(numbers % 2 == 0, numbers, 255)
            feed = DeviceFeed(Split(images, labels), 10, 0, team, is_fitted=True)
            accuracy, loss = evaluate(Reads(), feed, Preprocessing(2, 1, (0.0,), (1.0,)), team)
            assert accuracy == pytest.approx(-(-size // 2) / size, rel=1e-6), size
            assert loss == pytest.approx(math.log(math.e + 255) - accuracy, rel=1e-5), size
    return 0


@pytest.mark.parametrize("size", [1, 2, 3])
def test_evaluation_counts_every_image_once(size, tmp_path):
    together(size, counts_images, [1, 2, 11, 100, 101], place=tmp_path)


def test_only_the_first_process_writes(tmp_path):
    together(2, vgg, [*TINY, "--epochs", "1"], place=tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.safetensors")) == [
        "model.safetensors", "network.safetensors", "optimizer.safetensors",
    ]  # fmt: skip
    assert list((tmp_path / "folder-1").iterdir()) == []


def test_image_files_are_shared_by_processes_with_workers(recipe, photos, tmp_path):
    recipe = replace(
        recipe, data=str(photos), validation=0, channels="grey", shorter_side=(17, 24), translate=0, erase=0, epochs=2
    )
    (expected,), lines = results(together(1, in_float64, recipe, "run", 0, place=tmp_path / "1"), 1)
    weights, others = results(together(2, in_float64, recipe, "run", 1, place=tmp_path / "2"), 2)
    for name, tensor in weights[1].items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-13, msg=name)
    assert others[-1]["test_accuracy"] == lines[-1]["test_accuracy"]


def test_a_last_layer_that_learns_first_is_averaged_once(recipe, tmp_path):
    together(1, trained, recipe, tmp_path / "source", place=tmp_path / "0")
    recipe = replace(recipe, pretrained=str(tmp_path / "source"), head_epochs=1, epochs=2)
    (expected,), _ = results(together(1, in_float64, recipe, "run", place=tmp_path / "1"), 1)
    (one, two), _ = results(together(2, in_float64, recipe, "run", place=tmp_path / "2"), 2)
    for name, tensor in expected.items():
        torch.testing.assert_close(one[name], tensor, rtol=1e-12, atol=1e-13, msg=name)
        assert torch.equal(one[name], two[name])


def counts_bytes(recipe):
    """Train; write the bytes of gradients that the last step gave to all_reduce, and the accuracy."""
    import torch.distributed as dist

    from vggkit import train

    real, sent, steps = dist.all_reduce, [], []

    def counted(tensor, *given, **options):
        if tensor.numel() == 5:  # the outcome, which ends a step
            steps.append(sum(sent))
            sent.clear()
        elif tensor.numel() > 1:
            sent.append(tensor.nbytes)
        return real(tensor, *given, **options)

    dist.all_reduce = counted
    run = train(recipe, out="run", device="cpu", progress=False)
    Path("sent.json").write_text(json.dumps([steps[-1], run.history[-1].test_accuracy]))
    return 0


def test_compressed_gradients_are_small_and_teach(recipe, tmp_path):
    recipe = replace(
        recipe, architecture="1x16 1x32_bn", hidden=(256,), epochs=3, learning_rate=0.05, erase=0, validation=0
    )
    sent, accuracies = {}, {}
    for compression in ("none", "bf16", "powersgd"):
        place = together(2, counts_bytes, replace(recipe, compression=compression), place=tmp_path / compression)
        sent[compression], accuracies[compression] = json.loads((place / "folder-0" / "sent.json").read_text())
    network = recipe.network(in_channels=1, num_classes=10)
    buckets = gradient_buckets(network, 2)
    assert sent["none"] == 0  # torch's own way, in C++, does not come by
    for compression in ("bf16", "powersgd"):
        assert sent[compression] == sum(sum(message_bytes(bucket, compression, 4)) for bucket in buckets)
        assert accuracies[compression] > accuracies["none"] - 0.05 > 0.6
