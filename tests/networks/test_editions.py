"""The listings of the chapter's editions, typed in as they are printed, with our names imported."""

import torch
from torch import nn

from vggkit import vgg, vgg_block

ROWS = [(64, 112), (128, 56), (256, 28), (512, 14), (512, 7)]


def shapes(net, X):  # noqa: N803
    found = []
    for blk in net:
        X = blk(X)
        found.append(tuple(X.shape))
    return found


def test_the_pytorch_edition():
    conv_arch = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
    ratio = 4
    small_conv_arch = [(pair[0], pair[1] // ratio) for pair in conv_arch]
    net = vgg(small_conv_arch)
    X = torch.randn(size=(1, 1, 224, 224))
    assert shapes(net, X)[:6] == [(1, channels // 4, side, side) for channels, side in ROWS] + [(1, 6272)]


def test_the_gluon_edition():
    """The number of outputs comes second; blocks know their input channels from the first batch."""
    conv_arch = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
    assert vgg(conv_arch, 1000).fc8.out_features == 1000
    ratio = 4
    small_conv_arch = [(pair[0], int(pair[1] / ratio)) for pair in conv_arch]
    net = vgg(small_conv_arch, 10)
    assert net.fc8.out_features == 10
    blk = nn.Sequential()
    for num_convs, num_channels in small_conv_arch:
        blk.append(vgg_block(num_convs, num_channels))
    expected = [(1, channels // 4, side // 4, side // 4) for channels, side in ROWS[:3]]
    assert shapes(blk, torch.randn(1, 1, 56, 56))[:3] == expected


def test_the_edition_with_lazy_layers():
    """The class of release 1.0, of torch's own lazy layers around our block."""

    class VGG(nn.Module):
        def __init__(self, arch, num_classes=10):
            super().__init__()
            conv_blks = []
            for num_convs, out_channels in arch:
                conv_blks.append(vgg_block(num_convs, out_channels))
            self.net = nn.Sequential(
                *conv_blks, nn.Flatten(),
                nn.LazyLinear(4096), nn.ReLU(), nn.Dropout(0.5),
                nn.LazyLinear(4096), nn.ReLU(), nn.Dropout(0.5),
                nn.LazyLinear(num_classes))  # fmt: skip

        def forward(self, X):  # noqa: N803
            return self.net(X)

    model = VGG(arch=((1, 16), (1, 32), (2, 64), (2, 128), (2, 128)))
    X = torch.randn(2, 1, 64, 64)
    assert model(X).shape == (2, 10)
    ours, theirs = vgg_block(2, 32, 64), model.net[2]
    assert list(theirs.state_dict()) == list(ours.state_dict())  # the same names
    ours.load_state_dict(theirs.state_dict())  # and the same shapes
    Y = torch.randn(1, 32, 8, 8)
    assert torch.equal(ours(Y), theirs(Y))
