"""Search for similar images, by the cosine of their features, in an index that `vgg features` wrote."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from vggkit.data.files import as_png, why_not_a_file
from vggkit.data.images import thumbnail
from vggkit.data.preprocessing import Preprocessing
from vggkit.errors import DataError, WeightsError, nearest, shown
from vggkit.inference.features import features
from vggkit.inference.images import AnyImage, content_of
from vggkit.inference.predict import Classifier
from vggkit.weights.containers import open_container
from vggkit.weights.files import metadata_list

DAMAGED = "expected an index as 'vgg features' writes it, got a damaged one, try to write it again"
SHEET_COLUMNS, THUMBNAIL_PIXELS = 4, 224


class Similar(NamedTuple):
    """An image of an index and its similarity to the query."""

    image: str
    cosine: float
    """Of the angle between the feature vectors, -1 to 1."""


@dataclass(frozen=True)
class Index:
    """Features of many images, with the model that computed them."""

    images: tuple[str, ...]
    layer: str
    vectors: Tensor
    """(images, features), of length 1; the feature of a channel of a map is its mean."""
    model: str
    preprocessing: Preprocessing

    def like(self, classifier: Classifier, image: AnyImage, top: int = 5) -> list[Similar]:
        """The `top` images of the index most similar to `image`, in descending order.

        Args:
            classifier: with the network that computed the index.
            image: as for `predict`.
            top: number of images; all, if there are fewer.

        Raises:
            DataError: as for `predict`.
            WeightsError: as for `predict`, or another number of features than in the index.
            ValueError: the network lacks the layer.
        """
        if top < 1:
            raise ValueError(f"expected a top from 1, got {top}")
        query = _vectors(features(classifier, image, [self.layer])[self.layer].cpu())
        if len(query) != 1:
            raise DataError(f"expected one image to find others by, got {len(query)}")
        if query.shape[1] != self.vectors.shape[1]:
            raise WeightsError(
                f"expected the network of the index, {shown(self.model)}, whose {self.layer} has "
                f"{self.vectors.shape[1]} features, got one with {query.shape[1]}"
            )
        values, rows = (self.vectors @ query[0]).topk(min(top, len(self.images)))
        return [Similar(self.images[row], value) for row, value in zip(rows.tolist(), values.tolist(), strict=True)]


def read_index(path: str | os.PathLike[str], layer: str | None = None) -> Index:
    """Read the features of `layer`, by default the last, from an index that `vgg features` wrote.

    Raises:
        WeightsError: the file is missing, damaged or no index, or lacks the layer.
    """
    if reason := why_not_a_file(Path(path)):
        example = "vgg features MODEL photos --layers fc7 -o index.safetensors"
        raise WeightsError(
            f"{shown(path, 500)}: expected an index file, got {reason}, try '{example}', which writes one"
        )
    with open_container(path) as (stored, metadata):
        if not {"model", "images", "layers", "preprocessing"} <= metadata.keys():
            raise WeightsError("expected an index that 'vgg features' wrote, got another file")
        images, layers = (tuple(metadata_list(metadata, key)) for key in ("images", "layers"))
        shapes = [stored[name].shape if name in stored else () for name in layers]
        is_whole = all(shape[:1] == (len(images),) and len(shape) in (2, 4) and 0 not in shape for shape in shapes)
        if not images or not layers or not is_whole:
            raise WeightsError(DAMAGED)
        layer = layer or layers[-1]
        if layer not in layers:
            close = nearest(layer, layers) or ", ".join(layers)
            raise WeightsError(f"expected a layer of the index, got '{shown(layer)}', try {shown(close)}")
        vectors = _vectors(stored[layer].read())
        if not vectors.isfinite().all():
            raise WeightsError(DAMAGED)
        try:
            preprocessing = Preprocessing.from_json(metadata["preprocessing"])
        except ValueError as error:
            raise WeightsError(str(error)) from None
    return Index(images, layer, vectors, metadata["model"], preprocessing)


def contact_sheet(query: AnyImage, matches: list[Similar]) -> bytes:
    """A PNG file with the query and the similar images, with their cosines."""
    return sheet([(query, "query"), *((name, f"{cosine:.3f}") for name, cosine in matches)])


def sheet(titled: Sequence[tuple[AnyImage, str]]) -> bytes:
    """A PNG file with images below their titles; an image that cannot be read is left blank with a note."""
    from matplotlib.figure import Figure

    rows = max(1, -(-len(titled) // SHEET_COLUMNS))
    figure = Figure(figsize=(2.2 * SHEET_COLUMNS, 2.5 * rows), dpi=100, layout="constrained")
    for cell in figure.subplots(rows, SHEET_COLUMNS, squeeze=False).flat:
        cell.axis("off")
    for cell, (image, title) in zip(figure.axes, titled, strict=False):
        try:
            content, name = content_of(image)
            cell.imshow(thumbnail(content, 3, name, THUMBNAIL_PIXELS))
        except DataError:
            title += "\nnot there any more"
        cell.set_title(title, fontsize=9, parse_math=False)
    return as_png(figure)


def _vectors(outputs: Tensor) -> Tensor:
    """The outputs of a layer as vectors of length 1, (images, features)."""
    return F.normalize(outputs.float().mean(dim=(2, 3)) if outputs.ndim == 4 else outputs.float())
