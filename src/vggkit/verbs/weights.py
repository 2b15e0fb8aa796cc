"""`vgg weights`: list and fetch published weights, and convert weight files."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from vggkit.design.table import Table
from vggkit.errors import UserError, shown
from vggkit.verbs.models import PreparationFlags
from vggkit.verbs.terminal import Out, check_kept, check_out, given, parse_flags, print_json, print_to_stderr

if TYPE_CHECKING:
    from vggkit.data.preprocessing import Preprocessing
    from vggkit.networks.vgg import VGG


@dataclass(frozen=True)
class List:
    """List the known published weights and where they are stored."""

    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Fetch:
    """Fetch published weights and verify their hash.

    Examples:
      vgg weights fetch torchvision/vgg11
      vgg weights fetch torchvision/vgg16_bn
    """

    name: Positional[str]
    """Published weights, such as torchvision/vgg16."""


@dataclass(frozen=True)
class Convert:
    """Write weights with other names, another head, size, channels or preprocessing.

    Examples:
      vgg weights convert torchvision/vgg16 --head conv -o vgg16-conv.safetensors
      vgg weights convert runs/quick-1 --to torchvision -o quick.pth
    """

    model: Positional[str]
    """A run folder, a weight file, or published weights such as torchvision/vgg16."""
    out: Out[Path]
    """The file to write: .safetensors, or .pth with --to torchvision."""
    to: Literal["vggkit", "torchvision"] = "vggkit"
    """The library whose names the file has."""
    head: Literal["flatten", "adaptive", "conv"] | None = None
    """Another head with the same weights; conv takes images of any size."""
    image_size: int | None = None
    """Pixels along a side to which images are resized, with the heads adaptive and conv."""
    in_channels: int | None = None
    """1 for grey images, 3 for RGB; the first convolution's weights are summed or divided over the channels."""
    fold: bool = False
    """Fold order, scale, mean and std into the first convolution, which then takes RGB in [0, 1]."""
    preparation: PreparationFlags = field(default_factory=PreparationFlags)


@dataclass(frozen=True)
class Flags:
    """List, fetch and convert weights of five libraries.

    Examples:
      vgg weights fetch torchvision/vgg16
      vgg weights convert torchvision/vgg16 --head conv -o vgg16-conv.safetensors
    """

    action: List | Fetch | Convert = List()


def run(arguments: list[str]) -> None:
    """Run the verb."""
    action = parse_flags("weights", Flags, arguments).action
    if isinstance(action, List):
        _list(action.json)
    elif isinstance(action, Convert):
        _convert(action)
    else:
        from vggkit.weights.published import fetch_weights

        print(fetch_weights(action.name, print_to_stderr))


def _list(as_json: bool) -> None:
    from vggkit.data.files import user_cache
    from vggkit.weights.published import PUBLISHED

    if as_json:
        print_json(
            [
                {
                    "name": entry.name,
                    "hash": f"{entry.algorithm} {entry.digest}",
                    "parameter_bytes": entry.parameter_bytes,
                    "where": str(entry.path) if entry.path.is_file() else "",
                    "url": entry.url,
                }
                for entry in PUBLISHED.values()
            ]
        )
    else:
        rows = [
            (
                entry.name,
                f"{entry.algorithm} {entry.digest[:8]}",
                "fetched" if entry.path.is_file() else "not fetched",
                f"{entry.parameter_bytes / 1e6:.0f}",
            )
            for entry in PUBLISHED.values()
        ]
        notes = [
            "MB: of the parameters; hash: its first 8 digits, all of them with --json",
            f"what is fetched lies in {user_cache() / 'weights'}",
        ]
        print(Table(("name", "published hash", "state", "MB"), [rows], 3, notes=notes))


def _convert(flags: Convert) -> None:
    out = flags.out
    check_out(out, ".safetensors", *([".pth"] if flags.to == "torchvision" else []))
    from vggkit.networks.vgg import VGG
    from vggkit.weights.files import load_weights, save_torchvision, save_weights
    from vggkit.weights.preparation import GUESSED, preprocessing_for
    from vggkit.weights.runs import find_weights
    from vggkit.weights.translation import preprocessing_of

    source = find_weights(flags.model, print_to_stderr)
    check_kept(out, [source])
    net, metadata = load_weights(source)
    if not isinstance(net, VGG):
        raise UserError(f"expected a VGG network to convert, got {net.architecture.name}")
    stated = preprocessing_for(net, metadata, print_to_stderr, **given(**asdict(flags.preparation)))
    net, preprocessing = _converted(net, stated, flags)
    if flags.to == "torchvision":
        save_torchvision(out, net)
        if preprocessing not in (None, preprocessing_of("torchvision", channels=net.architecture.in_channels)):
            print_to_stderr(f"note: torchvision's file cannot say that these weights expect {preprocessing.to_json()}")
    else:
        metadata.pop(GUESSED, None)
        if preprocessing is not None:
            metadata["preprocessing"] = preprocessing.to_json()
        save_weights(out, net, metadata)
    print(shown(out, 500))


def _converted(net: "VGG", preprocessing: "Preprocessing | None", flags: Convert) -> "tuple[VGG, Preprocessing | None]":
    """`net` and its preprocessing, converted to the channels, folding, head and image size of the flags."""
    from vggkit.weights import surgery

    if flags.in_channels not in (None, net.architecture.in_channels):
        if preprocessing is not None:
            net, preprocessing = surgery.with_common_scale(net, preprocessing)
            preprocessing = preprocessing.for_channels(flags.in_channels)
        net = surgery.with_in_channels(net, flags.in_channels)
    if flags.fold:
        if preprocessing is None:
            raise UserError("expected weights that say their preprocessing to fold, got none, try --preprocessing")
        net = surgery.fold_preprocessing(net, preprocessing)
        zeros, ones = (0.0,) * preprocessing.channels, (1.0,) * preprocessing.channels
        preprocessing = replace(preprocessing, mean=zeros, std=ones, order="rgb", scale=1.0)
    if flags.head not in (None, "flatten"):
        net = surgery.with_head(net, flags.head)
    if flags.image_size is not None:
        net = surgery.with_image_size(net, flags.image_size)
        preprocessing = preprocessing and replace(preprocessing, image_size=flags.image_size)
    if flags.head == "flatten":  # last, because it fixes the size of images
        net = surgery.with_head(net, "flatten")
    return net, preprocessing
