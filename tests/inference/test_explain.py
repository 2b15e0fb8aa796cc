"""Maps against captum, pytorch-grad-cam and zennit with the same weights, and against what must hold of them."""

import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.peers import peer
from vggkit import VGG, Architecture, Classifier, Preprocessing, explain, lenet
from vggkit.inference.explain_names import Method
from vggkit.weights.surgery import with_head

pytestmark = pytest.mark.filterwarnings(
    "ignore:Input Tensor 0 did not", "ignore:Setting backward hooks on ReLU"
)  # captum's
METHODS = Method.__args__
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIXELS = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
NETWORKS = {
    "flatten": Architecture.parse("1x6 2x8", image_size=28, num_classes=5, hidden=(12, 9)),
    "bn, gap": Architecture.parse("2x6 1x8_bn", image_size=28, num_classes=5, head="gap"),
    "lrn, adaptive": Architecture.parse(
        "1x6+lrn 1x8k5 1x9", image_size=28, num_classes=5, hidden=(12,), head="adaptive", pooled_size=2
    ),
    "conv": Architecture.parse("1x6 2x8", image_size=28, num_classes=5, hidden=(12,), head="conv", pooled_size=7),
}


def model_of(arch, biases=0.1):
    torch.manual_seed(0)
    net = VGG(arch).eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.bias, 0, biases)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, biases)
    return Classifier(
        net,
        ("cat", "dog", "owl", "7", "Cow"),
        Preprocessing(arch.image_size, arch.in_channels, MEAN[: arch.in_channels], STD[: arch.in_channels]),
    )


@pytest.fixture(params=NETWORKS)
def model(request):
    return model_of(NETWORKS[request.param])


def input_of(model, pixels=PIXELS):
    return model.preprocessing.scaled(torch.from_numpy(pixels).movedim(-1, 0)[None])


def assert_alike(heat, expected, tolerance=1e-4):
    """The largest difference is at most `tolerance` of the largest value."""
    expected = np.asarray(expected.detach()[0] if isinstance(expected, torch.Tensor) else expected)
    assert np.abs(expected).max() > 0
    assert np.abs(heat - expected).max() <= tolerance * np.abs(expected).max()


@pytest.fixture
def grad_cam(monkeypatch):
    """pytorch-grad-cam; what it takes from OpenCV, which is large, is one function."""

    def resize(image, size):
        return F.interpolate(torch.from_numpy(image)[None, None], size=size[::-1], mode="bilinear")[0, 0].numpy()

    try:
        import cv2  # noqa: F401
    except ImportError:
        monkeypatch.setitem(sys.modules, "cv2", MagicMock(resize=resize))
    return peer("pytorch_grad_cam")


@pytest.mark.filterwarnings("ignore")  # the peer's
@pytest.mark.parametrize("layer", [None, "relu1_1", "conv2_1"])
@pytest.mark.parametrize("method", ["grad-cam", "layer-cam"])
def test_the_cams_are_those_of_pytorch_grad_cam(model, method, layer, grad_cam):
    explanation = explain(model, PIXELS, method, 2, layer)
    modules = dict(model.net.named_modules())
    module = next(modules[path] for path in modules if path.endswith(f".{explanation.layer}"))
    peers = {"grad-cam": grad_cam.GradCAM, "layer-cam": grad_cam.LayerCAM}
    target = sys.modules["pytorch_grad_cam.utils.model_targets"].ClassifierOutputTarget(2)
    with peers[method](model.net, [module]) as cam:
        expected = cam(input_of(model), [target])[0]
    heat = explanation.heat - explanation.heat.min()  # the peer's maps are scaled to [0, 1]
    assert_alike(heat / heat.max(), expected)
    model.net.zero_grad()


def test_the_default_layer_is_the_last_relu_of_the_blocks(model):
    names = [layer.name for layer in model.net.architecture.layers() if layer.part.startswith("block")]
    assert explain(model, PIXELS).layer == [name for name in names if name.startswith("relu")][-1]
    assert explain(model, PIXELS, "saliency").layer is None


def test_gradients_are_those_of_captum(model):
    attr = peer("captum.attr")
    x = input_of(model)
    assert_alike(explain(model, PIXELS, "saliency", 2).heat, attr.Saliency(model.net).attribute(x, target=2).amax(1))
    expected = attr.IntegratedGradients(model.net).attribute(x, target=2, n_steps=32, method="gausslegendre").sum(1)
    assert_alike(explain(model, PIXELS, "integrated-gradients", 2).heat, expected)
    expected = attr.Occlusion(model.net).attribute(x, (3, 4, 4), (3, 2, 2), target=2)[:, 0]
    assert_alike(explain(model, PIXELS, "occlusion", 2).heat, expected)


def test_guided_backprop_is_captums(model):
    attr = peer("captum.attr")
    expected = attr.GuidedBackprop(model.net).attribute(input_of(model), target=2)
    assert_alike(explain(model, PIXELS, "guided-backprop", 2).heat, expected.abs().amax(1))


def test_smoothgrad_is_captums_up_to_the_noise(monkeypatch):
    attr = peer("captum.attr")
    model = model_of(NETWORKS["flatten"])
    monkeypatch.setattr("vggkit.inference.explain_methods.NOISY_IMAGES", 400)
    x = input_of(model)
    smooth = attr.NoiseTunnel(attr.Saliency(model.net))
    stdev = 0.15 * (x.max() - x.min()).item()
    expected = smooth.attribute(
        x, nt_type="smoothgrad", nt_samples=400, nt_samples_batch_size=100, stdevs=stdev, target=2, abs=False
    )
    heat = explain(model, PIXELS, "smoothgrad", 2).heat
    assert_alike(heat, expected.abs().amax(1), 0.15)
    assert np.array_equal(heat, explain(model, PIXELS, "smoothgrad", 2).heat)
    assert not np.array_equal(heat, explain(model, PIXELS, "smoothgrad", 2, seed=1).heat)


@pytest.mark.parametrize("name", ["flatten", "bn, gap"])
def test_relevance_is_zennits(name):
    peer("zennit")
    composites, canonizers = peer("zennit.composites"), peer("zennit.canonizers")
    model = model_of(NETWORKS[name])
    low, high = (model.preprocessing.normalize(torch.full((1, 3, 28, 28), end)) for end in (0.0, 1.0))
    composite = composites.EpsilonGammaBox(low, high, canonizers=[canonizers.SequentialMergeBatchNorm()])
    x = input_of(model).requires_grad_()
    with composite.context(model.net) as net:
        output = net(x)
        (relevance,) = torch.autograd.grad(output, x, output * F.one_hot(torch.tensor([2]), 5))
    assert_alike(explain(model, PIXELS, "lrp", 2).heat, relevance.sum(1))


def test_relevance_does_not_depend_on_how_the_head_is_written():
    model = model_of(NETWORKS["flatten"])
    for head in ("conv", "adaptive"):
        other = Classifier(with_head(model.net, head), model.classes, model.preprocessing)
        assert_alike(explain(other, PIXELS, "lrp", 2).heat, explain(model, PIXELS, "lrp", 2).heat)


@pytest.mark.parametrize("name", ["flatten", "lrn, adaptive", "conv"])
def test_without_biases_relevance_is_conserved(name):
    """Within 0.1%: the stabiliser keeps a little in each layer."""
    model = model_of(NETWORKS[name], biases=0)
    for target, logit in enumerate(model.net(input_of(model))[0].tolist()):
        assert explain(model, PIXELS, "lrp", target).heat.sum() == pytest.approx(logit, rel=1e-3)


def test_integrated_gradients_are_complete(model, monkeypatch):
    """They sum up to the logit less that of the mean colour: within 2% with 32 steps, 0.5% with 256."""
    x = input_of(model)
    with torch.no_grad():
        rise = (model.net(x) - model.net(0 * x))[0]
    target = int(rise.abs().argmax())
    for steps, tolerance in ((32, 0.02), (256, 0.005)):
        monkeypatch.setattr("vggkit.inference.explain_methods.PATH_STEPS", steps)
        total = explain(model, PIXELS, "integrated-gradients", target).heat.sum()
        assert total == pytest.approx(rise[target].item(), rel=tolerance)


def planted(place):
    """A classifier that finds a red square, and an image with one at `place` in grey noise."""
    net = VGG(Architecture.parse("1x2", image_size=28, num_classes=2, head="gap")).eval()
    conv, fc = net.block1.conv1_1, net.fc2
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        conv.weight[0] = torch.tensor([1.0, -0.5, -0.5]).view(3, 1, 1) / 9
        conv.bias[0] = -0.05
        fc.weight[1, 0] = 10
    image = np.random.default_rng(1).integers(100, 156, (28, 28, 1), np.uint8).repeat(3, axis=2)
    image[place, place] = (255, 0, 0)
    return Classifier(net, ("nothing", "square"), Preprocessing(28, 3, (0.5,) * 3, (0.5,) * 3)), image


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_object_is_found(method):
    model, image = planted(slice(16, 24))
    heat = np.abs(explain(model, image, method, "square").heat)
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert 15 <= y < 25 and 15 <= x < 25
    outside = np.ones_like(heat, bool)
    outside[15:25, 15:25] = False
    assert heat[~outside].mean() > 1.5 * heat[outside].mean()


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_gives_what_its_images_give_and_leaves_the_network_alone(model, method):
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    images = [np.roll(PIXELS, n, axis=0) for n in range(9 if method == "saliency" else 2)]  # in two batches
    with torch.no_grad():
        several = explain(model, images, method)
    for image, explanation in zip(images, several, strict=True):
        alone = explain(model, image, method)
        assert explanation.label == model(image)[0].label and explanation.heat.dtype == np.float32
        assert explanation.probability == pytest.approx(model(image)[0].probability, abs=1e-5)
        assert np.array_equal(explanation.pixels, image)
        if method != "smoothgrad":  # whose noise depends on the place in a batch
            assert_alike(explanation.heat, alone.heat)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.net.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.net.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.net.modules())
    assert torch.is_grad_enabled()


def test_a_class_may_be_named_in_every_way(model):
    numbers = {"OWL": 2, "7": 3, 3: 3, "4": 4, "cow": 4, 0: 0}
    assert [explain(model, PIXELS, target=target).target for target in numbers] == list(numbers.values())


REFUSED = {
    "method": ({"method": "gradcam"}, r"expected a method of grad-cam, .*, got 'gradcam', try grad-cam"),
    "class": ({"target": "owll"}, "expected a class of 5 classes .* or its number, got 'owll', try 'owl'"),
    "number": ({"target": 5}, "expected a class of 5 classes .* or its number, got '5'"),
    "layer": ({"layer": "relu22"}, "expected a layer of the blocks of .*, got 'relu22', try relu2_2"),
    "head": ({"layer": "fc3"}, "expected a layer of the blocks of .*, got 'fc3'"),
    "no layer": ({"layer": "relu1_1", "method": "lrp"}, "expected a layer only for grad-cam and layer-cam, got 'relu1_1' for lrp"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_explained_is_refused(case):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        explain(model_of(NETWORKS["flatten"]), PIXELS, **options)


def test_networks_that_cannot_be_explained_are_refused():
    model = model_of(NETWORKS["flatten"])
    model.net.train()
    with pytest.raises(ValueError, match="expected a network in evaluation mode, got one in training mode"):
        explain(model, PIXELS)
    other = Classifier(lenet().eval(), tuple("abcdefghij"), Preprocessing(28, 1, (0.5,), (0.5,)))
    with pytest.raises(ValueError, match="expected a VGG network, got lenet"):
        explain(other, PIXELS)
