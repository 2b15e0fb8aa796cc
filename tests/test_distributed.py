"""Several processes train as one does, and end together, whatever happens to one of them."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.teams import Members, steps_of, together, vgg, wait_for
from vggkit import Recipe


@pytest.fixture(scope="module")
def recipe():
    """Neither dropout nor batch norm, which differ by process; 2,000 images in batches of 48 leave 32."""
    return replace(
        Recipe.named("quick"),
        data="fashion-mnist-sample",
        architecture="1x4 1x8",
        hidden=(16,),
        dropout=0.0,
        image_size=16,
        batch_size=48,
        optimizer="sgd",
        learning_rate=0.02,
        momentum=0.9,
        weight_decay=5e-4,
        epochs=1,
        flip=True,
        translate=2,
        erase=4,
    )


def in_float64(recipe, folder):
    """Train in float64, which no file of ours holds; the first process writes what came of it."""
    from vggkit import train
    from vggkit.data.preprocessing import Preprocessing
    from vggkit.training import loop

    build, standardised = loop.build, Preprocessing._standardised
    loop.build = lambda *given, **options: build(*given, **options).double()
    Preprocessing._standardised = lambda self, x: standardised(self, x).double()
    loop.Saver.save = loop.save_weights = lambda *given: None
    run = train(recipe, out=folder, device="cpu", progress=False)
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
        ((2,), {"batch_size": 1999, "epochs": 3}),  # a last batch of one image, for two processes
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


TINY = [
    "train", "--data", "fashion-mnist-sample", "--architecture", "1x4 1x8_bn", "--image-size", "16", "--batch-size",
    "60", "--dropout", "0.2", "--hidden", "64", "--erase", "4", "--epochs", "2", "--device", "cpu",
]  # fmt: skip


def final(run):
    """The last checkpoint's tensors, byte for byte."""
    last = max((run / "checkpoints").glob("step-*"))
    return last.name, [(last / f"{part}.safetensors").read_bytes() for part in ("network", "optimizer")]


@pytest.mark.parametrize(("size", "signalled"), [(2, [1]), (3, [0, 1, 2]), (3, [2])])
@pytest.mark.parametrize("compression", ["none", "bf16"])
def test_a_signal_to_some_ends_all_after_the_same_step(size, signalled, compression, tmp_path):
    run = tmp_path / "run"
    arguments = [*TINY, "--compression", compression]
    together(size, vgg, [*arguments, "--out", str(tmp_path / "unbroken")], place=tmp_path / "0")
    with Members(size, vgg, [*arguments, "--resume", str(run)], place=tmp_path / "1") as team:
        wait_for(lambda: steps_of(run) > 20)
        for rank in signalled:
            os.kill(team[rank].pid, signal.SIGTERM)
        assert team.ended() == [75] * size, [team.printed(rank) for rank in range(size)]
        assert "".join(team.printed(rank) for rank in range(size)) == ""
    together(size, vgg, [*arguments, "--resume", str(run)], place=tmp_path / "2")
    assert final(run) == final(tmp_path / "unbroken")

