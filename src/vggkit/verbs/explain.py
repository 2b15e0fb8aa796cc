"""`vgg explain`: attribution maps of an image, the image and patches that maximise a unit, and the first filters."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tyro.conf import Positional

from vggkit.design.table import Table
from vggkit.errors import UserError, shown
from vggkit.inference.explain_names import OF_LAYERS, Method
from vggkit.verbs.models import ModelFlags
from vggkit.verbs.terminal import Out, check_out, given, parse_flags, print_json, print_to_stderr

if TYPE_CHECKING:
    from vggkit.inference.predict import Classifier

Outcome = tuple[bytes, dict[str, Any], list[Any]]
"""The content of the file to write, what to print with --json, and the lines to print without it."""
MAX_MAPS = 64
CHECKED = ("passes", "verdict", "mean_correlation", "correlation", "gain", "deletion", "insertion")
"""The fields of a check that --json prints."""
MAX_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Flags(ModelFlags):
    """Show which pixels speak for a class, or what a unit looks for.

    Examples:
      vgg explain runs/quick-1 photo.jpg --methods grad-cam lrp --check -o why.png
      vgg explain torchvision/vgg16 --unit conv4_2:37 --data photos -o unit.png
    """

    image: Positional[Path | None] = None
    """An image file (PNG, JPEG, WebP, GIF, BMP or TIFF) of any size and mode; not with --unit or --filters."""
    out: Out[Path]
    """The .png file to write, or a .npy file for the maps as float32 (classes, methods, height, width)."""
    methods: tuple[Method, ...] = ("grad-cam",)
    """One or more methods, drawn side by side. guided-backprop shows edges, whatever the network has learned."""
    classes: tuple[str, ...] = ()
    """Names or numbers of the classes to explain; if not given, the most probable class."""
    layer: str | None = None
    """The layer for grad-cam and layer-cam, such as relu4_3; if not given, the last ReLU of the blocks."""
    check: bool = False
    """Measure whether each map depends on the network: compare it with the maps of randomised networks, and delete from
    the image what it marks."""
    unit: str | None = None
    """A unit, such as conv4_2:37 or fc8:281: draw the image that maximises it."""
    data: str | None = None
    """With --unit: images, as for vgg train --data; the patches that excite the unit most are drawn."""
    filters: bool = False
    """Draw the filters of the first layer."""
    seed: int = 0
    """Seed of the noise, of randomised weights and of random orders."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("explain", Flags, arguments)
    if sum([flags.image is not None, flags.unit is not None, flags.filters]) != 1:
        raise UserError("expected an image, --unit or --filters, one of the three, try 'vgg explain --help'")
    if flags.data is not None and flags.unit is None:
        raise UserError("expected --data with --unit, got it without, try 'vgg predict' for images")
    if flags.image is not None and flags.image.is_dir():
        raise UserError(f"expected an image file after MODEL, got the folder {flags.image}, try a file in it")
    if flags.image is None:
        for name in ("check", "classes", "layer", "methods"):
            if getattr(flags, name) != getattr(Flags, name):
                raise UserError(f"expected --{name} with an image, got it with --unit or --filters, try without")
    if not 0 <= flags.seed <= MAX_SEED:
        raise UserError(f"expected a --seed from 0 to {MAX_SEED}, got {flags.seed}, try 0")
    if (count := len(flags.classes) * len(flags.methods)) > MAX_MAPS:
        raise UserError(f"expected at most {MAX_MAPS} maps, got {count}, try fewer --classes or --methods")
    suffixes = (".png",) if flags.image is None else (".png", ".npy")
    check_out(flags.out, *suffixes, reads=(flags.image, flags.data, flags.model))
    outcome = _explain if flags.image is not None else _draw_unit if flags.unit is not None else _draw_filters
    content, facts, lines = outcome(flags, flags.classifier())
    from vggkit.data.files import write_whole

    write_whole(flags.out, content)
    if flags.json:
        print_json({"out": str(flags.out), **facts})
    else:
        print(*lines, shown(flags.out, 500), sep="\n")


def _explain(flags: Flags, classifier: "Classifier") -> Outcome:
    from vggkit.inference.explain import class_index, explain, how_to
    from vggkit.inference.explain_check import check
    from vggkit.inference.explain_pictures import explanations_picture

    layers = {method: flags.layer if method in OF_LAYERS else None for method in flags.methods}
    if flags.layer is not None and not set(OF_LAYERS) & layers.keys():
        raise UserError(f"expected --layer with {' or '.join(OF_LAYERS)}, got it with {', '.join(flags.methods)}")
    for method, layer in layers.items():  # raises before the first map is made
        how_to(classifier, method, layer)
    targets = [class_index(classifier.classes, name) for name in flags.classes]
    image: Any = flags.image
    rows = [
        [explain(classifier, image, method, target, layers[method], flags.seed) for method in flags.methods]
        for target in targets or (None,)
    ]
    facts, lines, verdicts = list[dict[str, Any]](), list[Any](), list[str]()
    for e in (explanation for row in rows for explanation in row):
        fact = {name: getattr(e, name) for name in ("image", "method", "layer", "target", "label", "probability")}
        fact |= {"least": float(e.heat.min()), "most": float(e.heat.max()), **given(note=e.blank or None)}
        if e.blank:
            print_to_stderr(f"vgg explain: {e.blank}")
        if flags.check and not e.blank:
            checked = check(classifier, e, flags.seed)
            fact["check"] = {name: getattr(checked, name) for name in CHECKED}
            verdicts.append(f"{e.label}, {e.method}: {checked.verdict}")
            lines.append(checked)
        else:
            lines.append(e)
        facts.append(fact)
    if classifier.preprocessing.test_flip:
        lines.append("probabilities are of the image alone; vgg predict averages it with its mirror image")
    if flags.out.suffix == ".png":
        return explanations_picture(rows, verdicts), {"maps": facts}, lines
    buffer = io.BytesIO()
    np.save(buffer, np.array([[explanation.heat for explanation in row] for row in rows]))
    return buffer.getvalue(), {"maps": facts}, lines


def _draw_unit(flags: Flags, classifier: "Classifier") -> Outcome:
    from vggkit.data.sources import open_data
    from vggkit.inference.evaluate import default_split
    from vggkit.inference.explain_methods import vgg_of
    from vggkit.inference.explain_pictures import unit_picture
    from vggkit.inference.explain_units import exciting_patches, maximised, unit_of

    unit, patches, source = str(flags.unit), [], ""
    unit_of(vgg_of(classifier.net), unit)  # raises before the data are read
    if flags.data is not None:
        data = open_data(flags.data, holdout=0)
        split = default_split(data)
        images = data.splits[split]
        source = f"{len(images):,} {split} images of {data.name}".replace(" all images", " images")
        read = images.reader(0, 0)
        patches = exciting_patches(classifier, unit, (read(index).content for index in range(len(images))))
    pixels = maximised(classifier, unit, flags.seed)
    facts = {"unit": unit, "patches": [{"image": patch.image, "value": patch.value} for patch in patches]}
    rows = [(patch.image, f"{patch.value:.3f}") for patch in patches]
    lines: list[Any] = [f"{unit}: {pixels.shape[1]} x {pixels.shape[0]} pixels"]
    lines += [Table(("image", "output"), [rows])] if rows else []
    return unit_picture(unit, pixels, patches, source), facts, lines


def _draw_filters(flags: Flags, classifier: "Classifier") -> Outcome:
    from vggkit.inference.explain_pictures import filters_picture
    from vggkit.inference.explain_units import first_filters

    filters = first_filters(classifier)
    count, height, width, channels = filters.shape
    title = f"{count} filters of conv1_1, {channels}x{height}x{width}"
    return filters_picture(title, filters), {"filters": count, "shape": [channels, height, width]}, [title]
