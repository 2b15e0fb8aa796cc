"""Images by gradient descent on pixels: a photo in the style of a picture, and a photo that excites a layer.

Sources: Gatys, Ecker & Bethge, CVPR 2016 (style), and Gatys et al., arXiv 1611.07865 (from coarse to fine, original
colours); Mordvintsev, Olah & Tyka, "Inceptionism: Going Deeper into Neural Networks", 2015 (dreams).
"""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vggkit.data.images import decoded, pixels_of
from vggkit.engines.accelerate import accelerate
from vggkit.errors import UserError, WeightsError, check_type
from vggkit.inference.images import AnyImage, content_of
from vggkit.inference.perceptual import gram_matrix
from vggkit.inference.predict import AnyModel, Classifier, load_classifier
from vggkit.networks.vgg import VGG
from vggkit.weights.files import AnyNetwork

STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
CONTENT_LAYERS = (*STYLE_LAYERS[:4], "relu4_2")  # the last one that the network has

MIN_SIDE, MAX_SIDE = 32, 4096
"""Limits of the longer side of an image, in pixels."""
OCTAVE, MAX_OCTAVES = 1.4, 15
"""Of dreams: the ratio of successive sizes, and the number of sizes that fit within these limits."""
RATE = 0.01
"""Of dreams: the mean change of a pixel in a step, for pixels in [0, 1]."""
MOST_SHIFT = 16
"""Of dreams: the largest shift in pixels before each step, against artefacts of the pooling grid."""

Report = Callable[[str], None]
Maps = Callable[[Tensor, Sequence[str]], dict[str, Tensor]]
"""From images in [0, 1] and names of layers to their outputs."""


def stylize(
    model: AnyModel,
    content: AnyImage,
    style: AnyImage,
    *,
    sizes: Sequence[int] = (256, 512),
    steps: int = 100,
    style_weight: float = 5.0,
    average_pooling: bool = False,
    report: Report = lambda line: None,
) -> Image.Image:
    """The photo `content` in the style of the picture `style`, by L-BFGS on the pixels.

    The loss is the squared error of the maps of relu4_2 from the photo's, plus `style_weight` times that of the Gram
    matrices of relu1_1 to relu5_1 from the picture's, both relative, so that the scale of the weights does not matter.
    In a shallower network, the style layers are those of these that it has, and the content layer is the last of
    relu1_1 to relu4_1.

    Args:
        model: as for `predict`; a VGG.
        content: one image, as for `predict`.
        style: one image, as for `predict`.
        sizes: of the longer side of both images, in pixels: the first starts from the photo, each further one from the
            result of the previous.
        steps: evaluations of the network by L-BFGS at each size.
        style_weight: above 0.
        average_pooling: replace the max pools by average pools, as the authors propose.
        report: called with a line after each step.

    Raises:
        DataError: as for `predict`.
        WeightsError: as for `predict`, or the errors are not finite.
        ValueError: a value out of range, or the network is no VGG.
    """
    classifier = load_classifier(model)
    maps = _feature_function(classifier, average_pooling)
    content_layer = _layers_in(classifier.net, CONTENT_LAYERS)[-1]
    style_layers = _layers_in(classifier.net, STYLE_LAYERS)
    layers = f"of {content_layer}, and of relu1_1 to {style_layers[-1]}"
    _check_sizes_and_steps(sizes, steps)
    check_type(style_weight, int | float, "a style weight", "5")
    if not 0 < style_weight < float("inf"):
        raise UserError(f"expected a style weight above 0, got {style_weight}, try 5")

    def say(line: str) -> None:
        report(f"{line} ({layers})")

    photo, picture = (_decoded(image, classifier, name) for image, name in ((content, "content"), (style, "style")))
    painted = _pixels_of_size(photo, sizes[0], classifier)
    for size in sizes:
        small = _pixels_of_size(photo, size, classifier)
        errors = _style_errors(maps, content_layer, style_layers, small, _pixels_of_size(picture, size, classifier))
        painted = _minimized(_resized(painted, small.shape[-2:]), errors, style_weight, steps, say)
    return _to_image(painted)


def with_colours_of(painted: Image.Image, photo: AnyImage) -> Image.Image:
    """The luminance of `painted` with the colours of `photo`, resized to it."""
    content, name = content_of(photo, "the photo")
    colours = decoded(content, 3, name).resize(painted.size, Image.Resampling.LANCZOS).convert("YCbCr").split()
    return Image.merge("YCbCr", (painted.convert("YCbCr").getchannel(0), *colours[1:])).convert("RGB")


@torch.enable_grad()
def dream(
    model: AnyModel,
    image: AnyImage,
    *,
    layer: str | None = None,
    size: int = 512,
    octaves: int = 4,
    steps: int = 10,
    report: Report = lambda line: None,
) -> Image.Image:
    """`image`, changed by gradient ascent at several sizes so that a layer responds more strongly.

    Args:
        model: as for `predict`; a VGG.
        image: one image, as for `predict`.
        layer: the layer whose mean square is increased; by default relu5_1, or the last of relu1_1 to relu4_1.
        size: of the longer side, in pixels.
        octaves: number of sizes, each 1.4 times the previous; the last one is `size`.
        steps: of gradient ascent at each size.
        report: called with a line after each step.

    Raises:
        DataError: as for `predict`.
        WeightsError: as for `predict`, or the gradient is not finite.
        ValueError: a value out of range, or an unknown layer.
    """
    classifier = load_classifier(model)
    maps = _feature_function(classifier)
    layer = layer or _layers_in(classifier.net, STYLE_LAYERS)[-1]
    sizes = _octaves(size, octaves)
    _check_sizes_and_steps(sizes, steps)
    photo, generator = _decoded(image, classifier, "the image"), torch.Generator().manual_seed(0)
    x = small = _pixels_of_size(photo, sizes[0], classifier)
    for side in sizes:
        before, small = small, _pixels_of_size(photo, side, classifier)
        x = small + _resized(x - before, small.shape[-2:])
        for step in range(1, steps + 1):
            shift = torch.randint(-MOST_SHIFT, MOST_SHIFT + 1, (2,), generator=generator).tolist()
            moved = x.roll(shift, (2, 3)).requires_grad_()
            response = maps(moved, [layer])[layer].square().mean()
            (gradient,) = torch.autograd.grad(response, moved)
            _check_finite(gradient)
            gradient = gradient.roll([-shift[0], -shift[1]], (2, 3))
            x = (x + RATE * gradient / gradient.abs().mean().clamp_min(1e-12)).clamp(0, 1)
            report(f"{side} px, step {step}/{steps}: mean square of {layer} {response:.4g}")
    return _to_image(x)


def with_average_pools(net: VGG) -> VGG:
    """`net` with average pools instead of max pools; the parameters are shared."""
    with torch.device("meta"):
        other = VGG(net.architecture, init="torch")
    for path, layer in net.named_modules():
        if not list(layer.children()):
            parent, _, name = path.rpartition(".")
            setattr(other.get_submodule(parent), name, nn.AvgPool2d(2) if isinstance(layer, nn.MaxPool2d) else layer)
    return other.eval()


def _feature_function(classifier: Classifier, average_pooling: bool = False) -> Maps:
    """The outputs of the classifier's layers as a function of images in [0, 1], differentiable in the images only."""
    if not isinstance(classifier.net, VGG):
        raise UserError(f"expected a VGG network, got {classifier.net.architecture.name}")
    net = classifier.net.requires_grad_(False)
    fast = accelerate(with_average_pools(net) if average_pooling else net)
    return lambda x, layers: fast.features(classifier.preprocessing.normalize(x), layers)


def _layers_in(net: AnyNetwork, names: Sequence[str]) -> list[str]:
    """Those of `names` that are layers of `net`."""
    return [layer.name for layer in net.architecture.layers() if layer.name in names]


def _style_errors(
    maps: Maps, content_layer: str, style_layers: Sequence[str], photo: Tensor, picture: Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The relative errors of content and style, as a function of the image."""
    with torch.no_grad():
        content = maps(photo, [content_layer])[content_layer]
        grams = {name: gram_matrix(y) for name, y in maps(picture, style_layers).items()}

    def errors(x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = maps(x, [content_layer, *style_layers])
        style_errors = [_relative_error(gram_matrix(outputs[name]), gram) for name, gram in grams.items()]
        return _relative_error(outputs[content_layer], content), torch.stack(style_errors).mean()

    return errors


def _relative_error(value: Tensor, target: Tensor) -> Tensor:
    return (value - target).square().sum() / target.square().sum().clamp_min(1e-12)


def _minimized(
    start: Tensor, errors: Callable[[Tensor], tuple[Tensor, Tensor]], style_weight: float, steps: int, report: Report
) -> Tensor:
    x, num_done = start.clone().requires_grad_(), 0
    optimizer = torch.optim.LBFGS(
        [x], max_iter=steps, max_eval=steps, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        nonlocal num_done
        content, style = errors(x)
        value = content + style_weight * style
        (gradient,) = torch.autograd.grad(value, x)
        _check_finite(value, gradient)
        x.grad = gradient.contiguous()
        num_done = min(num_done + 1, steps)  # the last line search may take a few more
        report(f"{max(start.shape)} px, step {num_done}/{steps}: content error {content:.3f}, style error {style:.3f}")
        return value.detach()

    optimizer.step(loss)
    return x.detach().clamp_(0, 1)


def _octaves(size: int, octaves: int) -> list[int]:
    """The sizes of a dream, the smallest first; raises `UserError` if one is too small."""
    check_type(size, int, "a size in pixels", "512")
    check_type(octaves, int, "a number of octaves", "4")
    if not 1 <= octaves <= MAX_OCTAVES:
        raise UserError(f"expected octaves from 1 to {MAX_OCTAVES}, got {octaves}, try --octaves 4")
    sizes = [round(size / OCTAVE**number) for number in reversed(range(octaves))]
    if sizes[0] < MIN_SIDE <= size:
        fitting = sum(side >= MIN_SIDE for side in sizes)
        raise UserError(
            f"expected octaves of at least {MIN_SIDE} pixels, got {sizes[0]} as the first of {octaves} up to --size "
            f"{size}, try --octaves {fitting}"
        )
    return sizes


def _check_sizes_and_steps(sizes: Sequence[int], steps: int) -> None:
    check_type(sizes, Sequence, "sizes in pixels", "(256, 512)")
    check_type(steps, int, "a number of steps", "50")
    if not sizes or not all(isinstance(size, int) and MIN_SIDE <= size <= MAX_SIDE for size in sizes):
        raise UserError(f"expected sizes from {MIN_SIDE} to {MAX_SIDE} pixels, got {tuple(sizes)}, try 512")
    if steps < 1:
        raise UserError(f"expected steps from 1, got {steps}, try 50")


def _check_finite(*tensors: Tensor) -> None:
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise WeightsError("expected weights that give finite errors and gradients, got others, try other weights")


def _decoded(image: AnyImage, classifier: Classifier, name: str) -> Image.Image:
    content, name = content_of(image, name)
    return decoded(content, classifier.preprocessing.channels, name)


def _pixels_of_size(image: Image.Image, size: int, classifier: Classifier) -> Tensor:
    """`image` with a longer side of `size` pixels: float (1, channels, height, width) in [0, 1]."""
    width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
    pixels = pixels_of(image.resize((width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels).to(classifier.device).float()[None] / 255


def _resized(x: Tensor, shape: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(shape), mode="bicubic", align_corners=False)


def _to_image(x: Tensor) -> Image.Image:
    pixels = (255 * x[0]).round().byte().movedim(0, -1).cpu().numpy()
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
