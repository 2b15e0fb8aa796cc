"""The same weights in another network: the logits decide."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights.test_translation import relative_error
from vggkit import (
    VGG,
    Architecture,
    ArchitectureError,
    Preprocessing,
    fold_preprocessing,
    with_common_scale,
    with_head,
    with_image_size,
    with_in_channels,
)  # fmt: skip
from vggkit.weights.files import load_weights, save_weights


def network(notation="1x4 2x6_bn", **options):
    torch.manual_seed(0)
    options = {"in_channels": 3, "num_classes": 5, "image_size": 14, "hidden": (12, 9), **options}
    net = VGG(Architecture.parse(notation, **options)).double().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.bias)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter)
    return net


def images(channels=3, size=14):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("hidden", [(), (7,), (12, 9)])
@pytest.mark.parametrize("image_size", [12, 14, 15])
@torch.no_grad()
def test_flatten_and_conv_have_equal_logits_both_ways(hidden, image_size):
    net = network(hidden=hidden, image_size=image_size)
    x = images(size=image_size)
    conv = with_head(net, "conv")
    back = with_head(conv, "flatten")
    assert relative_error(conv(x), net(x)) < 1e-12
    assert back.architecture == net.architecture
    for name, tensor in net.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
    assert relative_error(with_head(net, "adaptive")(x), net(x)) < 1e-12
    with pytest.raises(ValueError, match="with the head adaptive, conv or gap takes any"):
        net(images(size=image_size + 8))


@torch.no_grad()
def test_conv_is_the_mean_of_the_flat_network_over_all_places():
    """The paper's dense evaluation, by hand: the blocks once, then every 3x3 window of the map through the head."""
    net = network(image_size=12)
    dense = with_head(net, "conv")
    x = images(size=23)
    maps = net[:2](x)
    assert maps.shape[-2:] == (5, 5)
    windows = [net[2:](maps[:, :, i : i + 3, j : j + 3]) for i in range(3) for j in range(3)]
    assert relative_error(dense(x), torch.stack(windows).mean(dim=0)) < 1e-12


def test_heads_that_cannot_be_had_are_refused():
    net = network()
    with pytest.raises(ArchitectureError, match="got flatten to gap, try a new network, and train it"):
        with_head(net, "gap")
    larger = VGG(Architecture.parse("1x4 1x4", image_size=64, head="conv", pooled_size=3, hidden=()))
    with pytest.raises(ArchitectureError, match="image_size from 12 to 15 for flatten, .* map of 3x3, got 64"):
        with_head(larger, "flatten")


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (3, 4), (4, 3), (3, 7), (5, 2), (3, 3)])
@torch.no_grad()
def test_channels_that_go_together_give_the_same_logits(old, new):
    net = network(in_channels=old)
    other = with_in_channels(net, new)
    few = images(channels=min(old, new))
    x_old, x_new = (few[:, torch.arange(n) % min(old, new)] for n in (old, new))
    assert relative_error(other(x_new), net(x_old)) < 1e-12
    assert other.architecture.in_channels == new


@settings(deadline=None, max_examples=20)
@given(
    st.tuples(*[st.floats(-200, 200)] * 3),
    st.tuples(*[st.floats(0.1, 3)] * 3),
    st.sampled_from(["rgb", "bgr"]),
    st.sampled_from([1.0, 255.0]),
)
@torch.no_grad()
def test_a_folded_network_takes_rgb_in_0_1_exactly(mean, std, order, scale):
    net = network("1x4 1x4", image_size=12)
    preprocessing = Preprocessing(12, 3, mean, std, order=order, scale=scale)
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    means, stds = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std))
    expected = net(((x[:, [2, 1, 0]] if order == "bgr" else x) * scale - means) / stds)  # without Preprocessing
    assert relative_error(fold_preprocessing(net, preprocessing)(x), expected) < 1e-11
    assert relative_error(net(preprocessing.normalize(x)), expected) < 1e-12


@torch.no_grad()
def test_a_folded_network_is_saved_and_loaded(tmp_path):
    net = network("1x4 1x4_bn", image_size=12).float()
    caffe = Preprocessing(12, 3, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0), order="bgr", scale=255.0)
    folded = fold_preprocessing(net, caffe)
    save_weights(tmp_path / "folded.safetensors", folded, {})
    loaded, _ = load_weights(tmp_path / "folded.safetensors")
    x = torch.rand(2, 3, 12, 12)
    assert torch.equal(loaded(x), folded(x))
    with pytest.raises(ArchitectureError, match="without folded preprocessing"):
        fold_preprocessing(loaded, caffe)
    with pytest.raises(ArchitectureError, match="try the channels first"):
        with_in_channels(loaded, 1)
    for change in (fold_preprocessing, with_common_scale):
        with pytest.raises(ArchitectureError, match="of 1 channels, as the preprocessing has, got one of 3"):
            change(net, caffe.for_channels(1))


@torch.no_grad()
def test_one_mean_and_std_change_only_the_border():
    net = network("2x4 1x4", image_size=12)
    published = Preprocessing(12, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    same, common = with_common_scale(net, published)
    assert len(set(common.mean)) == len(set(common.std)) == 1
    before = net.features(published.normalize(x), ["conv1_1"])["conv1_1"]
    after = same.features(common.normalize(x), ["conv1_1"])["conv1_1"]
    assert relative_error(after[..., 1:-1, 1:-1], before[..., 1:-1, 1:-1]) < 1e-12
    assert relative_error(after, before) > 1e-3
    grey = with_in_channels(same, 1)
    g = torch.rand(2, 1, 12, 12, dtype=torch.float64)
    one = grey.features(common.for_channels(1).normalize(g), ["conv1_1"])["conv1_1"]
    three = net.features(published.normalize(g.expand(-1, 3, -1, -1)), ["conv1_1"])["conv1_1"]
    assert relative_error(one[..., 1:-1, 1:-1], three[..., 1:-1, 1:-1]) < 1e-12


@torch.no_grad()
def test_another_size_has_the_same_weights():
    net = with_head(network(), "conv")
    larger = with_image_size(net, 40)
    assert larger.architecture.image_size == 40
    x = images(size=40)
    assert torch.equal(larger(x), net(x))
    with pytest.raises(ArchitectureError, match="expected the image_size 14 for flatten, .*got 40, try the heads"):
        with_image_size(network(), 40)


def test_the_first_network_is_left_as_it_was_and_batch_norms_stay_frozen():
    net = network().train()
    norms = [module.eval() for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for other in (with_head(net, "conv"), with_in_channels(net, 1)):
        assert other.training and all(parameter.requires_grad for parameter in other.parameters())
        assert [m.training for m in other.modules() if isinstance(m, torch.nn.BatchNorm2d)] == [False] * len(norms)
        with torch.no_grad():
            for tensor in other.state_dict().values():
                tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
