"""`vgg export`: write a trained network for another runtime."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from vggkit.errors import UserError
from vggkit.verbs.models import ModelFlags
from vggkit.verbs.terminal import Out, check_kept, parse_flags, print_json


@dataclass(frozen=True, kw_only=True)
class Flags(ModelFlags):
    """Export a trained network to ONNX, torch.export, timm or OpenVINO.

    Examples:
      vgg export runs/quick-1 -o quick.onnx
      vgg export runs/quick-1 -o quick.onnx --with-preprocessing
      vgg export runs/quick-1 -o quick-int8.onnx --int8
      vgg export torchvision/vgg16 -o head.onnx --int8-head --calibrate photos
    """

    out: Out[Path]
    """The file to write: .onnx, .pt2 (torch.export) or .xml (OpenVINO); without a suffix, a new folder for timm."""
    data: Annotated[str | None, arg(aliases=["--calibrate"])] = None
    """Images, as for vgg train --data, on which the file is verified, and int8 calibrated and measured; if not given,
    the run's own."""
    with_preprocessing: bool = False
    """Make a graph from RGB images of any size, uint8 (batch, height, width, 3), to probabilities."""
    int8: bool = False
    """Use 8-bit weights in all layers of an .onnx file."""
    int8_head: bool = False
    """Use 8-bit weights in the fully connected layers only, which hold most of VGG-16's."""
    max_drop: float = 0.5
    """Percentage points of top-1 that int8 may lose; if it loses more, nothing is written."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("export", Flags, arguments)
    from vggkit.inference.export import check_export_path, export
    from vggkit.inference.export_int8 import check_max_drop

    check_export_path(flags.out)
    check_max_drop(flags.max_drop)
    check_kept(flags.out, (flags.model, flags.data))
    if flags.int8 and flags.int8_head:
        raise UserError("expected --int8 or --int8-head, got both")
    exported = export(
        flags.classifier(),
        flags.out,
        flags.data,
        with_preprocessing=flags.with_preprocessing,
        int8="all" if flags.int8 else "head" if flags.int8_head else None,
        max_drop=flags.max_drop,
    )
    if flags.json:
        print_json(exported.manifest)
    else:
        print(exported)
