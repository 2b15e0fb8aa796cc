import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.own_images import write
from vggkit import VGG, Architecture, alexnet, as_network, build, cli, examine, lenet
from vggkit.data.fashion_mnist import load
from vggkit.data.loading import epoch_order
from vggkit.data.preprocessing import Preprocessing
from vggkit.training.step import train_step
from vggkit.weights.files import save_weights

PAPERS = {"learning_rate": 0.01, "momentum": 0.9}


@pytest.fixture(scope="module")
def batch():
    """(images, labels): 64 images of the sample at 32 pixels."""
    sample = load("fashion-mnist-sample")
    chosen = epoch_order(len(sample.train_labels), 0, 1)[:64]
    images = Preprocessing(32, 1, (0.0,), (1.0,))(torch.from_numpy(sample.train_images)[chosen].unsqueeze(1))
    return images, torch.from_numpy(sample.train_labels).long()[chosen]


def net(name, init="kaiming", **options):
    torch.manual_seed(0)
    values = {"in_channels": 1, "num_classes": 10, "image_size": 32, "hidden": (512, 512), **options}
    return VGG(Architecture.parse(name, **values), init)


def layer(diagnosis, name):
    return next(one for one in diagnosis.layers if one.name == name)


def test_vgg19_from_torchs_initialisation_does_not_learn_and_kaimings_does(batch):
    first = {}
    for init, verdict in (("kaiming", "learns"), ("torch", "stalls"), ("paper", "stalls")):
        diagnosis = examine(net("vgg19/8", init), *batch, **PAPERS)
        assert diagnosis.verdict == verdict
        first[init] = layer(diagnosis, "conv1_1").gradient
    assert first["torch"] < 1e-6 * first["kaiming"]
    assert first["paper"] < 1e-6 * first["torch"]
    assert examine(net("vgg19_bn/8", "torch"), *batch, **PAPERS).verdict == "learns"
    assert examine(net("vgg19/8", "torch"), *batch, optimizer="adamw", learning_rate=1e-3).verdict == "stalls"


@pytest.mark.parametrize(("init", "verdict"), [("kaiming", "learns"), ("torch", "stalls")])
def test_training_does_what_the_verdict_says(init, verdict, batch):
    network = net("vgg11/8", init)
    assert examine(network, *batch, **PAPERS).verdict == verdict
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for _ in range(45):
        loss, _, count, *_ = train_step(network.train(), optimizer, *batch, 0.01).tolist()
    entropy = -(p := batch[1].bincount() / 64) @ p.log()
    assert (loss / count < entropy - 0.3) == (verdict == "learns")


def test_what_to_change_is_said_with_names_of_the_networks_width(batch):
    told = " ".join(examine(net("vgg19/8", "torch"), *batch, **PAPERS).findings)
    for advice in ("try --init kaiming", "try vgg19_bn/8", "a run of vgg11/8"):
        assert advice in told
    told = " ".join(examine(net("vgg11/8", "torch"), *batch, **PAPERS).findings)
    assert "try --optimizer adamw --learning-rate 0.001" in told
    assert "--warm-start" not in told
    told = " ".join(examine(net("vgg11/8", "torch"), *batch, optimizer="adamw", learning_rate=1e-6).findings)
    assert "--init kaiming" in told and "adamw" not in told
    assert "--warm-start" not in " ".join(examine(net("4x4 4x8", "paper"), *batch, **PAPERS).findings)
    assert examine(net("vgg11/8"), *batch, **PAPERS).findings == ()


def test_the_figures_are_what_float64_computes_directly(batch):
    images, labels = batch
    network = net("vgg11_bn/16", hidden=(32,), dropout=0.0).double()
    diagnosis = examine(network, images.double(), labels)
    names = [one.name for one in diagnosis.layers]
    assert names == [one.name for one in network.architecture.layers() if one.kind in ("conv", "fc")]
    exact = copy.deepcopy(network).train()
    outputs = exact.features(images.double(), names)
    loss = F.cross_entropy(exact(images.double()), labels)
    loss.backward()
    assert diagnosis.loss == pytest.approx(loss.item(), rel=1e-12)
    modules = {path.rpartition(".")[2]: module for path, module in exact.named_modules()}
    for one in diagnosis.layers:
        output, weight = outputs[one.name].detach().numpy(), modules[one.name].weight
        rms = (output**2).mean() ** 0.5
        gradient = weight.grad.square().mean().sqrt().item()
        assert one.output == pytest.approx(rms, rel=1e-9)
        assert one.contrast == pytest.approx(output.var(axis=0).mean() ** 0.5 / rms, rel=1e-9)
        assert one.gradient == pytest.approx(gradient, rel=1e-9)
        assert one.relative_gradient == pytest.approx(gradient / weight.square().mean().sqrt().item(), rel=1e-9)
        assert one.is_normalized == one.name.startswith("conv")


def test_the_gain_is_heres_and_torchs():
    x, labels = torch.rand(4, 1, 32, 32), torch.tensor([0, 1, 2, 3])
    for init, expected in (("kaiming", 1.0), ("torch", 6**-0.5)):  # U(+-1/sqrt(n)) has a variance of 1 / (3 n)
        for one in examine(net("vgg13/2", init), x, labels).layers[1:]:
            assert one.gain == pytest.approx(expected, rel=0.02), one.name


def test_dead_relus_are_counted():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)
    )  # fmt: skip
    with torch.no_grad():
        network[0].bias.copy_(torch.tensor([-99.0, 99, -99, -99]))
        network[3].weight.zero_()
        network[3].bias.copy_(torch.tensor([-1.0, 1, 1, 1, 1]))
    x, labels = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 1])
    assert [one.dead for one in examine(network, x, labels).layers] == [0.75, pytest.approx(0.2), None]
    assert [one.name for one in examine(network, x, labels).layers] == ["0", "3", "5"]
    with torch.no_grad():
        network[0].bias.fill_(-99.0)
        network[0].weight.zero_()
    diagnosis = examine(network, x, labels)
    assert diagnosis.layers[0].dead == 1.0
    assert "more than 75% of the ReLUs are dead in 0," in diagnosis.findings[-1]


def test_a_network_that_gives_all_images_the_same_output_stalls(batch):
    network = net("vgg11/8")
    network.block4.conv4_1.weight.data.zero_()
    for settings in (PAPERS, {"optimizer": "adamw"}):
        diagnosis = examine(network, *batch, **settings)
        assert diagnosis.verdict == "stalls"
        assert layer(diagnosis, "conv4_2").contrast == layer(diagnosis, "fc8").contrast == 0
    assert diagnosis.findings[0].startswith("fc8 is the same for all images")


def test_the_plateau_is_in_steps_of_the_optimizer(batch):
    network = net("vgg11/8", "xavier")
    one = examine(network, *batch, learning_rate=0.01).plateau
    assert examine(network, *batch, learning_rate=0.02).plateau == pytest.approx(one / 2)
    assert examine(network, *batch, **PAPERS).plateau == pytest.approx(one / 10)
    for plateau, verdict in ((50, "learns"), (500, "slow"), (5000, "stalls")):
        diagnosis = examine(network, *batch, learning_rate=0.01 * one / plateau)
        assert diagnosis.plateau == pytest.approx(plateau)
        assert diagnosis.verdict == verdict
    assert examine(network, *batch, optimizer="adamw", learning_rate=1e-3).plateau < one / 100


def test_the_scale_of_weights_in_front_of_a_batch_norm_says_nothing(batch):
    network = net("vgg11_bn/8")
    plateau = examine(network, *batch).plateau
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data *= 8
    assert examine(network, *batch).plateau == pytest.approx(plateau, rel=1e-3)


def test_steps_that_are_too_long_are_said(batch):
    diagnosis = examine(net("vgg11/8"), *batch, learning_rate=1.0)
    assert diagnosis.verdict == "overshoots"
    lower = float(diagnosis.findings[0].partition("--learning-rate ")[2])
    assert examine(net("vgg11/8"), *batch, learning_rate=lower / 2).verdict == "learns"


def test_what_is_not_finite_is_named(batch):
    network = net("vgg11/8")
    network.block3.conv3_1.weight.data[0, 0, 0, 0] = math.inf
    diagnosis = examine(network, *batch)
    assert diagnosis.verdict == "not finite"
    assert diagnosis.findings == ("the output of conv3_1 is not finite, try --init kaiming",)


def test_the_network_stays_as_it_is(batch):
    network = net("vgg11_bn/16")
    network(batch[0]).sum().backward()
    network.block2.eval()
    network.fc6.weight.requires_grad_(False)
    network.fc7.register_forward_hook(lambda *_: None)
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    parts = [(m, m.training, len(m._forward_hooks), len(m._backward_hooks)) for m in network.modules()]
    flags = [(p.requires_grad, p.data_ptr()) for p in network.parameters()]
    random_state = torch.get_rng_state()
    first, second = (examine(network, *batch) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), random_state)
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    assert all(torch.equal(p.grad, gradients[name]) for name, p in network.named_parameters())
    assert parts == [(m, m.training, len(m._forward_hooks), len(m._backward_hooks)) for m in network.modules()]
    assert flags == [(p.requires_grad, p.data_ptr()) for p in network.parameters()]


def test_the_baselines_are_examined_too(batch):
    images, labels = batch
    names = ["conv1", "conv2", "fc3", "fc4", "fc5"]
    diagnosis = examine(lenet(image_size=32), images, labels, learning_rate=0.9)
    assert [one.name for one in diagnosis.layers] == names
    assert [one.dead for one in diagnosis.layers] == [None] * 5  # sigmoids
    assert diagnosis.verdict != "stalls"  # the book's learning rate
    assert examine(lenet(image_size=32), images, labels, learning_rate=0.01).verdict == "stalls"
    small = alexnet(image_size=79)
    wide = F.interpolate(images[:8], size=79)
    assert layer(examine(small, wide, labels[:8], learning_rate=0.01), "conv5").dead is not None


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([0, 0, 0], {}, "expected an int64 label for each of the 3 images, of at least two classes"),
        ([0, 1], {}, r"for each of the 3 images, of at least two classes, got \(2,\)"),
        ([0, 1, 10], {}, r"expected labels below the 10 classes, got \[0, 1, 10\]"),
        ([0, 1, 2], {"momentum": 1.5}, "expected momentum to be a number from 0 to 1, got 1.5"),
        ([0, 1, 2], {"momentum": 0.9, "optimizer": "adamw"}, "expected no momentum with adamw"),
        ([0, 1, 2], {"optimizer": "adam"}, "expected optimizer to be one of sgd, adamw, got 'adam'"),
        ([0, 1, 2], {"learning_rate": math.nan}, "expected learning_rate to be a number from 0 to .*, got nan"),
    ],
)
def test_what_cannot_be_is_refused(labels, settings, message):
    network = net("1x4", hidden=())
    with pytest.raises(ValueError, match=message):
        examine(network, torch.rand(3, 1, 32, 32), torch.tensor(labels), **settings)
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())


def test_networks_and_images_that_do_not_fit_are_refused():
    for network, images, message in [
        (net("1x4", hidden=()), torch.rand(4, 3, 32, 32), r"expected images of shape \(batch, 1, 32, 32\), got"),
        (nn.Flatten(), torch.rand(4, 1, 2, 2), "of convolutions and fully connected layers .*got 0 such layers"),
        (nn.Sequential(nn.Conv2d(1, 2, 1)), torch.rand(4, 1, 8, 8), r"\(batch, classes\), got 1 .* and \(4, 2, 8, 8\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            examine(network, images, torch.arange(4) % 2)


NARROW = ("vgg19/8", "--data", "fashion-mnist-sample", "--image-size", "32", "--hidden", "64")


def test_vgg_doctor_shows_a_row_for_each_layer_in_80_columns(capsys):
    assert cli.main(["doctor", *NARROW, "--init", "torch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    shown = [line.split()[0] for line in lines if line.startswith(("conv", "fc"))]
    assert shown == [
        one.name for one in Architecture.parse("vgg19", hidden=(64,)).layers() if one.kind in ("conv", "fc")
    ]
    assert any(line.startswith("stalls: ") for line in lines)
    assert any("try --init kaiming" in line for line in lines)


def test_vgg_doctor_as_json_examines_what_vgg_train_would_start_with(capsys):
    assert cli.main(["doctor", *NARROW, "--seed", "3", "--batch-size", "6", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    sample = load("fashion-mnist-sample")
    chosen = epoch_order(2000, 3, 1)[:6]
    torch.manual_seed(3)
    network = build(as_network("vgg19/8", in_channels=1, num_classes=10, image_size=32, hidden=(64,)))
    x = Preprocessing(32, 1, (0.0,), (1.0,))(torch.from_numpy(sample.train_images)[chosen].unsqueeze(1))
    diagnosis = examine(network, x, torch.from_numpy(sample.train_labels).long()[chosen])
    assert printed["verdict"] == diagnosis.verdict
    for one, other in zip(diagnosis.layers, printed["layers"], strict=True):
        assert other["gradient"] == pytest.approx(one.gradient, rel=1e-3)
        assert other["name"] == one.name


def test_vgg_doctor_examines_a_warm_start_and_json_has_no_nan(capsys, tmp_path):
    architecture = replace(net("vgg11/8", hidden=(64,)).architecture)
    source = VGG(architecture)
    source.fc6.weight.data.fill_(3e38)  # which overflows
    save_weights(tmp_path / "model.safetensors", source, {})
    assert cli.main(["doctor", *NARROW, "--warm-start", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert printed["verdict"] == "not finite"
    assert printed["loss"] is None
    assert cli.main(["doctor", *NARROW, "--warm-start", str(tmp_path)]) == 0
    assert "- the output of fc6 is not finite" in capsys.readouterr().out


def test_vgg_doctor_leaves_out_bad_images_only_when_told(tmp_path, capsys):
    write(tmp_path, [f"{name}/{index}.png" for name in "ab" for index in range(5)])
    (tmp_path / "a" / "0.png").write_text("not an image")
    command = [
        "doctor",
        "vgg11/64",
        "--data",
        str(tmp_path),
        *["--image-size", "32", "--hidden", "8", "--batch-size", "8"],
    ]
    assert cli.main(command) == 2
    assert "a/0.png: expected a PNG" in (err := capsys.readouterr().err) and "try --bad-images skip" in err
    assert cli.main([*command, "--bad-images", "skip"]) == 0
    assert capsys.readouterr().out.startswith("vgg11/64, init kaiming: 7 images of ")


def test_other_peoples_norms_and_dropouts_are_known():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout2d(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Linear(16, 4),
    )  # fmt: skip
    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8) % 4
    with torch.no_grad():  # as somebody may look at a network
        first, second = (examine(net, images, labels) for _ in range(2))
    assert first == second
    assert [layer.is_normalized for layer in first.layers] == [False, True, False]
