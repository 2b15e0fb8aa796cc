"""The methods of `explain`, a function each: from the network's input to maps, by plain autograd."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vggkit.errors import UserError, nearest, shown
from vggkit.inference.explain_names import Method
from vggkit.networks.vgg import VGG

NOISE, NOISY_IMAGES = 0.15, 25
"""Of `smoothgrad`: the standard deviation as a share of the image's range, as in its paper, and the copies."""
PATH_STEPS = 32
"""Of `integrated-gradients`: points of the Gauss-Legendre rule."""
WINDOWS_PER_SIDE = 7
"""Of `occlusion`: windows along a side of the image; in addition, windows overlap by half."""
GAMMA, STABILISER = 0.25, 1e-6
"""Of `lrp`."""


@dataclass(frozen=True)
class How:
    """The parameters of a method."""

    method: Method
    layer: str
    """For `OF_LAYERS`; empty for other methods."""
    low: Tensor
    """The network's input for black: (1, channels, 1, 1)."""
    high: Tensor
    """The network's input for white."""
    seed: int = 0


def vgg_of(net: nn.Module) -> VGG:
    """`net`; raises `ValueError` unless it is a VGG in evaluation mode."""
    if not isinstance(net, VGG):
        name = getattr(net, "architecture", net).name
        raise UserError(f"expected a VGG network, got {name}, try a model with VGG blocks")
    if any(module.training for module in net.modules()):
        raise UserError("expected a network in evaluation mode, got one in training mode, try net.eval()")
    return net


def layers_of(net: VGG) -> dict[str, nn.Module]:
    """All layers in order, by canonical name."""
    modules = {path.rpartition(".")[2]: module for path, module in net.named_modules()}
    return {layer.name: modules[layer.name] for layer in net.architecture.layers()}


def map_layers(net: VGG) -> list[str]:
    """The names of the layers of the blocks in order."""
    return [layer.name for layer in net.architecture.layers() if layer.part.startswith("block")]


def map_layer(net: VGG, name: str) -> str:
    """`name`; raises `ValueError` unless it is a layer of the blocks."""
    known = map_layers(net)
    if name not in known:
        close = nearest(name, known) or known[-2]
        blocks = net.architecture.name
        raise UserError(f"expected a layer of the blocks of {blocks}, got {shown(name)!r}, try {close}")
    return name


@torch.enable_grad()
def maps(net: VGG, x: Tensor, targets: Tensor, how: How) -> Tensor:
    """The maps of a batch `x`, (images, channels, height, width), and the classes `targets`, (images,).

    Returns:
        float32 (images, height, width).
    """
    return _MAPS[how.method](net, x.detach(), targets, how).detach().float()


def _score(logits: Tensor, targets: Tensor) -> Tensor:
    """(images,): the logit of each image's class."""
    return logits.gather(1, targets[:, None])[:, 0]


def _gradient(run: Callable[[Tensor], Tensor], x: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the targets' logits with respect to `x`; parameters get none."""
    x = x.detach().requires_grad_()
    gradient: Tensor = torch.autograd.grad(_score(run(x), targets).sum(), x)[0]
    return gradient


def _saliency(net: VGG, x: Tensor, targets: Tensor, how: How) -> Tensor:
    """Simonyan, Vedaldi & Zisserman, arXiv 1312.6034, section 3: the absolute gradient, its largest channel."""
    return _gradient(net, x, targets).abs().amax(dim=1)


def _smoothgrad(net: VGG, x: Tensor, targets: Tensor, how: How) -> Tensor:
    """Smilkov et al., arXiv 1706.03825: the gradient's mean over noisy copies of the image."""
    generator = torch.Generator().manual_seed(how.seed)  # on the CPU, so that every device gets the same noise
    spread = NOISE * (x.amax(dim=(1, 2, 3), keepdim=True) - x.amin(dim=(1, 2, 3), keepdim=True))
    noisy = (x + spread * torch.randn(x.shape, generator=generator).to(x) for _ in range(NOISY_IMAGES))
    total = sum(_gradient(net, image, targets) for image in noisy)
    return (torch.as_tensor(total) / NOISY_IMAGES).abs().amax(dim=1)


def _integrated_gradients(net: VGG, x: Tensor, targets: Tensor, how: How) -> Tensor:
    """Sundararajan, Taly & Yan, arXiv 1703.01365: the gradient's mean from the mean colour to the image, times it."""
    places, weights = np.polynomial.legendre.leggauss(PATH_STEPS)
    total = torch.zeros_like(x)
    for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
        total += weight * _gradient(net, place * x, targets)
    return (x * total).sum(dim=1)


def _output_and_gradient(net: VGG, x: Tensor, targets: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The output of a layer, and the gradient with respect to it."""
    layers = layers_of(net)
    modules, cut = [*layers.values()], [*layers].index(name) + 1
    with torch.no_grad():
        output = nn.Sequential(*modules[:cut])(x)
    return output, _gradient(nn.Sequential(*modules[cut:]), output, targets)


def _grad_cam(net: VGG, x: Tensor, targets: Tensor, how: How) -> Tensor:
    """Selvaraju et al., arXiv 1610.02391: a layer's maps, weighted by the gradient's mean over each."""
    output, gradient = _output_and_gradient(net, x, targets, how.layer)
    return _upsampled((gradient.mean(dim=(2, 3), keepdim=True) * output).sum(dim=1).relu(), x)


def _layer_cam(net: VGG, x: Tensor, targets: Tensor, how: How) -> Tensor:
    """Jiang et al., "LayerCAM", IEEE TIP 2021: a layer's maps, each place weighted by its own positive gradient."""
    output, gradient = _output_and_gradient(net, x, targets, how.layer)
    return _upsampled((gradient.relu() * output).sum(dim=1).relu(), x)


def _upsampled(small: Tensor, x: Tensor) -> Tensor:
    return F.interpolate(small[:, None], size=x.shape[-2:], mode="bilinear")[:, 0]


@torch.no_grad()
def _occlusion(net: VGG, x: Tensor, targets: Tensor, how: How) -> Tensor:
    """Zeiler & Fergus, arXiv 1311.2901, section 4.2: the mean drop of the logit over the windows that hide a pixel."""
    size = x.shape[-1]
    side = max(1, size // WINDOWS_PER_SIDE)
    starts = sorted({*range(0, size - side, max(1, side // 2)), size - side})
    score = _score(net(x), targets)
    drop, num_windows = torch.zeros_like(x[:, 0]), torch.zeros_like(x[0, 0])
    for top in starts:
        for left in starts:
            window = (..., slice(top, top + side), slice(left, left + side))
            hidden = x.clone()
            hidden[window] = 0
            drop[window] += (score - _score(net(hidden), targets))[:, None, None]
            num_windows[window] += 1
    return drop / num_windows


class _GuidedReLU(torch.autograd.Function):
    """A ReLU whose backward pass lets only positive gradients through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.relu() * (ctx.saved_tensors[0] > 0)


def _guided_backprop(net: VGG, x: Tensor, targets: Tensor, how: How) -> Tensor:
    """Springenberg et al., arXiv 1412.6806: the gradient, clipped to positive values at each ReLU."""
    guided: Callable[[Tensor], Tensor] = _GuidedReLU.apply

    def run(x: Tensor) -> Tensor:
        for layer in layers_of(net).values():
            x = guided(x) if isinstance(layer, nn.ReLU) else layer(x)
        return x

    return _gradient(run, x, targets).abs().amax(dim=1)


def _lrp(net: VGG, x: Tensor, targets: Tensor, how: How) -> Tensor:
    """Layer-wise relevance propagation: the logit is distributed over the inputs of each layer, back to the pixels.

    The rules are those that Montavon et al. ("Layer-Wise Relevance Propagation: An Overview", 2019) recommend for VGG:
    epsilon for fully connected layers, gamma for convolutions, z-box for the first. A batch norm is folded into its
    convolution; ReLU, dropout and local response normalisation pass relevance unchanged. Biases absorb their share.
    """
    layers, inputs = layers_of(net), list[Tensor]()
    with torch.no_grad():
        for layer in layers.values():
            inputs.append(x)
            x = layer(x)
    relevance = x * F.one_hot(targets, x.shape[1])
    in_blocks, norm = map_layers(net), None
    for (name, layer), a in zip(reversed(layers.items()), reversed(inputs), strict=True):
        if isinstance(layer, nn.BatchNorm2d):
            norm = layer
        elif isinstance(layer, nn.Conv2d) and name in in_blocks:
            weight, bias = _fused(layer, norm)
            plus, minus, positive = weight.clamp(min=0), weight.clamp(max=0), bias.clamp(min=0)
            terms = [(a, _conv_with(layer, weight + GAMMA * plus, bias + GAMMA * positive))]
            if name == in_blocks[0]:
                low, high = (-limit.expand_as(a) for limit in (how.low, how.high))
                low_term = low, _conv_with(layer, plus, -positive)
                high_term = high, _conv_with(layer, minus, positive - bias)
                terms = [(a, _conv_with(layer, weight, bias)), low_term, high_term]
            relevance, norm = _propagated(relevance, terms), None
        elif not isinstance(layer, nn.ReLU | nn.Dropout | nn.LocalResponseNorm):
            relevance = _propagated(relevance, [(a, layer)])
    return relevance.sum(dim=1)


def _fused(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor]:
    """The weight and bias of a convolution with its batch norm, if any, folded in."""
    weight, bias = conv.weight.detach(), torch.as_tensor(conv.bias).detach()
    if norm is None:
        return weight, bias
    parameters = (norm.running_mean, norm.running_var, norm.eps, norm.weight.detach(), norm.bias.detach())
    return fuse_conv_bn_weights(weight, bias, *parameters)


def _conv_with(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda a: functional_call(conv, {"weight": weight, "bias": bias}, (a,))


def _propagated(relevance: Tensor, terms: list[tuple[Tensor, Callable[[Tensor], Tensor]]]) -> Tensor:
    """The relevance of outputs, distributed over the inputs in proportion to their parts in the sum of all terms."""
    inputs = [a.detach().requires_grad_() for a, _ in terms]
    output: Any = sum(layer(a) for a, (_, layer) in zip(inputs, terms, strict=True))
    quotient = relevance / (output + STABILISER * torch.where(output < 0, -1, 1)).detach()
    gradients = torch.autograd.grad(output, inputs, quotient)
    return torch.stack([a * gradient for a, gradient in zip(inputs, gradients, strict=True)]).sum(dim=0).detach()


_MAPS: dict[str, Callable[[VGG, Tensor, Tensor, How], Tensor]] = {
    "grad-cam": _grad_cam,
    "layer-cam": _layer_cam,
    "saliency": _saliency,
    "smoothgrad": _smoothgrad,
    "integrated-gradients": _integrated_gradients,
    "occlusion": _occlusion,
    "lrp": _lrp,
    "guided-backprop": _guided_backprop,
}
