"""The outputs of named layers of a network for images."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vggkit.errors import DataError, check_type
from vggkit.inference.images import Images
from vggkit.inference.predict import AnyModel, check_finite, load_classifier
from vggkit.networks.vgg import VGG


def features(model: AnyModel, images: Images, layers: Sequence[str]) -> dict[str, Tensor]:
    """The outputs of named layers of a network for images.

    Args:
        model: a classifier, or what `load_classifier` takes.
        images: as for `predict`.
        layers: canonical names, such as `relu3_3`, see `VGG.features`, which also gives gradients.

    Returns:
        By name, in the order of `layers`: (images, channels, height, width), or (images, features) after `flatten`.

    Raises:
        DataError, WeightsError: as `predict` does.
        ValueError: an unknown layer name, or a network without VGG blocks.
    """
    batches = [outputs for _, outputs in feature_batches(model, images, layers)]
    return {name: torch.cat([outputs[name] for outputs in batches]) for name in layers} if batches else {}


@torch.no_grad()
def feature_batches(
    model: AnyModel, images: Images, layers: Sequence[str], on_bad: Callable[[DataError], None] | None = None
) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
    """The names of images and their `features`, by batch; bad images are left out and passed to `on_bad`, if given."""
    check_type(layers, Sequence, "a list of layers", "['relu3_3']")
    classifier = load_classifier(model)
    net = classifier.net
    if not isinstance(net, VGG):
        raise ValueError(f"expected a VGG network, got {net.architecture.name}")
    if any(layer.name in layers for layer in net.architecture.layers() if not layer.part.startswith("block")):
        classifier.check_has_classes()
    for names, x in classifier.inputs(images, on_bad):
        outputs = classifier.fast.features(x, layers)
        for layer, output in outputs.items():
            check_finite(output, names, layer)
        yield names, outputs
