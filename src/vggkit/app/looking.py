"""What a trained network, or one that is still training, makes of images. Imports torch when it is first asked."""

import threading
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggkit.app.addresses import as_address, as_png, thumbnail
from vggkit.errors import UserError

if TYPE_CHECKING:
    from vggkit.inference.predict import Classifier

SHOWN_IMAGES = 20
MAX_FILTERS = 64
TOP = 10
KEPT_MODELS = 2


class Models:
    """The networks that were looked at last, in memory; one thread at a time uses them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], Classifier] = OrderedDict()

    def classifier(self, path: Path) -> "Classifier":
        """The network of a run, the newest one that is saved, or of a weight file; raises `WeightsError`."""
        from vggkit.inference.predict import load_classifier
        from vggkit.training.hardware import choose_device
        from vggkit.weights.runs import find_weights

        weights = find_weights(path)
        if not weights.is_file():
            raise UserError(f"expected a run with a checkpoint, got {path.name}, which has none yet, try again later")
        key = (str(weights), weights.stat().st_mtime_ns)
        if key not in self._kept:
            self._kept[key] = load_classifier(weights, choose_device(None))
            while len(self._kept) > KEPT_MODELS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def sample(self, path: Path, index: object) -> bytes:
        """One of the images kept out of a run's training, as a file; `index` counts around."""
        from vggkit.data.files import read_image_file
        from vggkit.inference.evaluate import data_of_run

        source = data_of_run(path)
        if source.held_out.is_stream or type(index) is not int:
            raise UserError("expected the number of an image that can be read in any order, got another")
        content = source.held_out.reader(0, 0)(index % len(source.held_out)).content
        if isinstance(content, Path):
            return read_image_file(content, "the image")
        return content if isinstance(content, bytes) else as_png(content)

    def classify(self, path: Path, content: bytes) -> dict[str, Any]:
        """The most probable classes of an image, as `vgg predict` prints them, and what the network sees of it."""
        from PIL import Image

        from vggkit.data.images import fitted
        from vggkit.inference.predict import predict

        with self.lock:
            classifier = self.classifier(path)
            top = predict(classifier, content, top=TOP)
        seen = fitted(content, classifier.preprocessing).transpose(1, 2, 0)
        picture = as_address(Image.fromarray(seen if seen.shape[2] == 3 else seen[..., 0]))
        return {"top": [each._asdict() for each in top], "seen": picture}

    def inside(self, path: Path, content: bytes, asked: dict[str, Any]) -> dict[str, Any]:
        """The maps of a layer, with a `channel` one output of it, with `methods` heat maps; see `vggkit.app.inside`."""
        from vggkit.app.inside import heat, maps, unit

        with self.lock:
            classifier = self.classifier(path)
            if "methods" in asked:
                return heat(classifier, content, asked)
            if "channel" in asked:
                return unit(classifier, content, asked)
            return maps(classifier, content, asked.get("layer"))

    def look(self, path: Path) -> dict[str, Any]:
        """How sure the network is of the same images each time, and the weights of its first layer."""
        from vggkit.inference.evaluate import data_of_run
        from vggkit.inference.predict import predict

        with self.lock:
            classifier, source = self.classifier(path), data_of_run(path)
            if source.held_out.is_stream:
                raise UserError("expected images that can be read in any order, got a stream")
            read = source.held_out.reader(0, 0)
            samples = [read(index) for index in range(min(SHOWN_IMAGES, len(source.held_out)))]
            best = predict(classifier, [sample.content for sample in samples], top=3)
        images = [
            {
                "picture": thumbnail(sample.content, classifier.preprocessing.channels),
                "label": source.classes[sample.label],
                "top": [prediction._asdict() for prediction in top],
            }
            for sample, top in zip(samples, best, strict=True)
        ]
        return {"images": images, "filters": _filters(classifier)}

    def confusion(self, path: Path) -> dict[str, Any]:
        """What is taken for what, on all images kept out of training."""
        from vggkit.inference.evaluate import data_of_run, evaluate

        with self.lock:
            found = evaluate(self.classifier(path), data_of_run(path))
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
        from vggkit.lab.compare import compare

        with self.lock:
            found = compare(paths)
            differences, wrong = found.differences(), found.disagreements()
            read, channels = found.data.held_out.reader(0, 0), found.networks[0].classifier.preprocessing.channels
            pictures = [thumbnail(read(index).content, channels) for index, _, _ in wrong]
        return {
            **found.to_json(),
            "differences": [list(row) for row in differences.sections[0]] if differences else [],
            "disagreements": [
                {"picture": picture, "label": label, "taken_for": taken}
                for picture, (_, label, taken) in zip(pictures, wrong, strict=True)
            ],
        }

    def described(self, path: Path) -> dict[str, Any]:
        """The classes of a network, how it sees images, and its layers."""
        from vggkit.design.network import costs

        with self.lock:
            classifier = self.classifier(path)
        network = classifier.net.architecture
        layers = [asdict(layer) for layer in costs(network).layers]
        return {
            "architecture": network.name,
            "classes": classifier.classes,
            "image_size": network.image_size,
            "channels": network.in_channels,
            "layers": layers,
        }


def _filters(classifier: "Classifier") -> list[str]:
    """The weights of the first convolution, each from its least, black, to its largest, white; colours if it has 3."""
    from PIL import Image
    from torch import nn

    first = next(layer for layer in classifier.net.modules() if isinstance(layer, nn.Conv2d))
    weights = first.weight.detach().float().cpu()[:MAX_FILTERS]
    low, high = weights.amin((1, 2, 3), keepdim=True), weights.amax((1, 2, 3), keepdim=True)
    levels = (255 * (weights - low) / (high - low).clamp(min=1e-12)).byte().movedim(1, -1).numpy()
    return [as_address(Image.fromarray(each if each.shape[-1] == 3 else each[..., 0])) for each in levels]
