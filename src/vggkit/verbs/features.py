"""`vgg features`: write the outputs of named layers for images, and find similar images by them."""

import json
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from vggkit.design.table import Table
from vggkit.errors import UserError, shown
from vggkit.verbs.models import BadImages, ImagesFlags
from vggkit.verbs.terminal import DONE, Out, check_kept, check_out, parse_flags, print_json


@dataclass(frozen=True, kw_only=True)
class Flags(ImagesFlags):
    """Write what layers put out for images; find images by it.

    Examples:
      vgg features torchvision/vgg16 photos --layers fc7 -o index.safetensors
      vgg features --like photo.jpg index.safetensors -o alike.png
    """

    layers: tuple[str, ...] = ()
    """Canonical names, such as relu3_3 conv4_1 pool5 fc7; conv is before its ReLU. With --like one, or the last."""
    out: Out[Path | None] = None
    """The .safetensors file to write, a tensor for each layer with a row for each image; with --like, a .png file."""
    like: Path | None = None
    """An image: find the most similar images in an index, a file written by this verb, given in place of MODEL."""
    top: int = 7
    """Number of images to find."""


def run(arguments: list[str]) -> int:
    """Run the verb; the exit code is 2 if an image is bad."""
    flags = parse_flags("features", Flags, arguments)
    if flags.like is not None:
        return _find_similar(flags, flags.like)
    if flags.out is None or not flags.layers:
        example = "vgg features torchvision/vgg16 photos --layers fc7 -o index.safetensors"
        raise UserError(f"expected --layers LAYER ... and --out FILE, got none, try '{example}'")
    return _write_features(flags, flags.out)


def _write_features(flags: Flags, out: Path) -> int:
    check_out(out, ".safetensors", reads=(*flags.images, flags.model))
    classifier, bad = flags.classifier(), BadImages("features")
    import torch

    from vggkit.data.files import write_synced
    from vggkit.inference.features import feature_batches
    from vggkit.weights.files import safetensors_pieces

    names: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    # Outputs may exceed memory. Each layer goes to a file of its own first, because its offset in the final file is
    # known only after the last image.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        parts = {layer: Path(folder, str(number)) for number, layer in enumerate(flags.layers)}
        for batch_names, outputs in feature_batches(classifier, flags.images, flags.layers, bad):
            names += batch_names
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
        metadata["preprocessing"] = classifier.preprocessing.to_json()
        write_synced(Path(folder, "whole"), safetensors_pieces(tensors, metadata))
        Path(folder, "whole").replace(out)
        rows = [(name, "x".join(map(str, tensor.shape)), f"{tensor.mean():.4g}") for name, tensor in tensors.items()]
    if flags.json:
        print_json({"out": str(out), "images": names, "shapes": shapes})
    else:
        print(Table(("layer", "shape", "mean"), [rows], 2))
        print(shown(out, 500))
    return bad.code


def _find_similar(flags: Flags, query: Path) -> int:
    """Print the table of the images most similar to `query`, and write their contact sheet."""
    if len(flags.layers) > 1 or flags.images:
        raise UserError("expected an index and at most one layer with --like, got more, try --layers fc7")
    if flags.out is not None:
        check_out(flags.out, ".png", reads=(query, flags.model))
    from vggkit.data.files import write_whole
    from vggkit.inference.predict import load_classifier
    from vggkit.inference.similar import contact_sheet, read_index
    from vggkit.training.hardware import choose_device

    index = read_index(flags.model, *flags.layers)
    if flags.out is not None:
        check_kept(flags.out, index.images)
    classifier = load_classifier(index.model, choose_device(flags.device))
    matches = index.like(replace(classifier, preprocessing=index.preprocessing), query, flags.top)
    if flags.out is not None:
        write_whole(flags.out, contact_sheet(query, matches))
    if flags.json:
        print_json([match._asdict() for match in matches])
    else:
        print(Table(("image", f"cosine of {index.layer}"), [[(name, f"{value:.4f}") for name, value in matches]]))
        if flags.out is not None:
            print(shown(flags.out, 500))
    return DONE
