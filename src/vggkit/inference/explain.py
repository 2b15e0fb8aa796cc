"""Attribution maps: which pixels of an image speak for a class, by eight methods, with the plain network and autograd.

A map explains the logit of a class. The baseline of the methods that need one is an input of zeros: the mean colour of
the training data.
"""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from vggkit.errors import UserError, check_type, nearest, shown
from vggkit.inference.explain_methods import How, map_layer, map_layers, maps, vgg_of
from vggkit.inference.explain_names import OF_LAYERS, Method
from vggkit.inference.images import Images, batches, is_several
from vggkit.inference.predict import AnyModel, Classifier, check_finite, few, load_classifier

BATCH_SIZE = 8


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """The map of an image and a class by one method."""

    image: str
    method: Method
    layer: str | None
    """The layer of the map; None for methods without a layer."""
    target: int
    """Index of the class."""
    label: str
    probability: float
    """Probability of the class, 0 to 1."""
    heat: npt.NDArray[np.float32]
    """(height, width) of the network's input, not normalised; 0 is neutral, and the maps of `SIGNED` are signed."""
    pixels: npt.NDArray[np.uint8]
    """(height, width, channels): the image as the network saw it."""

    @property
    def blank(self) -> str:
        """A message if the map is zero everywhere; empty for other maps."""
        if self.heat.any():
            return ""
        where = f"at {self.layer}" if self.layer else "in the image"
        ways = {"grad-cam": "a deeper --layer or --methods layer-cam", "layer-cam": "a deeper --layer"}
        return f"nothing {where} speaks for {shown(self.label)}, try {ways.get(self.method, 'another method')}"

    def __repr__(self) -> str:
        where = f" at {self.layer}" if self.layer else ""
        return f"{shown(self.image, 500)}: {self.label} {self.probability:.1%}, {self.method}{where}"


def explain(
    model: AnyModel,
    images: Images,
    method: Method = "grad-cam",
    target: str | int | None = None,
    layer: str | None = None,
    seed: int = 0,
) -> Any:
    """Explain which pixels of images speak for a class; the network and its gradients are not changed.

    Args:
        model: a classifier, or what `load_classifier` takes.
        images: as for `predict`.
        method: see `Method`; docs/explain.md describes them, with the sources.
        target: a class by its name or number; by default the most probable one of each image.
        layer: for `grad-cam` and `layer-cam`, any layer of the blocks; by default their last ReLU.
        seed: of the noise of `smoothgrad`.

    Returns:
        An `Explanation` for one image, a list of them for several.

    Raises:
        DataError, WeightsError: as `predict` does.
        ValueError: an unknown method, class or layer; or a network without VGG blocks, or in training mode.

    >>> from vggkit import Classifier, Preprocessing, vgg
    >>> net = vgg("1x4 1x8", image_size=16, hidden=()).eval()
    >>> model = Classifier(net, tuple("abcdefghij"), Preprocessing(16, 1, (0.5,), (0.25,)))
    >>> explanation = explain(model, np.zeros((20, 30), np.uint8), "saliency", target="c")
    >>> explanation.label, explanation.heat.shape
    ('c', (16, 16))
    """
    classifier = load_classifier(model)
    how = how_to(classifier, method, layer, seed)
    fixed_target = None if target is None else class_index(classifier.classes, target)
    explanations = []
    for names, pixels in batches(images, classifier.preprocessing, BATCH_SIZE):
        x = classifier.preprocessing.scaled(pixels.to(classifier.device))
        with torch.no_grad():
            probabilities = classifier.net(x).softmax(dim=1)
        check_finite(probabilities, names, "probabilities")
        targets = probabilities.argmax(dim=1)
        if fixed_target is not None:
            targets.fill_(fixed_target)
        heat = maps(vgg_of(classifier.net), x, targets, how)
        check_finite(heat, names, "maps")
        columns = targets.tolist(), probabilities.tolist(), heat.cpu().numpy(), pixels.movedim(1, -1).numpy()
        for name, index, row, heat_map, image in zip(names, *columns, strict=True):
            label = classifier.classes[index]
            explanations.append(Explanation(name, method, how.layer or None, index, label, row[index], heat_map, image))
    return explanations if is_several(images) else explanations[0]


def how_to(classifier: Classifier, method: Method, layer: str | None = None, seed: int = 0) -> How:
    """The parameters of `method` for a classifier; raises `ValueError` as `explain`."""
    classifier.check_has_classes()
    net = vgg_of(classifier.net)
    if method not in get_args(Method):
        known = get_args(Method)
        close = nearest(str(method), known) or known[0]
        raise UserError(f"expected a method of {', '.join(known)}, got {shown(str(method))!r}, try {close}")
    check_type(layer, str | None, "the name of a layer", "'relu4_3'")
    if layer is not None and method not in OF_LAYERS:
        raise UserError(f"expected a layer only for {' and '.join(OF_LAYERS)}, got {shown(layer)!r} for {method}")
    last_relu = [name for name in map_layers(net) if name.startswith("relu")][-1]
    at = map_layer(net, last_relu if layer is None else layer) if method in OF_LAYERS else ""
    black = torch.zeros(1, classifier.preprocessing.channels, 1, 1, device=classifier.device)
    low, high = (classifier.preprocessing.normalize(colour) for colour in (black, black + 1))
    return How(method, at, low, high, seed)


def class_index(classes: tuple[str, ...], target: str | int) -> int:
    """The index of a class, given by its name, regardless of case, or by its index; raises `ValueError`.

    >>> class_index(("cat", "dog"), "Dog"), class_index(("cat", "dog"), "0")
    (1, 0)
    """
    names, text = [name.casefold() for name in classes], str(target).casefold()
    if isinstance(target, str) and text in names:
        return names.index(text)
    if text.isdecimal() and len(text) < 7 and int(text) < len(classes):
        return int(text)
    close = nearest(text, classes) or classes[0]
    raise UserError(f"expected a class of {few(classes)} or its number, got {shown(text)!r}, try {close!r}")
