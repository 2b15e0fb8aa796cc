"""`vgg predict`: image files to classes."""

from dataclasses import asdict, dataclass
from pathlib import Path

from tyro.conf import Positional

from vggkit.verbs.terminal import DONE, parse_flags, print_json, print_to_stderr


@dataclass(frozen=True)
class Flags:
    """Classify image files with a trained network."""

    model: Positional[str]
    """A run folder, a weight file, or published weights such as torchvision/vgg16 ('vgg weights' lists them)."""
    images: Positional[tuple[Path, ...]]
    """Image files (PNG, JPEG, WebP, GIF, BMP or TIFF) of any size and mode."""
    top: int = 3
    """Classes to show for each image."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; a GPU, if there is one, if not given."""
    json: bool = False
    """Print JSON instead of lines."""


def run(arguments: list[str]) -> int:
    """Run the verb; returns the exit code."""
    flags = parse_flags("predict", Flags, arguments)
    if not flags.images:
        raise ValueError("expected at least one image, got none")
    from vggkit.design.network import costs
    from vggkit.inference.predict import load_classifier, predict
    from vggkit.training.hardware import choose_device, keep_freed_memory, use_huge_pages
    from vggkit.training.run_weights import find_weights

    use_huge_pages()
    classifier = load_classifier(find_weights(flags.model, print_to_stderr), choose_device(flags.device))
    keep_freed_memory(costs(classifier.net.architecture, 1).total.activation_bytes)
    predictions = predict(classifier, flags.images, flags.top)
    if flags.json:
        print_json(
            [
                {"image": str(path), "predictions": [asdict(p) for p in best]}
                for path, best in zip(flags.images, predictions, strict=True)
            ]
        )
        return DONE
    for path, best in zip(flags.images, predictions, strict=True):
        print(f"{path}: " + ", ".join(f"{p.label} {p.probability:.1%}" for p in best))
    return DONE
