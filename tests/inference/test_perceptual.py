import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.peers import peer
from vggkit import LPIPS, VGG, Architecture, PerceptualLoss, Preprocessing
from vggkit.errors import WeightsError
from vggkit.inference.perceptual import gram_matrix
from vggkit.weights.translation import architecture_of, entries

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return VGG(Architecture.parse("1x4 2x6 1x8", image_size=16, hidden=(4,))).double()


@pytest.fixture
def loss(net):
    return PerceptualLoss(
        net, Preprocessing(16, 3, MEAN, STD), content={"relu2_2": 1.5}, style={"conv1_1": 0.25, "relu2_1": 2.0}
    )


def by_hand(net, output, target):
    """The loss written out for this network, in loops where a sum is a sum."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))

    def maps(x):
        x = (x - mean) / std
        conv1_1 = net.block1.conv1_1(x)
        relu2_1 = net.block2.conv2_1(F.max_pool2d(conv1_1.relu(), 2)).relu()
        return conv1_1, relu2_1, net.block2.conv2_2(relu2_1).relu()

    def gram(y):
        _, channels, height, width = y.shape
        rows = [[(y[:, i] * y[:, j]).sum(dim=(1, 2)) for j in range(channels)] for i in range(channels)]
        return torch.stack([torch.stack(row) for row in rows]) / (channels * height * width)

    (conv_a, low_a, high_a), (conv_b, low_b, high_b) = maps(output), maps(target)
    content = ((high_a - high_b) ** 2).mean()
    style = 0.25 * ((gram(conv_a) - gram(conv_b)) ** 2).mean() + 2.0 * ((gram(low_a) - gram(low_b)) ** 2).mean()
    return 1.5 * content + style


def test_the_loss_and_its_gradient_are_those_written_by_hand(net, loss):
    target = torch.rand(2, 3, 20, 28, dtype=torch.float64)
    gradients, values = [], []
    for function in (loss, lambda output, target: by_hand(net, output, target)):
        output = torch.rand(2, 3, 20, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        output.requires_grad_()
        value = function(output, target)
        value.backward()
        values.append(value.detach())
        gradients.append(output.grad)
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-15)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_it_can_be_descended(loss):
    """An image of noise comes nearer to the target."""
    torch.manual_seed(0)
    target, output = torch.rand(1, 3, 16, 16).double(), torch.rand(1, 3, 16, 16).double().requires_grad_()
    optimizer = torch.optim.Adam([output], lr=0.02)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        value = loss(output, target)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] / 3


def test_nothing_behind_the_deepest_layer_runs(net, loss):
    net.block3.conv3_1 = nn.Conv2d(1, 1, 1)  # would fail
    loss(torch.rand(1, 3, 16, 16).double(), torch.rand(1, 3, 16, 16).double())


def test_what_cannot_be_compared_is_refused(net, loss):
    x = torch.rand(1, 3, 16, 16).double()
    with pytest.raises(
        ValueError, match=r"expected two batches of one shape and 3 channels, got \(1, 3, 16, 16\) and \(1, 3, 16, 8\)"
    ):
        loss(x, x[..., :8])
    preprocessing = Preprocessing(16, 3, MEAN, STD)
    with pytest.raises(ValueError, match="expected layers of the blocks of 1x4 2x6 1x8, got 'fc4'"):
        PerceptualLoss(net, preprocessing, content={"fc4": 1.0})
    with pytest.raises(ValueError, match="expected a layer in content or style, got none"):
        PerceptualLoss(net, preprocessing)


def test_training_what_it_is_part_of_leaves_its_network_alone():
    net = VGG(Architecture.parse("1x4 1x6_bn", image_size=16, hidden=()))
    model = nn.ModuleDict({"loss": PerceptualLoss(net, Preprocessing(16, 3, MEAN, STD), content={"bn2_1": 1.0})})
    output, target = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    before = model["loss"](output, target)
    model.train()
    assert torch.equal(model["loss"](output, target), before)
    assert not any(module.training for module in net.modules())


def test_a_gram_matrix_of_large_maps_fits_into_half_precision():
    with torch.autocast("cpu", torch.float16):
        gram = gram_matrix(torch.full((1, 4, 224, 224), 2.0))
    torch.testing.assert_close(gram.float(), torch.ones(1, 4, 4), rtol=0.01, atol=0)


@pytest.fixture(scope="module")
def lpips():
    """The package's own network with learned heads and random convolutions, and ours of the same."""
    package = peer("lpips")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, not ours
        theirs = package.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    net = VGG(architecture_of("torchvision", "vgg16", head="gap", num_classes=1))
    state = {name.split(".", 1)[1]: tensor for name, tensor in theirs.net.state_dict().items()}  # of slice1.0.weight
    table = {key: entry for key, entry in entries("torchvision", net.architecture).items() if key.startswith("block")}
    ours = {key: state[entry.name.removeprefix("features.")] for key, entry in table.items()}
    net.load_state_dict(ours, strict=False)
    return theirs, LPIPS(net, Preprocessing(224, 3, MEAN, STD), Path(package.__file__).parent / "weights/v0.1/vgg.pth")


@pytest.mark.parametrize("size", [(32, 32), (64, 51), (33, 100)])
def test_the_learned_distance_and_its_gradient_are_those_of_its_package(lpips, size):
    theirs, ours = lpips
    torch.manual_seed(1)
    target = torch.rand(2, 3, *size)
    outputs = [(0.7 * target + 0.3 * torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(2)))] * 2
    outputs = [output.clone().requires_grad_() for output in outputs]
    expected, got = theirs(outputs[0], target, normalize=True).flatten(), ours(outputs[1], target)
    assert expected.min() > 0.01
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    expected.sum().backward()
    got.sum().backward()
    torch.testing.assert_close(outputs[1].grad, outputs[0].grad, rtol=1e-3, atol=1e-6)


def test_equal_images_have_the_distance_0_and_a_gradient(lpips):
    """Also where all channels of a place are 0, whose length has no derivative."""
    output = torch.zeros(1, 3, 32, 32, requires_grad=True)
    distance = lpips[1](output, torch.zeros(1, 3, 32, 32))
    distance.sum().backward()
    assert distance.item() == 0
    assert output.grad.isfinite().all()


def test_heads_of_another_network_are_refused(lpips, net, tmp_path):
    folder = Path(peer("lpips").__file__).parent / "weights/v0.1"
    with pytest.raises(WeightsError, match=r"alex.pth: expected .*lin1.model.1.weight.*, as vgg16 asks, got lin0"):
        LPIPS(lpips[1].net, lpips[1].preprocessing, folder / "alex.pth")
    with pytest.raises(WeightsError, match="vgg.pth: expected .*, as 1x4 2x6 1x8 asks, got lin0"):
        LPIPS(net, Preprocessing(16, 3, MEAN, STD), folder / "vgg.pth")
