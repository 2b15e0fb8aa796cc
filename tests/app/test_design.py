"""The view "Design" shows what `vgg describe` and `vgg draw` print."""

import json

import pytest

from vggkit import cli
from vggkit.design.network import draw

NETWORKS = ["vgg16", "vgg11_bn/4", "1x64 2x128k5 3x256k3,3,1+lrn", "lenet"]


@pytest.mark.parametrize("text", NETWORKS)
def test_the_figures_are_those_of_describe(app, capsys, text):
    asked = {"designs": [{"text": text}], "batch_size": 8, "optimizer": "adamw", "dtype": "bfloat16"}
    (shown,) = app.post("/api/design", asked)["designs"]
    command = ["describe", text, "--batch-size", "8", "--optimizer", "adamw", "--dtype", "bfloat16", "--json"]
    assert cli.main([*command, "--memory", "4GB"]) == 0
    printed = json.loads(capsys.readouterr().out)
    for name in ("parameters", "macs", "activation_bytes", "weight_layers"):
        assert shown["total"][name] == printed["total"][name]
        assert [part[name] for part in shown["parts"]] == [part[name] for part in printed["parts"].values()]
    assert shown["memory"]["peak_bytes"] == printed["training"]["peak_bytes"]
    for mine, theirs in zip(shown["layers"], printed["layers"], strict=True):
        assert {name: mine[name] for name in theirs} == theirs
    (limit,) = app.post("/api/limits", asked)["designs"]
    assert cli.main([*command, "--memory", str(shown["memory_bytes"])]) == 0
    assert limit["largest_batch"] == json.loads(capsys.readouterr().out)["training"]["memory"]["largest_batch"]


def test_the_drawing_is_that_of_draw_and_an_error_has_its_place(app):
    answer = app.post("/api/design", {"designs": [{"text": "vgg13"}, {"text": "1x64 2y128"}]})
    assert answer["svg"] == draw("vgg13")
    assert answer["designs"][1] == {
        "error": "'1x64 2y128', character 6: expected a block such as 2x128, got '2y128'",
        "character": 6,
    }
    assert "style=" not in answer["svg"]  # which the page's policy would refuse


def test_a_unit_sees_what_changes_it(app):
    """Against torch: only pixels of the receptive field have a gradient."""
    import torch

    from vggkit import VGG, Architecture

    (shown,) = app.post("/api/design", {"designs": [{"text": "1x4 2x4k5", "options": {"image_size": 32}}]})["designs"]
    torch.manual_seed(0)  # with unlucky weights every ReLU of a small block is dead
    net = VGG(Architecture.parse("1x4 2x4k5", image_size=32)).double()
    for layer in shown["layers"]:
        if len(layer["output_shape"]) == 4:
            x = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
            y = net.features(x, [layer["name"]])[layer["name"]]
            middle = y.shape[-1] // 2
            (gradient,) = torch.autograd.grad(y[..., middle, middle].sum(), x)
            rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
            first = layer["first"] + layer["stride"] * middle
            assert first <= rows.min() and rows.max() < first + layer["receptive_field"]
            if layer["kind"] == "conv":
                assert (rows.min(), rows.max() + 1) == (max(0, first), min(32, first + layer["receptive_field"]))
