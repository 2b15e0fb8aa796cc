"""`vgg features`: images to what the named layers of a network put out."""

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from vggkit.design.table import Table
from vggkit.errors import shown
from vggkit.verbs.models import BadImages, ImagesFlags
from vggkit.verbs.terminal import check_out, parse_flags, print_json


@dataclass(frozen=True, kw_only=True)
class Flags(ImagesFlags):
    """Write what named layers put out for images into a file.

    Examples:
      vgg features torchvision/vgg16 a.jpg --layers relu3_3 -o maps.safetensors
      vgg features runs/quick-1 photos --layers pool4 -o photos.safetensors
    """

    layers: tuple[str, ...]
    """Canonical names, such as relu3_3 conv4_1 pool5 fc7; conv is before its ReLU."""
    out: Annotated[Path, arg(aliases=("-o",))]
    """The .safetensors file to write: a tensor for each layer, with a row for each image."""


def run(arguments: list[str]) -> int:
    """Run the verb; the exit code is 2 if an image is bad."""
    flags = parse_flags("features", Flags, arguments)
    check_out(flags.out, ".safetensors")
    classifier, bad = flags.classifier(), BadImages("features")
    import torch

    from vggkit.data.files import write_synced
    from vggkit.inference.features import feature_batches
    from vggkit.weights.files import safetensors_pieces

    names: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    # What may be larger than memory goes to a file for each layer first: where a layer begins in the whole file is
    # known once all images are read.
    with tempfile.TemporaryDirectory(dir=flags.out.parent, prefix=f".{flags.out.name}-") as folder:
        parts = {layer: Path(folder, str(number)) for number, layer in enumerate(flags.layers)}
        for some, outputs in feature_batches(classifier, flags.images, flags.layers, bad):
            names += some
            for layer, output in outputs.items():
                shapes[layer] = (len(names), *output.shape[1:])
                with parts[layer].open("ab") as file:
                    file.write(output.cpu().contiguous().numpy().data)
        if not names:
            return bad.code
        tensors = {
            layer: torch.from_file(str(parts[layer]), size=math.prod(shape)).view(shape)
            for layer, shape in shapes.items()
        }
        metadata = {"model": flags.model, "images": json.dumps(names), "layers": json.dumps(list(shapes))}
        write_synced(Path(folder, "whole"), safetensors_pieces(tensors, metadata))
        Path(folder, "whole").replace(flags.out)
        rows = [(name, "x".join(map(str, tensor.shape)), f"{tensor.mean():.4g}") for name, tensor in tensors.items()]
    if flags.json:
        print_json({"out": str(flags.out), "images": names, "shapes": shapes})
    else:
        print(Table(("layer", "shape", "mean"), [rows], 2))
        print(shown(flags.out, 500))
    return bad.code
