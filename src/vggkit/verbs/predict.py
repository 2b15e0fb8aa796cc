"""`vgg predict`: image files to classes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from vggkit.errors import one_line, shown
from vggkit.verbs.preparation import Preparation, PreparationFlags
from vggkit.verbs.terminal import DONE, USER_ERROR, parse_flags, print_json, print_to_stderr

if TYPE_CHECKING:
    from vggkit.inference.predict import Classifier


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """What the verbs that use a trained network share."""

    model: Positional[str]
    """A run folder, a weight file, or published weights such as torchvision/vgg16 ('vgg weights' lists them)."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; a GPU, if there is one, if not given."""
    preparation: Preparation = field(default_factory=PreparationFlags)
    json: bool = False
    """Print JSON instead of text."""


@dataclass(frozen=True, kw_only=True)
class ImagesFlags(ModelFlags):
    """What the verbs that take images share."""

    images: Positional[tuple[Path, ...]]
    """Image files (PNG, JPEG, WebP, GIF, BMP or TIFF) of any size and mode, and folders of them."""


@dataclass(frozen=True, kw_only=True)
class Flags(ImagesFlags):
    """Classify images with a trained network.

    Examples:
      vgg predict runs/quick-1 photo.jpg
      vgg predict torchvision/vgg16 photos --top 5 --json
    """

    top: int = 3
    """Classes to show for each image."""


def run(arguments: list[str]) -> int:
    """Run the verb; returns the exit code: 2 if an image is bad."""
    flags = parse_flags("predict", Flags, arguments)
    classifier, bad = opened(flags, "predict")
    from vggkit.inference.predict import predictions

    found = []
    for name, best in predictions(classifier, flags.images, flags.top, bad):
        if flags.json:
            found.append({"image": name, "predictions": [p._asdict() for p in best]})
        else:
            print(f"{shown(name, limit=500)}: {', '.join(map(str, best))}", flush=True)
    if flags.json:
        print_json(found)
    return bad.code


class BadImages:
    """Names each bad image on stderr, and knows the exit code that follows."""

    def __init__(self, verb: str) -> None:
        self.verb, self.code = verb, DONE

    def __call__(self, error: ValueError) -> None:
        """Tell of one."""
        print_to_stderr(f"vgg {self.verb}: {one_line(error)}")
        self.code = USER_ERROR


def opened(flags: ImagesFlags, verb: str) -> "tuple[Classifier, BadImages]":
    """The classifier that `flags` name, on its device, and who is told of bad images."""
    if not flags.images:
        raise ValueError("expected at least one image, got none")
    return classifier_of(flags), BadImages(verb)


def classifier_of(flags: ModelFlags, best: bool = False) -> "Classifier":
    """The classifier that `flags` name, on its device: of a run the last epoch's, or the best one's."""
    from vggkit.design.network import costs
    from vggkit.inference.predict import load_classifier
    from vggkit.training.hardware import choose_device, keep_freed_memory, use_huge_pages
    from vggkit.training.run_folder import BEST

    use_huge_pages()
    path = Path(flags.model) / BEST if best else flags.model
    if best and not Path(path).exists():
        raise ValueError(
            f"expected a run folder with {BEST} for --best, which a finished run with a validation set has, got "
            f"{flags.model}, try without --best"
        )
    classifier = load_classifier(path, choose_device(flags.device), print_to_stderr, **flags.preparation.given())
    keep_freed_memory(costs(classifier.net.architecture, 1).total.activation_bytes)
    return classifier
