"""The preprocessing that weights need: what their file says, or else their names suggest, and what the user says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from vggkit.data.preprocessing import Order, Preprocessing
from vggkit.errors import WeightsError
from vggkit.networks.baselines import BaselineNetwork
from vggkit.networks.vgg import VGG
from vggkit.weights.surgery import is_folded
from vggkit.weights.translation import preprocessing_of

GUESSED = "preprocessing_guessed_from"
"""Key in the metadata of `load_weights`: the source whose names a file has, if it does not state a preprocessing."""


@dataclass(frozen=True)
class GivenPreprocessing:
    """What the user says about the preprocessing; None leaves what the file says, or its names suggest."""

    preprocessing: Literal["torchvision", "timm", "keras", "caffe"] | None = None
    """Prepare images as this publisher does, whatever the names in the file suggest."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel in the network's order, taken off values in [0, 1], or in [0, 255] if one is above 1."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, by which values are divided, in the unit of the mean."""
    order: Order | None = None
    """Order of the channels that the network takes: rgb or bgr."""


def preprocessing_for(
    net: VGG | BaselineNetwork,
    metadata: Mapping[str, str],
    given: GivenPreprocessing = GivenPreprocessing(),
    report: Callable[[str], None] = lambda line: None,
) -> Preprocessing | None:
    """The preprocessing for the network and metadata of `load_weights`; None if nobody says any.

    `report` is told in a line of a preprocessing that is guessed.

    Raises:
        WeightsError: the metadata or what is given cannot be, or the preprocessing is folded into the weights.
    """
    arch = net.architecture
    try:
        found = Preprocessing.from_json(metadata["preprocessing"]) if "preprocessing" in metadata else None
        if given.preprocessing or (found is None and given.mean and given.std):
            found = preprocessing_of(given.preprocessing or "torchvision", arch.image_size, arch.in_channels)
        if found is None or given == GivenPreprocessing():
            if found is not None and GUESSED in metadata:
                report(
                    f"note: these weights do not say how to prepare images, but have {metadata[GUESSED]}'s names: "
                    f"taken as {_flags(found)}"
                )
            return found
        if isinstance(net, VGG) and is_folded(net):
            raise ValueError(
                "expected weights without folded preprocessing to prepare images otherwise, got some with it"
            )
        scale = found.scale if given.mean is None else 255.0 if max(map(abs, given.mean)) > 1 else 1.0
        std = given.std or tuple(value * scale / found.scale for value in found.std)
        return replace(found, mean=given.mean or found.mean, std=std, order=given.order or found.order, scale=scale)
    except ValueError as error:
        raise WeightsError(str(error)) from None


def _flags(preprocessing: Preprocessing) -> str:
    """`preprocessing` as a user would give it."""
    mean, std = (" ".join(f"{value:.6g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    return f"--mean {mean} --std {std} --order {preprocessing.order}"
