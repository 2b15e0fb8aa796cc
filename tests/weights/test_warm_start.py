from pathlib import Path

import pytest
import torch

from vggkit import VGG, Architecture, Recipe, cli, lenet, warm_start
from vggkit.weights.files import load_weights
from vggkit.weights.runs import find_weights

OF_A = ("conv1_1", "conv2_1", "conv3_1", "conv3_2")


def net(name, seed=0, **options):
    torch.manual_seed(seed)
    return VGG(
        Architecture.parse(name, **{"in_channels": 1, "num_classes": 3, "image_size": 32, "hidden": (8,), **options})
    )


def copy_of(state):
    return {key: tensor.clone() for key, tensor in state.items()}


@pytest.mark.parametrize("deeper", ["vgg13/32", "vgg16/32", "vgg16c/32", "vgg19/32"])
def test_the_papers_layers_are_copied_and_nothing_else(deeper):
    source, target = net("vgg11/32", seed=1), net(deeper)
    before = copy_of(target.state_dict())
    assert warm_start(target, source) == (*OF_A, "fc6", "fc7")
    for key, tensor in target.state_dict().items():
        if key.split(".")[-2] in (*OF_A, "fc6", "fc7"):
            assert torch.equal(tensor, source.state_dict()[key]), key
            assert not torch.equal(tensor, before[key]) or key.endswith("bias"), key
        else:
            assert torch.equal(tensor, before[key]), key
    source.fc6.weight.data.zero_()
    assert target.fc6.weight.any()  # a copy


@pytest.mark.parametrize(("of_source", "of_target"), [(True, True), (True, False), (False, True)])
def test_batch_norm_goes_along_where_both_have_it(of_source, of_target):
    source, target = net("vgg11" + "_bn" * of_source + "/32", seed=1), net("vgg19" + "_bn" * of_target + "/32")
    if of_source:
        source.train()(torch.rand(4, 1, 32, 32))  # statistics of its own
    before = copy_of(target.state_dict())
    norms = tuple(name.replace("conv", "bn") for name in OF_A) if of_source and of_target else ()
    copied = warm_start(target, source)
    assert set(copied) == {*OF_A, *norms, "fc6", "fc7"}
    assert len(copied) == len(set(copied))
    changed = {
        key.split(".")[-2] for key, tensor in target.state_dict().items() if not torch.equal(tensor, before[key])
    }
    assert changed == {*OF_A, *norms, "fc6", "fc7"}
    if norms:
        assert torch.equal(target.block3.bn3_2.running_var, source.block3.bn3_2.running_var)
        assert target.block1.bn1_1.num_batches_tracked == 1
        assert target.block1.bn1_2.num_batches_tracked == 0


def test_the_head_as_convolutions_and_a_baseline():
    options = {"head": "conv", "pooled_size": 1}
    assert warm_start(net("vgg19/32", **options), net("vgg11/32", **options)) == (*OF_A, "fc6", "fc7")
    assert warm_start(lenet(), lenet()) == ("conv1", "conv2", "fc3", "fc4", "fc5")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            "vgg11/16",
            {},
            r"expected conv1_1.weight in the shape that vgg19/32 has, \(2, 1, 3, 3\), got \(4, 1, 3, 3\) from vgg11/16",
        ),
        ("1x2 1x4 2x8", {}, "expected a warm start from a network of 5 blocks, as vgg19/32 has, got 1x2 1x4 2x8 of 3"),
        ("vgg11/32", {"in_channels": 3}, r"conv1_1.weight in the shape .* \(2, 1, 3, 3\), got \(2, 3, 3, 3\)"),
        ("vgg11/32", {"num_classes": 4}, r"fc7.weight in the shape .* \(3, 8\), got \(4, 8\)"),
        ("vgg11/32", {"hidden": (9,)}, r"fc6.weight in the shape .* \(8, 16\), got \(9, 16\)"),
        ("vgg11/32", {"hidden": (8, 8)}, r"fc7.weight in the shape .* \(3, 8\), got \(8, 8\)"),
        ("vgg11/32", {"head": "conv", "pooled_size": 1}, r"fc6.weight .* \(8, 16\), got \(8, 16, 1, 1\)"),
        ("1x2k5 1x4 2x8 2x16 2x16", {}, r"conv1_1.weight in the shape .* \(2, 1, 3, 3\), got \(2, 1, 5, 5\)"),
        ("1x2 2x4 1x8 2x16 2x16", {}, r"conv2_2.weight in the shape .* got \(4, 4, 3, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(source, options, message):
    target = net("vgg11/32" if "2x4" in source else "vgg19/32")
    before = copy_of(target.state_dict())
    with pytest.raises(ValueError, match=message):
        warm_start(target, net(source, **options))
    assert all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items())


def test_later_convolutions_and_other_networks_layers():
    assert warm_start(net("vgg19/32"), net("1x2 1x4 2x8 2x16 6x16"))  # those after the fourth do not matter
    with pytest.raises(ValueError, match=r"expected conv1.weight .* none, got"):
        warm_start(net("vgg11/32"), lenet())


@pytest.mark.parametrize("source", ["none", "."])
def test_a_source_that_is_not_there_is_said_before_anything_is_made(tmp_path, monkeypatch, capsys, source):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *OPTIONS, "--architecture", "2x4 3x8", "--warm-start", source, "--out", "deep"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a run or a weight file, got nothing there" in line
    assert list(tmp_path.iterdir()) == []


OPTIONS = ("--data", "fashion-mnist-sample", "--epochs", "1", "--image-size", "16", "--head", "flatten", "--hidden", "8",
           "--device", "cpu")  # fmt: skip


def test_vgg_train_starts_from_a_run(tmp_path, monkeypatch, capsys):
    """The deeper network stays where it starts: its learning rate is nothing beside any weight."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *OPTIONS, "--architecture", "1x4 1x8", "--out", "shallow"]) == 0
    deeper = ("--architecture", "2x4 3x8", "--learning-rate", "1e-60", "--warm-start", "shallow", "--out", "deep")
    capsys.readouterr()
    assert cli.main(["train", *OPTIONS, *deeper]) == 0
    shallow, deep = (load_weights(find_weights(name))[0].state_dict() for name in ("shallow", "deep"))
    recipe = Recipe.from_json(Path("deep/recipe.json").read_text())
    torch.manual_seed(recipe.seed)
    drawn = VGG(recipe.network(in_channels=1, num_classes=10), recipe.init).state_dict()
    for key, tensor in deep.items():
        assert torch.equal(tensor, (shallow if key in shallow else drawn)[key]), key
    assert {key.split(".")[1] for key in set(deep) - set(shallow)} == {"conv1_2", "conv2_2", "conv2_3"}
    assert recipe.warm_start == str(tmp_path.resolve() / "shallow")
    assert f"started from {recipe.warm_start}: conv1_1, conv2_1, fc3, fc4\n" in capsys.readouterr().out

    assert (
        cli.main(["train", *OPTIONS, "--architecture", "2x4 3x9", "--warm-start", "shallow", "--out", "refused"]) == 2
    )
    refused = capsys.readouterr().err
    assert refused.count("\n") == 1 and "expected conv2_1.weight in the shape that 2x4 3x9 has" in refused
    assert not Path("refused").exists()
