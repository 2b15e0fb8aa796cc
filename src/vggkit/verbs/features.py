"""`vgg features`: an image to what the named layers of a network put out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from vggkit.verbs.terminal import DONE, check_out, parse_flags, print_json, print_table, print_to_stderr


@dataclass(frozen=True)
class Flags:
    """Write what named layers of a network put out for an image into a safetensors file."""

    model: Positional[str]
    """A run folder, a weight file, or published weights such as torchvision/vgg16 ('vgg weights' lists them)."""
    image: Positional[Path]
    """An image file (PNG, JPEG, WebP, GIF, BMP or TIFF) of any size and mode."""
    layers: tuple[str, ...]
    """Canonical names, such as relu3_3 conv4_1 pool5 fc7; conv is before its ReLU."""
    out: Annotated[Path, arg(aliases=("-o",))]
    """The .safetensors file to write."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; a GPU, if there is one, if not given."""
    json: bool = False
    """Print JSON instead of a table."""


def run(arguments: list[str]) -> int:
    """Run the verb; returns the exit code."""
    flags = parse_flags("features", Flags, arguments)
    check_out(flags.out, ".safetensors")
    from safetensors.torch import save

    from vggkit.data.files import write_whole
    from vggkit.inference.features import features
    from vggkit.inference.predict import load_classifier
    from vggkit.training.hardware import choose_device
    from vggkit.training.run_weights import find_weights

    classifier = load_classifier(find_weights(flags.model, print_to_stderr), choose_device(flags.device))
    outputs = features(classifier, flags.image, flags.layers)
    metadata = {"model": flags.model, "image": str(flags.image), "layers": json.dumps(list(outputs))}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in outputs.items()}
    write_whole(flags.out, save(tensors, metadata))
    if flags.json:
        shapes = {name: list(tensor.shape) for name, tensor in outputs.items()}
        print_json({"out": str(flags.out), "shapes": shapes})
        return DONE
    rows = [(name, "x".join(map(str, tensor.shape)), f"{tensor.mean():.4g}") for name, tensor in tensors.items()]
    print_table(("layer", "shape", "mean"), [rows], left_aligned=2)
    print(flags.out)
    return DONE
