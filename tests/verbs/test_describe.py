import json
import re

import pytest

from vggkit import cli
from vggkit.verbs import describe


def described(capsys, *arguments):
    assert cli.main(["describe", *arguments]) == 0
    return capsys.readouterr().out


def row(text, name):
    return next(line for line in text.splitlines() if line.startswith(name))


def test_describe_answers_the_chapters_questions(capsys):
    for network, share in (("vgg11", "92.8"), ("vgg11/4", "98.7")):  # where the parameters are
        text = described(capsys, network, "--in-channels", "1", "--num-classes", "10")
        assert share in row(text, "all fc").split()
    text = described(capsys, "vgg11")  # where the other three layers went
    assert "8 conv" in row(text, "all conv")
    assert "3 fc" in row(text, "all fc")
    assert row(text, "total").split()[1:3] == ["11", "132,863,336"]


def test_describe_by_layer_and_as_json_say_the_same(capsys):
    arguments = ["vgg16_bn/8", "--image-size", "64", "--hidden", "100", "--batch-size", "2"]
    text, data = described(capsys, *arguments, "--layers"), json.loads(described(capsys, *arguments, "--json"))
    for layer in data["layers"]:
        assert f"{layer['parameters']:,}" in row(text, layer["name"])
        assert "x".join(map(str, layer["output_shape"][1:])) in row(text, layer["name"])
    assert data["total"]["parameters"] == sum(layer["parameters"] for layer in data["layers"])
    assert data["total"]["macs"] == sum(part["macs"] for part in data["parts"].values())
    assert f"{data['total']['macs'] / 1e6:,.1f}" in row(text, "total")


TRAINED = [
    "vgg16_bn --optimizer adamw --memory 6GB", "lenet --optimizer momentum --memory 1e6", "lenet alexnet vgg19 --memory 24GB",
    "vgg19 --hidden --optimizer adamw --dtype bfloat16 --memory 80GiB", "lenet alexnet vgg11_bn vgg19_bn --memory 24GB",
]  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        "vgg19 --layers",
        "A-LRN --layers",
        *(f"{one} --batch-size {size}" for one in TRAINED for size in (1, 7, 128, 3000)),
    ],
)
def test_describe_fits_80_columns(arguments, capsys):
    assert max(len(line.rstrip()) for line in described(capsys, *arguments.split()).splitlines()) <= 80


def numbers(line):
    """Every number in a line, thousands joined."""
    return [float(number) for number in re.findall(r"\d+\.?\d*", line.replace(",", ""))]


def test_describe_says_what_training_takes(capsys):
    line = row(described(capsys, "vgg16", "--batch-size", "8", "--optimizer", "momentum"), "training")
    *parts, peak = numbers(line)
    assert line.endswith(" GB")
    assert parts[:3] == [0.55, 0.55, 0.55]  # 138 million float32 parameters
    assert sum(parts) == pytest.approx(peak, abs=0.02)
    assert len(numbers(row(described(capsys, "vgg16"), "training"))) == 4  # sgd keeps nothing


def test_describe_says_which_batch_fits(capsys):
    arguments = ["vgg16", "--memory", "6GB"]
    text = described(capsys, *arguments, "--batch-size", "128")
    plain, recomputed = row(text, "in 6.00 GB"), row(text, "with --recompute")
    assert "does not fit" in plain
    most, most_recomputed = int(plain.split()[-1]), int(recomputed.split()[-1])
    assert most_recomputed > most
    for batch_size, start, told in (
        (most, "in 6.00", f" {most} fits;"), (most + 1, "in 6.00", f" {most + 1} does not fit;"),
        (most_recomputed, "with --recompute", ", fits;"), (most_recomputed + 1, "with --recompute", ", does not fit;"),
    ):  # fmt: skip
        assert told in row(described(capsys, *arguments, "--batch-size", str(batch_size)), start)
    assert "not even 1 does" in row(described(capsys, "vgg16", "--memory", "1GB"), "in 1.00 GB")
    assert "recompute" not in described(capsys, "alexnet", "--memory", "6GB")  # it has no blocks


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6GB", 6_000_000_000), ("6 gib", 6 * 2**30), ("500MB", 500_000_000), ("6e9", 6_000_000_000), ("2TiB", 2 * 2**40),
        ("1500kB", 1_500_000), ("17000000", 17_000_000), ("17000000B", 17_000_000),
    ],
)  # fmt: skip
def test_sizes_of_memory(text, expected):
    assert describe.parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "6XB", "six", "-1GB", "6G", "nan", "inf", "9" * 400, "6e999", "1/2GB", "6GB6", "٦GB", "6", "999kB"]
)
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(
        ValueError, match="expected a size from 1MB, such as 6GB, 6GiB, 500MB or 6e9, for --memory, got"
    ):
        describe.parse_bytes(text)


def test_describe_compares_alexnet_and_vgg(capsys):
    options = ["--in-channels", "1", "--num-classes", "10", "--batch-size", "128"]
    text = described(capsys, "alexnet", "vgg11", *options, "--memory", "24GB")
    alone = [json.loads(described(capsys, name, *options, "--json")) for name in ("alexnet", "vgg11")]
    assert json.loads(described(capsys, "alexnet", "vgg11", *options, "--json")) == alone
    for name, scale, values in (
        ("weight layers", 1, [8, 11]),
        ("parameters, conv", 1, [one["convolutional"]["parameters"] for one in alone]),
        ("parameters, fc", 1, [one["fully_connected"]["parameters"] for one in alone]),
        ("parameters ", 1, [one["total"]["parameters"] for one in alone]),
        ("MMACs, conv", 1e6, [one["convolutional"]["macs"] for one in alone]),
        ("MMACs, fc", 1e6, [one["fully_connected"]["macs"] for one in alone]),
        ("MMACs ", 1e6, [one["total"]["macs"] for one in alone]),
        ("MB out", 1e6, [one["total"]["activation_bytes"] for one in alone]),
        ("MB to train", 1e6, [one["training"]["peak_bytes"] for one in alone]),
    ):
        first, second = (value / scale for value in values)
        assert numbers(row(text, name)) == pytest.approx([first, second, second / first], abs=0.051, rel=0.01)
    assert numbers(row(text, "parameters "))[0] == 46_764_746  # the book's AlexNet
    assert "-" in row(text, "  --recompute").split()


def test_networks_have_their_own_size_unless_told(capsys):
    every = json.loads(described(capsys, "lenet", "alexnet", "vgg11", "--json"))
    sizes = [one["architecture"]["image_size"] for one in every]
    assert sizes == [28, 224, 224]
    assert json.loads(described(capsys, "lenet", "--json", "--image-size", "64"))["architecture"]["image_size"] == 64


def test_describe_takes_every_head(capsys):
    for head, hidden, extra in (
        ("gap", [], []),
        ("adaptive", [4096, 4096], ["--pooled-size", "3"]),
        ("conv", [4096, 4096], []),
        ("flatten", [], ["--hidden"]),
    ):
        architecture = json.loads(described(capsys, "vgg11", "--head", head, *extra, "--json"))["architecture"]
        assert (architecture["head"], architecture["hidden"]) == (head, hidden)
