"""`vgg predict`: classify image files."""

from dataclasses import dataclass

from vggkit.errors import shown
from vggkit.verbs.models import BadImages, ImagesFlags
from vggkit.verbs.terminal import parse_flags, print_json


@dataclass(frozen=True, kw_only=True)
class Flags(ImagesFlags):
    """Classify images with a trained network.

    Examples:
      vgg predict runs/quick-1 photo.jpg
      vgg predict torchvision/vgg16 photos --top 5 --json
    """

    top: int = 3
    """Number of classes to show for each image."""


def run(arguments: list[str]) -> int:
    """Run the verb; the exit code is 2 if an image is bad."""
    flags = parse_flags("predict", Flags, arguments)
    classifier, bad = flags.classifier(), BadImages("predict")
    from vggkit.inference.predict import MIRRORED, predictions

    results = []
    for name, best in predictions(classifier, flags.images, flags.top, bad):
        if flags.json:
            results.append({"image": name, "predictions": [p._asdict() for p in best]})
        else:
            print(f"{shown(name, limit=500)}: {', '.join(map(str, best))}", flush=True)
    if flags.json:
        print_json(results)
    elif classifier.preprocessing.test_flip:
        print(f"each is the {MIRRORED}")
    return bad.code
