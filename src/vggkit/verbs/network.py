"""The flags that describe a network, and the network that a text, a run folder or a weight file names."""

import contextlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from vggkit.data.files import why_not_a_file
from vggkit.design.architecture import Head
from vggkit.design.network import Network, as_network, network_from_json
from vggkit.errors import ArchitectureError, WeightsError, shown
from vggkit.verbs.terminal import given
from vggkit.weights.runs import CHECKPOINTS, MODEL, NETWORK

SUFFIXES = (".safetensors", ".pth", ".npz", ".h5")


@dataclass(frozen=True)
class NetworkFlags:
    """Properties that a name or the notation leaves open."""

    in_channels: int | None = None
    """1 for grey images, 3 for RGB; the network's own if not given: 3, for lenet and alexnet 1."""
    image_size: int | None = None
    """Pixels along a side; the network's own if not given: 224, for lenet 28."""
    num_classes: int | None = None
    """Outputs of the last layer; the network's own if not given: 1000, for lenet and alexnet 10."""
    head: Head | None = None
    """flatten (the book's, the default), adaptive (torchvision's), conv (the paper's dense evaluation), gap."""
    pooled_size: int | None = None
    """Pixels that the first fully connected layer sees, with the heads adaptive and conv; 7 if not given."""
    hidden: tuple[int, ...] | None = None
    """Widths of the hidden fully connected layers; 4096 4096 if not given, none with the head gap."""

    def network(self, text: str) -> Network:
        """The network called `text`, or that of the run folder or weight file at the path `text`.

        Raises:
            ArchitectureError: an invalid network.
            WeightsError: a missing file, or one that does not state its network.
        """
        options = given(**asdict(self))
        try:
            return as_network(text, **options)
        except ArchitectureError:
            if not os.path.lexists(text):
                if not text.startswith((".", "/", "~", "runs/")) and Path(text).suffix not in SUFFIXES:
                    raise
                raise WeightsError(f"expected a run or a weight file, got {shown(text)}: nothing there") from None
        return as_network(_network_at(Path(text)), **options)


def _network_at(path: Path) -> Network:
    """The network of a weight file, of a finished run, or of the newest checkpoint of an unfinished one."""
    if path.is_dir():
        checkpoints = sorted(path.glob(f"{CHECKPOINTS}/step-*/{NETWORK}"), key=lambda file: file.stat().st_mtime)
        files = [file for file in (*checkpoints, path / MODEL) if file.is_file()]
        if not files:
            raise WeightsError(f"expected a run folder with weights in it, got {shown(path, 500)}, try vgg train")
        path = files[-1]
    if reason := why_not_a_file(path):
        raise WeightsError(f"expected a run folder or a weight file, got {shown(path, 500)}: {reason}")
    from safetensors import SafetensorError, safe_open

    metadata = None
    with contextlib.suppress(SafetensorError), safe_open(path, framework="np") as file:
        metadata = file.metadata()
    if metadata and "architecture" in metadata:
        return network_from_json(metadata["architecture"])
    from vggkit.weights.files import load_weights  # imports torch

    return load_weights(path)[0].architecture
