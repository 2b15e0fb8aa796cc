"""The flags shared by the verbs that use a trained network, and the classifier that they name."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from vggkit.errors import UserError, one_line
from vggkit.verbs.terminal import DONE, USER_ERROR, given, print_to_stderr

if TYPE_CHECKING:
    from vggkit.inference.predict import Classifier


@dataclass(frozen=True)
class PreparationFlags:
    """If not given, images are prepared as the weight file states, or as the publisher of its names does."""

    preprocessing: Literal["torchvision", "timm", "keras", "caffe"] | None = None
    """Prepare images as this publisher does: weights of Caffe's may have torchvision's names."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, in [0, 1]; in [0, 255] if one is above 1."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, in the mean's unit."""
    order: Literal["rgb", "bgr"] | None = None
    """Order of the channels that the weights expect."""


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """The flags of the verbs that use a trained network."""

    model: Positional[str]
    """A run folder, a weight file, or published weights such as torchvision/vgg16 ('vgg weights' lists them)."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; if not given, a GPU if there is one."""
    preparation: PreparationFlags = field(default_factory=PreparationFlags)
    json: bool = False
    """Print JSON instead of text."""

    def classifier(self, best: bool = False) -> "Classifier":
        """Load the classifier that the flags name onto its device: that of a run's last epoch, or of its `best` one."""
        from vggkit.design.network import costs
        from vggkit.inference.predict import load_classifier
        from vggkit.training.hardware import choose_device, keep_freed_memory, use_huge_pages
        from vggkit.training.run_folder import BEST

        use_huge_pages()
        path = Path(self.model) / BEST if best else self.model
        if best and not Path(path).exists():
            raise UserError(
                f"expected a run folder with {BEST} for --best, which a finished run with a validation set has, got "
                f"{self.model}, try without --best"
            )
        how = given(**asdict(self.preparation))
        classifier = load_classifier(path, choose_device(self.device), print_to_stderr, **how)
        keep_freed_memory(costs(classifier.net.architecture, 1).total.activation_bytes)
        return classifier


@dataclass(frozen=True, kw_only=True)
class ImagesFlags(ModelFlags):
    """The flags of the verbs that take images."""

    images: Positional[tuple[Path, ...]]
    """Image files (PNG, JPEG, WebP, GIF, BMP or TIFF) of any size and mode, and folders of them."""

    def classifier(self, best: bool = False) -> "Classifier":
        """As `ModelFlags.classifier`; raises `UserError` without images."""
        if not self.images:
            raise UserError("expected at least one image, got none")
        return super().classifier(best)


class BadImages:
    """Prints each bad image to stderr; `code` is the exit code."""

    def __init__(self, verb: str) -> None:
        self.verb, self.code = verb, DONE

    def __call__(self, error: ValueError) -> None:
        """Print the error of a bad image."""
        print_to_stderr(f"vgg {self.verb}: {one_line(error)}")
        self.code = USER_ERROR
