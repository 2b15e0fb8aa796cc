"""What a trained network, or one that is still training, makes of images. Imports torch when it is first asked."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from vggkit.app.addresses import as_address, as_png, pixels_address
from vggkit.errors import UserError
from vggkit.inference.explain_names import Method

if TYPE_CHECKING:
    from vggkit.data.samples import ImageSource
    from vggkit.inference.predict import Classifier

SHOWN_IMAGES, THUMBNAIL_PIXELS = 20, 64
MAX_FILTERS = 64
TOP = 10
KEPT = 2
"""Networks, and data sets, that are kept open."""
Opened = TypeVar("Opened")


class Models:
    """The networks and data sets that were looked at last, in memory; one thread at a time uses them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._networks: OrderedDict[object, Classifier] = OrderedDict()
        self._data: OrderedDict[object, ImageSource] = OrderedDict()

    def classifier(self, path: Path) -> "Classifier":
        """The network of a run, the newest one that is saved, or of a weight file; raises `WeightsError`."""
        from vggkit.inference.predict import load_classifier
        from vggkit.training.hardware import choose_device
        from vggkit.weights.runs import find_weights

        weights = find_weights(path)
        if not weights.is_file():
            raise UserError(f"expected a run with a checkpoint, got {path.name}, which has none yet, try again later")
        key = (weights, weights.stat().st_mtime_ns)
        return _kept(self._networks, key, lambda: load_classifier(weights, choose_device(None)))

    def data_of(self, path: Path, data: str | None = None) -> "ImageSource":
        """The data of the run at `path`, divided as for its training, or what `data` names; raises `DataError`."""
        from vggkit.data.sources import open_data
        from vggkit.inference.evaluate import data_of_run

        return _kept(self._data, data or path, lambda: open_data(data, holdout=0) if data else data_of_run(path))

    def sample(self, path: Path, index: object) -> bytes:
        """One of the images kept out of a run's training, as a file; `index` counts around."""
        from vggkit.data.files import read_image_file

        if type(index) is not int:
            raise UserError("expected the number of an image, got something else")
        with self.lock:
            source = readable(self.data_of(path))
        content = source.held_out.reader(0, 0)(index % len(source.held_out)).content
        if isinstance(content, Path):
            return read_image_file(content, "the image")
        return content if isinstance(content, bytes) else as_png(content)

    def classify(self, path: Path, content: bytes) -> dict[str, Any]:
        """The most probable classes of an image, as `vgg predict` prints them, and what the network sees of it."""
        from vggkit.data.images import fitted
        from vggkit.inference.predict import predict

        with self.lock:
            classifier = self.classifier(path)
            top = predict(classifier, content, top=TOP)
        seen = pixels_address(fitted(content, classifier.preprocessing).transpose(1, 2, 0))
        return {"top": [each._asdict() for each in top], "seen": seen}

    def inside(self, path: Path, content: bytes, asked: dict[str, Any]) -> dict[str, Any]:
        """The outputs of a layer, with a `channel` one of them, with `methods` heat maps; see `vggkit.app.inside`."""
        from vggkit.app.inside import heat, outputs, unit

        with self.lock:
            classifier = self.classifier(path)
            if "methods" in asked:
                return heat(classifier, content, asked)
            if "channel" in asked:
                return unit(classifier, content, asked)
            return outputs(classifier, content, asked.get("layer"))

    def exciting(self, path: Path, unit: object, data: str | None) -> dict[str, Any]:
        """What a unit looks for, among the run's own images or those that `data` names."""
        from vggkit.app.inside import exciting

        with self.lock:
            return exciting(self.classifier(path), readable(self.data_of(path, data)), str(unit))

    def look(self, path: Path) -> dict[str, Any]:
        """How sure the network is of the same images each time, and the weights of its first layer."""
        from vggkit.data.images import thumbnail
        from vggkit.inference.explain_units import first_filters
        from vggkit.inference.predict import predict

        with self.lock:
            classifier, source = self.classifier(path), readable(self.data_of(path))
            read = source.held_out.reader(0, 0)
            samples = [read(index) for index in range(min(SHOWN_IMAGES, len(source.held_out)))]
            best = predict(classifier, [sample.content for sample in samples], top=3)
        channels = classifier.preprocessing.channels
        images = [
            {
                "picture": as_address(thumbnail(sample.content, channels, sample.name, THUMBNAIL_PIXELS)),
                "label": source.classes[sample.label],
                "top": [prediction._asdict() for prediction in top],
            }
            for sample, top in zip(samples, best, strict=True)
        ]
        filters = (255 * first_filters(classifier)[:MAX_FILTERS]).round().astype("uint8")
        return {"images": images, "filters": [pixels_address(each) for each in filters]}

    def confusion(self, path: Path) -> dict[str, Any]:
        """What is taken for what, on all images kept out of training."""
        from vggkit.inference.evaluate import evaluate

        with self.lock:
            found = evaluate(self.classifier(path), self.data_of(path))
        low, high = found.interval
        return {
            "classes": found.classes,
            "counts": found.confusion.tolist(),
            "accuracy": found.accuracy,
            "low": low,
            "high": high,
            "images": len(found.labels),
            "measured_on": found.measured_on,
        }

    def compared(self, paths: list[Path]) -> dict[str, Any]:
        """What `vgg compare` says of runs, how their recipes differ, and images that they disagree on."""
        from vggkit.data.images import thumbnail
        from vggkit.lab.compare import compare

        with self.lock:
            found = compare(paths)
            differences, wrong = found.differences(), found.disagreements()
            read, channels = found.data.held_out.reader(0, 0), found.networks[0].classifier.preprocessing.channels
            samples = [read(index) for index, _, _ in wrong]
        return {
            **found.to_json(),
            "differences": [list(row) for row in differences.sections[0]] if differences else [],
            "disagreements": [
                {
                    "picture": as_address(thumbnail(sample.content, channels, sample.name, THUMBNAIL_PIXELS)),
                    "label": label,
                    "taken_for": taken,
                }
                for sample, (_, label, taken) in zip(samples, wrong, strict=True)
            ],
        }

    def described(self, path: Path) -> dict[str, Any]:
        """The classes of a network, its layers, and how what it says can be explained."""
        from vggkit.design.network import costs

        with self.lock:
            classifier = self.classifier(path)
        return {
            "classes": classifier.classes,
            "layers": [asdict(layer) for layer in costs(classifier.net.architecture).layers],
            "methods": get_args(Method),
            "has_data": path.is_dir(),
        }


def readable(source: "ImageSource") -> "ImageSource":
    """`source`, if its images can be read in any order; raises `UserError` for a stream."""
    if source.held_out.is_stream:
        raise UserError("expected images that can be read in any order, got a stream")
    return source


def _kept(kept: OrderedDict[object, Opened], key: object, opened: Callable[[], Opened]) -> Opened:
    """What `kept` has for `key`, opened if it is not there; the one that was not asked for longest goes."""
    if key not in kept:
        kept[key] = opened()
        while len(kept) > KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]
