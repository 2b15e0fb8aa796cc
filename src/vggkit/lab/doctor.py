"""Whether a network will learn from its initial weights, in seconds: one batch forward and backward, layer by layer.

A loss that stays at the entropy of the labels has one of these causes, each of which is measured and judged by theory:

- **The signal is lost.** Weights of a variance below 2 / fan_in shrink the signal (arXiv 1502.01852, equation 10), and
  biases dominate it, until all images give the same output up to rounding.
- **Steps too small.** While the weights of many layers are too small, the part of the logits that differs between
  images is a product of that many scales. It grows by the sum of their relative growths, exponentially: the plateau
  takes about 1 / (that sum in the first step) steps (Saxe et al., arXiv 1312.6120, section 1).
- **Steps too large.** On a parabola, steps of more than 4 x loss / |gradient|^2 diverge, with momentum slightly larger
  ones (Polyak, "Introduction to Optimization", 1987).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from vggkit.data.feed import Whole, network_input, open_feed
from vggkit.data.images import FittedImage
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import IGNORED_LABEL, ImageSource
from vggkit.design.architecture import Architecture
from vggkit.design.layers import Block
from vggkit.design.network import Network
from vggkit.errors import check_type
from vggkit.training.recipe import BadImages, Optimizer, Recipe

Verdict = Literal["learns", "slow", "stalls", "overshoots", "not finite"]

PATIENCE = 1_000
"""Steps within which the loss must fall: about two epochs of Fashion-MNIST in batches of 128. The length of a plateau
is known to a power of ten, so that a plateau between `PATIENCE` / 10 and `PATIENCE` is called `slow`."""

PLATEAU = 4.0
"""Length of a plateau in units of 1 / growth; above 1, as part of a batch's gradient is noise. Measured by
`benchmarks/doctor.py` on plateaus of SGD."""

OVERSHOOT = 4.0
"""The longest step that does not overshoot, in units of loss / |gradient|^2."""

ADAM_EPS, ADAM_LEARNING_RATE = 1e-8, 1e-3
"""torch's defaults. Adam's first step is g / (|g| + eps), which is small for gradients far below eps."""

DEAD = 0.75
"""The share of dead ReLUs in a layer above which it is reported; random weights give at most a half."""

PAPERS_A = (1, 1, 2, 2, 2)


@dataclass(frozen=True)
class LayerDiagnosis:
    """A convolution or fully connected layer, measured on the batch."""

    name: str
    """`conv3_2`, `fc6`; in a network that is not vggkit's, the path of the module."""
    output: float
    """Root mean square of its output, before batch norm and activation."""
    contrast: float
    """The share of the output that differs between images: rms(output - mean over the images) / rms(output), 0 to 1."""
    gradient: float
    """Root mean square of the loss's gradient in its weights."""
    relative_gradient: float
    """`gradient` / rms(weights)."""
    gain: float
    """sqrt(fan_in / 2) x rms(weights): the factor by which it scales a signal after a ReLU; 1 by Kaiming's init."""
    is_normalized: bool
    """Whether a batch norm follows."""
    dead: float | None
    """Share of its ReLU's channels or features that are 0 for every image and position; None without a ReLU."""


@dataclass(frozen=True)
class Diagnosis:
    """A network and its first steps of training, judged by one batch."""

    layers: tuple[LayerDiagnosis, ...]
    """In order of computation."""
    loss: float
    """Mean cross-entropy of the batch."""
    rounding: float
    """The rounding error of the last layer's `contrast`, at or below which the signal is lost."""
    plateau: float
    """Steps until the loss falls, to the order of magnitude; infinite without a gradient."""
    overshoot: float
    """The first step's length in units of loss / |gradient|^2, larger for a smaller batch; 0 where it does not apply:
    AdamW bounds its steps, and before a batch norm too long a step only makes the next ones shorter."""
    verdict: Verdict
    """Within `PATIENCE` steps the loss falls (`learns`), may fall (`slow`) or does not (`stalls`); or the first step is
    too long (`overshoots`). Steps that become too long after the plateau are not foreseen."""
    findings: tuple[str, ...]


def examine(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    optimizer: Optimizer = "sgd",
    learning_rate: float = 0.05,
    momentum: float = 0.0,
) -> Diagnosis:
    """Diagnose `net` on a batch, in training mode without dropout; `net` is not changed.

    The diagnosis is deterministic.

    Args:
        net: a network of convolutions, fully connected layers, ReLUs and batch norms, each used once.
        images: (batch, channels, height, width), as `net` takes them.
        labels: int64 (batch,), of at least two classes.
        optimizer: of the training.
        learning_rate: the highest one of the run.
        momentum: of SGD, 0 to 1; it lengthens steps by up to 1 / (1 - momentum).

    Raises:
        ValueError: invalid labels or settings, or images that `net` does not take.
    """
    check_type(net, nn.Module, "a network", "VGG('vgg11')")
    for tensor, what in ((images, "images (batch, channels, height, width)"), (labels, "labels (batch,)")):
        check_type(tensor, Tensor, f"a tensor of {what}", "first_batch(data, network, 32)")
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"expected float images (batch, channels, height, width), got {tuple(images.shape)} of {images.dtype}, try "
            "first_batch(data, network, 32)"
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64 or len(labels.unique()) < 2:
        raise ValueError(
            f"expected an int64 label for each of the {len(images)} images, of at least two classes, "
            f"got {tuple(labels.shape)} of {labels.dtype}: {labels.unique().tolist()[:9]}, try a larger --batch-size"
        )
    Recipe.named("quick", optimizer=optimizer, learning_rate=learning_rate, momentum=momentum)  # checks them
    forward, loss, weights, gradients, signal_gradients = _passes(net, images, labels)
    layers = tuple(
        replace(layer, gradient=_rms(gradient), relative_gradient=_ratio(_rms(gradient), _rms(weight)))
        for layer, weight, gradient in zip(forward, weights, gradients, strict=True)
    )

    def plateau(name: Optimizer, step: float) -> float:
        triples = zip(layers, weights, signal_gradients, strict=True)
        return _ratio(PLATEAU, sum(_growth(w, g, name, step) for layer, w, g in triples if not layer.is_normalized))

    squares = sum(_rms(gradient) ** 2 * gradient.numel() for gradient in gradients)
    is_bounded = optimizer == "adamw" or any(layer.is_normalized for layer in layers)
    diagnosis = Diagnosis(
        layers=layers,
        loss=loss,
        # The probable error of a sum of n roundings (Higham & Mary, SIAM J. Sci. Comput. 41, 2019).
        rounding=torch.finfo(weights[-1].dtype).eps * math.sqrt(weights[-1][0].numel()),
        plateau=plateau(optimizer, _ratio(learning_rate, 1 - momentum)),
        overshoot=0.0 if is_bounded else learning_rate * _ratio(squares, loss),
        verdict="learns",
        findings=(),
    )
    diagnosis = replace(diagnosis, verdict=_verdict(diagnosis))
    adam_flags = ""
    if optimizer == "sgd" and plateau("adamw", ADAM_LEARNING_RATE) <= PATIENCE / 10:
        adam_flags = f"--optimizer adamw --learning-rate {ADAM_LEARNING_RATE:g}"
    return replace(diagnosis, findings=tuple(_findings(diagnosis, net, learning_rate, adam_flags)))


def first_batch(
    data: ImageSource, network: Network, batch_size: int, seed: int = 0, bad_images: BadImages = "fail"
) -> tuple[Tensor, Tensor]:
    """The first images and labels of `vgg train`, as `examine` takes them; raises `ValueError` if under 2 are good."""
    channels = network.in_channels
    preprocessing = Preprocessing(network.image_size, channels, (0.0,) * channels, (1.0,) * channels)
    read, share = FittedImage(preprocessing), Whole(torch.device("cpu"))
    feed = open_feed(data.train, read, share, batch_size=batch_size, seed=seed, bad_images=bad_images)
    batch = next(feed.batches(epoch=1))
    good = batch.labels != IGNORED_LABEL
    if good.sum() < 2:
        raise ValueError(f"expected two images or more that can be read, got {good.sum()}, try a larger --batch-size")
    return network_input(feed, batch.images[good], preprocessing), batch.labels[good]


Tensors = Sequence[Tensor]


def _passes(
    net: nn.Module, images: Tensor, labels: Tensor
) -> tuple[list[LayerDiagnosis], float, Tensors, Tensors, Tensors]:
    """One forward and one backward pass.

    Returns:
        The layers in the order of the calls, without their gradients; the loss; and for each layer the weight, its
        gradient, and the part of the gradient that comes from the differences between images.
    """
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            parameters[f"{name}.weight"].requires_grad_()
    with torch.enable_grad(), _recorded_layers(net) as layers:
        logits = functional_call(net, (parameters, buffers), (images,))
        if not layers or logits.ndim != 2:
            raise ValueError(
                "expected a network of convolutions and fully connected layers that gives (batch, classes), "
                f"got {len(layers)} such layers and {tuple(logits.shape)}"
            )
        if not 0 <= labels.min() <= labels.max() < logits.shape[1]:
            raise ValueError(f"expected labels below the {logits.shape[1]} classes, got {labels.unique().tolist()[:9]}")
        weights = [parameters[f"{name}.weight"] for name in layers]
        loss = F.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, weights, retain_graph=True)
        residual = (logits.softmax(dim=1) - F.one_hot(labels, logits.shape[1])).detach() / len(labels)
        # The mean residual only teaches the last bias how frequent the classes are.
        signal_gradients = torch.autograd.grad(logits, weights, residual - residual.mean(dim=0))
    return list(layers.values()), loss.item(), [weight.detach() for weight in weights], gradients, signal_gradients


def _growth(weight: Tensor, gradient: Tensor, optimizer: Optimizer, step: float) -> float:
    """The largest relative growth, by one step, of the part of a layer's output that differs between images.

    The update has nearly rank one, and acts along its direction with its whole norm; random weights act along any
    direction with rms(weight) x sqrt(fan_in) only.
    """
    update = gradient / (gradient.abs() + ADAM_EPS) if optimizer == "adamw" else gradient
    return step * _ratio(_rms(update) * math.sqrt(len(weight)), _rms(weight))


def _verdict(diagnosis: Diagnosis) -> Verdict:
    values = [diagnosis.loss, *(value for layer in diagnosis.layers for value in (layer.output, layer.gradient))]
    if not all(map(math.isfinite, values)):
        return "not finite"
    if diagnosis.layers[-1].contrast <= diagnosis.rounding or diagnosis.plateau > PATIENCE:
        return "stalls"
    if diagnosis.overshoot > OVERSHOOT:
        return "overshoots"
    return "slow" if diagnosis.plateau > PATIENCE / 10 else "learns"


def _findings(diagnosis: Diagnosis, net: nn.Module, learning_rate: float, adam_flags: str) -> Iterator[str]:
    """A line for each finding, with what to try; `adam_flags` are those with which AdamW would learn, if any."""
    layers, verdict, last = diagnosis.layers, diagnosis.verdict, diagnosis.layers[-1]
    if verdict == "not finite":
        place = next((f"output of {layer.name}" for layer in layers if not math.isfinite(layer.output)), "gradient")
        yield f"the {place} is not finite, try --init kaiming"
        return
    if verdict == "overshoots":
        times = diagnosis.overshoot / OVERSHOOT
        lower = learning_rate / times
        yield f"on this batch the first step is {times:.3g} times too long, try --learning-rate {lower:.1g}"
    if verdict in ("slow", "stalls"):
        if last.contrast <= diagnosis.rounding:
            yield f"{last.name} is the same for all images, except for rounding: {last.contrast:.0e} of its size"
        gains = [layer.gain for layer in layers if layer.dead is not None and not layer.is_normalized]
        if gains and not 0.1 < (scale := math.prod(gains)) < 10:
            mean = scale ** (1 / len(gains))
            yield f"each ReLU layer scales the signal by {mean:.2g}, all by {scale:.0e}, try --init kaiming"
        architecture = getattr(net, "architecture", None)
        if isinstance(architecture, Architecture):
            if architecture.norm == "none":
                yield f"batch norm would restore the scale, try {replace(architecture, norm='batch').name}"
            if shallow := _shallow_name(architecture):
                yield f"the network is deep, try --optimizer adamw --warm-start RUN, a run of {shallow}"
        if last.contrast > diagnosis.rounding and adam_flags:
            yield f"the gradient is small but not lost, try {adam_flags}"
    if dead := ", ".join(layer.name for layer in layers if (layer.dead or 0) > DEAD):
        yield f"more than {DEAD:.0%} of the ReLUs are dead in {dead}, try --init kaiming or a lower --learning-rate"


def _shallow_name(architecture: Architecture) -> str | None:
    """The name of the paper's A with the widths of a deeper `architecture`; None if that is none of the paper's."""
    if len(architecture.blocks) != len(PAPERS_A):
        return None
    pairs = list(zip(architecture.blocks, PAPERS_A, strict=True))
    if any(b.num_convs < n for b, n in pairs) or all(b.num_convs == n for b, n in pairs):
        return None
    blocks = tuple(Block(n, b.channels, b.kernel_sizes[:n], b.lrn) for b, n in pairs)
    return replace(architecture, blocks=blocks).name


def _ratio(value: float, scale: float) -> float:
    return value / scale if scale else math.inf if value else 0.0


def _rms(x: Tensor) -> float:
    """The root mean square, in float64, as the squares of the smallest float32 would be 0."""
    length: float = torch.linalg.vector_norm(x, dtype=torch.float64).item()
    return length / math.sqrt(x.numel())


@contextmanager
def _recorded_layers(net: nn.Module) -> Iterator[dict[str, LayerDiagnosis]]:
    """Within, `net` is in training mode without dropout; yields the layers by path, measured as they are called."""
    layers: dict[str, LayerDiagnosis] = {}

    def record(path: str, module: nn.Module, output: Tensor) -> None:
        output, last = output.detach(), next(reversed(layers), None)
        if isinstance(module, nn.Conv2d | nn.Linear):
            name, rms = path.rpartition(".")[2] if hasattr(net, "architecture") else path, _rms(output)
            gain = _rms(module.weight.detach()) * math.sqrt(module.weight[0].numel() / 2)
            contrast = _ratio(_rms(output - output.mean(dim=0)), rms)
            layers[path] = LayerDiagnosis(name, rms, contrast, math.nan, math.nan, gain, is_normalized=False, dead=None)
        elif last is not None and isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            layers[last] = replace(layers[last], is_normalized=True)
        elif last is not None and isinstance(module, nn.ReLU):
            is_dead = (output == 0).transpose(0, 1).flatten(1).all(dim=1)
            layers[last] = replace(layers[last], dead=is_dead.double().mean().item())

    with ExitStack() as undo:
        for path, module in net.named_modules():
            undo.callback(setattr, module, "training", module.training)
            module.training = not isinstance(module, _DropoutNd)
            handle = module.register_forward_hook(lambda module, _, output, path=path: record(path, module, output))
            undo.callback(handle.remove)
        yield layers
