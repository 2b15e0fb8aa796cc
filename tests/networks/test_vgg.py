import copy

import pytest
import torch
from torch import nn

from vggkit import VGG, Architecture, accelerate, init_weights, vgg, vgg_block

BOOK_13_LINES = """\
Sequential output shape:\t torch.Size([1, 64, 112, 112])
Sequential output shape:\t torch.Size([1, 128, 56, 56])
Sequential output shape:\t torch.Size([1, 256, 28, 28])
Sequential output shape:\t torch.Size([1, 512, 14, 14])
Sequential output shape:\t torch.Size([1, 512, 7, 7])
Flatten output shape:\t torch.Size([1, 25088])
Linear output shape:\t torch.Size([1, 4096])
ReLU output shape:\t torch.Size([1, 4096])
Dropout output shape:\t torch.Size([1, 4096])
Linear output shape:\t torch.Size([1, 4096])
ReLU output shape:\t torch.Size([1, 4096])
Dropout output shape:\t torch.Size([1, 4096])
Linear output shape:\t torch.Size([1, 10])
"""


def test_the_chapter_prints_its_13_lines(capsys):
    conv_arch = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
    net = vgg(conv_arch)
    X = torch.randn(size=(1, 1, 224, 224))
    for blk in net:
        X = blk(X)
        print(blk.__class__.__name__, "output shape:\t", X.shape)
    assert capsys.readouterr().out == BOOK_13_LINES


def test_a_block_prints_its_7_lines(capsys):
    with torch.device("meta"):  # which has shapes and computes nothing: here 200 billion multiplications
        blk = vgg_block(3, 256, 384)
        X = torch.randn(size=(1, 256, 224, 224))
    for layer in blk:
        X = layer(X)
        print(layer.__class__.__name__, "output shape:\t", X.shape)
    full, half = (f"output shape:\t torch.Size([1, 384, {size}, {size}])\n" for size in (224, 112))
    assert capsys.readouterr().out == f"Conv2d {full}ReLU {full}" * 3 + f"MaxPool2d {half}"


def books_vgg(conv_arch, in_channels, features):
    """The textbook network out of torch's own parts, as the oracle."""
    layers = []
    for num_convs, channels in conv_arch:
        for _ in range(num_convs):
            layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU()]
            in_channels = channels
        layers.append(nn.MaxPool2d(2, 2))
    hidden = [nn.Linear(features, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 24), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers, nn.Flatten(), *hidden, nn.Linear(24, 10))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradients_are_the_textbook_networks(memory_format):
    conv_arch = ((1, 6), (2, 8), (3, 12))
    ours = vgg(conv_arch, in_channels=3, image_size=37, hidden=(32, 24))
    theirs = books_vgg(conv_arch, 3, 12 * 4 * 4)
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        a.data.copy_(b.data)
    ours, theirs = ours.to(memory_format=memory_format), theirs.to(memory_format=memory_format)
    x = torch.randn(4, 3, 37, 37).to(memory_format=memory_format)
    outputs = []
    for net in (ours, theirs):
        torch.manual_seed(0)  # the same dropout
        outputs.append(net(x))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_a_hook_sees_a_convolution_before_its_relu():
    net = vgg("1x8 1x8", image_size=8, hidden=())
    seen = {}
    net.block1.conv1_1.register_forward_hook(lambda _m, _i, out: seen.update(conv=out))
    net.block1.relu1_1.register_forward_hook(lambda _m, _i, out: seen.update(relu=out))
    x = torch.randn(2, 1, 8, 8)
    net(x)
    assert torch.equal(seen["conv"], net.block1.conv1_1(x))
    assert (seen["conv"] < 0).any()
    assert torch.equal(seen["relu"], seen["conv"].relu())


def test_a_replaced_layer_is_used():
    net = vgg("1x8", image_size=8, hidden=())
    x = torch.randn(2, 1, 8, 8)
    net.block1.relu1_1 = nn.GELU()
    expected = net.fc2(net.flatten(net.block1.pool1(nn.functional.gelu(net.block1.conv1_1(x)))))
    assert torch.equal(net(x), expected)


def test_the_names_are_the_papers():
    keys = list(vgg("vgg16_bn/8").state_dict())
    assert keys[0] == "block1.conv1_1.weight"
    assert "block3.conv3_2.weight" in keys
    assert "block3.bn3_2.running_mean" in keys
    assert "block1.conv1_1.bias" in keys  # as the published _bn weights have it
    assert keys[-6:] == ["fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias", "fc8.weight", "fc8.bias"]


def test_a_slice_is_a_plain_sequential():
    net = vgg("1x8 2x8", image_size=8, hidden=())
    x = torch.randn(1, 1, 8, 8)
    assert type(net[:2]) is nn.Sequential
    assert net[:2](x).shape == (1, 8, 2, 2)
    assert net[0] is net.block1
    assert net[-1] is net.fc3


def test_lrn_is_alexnets():
    net = VGG(Architecture.parse("A-LRN", in_channels=1, num_classes=2, image_size=32, hidden=()))
    x = torch.rand(1, 7, 2, 2, dtype=torch.float64) * 100
    expected = torch.empty_like(x)
    for channel in range(7):
        squares = x[:, max(0, channel - 2) : channel + 3].square().sum(dim=1)
        expected[:, channel] = x[:, channel] / (2 + 1e-4 / 5 * squares) ** 0.75
    torch.testing.assert_close(net.block1.lrn1(x), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 3, 32, 32), (1, 1, 31, 32), (1, 1, 224, 224)])
def test_a_wrong_input_is_refused(shape):
    net = vgg("vgg11/16", image_size=32)
    with pytest.raises(ValueError, match=r"expected images of shape \(batch, 1, 32, 32\), got \["):
        net(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"expected images of shape \(batch, 1, 32, 32\), got 'photo.jpg'"):
        accelerate(net)("photo.jpg")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vgg(((1, 10**9),)), "channels from 1 to 65536"),
        (lambda: vgg_block(1, 1, 0), "channels from 1 to 65536, got 0"),
        (lambda: vgg_block(1, 0, 4), "in_channels from 1 to 65536, got 0"),
        (lambda: vgg_block(1, 3, 4, norm="bn"), "norm to be one of none, batch, got 'bn'"),
        (lambda: vgg(5), "expected a network, its text or its blocks, got 5"),
        (lambda: vgg("vgg11/16", init="he"), "expected init to be one of kaiming, xavier, paper, torch, got 'he'"),
        (lambda: VGG("lenet"), "expected a network of VGG blocks, got lenet, try build"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_allocated(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("init", "conv_std", "fc_std", "zero_bias"),
    [
        # variances from the definitions: fan_in 64 * 9 and 128 * 64, fan_out 128 * 9 and 512
        ("kaiming", (2 / 576) ** 0.5, (2 / 8192) ** 0.5, True),
        ("xavier", (2 / (576 + 1152)) ** 0.5, (2 / (8192 + 512)) ** 0.5, False),
        ("paper", 0.01, 0.01, True),
        ("torch", (1 / 576 / 3) ** 0.5, (1 / 8192 / 3) ** 0.5, False),
    ],
)
def test_each_initialisation_has_the_spread_of_its_definition(init, conv_std, fc_std, zero_bias):
    torch.manual_seed(0)
    net = vgg("1x64 1x128", image_size=32, hidden=(512,), init=init)
    conv, fc = net.block2.conv2_1, net.fc3
    assert conv.weight.std().item() == pytest.approx(conv_std, rel=0.02)
    assert fc.weight.std().item() == pytest.approx(fc_std, rel=0.02)
    assert conv.weight.mean().abs().item() < conv_std / 20
    assert (fc.bias.abs().max().item() == 0) == zero_bias
    if init == "xavier":
        assert conv.weight.abs().max().item() <= (6 / (576 + 1152)) ** 0.5


def test_kaiming_keeps_the_scale_through_19_layers_and_the_paper_does_not():
    x = torch.randn(8, 3, 32, 32)
    scales = {}
    for init in ("kaiming", "paper"):
        torch.manual_seed(0)
        net = vgg("vgg19/8", in_channels=3, image_size=32, hidden=(64, 64), dropout=0, init=init)
        scales[init] = net(x).std().item()
    assert 0.1 < scales["kaiming"] < 10
    assert scales["paper"] < 1e-6


def test_weights_can_be_drawn_anew():
    net = vgg("vgg11/16", image_size=32)
    before = copy.deepcopy(net.state_dict())
    init_weights(net, "torch")
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    init_weights(net, "kaiming")
    assert not torch.equal(before["fc8.weight"], net.fc8.weight)


def test_it_compiles_and_exports_to_the_same_numbers():
    net = vgg("1x4 2x8", image_size=8, hidden=(8,)).eval()
    x = torch.randn(2, 1, 8, 8)
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), net(x))
