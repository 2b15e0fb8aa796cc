"""Answers of networks, trained or still training, on images. torch is imported at the first call."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from vggkit.app.addresses import as_address, as_png, file_address, pixels_address
from vggkit.errors import UserError
from vggkit.inference.explain_names import Method
from vggkit.training.run_folder import RECIPE

if TYPE_CHECKING:
    from vggkit.data.samples import ImageSource, Sample
    from vggkit.inference.predict import Classifier

SAMPLES, THUMBNAIL_PIXELS = 20, 64
MAX_FILTERS = 64
TOP = 10
DARK = 0.35
"""The mean of grey images on black, of 1, is below it: that of Fashion-MNIST is 0.29."""
MAX_OPEN = 2
"""Networks, and data sets, that stay open."""
Opened = TypeVar("Opened")


class Models:
    """The networks and data sets used last, kept in memory. Not thread-safe: the server calls one method at a time."""

    def __init__(self) -> None:
        self._networks: OrderedDict[object, Classifier] = OrderedDict()
        self._data: OrderedDict[object, ImageSource] = OrderedDict()

    def classifier(self, path: Path) -> "Classifier":
        """The newest saved network of a run, or that of a weight file; raises `WeightsError`."""
        from vggkit.inference.predict import load_classifier
        from vggkit.training.hardware import choose_device
        from vggkit.weights.runs import find_weights

        weights = find_weights(path)
        if not weights.is_file():
            raise UserError(f"expected a run with a checkpoint, got {path.name}, which has none yet, try again later")
        key = (weights, weights.stat().st_mtime_ns)
        return _cached(self._networks, key, lambda: load_classifier(weights, choose_device(None)))

    def data_of(self, path: Path, data: str | None = None) -> "ImageSource":
        """The data of the run at `path`, split as for its training, or the data set `data`; raises `DataError`."""
        from vggkit.data.sources import open_data
        from vggkit.inference.evaluate import data_of_run

        if data:
            return _cached(self._data, data, lambda: open_data(data, holdout=0))
        recipe = path / RECIPE
        key = (path, recipe.stat().st_mtime_ns if recipe.is_file() else 0)  # another run may come to this path
        return _cached(self._data, key, lambda: data_of_run(path))

    def sample(self, path: Path, index: object) -> tuple[bytes, str]:
        """One of the images kept out of a run's training, as an image file, and its class; `index` wraps around."""
        from vggkit.data.files import read_image_file

        if type(index) is not int:
            raise UserError("expected the number of an image, got something else")
        source = randomly_readable(self.data_of(path))
        sample = source.held_out.reader(0, 0)(index % len(source.held_out))
        content, label = sample.content, source.classes[sample.label]
        if isinstance(content, Path):
            return read_image_file(content, "the image"), label
        return content if isinstance(content, bytes) else as_png(content), label

    def classify(self, path: Path, content: bytes) -> dict[str, Any]:
        """The most probable classes of an image, as `vgg predict` prints them, and the network's input as a picture.

        `is_negative` tells that it has a bright border, where the network was trained on images with a dark one.
        """
        import numpy

        from vggkit.data.images import fitted
        from vggkit.inference.predict import predict

        classifier = self.classifier(path)
        pixels = fitted(content, classifier.preprocessing).transpose(1, 2, 0)
        top = [prediction._asdict() for prediction in predict(classifier, content, top=TOP)]
        channels, mean = classifier.preprocessing.channels, classifier.preprocessing.mean[0]
        border = numpy.concatenate([pixels[[0, -1]].ravel(), pixels[:, [0, -1]].ravel()])
        is_negative = channels == 1 and mean < DARK * classifier.preprocessing.scale and border.mean() > 127
        return {"top": top, "seen": pixels_address(pixels), "is_negative": bool(is_negative)}

    def look(self, path: Path) -> dict[str, Any]:
        """The predictions for the same few images at every call, and the weights of the first layer."""
        from vggkit.inference.explain_units import first_filters
        from vggkit.inference.predict import predict

        classifier, source = self.classifier(path), randomly_readable(self.data_of(path))
        read = source.held_out.reader(0, 0)
        samples = [read(index) for index in range(min(SAMPLES, len(source.held_out)))]
        predictions = predict(classifier, [sample.content for sample in samples], top=3)
        channels = classifier.preprocessing.channels
        images = [
            {
                "picture": _thumbnail(sample, channels),
                "label": source.classes[sample.label],
                "top": [prediction._asdict() for prediction in top],
            }
            for sample, top in zip(samples, predictions, strict=True)
        ]
        filters = (255 * first_filters(classifier)[:MAX_FILTERS]).round().astype("uint8")
        return {"images": images, "filters": [pixels_address(pixels) for pixels in filters]}

    def confusion(self, path: Path) -> dict[str, Any]:
        """The confusion matrix and the accuracy, on all images kept out of training."""
        from vggkit.inference.evaluate import evaluate

        evaluation = evaluate(self.classifier(path), self.data_of(path))
        low, high = evaluation.interval
        return {
            "classes": evaluation.classes,
            "counts": evaluation.confusion.tolist(),
            "accuracy": evaluation.accuracy,
            "low": low,
            "high": high,
            "images": len(evaluation.labels),
            "measured_on": evaluation.measured_on,
        }

    def compared(self, paths: dict[str, Path]) -> dict[str, Any]:
        """What `vgg compare` finds of networks, by name, their scatter plot, and how recipes and predictions differ."""
        from vggkit.lab.compare import compare

        comparison = compare([*paths.values()])
        networks = (replace(network, name=name) for name, network in zip(paths, comparison.networks, strict=True))
        comparison = replace(comparison, networks=tuple(networks))
        differences, disagreements = comparison.differences(), comparison.disagreements()
        read = comparison.data.held_out.reader(0, 0)
        channels = comparison.networks[0].classifier.preprocessing.channels
        return {
            **comparison.to_json(),
            "scatter": file_address(comparison.scatter().encode(), "svg+xml"),
            "differences": [list(row) for row in differences.sections[0]] if differences else [],
            "disagreements": [
                {"picture": _thumbnail(read(index), channels), "label": label, "taken_for": predicted}
                for index, label, predicted in disagreements
            ],
        }

    def described(self, path: Path) -> dict[str, Any]:
        """The classes and layers of a network, and the methods that can explain its predictions."""
        from vggkit.design.network import costs

        classifier = self.classifier(path)
        return {
            "classes": classifier.classes,
            "layers": [asdict(layer) for layer in costs(classifier.net.architecture).layers],
            "methods": get_args(Method),
            "has_data": path.is_dir(),
        }


def randomly_readable(source: "ImageSource") -> "ImageSource":
    """`source`, unless it is a stream, which is a `UserError`."""
    if source.held_out.is_stream:
        raise UserError("expected images that can be read in any order, got a stream")
    return source


def _thumbnail(sample: "Sample", channels: int) -> str:
    from vggkit.data.images import thumbnail

    return as_address(thumbnail(sample.content, channels, sample.name, THUMBNAIL_PIXELS))


def _cached(cache: OrderedDict[object, Opened], key: object, opened: Callable[[], Opened]) -> Opened:
    """`cache[key]`, opened if missing; the least recently used one is dropped."""
    if key not in cache:
        cache[key] = opened()
        while len(cache) > MAX_OPEN:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]
