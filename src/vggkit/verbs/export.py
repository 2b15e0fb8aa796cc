"""`vgg export`: a trained network to a file for another runtime."""

from dataclasses import dataclass
from pathlib import Path

from vggkit.verbs.models import ModelFlags
from vggkit.verbs.terminal import Short, parse_flags, print_json


@dataclass(frozen=True, kw_only=True)
class Flags(ModelFlags):
    """Export a trained network to ONNX, torch.export, timm or OpenVINO.

    Examples:
      vgg export runs/quick-1 -o quick.onnx
      vgg export runs/quick-1 -o quick.onnx --with-preprocessing
    """

    out: Short[Path]
    """The file to write: .onnx, .pt2 (torch.export), .xml (OpenVINO); without a suffix, a new folder for timm."""
    data: str | None = None
    """Images to try the file on before it is there, named as for vgg train; the run's own, if not given."""
    with_preprocessing: bool = False
    """Take RGB images of any size as uint8 (batch, height, width, 3), and give probabilities."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("export", Flags, arguments)
    from vggkit.inference.export import check_export_path, export

    check_export_path(flags.out)
    exported = export(flags.classifier(), flags.out, flags.data, with_preprocessing=flags.with_preprocessing)
    if flags.json:
        print_json(exported.manifest)
    else:
        print(exported)
