"""No verb replaces what it reads, nor a file of a run: nothing is lost by a slip of -o."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.inference.conftest import make_weights
from vggkit import Recipe, cli

READ, OF_A_RUN, INSIDE = "got one that is read", "got a file of a run", "expected a file outside of"
LOST = [
    ("features run p.png --layers pool2 -o run/model.safetensors", OF_A_RUN),
    ("features m.safetensors p.png --layers pool2 -o run/model.safetensors", OF_A_RUN),
    ("features m.safetensors p.png --layers pool2 -o run/best.safetensors", OF_A_RUN),
    ("features m.safetensors p.png --layers pool2 -o link.safetensors", READ),
    ("features m.safetensors ph --layers pool2 -o ph/index.safetensors", INSIDE),
    ("features --like p.png i.safetensors -o p.png", READ),
    ("features --like p.png i.safetensors -o ph/cat/0.png", READ),
    ("explain m.safetensors p.png -o p.png", READ),
    ("explain m.safetensors --unit conv1_1:0 --data ph -o ph/cat/0.png", INSIDE),
    ("explain run --filters -o run/curves.png", OF_A_RUN),
    ("dream p.png --model m.safetensors -o p.png", READ),
    ("style p.png q.png --model m.safetensors -o p.png", READ),
    ("style p.png q.png --model m.safetensors -o q.png", READ),
    ("eval m.safetensors --data ph --mistakes ph/cat/0.png", INSIDE),
    ("eval m.safetensors --data ph --plot ph/cat/new.png", INSIDE),
    ("eval run --reliability ph/cat/0.png", INSIDE),
    ("eval run --data list.csv --predictions list.csv", READ),
    ("eval m.safetensors --data ph --ensemble n.safetensors --plot ph/x.png", INSIDE),
    ("weights convert m.safetensors -o m.safetensors", READ),
    ("weights convert m.safetensors -o run/model.safetensors", OF_A_RUN),
    ("compare run m.safetensors --data ph --scatter ph/x.svg", INSIDE),
    ("experiment head --data ph -o run/recipe.json", OF_A_RUN),
    ("draw vgg11 -o run/curves.png", OF_A_RUN),
    ("export m.onnx -o m.onnx", READ),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ph/cat").mkdir(parents=True)
    Path("run").mkdir()
    for name in ("p.png", "q.png", "ph/cat/0.png", "ph/cat/1.png"):
        Image.fromarray(np.full((16, 16, 3), len(name), np.uint8)).save(name)
    for name in ("m.safetensors", "n.safetensors", "run/model.safetensors"):
        make_weights(name)
    os.link("m.safetensors", "link.safetensors")
    Path("run/recipe.json").write_text(Recipe.named("quick", data="ph").to_json())
    Path("list.csv").write_text("image,label\nph/cat/0.png,cat\n")
    Path("m.onnx").write_bytes(b"a network, say")
    assert cli.main(["features", "m.safetensors", "ph", "--layers", "pool2", "-o", "i.safetensors"]) == 0
    return tmp_path


@pytest.mark.parametrize(("command", "message"), LOST)
def test_nothing_that_is_read_and_nothing_of_a_run_is_replaced(folder, command, message, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert cli.main(command.split()) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "command",
    [
        "features run ph --layers pool2 -o run/index.safetensors",
        "features --like p.png i.safetensors -o like.png",
        "explain run p.png -o run/why.png",
        "eval run --data ph --plot run/confusion.png --predictions table.csv",
        "weights convert m.safetensors -o model.safetensors",
    ],
)
def test_an_earlier_output_is_replaced(folder, command):
    assert [cli.main(command.split()) for _ in range(2)] == [0, 0]
