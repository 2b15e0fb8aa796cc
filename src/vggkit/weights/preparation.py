"""The preprocessing that weights need: what their file says, or else their names suggest, and what the user says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from vggkit.data.preprocessing import Order, Preprocessing
from vggkit.errors import WeightsError, shown
from vggkit.networks.baselines import BaselineNetwork
from vggkit.networks.vgg import VGG
from vggkit.weights.surgery import is_folded
from vggkit.weights.translation import SOURCES, Source, preprocessing_of

GUESSED = "preprocessing_guessed_from"
"""Key in the metadata of `load_weights`: the source whose names a file has, if it does not state a preprocessing."""


def preprocessing_for(
    net: VGG | BaselineNetwork,
    metadata: Mapping[str, str],
    report: Callable[[str], None] = lambda line: None,
    *,
    preprocessing: Source | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    order: Order | None = None,
) -> Preprocessing | None:
    """The preprocessing for a network and its metadata from `load_weights`; None if nobody states one.

    Args:
        net: gives the number of channels and the size of its images.
        metadata: holds what the file states or its names suggest.
        report: is told in a line of a preprocessing that the names suggest, if it is taken.
        preprocessing: the publisher whose way it is.
        mean: of each channel in the network's order, of values in [0, 1], or in [0, 255] if one is above 1.
        std: of each channel in the network's order, in the same unit.
        order: of the channels.

    Raises:
        WeightsError: a value that cannot be, or a preprocessing beside one that is folded into the weights.
    """
    arch = net.architecture
    if preprocessing not in (None, *SOURCES):
        raise WeightsError(f"expected a preprocessing of {', '.join(SOURCES)}, got {shown(repr(preprocessing))}")
    try:
        mean, std = (None if values is None else tuple(map(float, values)) for values in (mean, std))
    except (TypeError, ValueError):
        got = shown(repr((mean, std)))
        raise WeightsError(
            f"expected a number for each channel as mean and std, got {got}, try (0.5, 0.5, 0.5)"
        ) from None
    try:
        found = Preprocessing.from_json(metadata["preprocessing"]) if "preprocessing" in metadata else None
        if preprocessing or (found is None and mean and std):
            found = preprocessing_of(preprocessing or "torchvision", arch.image_size, arch.in_channels)
        if found is None or not (preprocessing or mean or std or order):
            if found is not None and GUESSED in metadata:
                means, stds = (" ".join(f"{value:.6g}" for value in values) for values in (found.mean, found.std))
                report(
                    f"note: these weights do not say how to prepare images, but have {metadata[GUESSED]}'s names: "
                    f"taken as --mean {means} --std {stds} --order {found.order}"
                )
            return found
        if isinstance(net, VGG) and is_folded(net):
            raise ValueError("expected weights without folded preprocessing to prepare otherwise, got some with it")
        scale = found.scale if not mean else 255.0 if max(map(abs, mean)) > 1 else 1.0
        std = std or tuple(value * scale / found.scale for value in found.std)
        return replace(found, mean=mean or found.mean, std=std, order=order or found.order, scale=scale)
    except ValueError as error:
        raise WeightsError(str(error)) from None
