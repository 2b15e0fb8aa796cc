"""What a unit responds to: the image that maximises it, the patches that excite it most, the first layer's filters.

A unit is a channel of a layer of the blocks, or one output of a fully connected layer: `conv4_2:37`, `fc8:281`.
Source: Olah, Mordvintsev & Schubert, "Feature Visualization", Distill 2017.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggkit.design.costs import LayerCost
from vggkit.design.network import costs
from vggkit.errors import UserError, nearest, shown
from vggkit.inference.explain_methods import layers_of, map_layers, vgg_of
from vggkit.inference.images import Images, batches
from vggkit.inference.predict import AnyModel, load_classifier
from vggkit.networks.vgg import VGG

Pixels = npt.NDArray[np.uint8]
STEPS, LEARNING_RATE = 128, 0.05
NUM_PATCHES, BATCH_SIZE = 9, 32
COLOUR = 0.4
"""Of a maximised image: the weight of differences between channels, relative to their mean."""
CONTRAST = 1.5
"""Of a maximised image: its root mean square before the sigmoid that limits it to [0, 1]."""
DECAY = 1.5
"""Of a maximised image: the exponent of the frequency by which its spectrum is divided."""
PADDING_GREY = 128


class Unit(NamedTuple):
    """A unit of a network."""

    layer: LayerCost
    number: int
    is_map: bool
    """Whether it is a channel of a map, which sees a part of the image at each position."""


class Patch(NamedTuple):
    """A patch of an image, and the output of a unit for it."""

    image: str
    value: float
    pixels: Pixels
    """(side, side, channels): the receptive field, or the whole image, if that is smaller."""


def unit_of(net: VGG, text: str) -> Unit:
    """The unit named by a text such as `conv4_2:37`; raises `ValueError` if there is none."""
    name, _, number = text.partition(":")
    known = {layer.name: layer for layer in costs(net.architecture).layers}
    if name not in known:
        close = nearest(name, known) or map_layers(net)[-2]
        raise UserError(f"expected a unit of a layer of {net.architecture.name}, got {shown(text)!r}, try {close}:0")
    count = known[name].output_shape[1]
    if not (number.isdecimal() and len(number) < 9 and int(number) < count):
        raise UserError(f"expected a unit of {name} from 0 to {count - 1}, got {shown(text)!r}, try {name}:0")
    return Unit(known[name], int(number), name in map_layers(net))


def maximised(model: AnyModel, unit: str, seed: int = 0) -> Pixels:
    """The image that maximises a unit, by gradient ascent from noise; the same for the same seed.

    The ascent is on the spectrum, weighted towards low frequencies as in photographs, and the image is shifted by a few
    pixels in each step, so that the pattern does not depend on its position. A ReLU's unit is maximised before the
    ReLU, whose gradient may be zero.

    Args:
        model: a classifier, or what `load_classifier` takes.
        unit: a layer and a channel, such as `conv4_2:37`.
        seed: of the noise.

    Returns:
        uint8 (side, side, channels): the unit's receptive field plus the stride of its layer, at most the whole image.

    Raises:
        ValueError: no such unit.
    """
    classifier = load_classifier(model)
    net = vgg_of(classifier.net)
    layer, number, is_map = unit_of(net, unit)
    names, modules = zip(*layers_of(net).items(), strict=True)
    end = names.index(layer.name)
    layers = nn.Sequential(*modules[: end if isinstance(modules[end], nn.ReLU) else end + 1])
    arch, generator = net.architecture, torch.Generator().manual_seed(seed)
    side = min(layer.receptive_field + layer.stride, arch.image_size) if is_map else arch.image_size
    frequency = (
        torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]).clamp(min=1 / side) ** DECAY
    )
    spectrum = 0.01 * torch.randn(2, arch.in_channels, *frequency.shape, generator=generator)
    spectrum, frequency = spectrum.to(classifier.device).requires_grad_(), frequency.to(classifier.device)
    optimizer = torch.optim.Adam([spectrum], lr=LEARNING_RATE)
    for _ in range(STEPS):
        shift = torch.randint(-(side // 16), side // 16 + 1, (2,), generator=generator).tolist()
        with torch.enable_grad():
            image = _image(spectrum, frequency, side)
            output = layers(classifier.preprocessing.normalize(image.roll(shift, (2, 3))))[0, number]
            value = output[output.shape[0] // 2, output.shape[1] // 2] if is_map else output.mean()
            (spectrum.grad,) = torch.autograd.grad(-value, spectrum)
        optimizer.step()
    image = _image(spectrum.detach(), frequency, side)[0].movedim(0, -1)
    pixels: Pixels = (255 * image).round().byte().cpu().numpy()
    return pixels


def _image(spectrum: Tensor, frequency: Tensor, side: int) -> Tensor:
    """The image of a spectrum, (1, channels, side, side) in [0, 1], with a fixed contrast against saturation."""
    waves: Tensor = torch.fft.irfft2(torch.complex(*spectrum) / frequency, s=(side, side), norm="ortho")
    common = waves.mean(dim=0, keepdim=True)
    waves = common + COLOUR * (waves - common)
    return (CONTRAST * waves / waves.square().mean().sqrt()).sigmoid()[None]


@torch.no_grad()
def exciting_patches(model: AnyModel, unit: str, images: Images) -> list[Patch]:
    """The patches that excite a unit most, the most exciting first: at most one of an image, and 9 in all.

    Args:
        model: a classifier, or what `load_classifier` takes.
        unit: a layer and a channel, such as `conv4_2:37`.
        images: as for `predict`.

    Raises:
        DataError: an image is missing, is damaged or is none.
        ValueError: no such unit.
    """
    classifier = load_classifier(model)
    net = vgg_of(classifier.net)
    layer, number, is_map = unit_of(net, unit)
    best: list[Patch] = []
    for names, pixels in batches(images, classifier.preprocessing, BATCH_SIZE):
        x = classifier.preprocessing.scaled(pixels.to(classifier.device))
        output = classifier.fast.features(x, [layer.name])[layer.name][:, number].reshape(len(x), -1)
        values, places = output.max(dim=1)
        side = round(output.shape[1] ** 0.5)
        for name, value, place, image in zip(names, values.tolist(), places.tolist(), pixels, strict=True):
            patch = _cropped(image, layer, divmod(place, side)) if is_map else image
            best.append(Patch(name, value, patch.movedim(0, -1).numpy()))
        best = sorted(best, key=lambda patch: -patch.value)[:NUM_PATCHES]
    return best


def _cropped(image: Tensor, layer: LayerCost, position: tuple[int, int]) -> Tensor:
    """The receptive field of a position of a layer in an image (channels, height, width)."""
    side = layer.receptive_field
    if side >= image.shape[-1]:
        return image
    padded = F.pad(image, (side,) * 4, value=PADDING_GREY)
    # Convolutions are centred, and a pool's output is centred between its two pixels.
    top, left = (side + index * layer.stride + (layer.stride - side) // 2 for index in position)
    return padded[:, top : top + side, left : left + side].clone()


def first_filters(model: AnyModel) -> npt.NDArray[np.float32]:
    """The filters of the first convolution in [0, 1], where 0.5 is zero: (filters, height, width, channels), RGB."""
    classifier = load_classifier(model)
    first = next(module for module in classifier.net.modules() if isinstance(module, nn.Conv2d))
    weight = first.weight.detach().cpu()
    weight = weight.flip(1) if classifier.preprocessing.order == "bgr" else weight
    largest = weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    filters: npt.NDArray[np.float32] = (0.5 + 0.5 * weight / largest).movedim(1, -1).numpy()
    return filters
