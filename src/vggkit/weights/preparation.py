"""The preprocessing of weights: stated in their file, guessed from their names, or given by the user."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from vggkit.data.preprocessing import Order, Preprocessing
from vggkit.errors import WeightsError, shown
from vggkit.networks.baselines import BaselineNetwork
from vggkit.networks.vgg import VGG
from vggkit.weights.surgery import is_folded
from vggkit.weights.translation import SOURCES, Source, preprocessing_of

GUESSED = "preprocessing_guessed_from"
"""Metadata key of `load_weights`: the source with the names of a file that does not state a preprocessing."""


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
    """The preprocessing for a network and its metadata from `load_weights`; None if it is unknown.

    The user may choose the `preprocessing` of a source, or `mean` and `std` of the channels in the network's `order`,
    for values in [0, 1], or in [0, 255] if a mean is above 1. `report` takes a line on a guessed preprocessing.

    Raises:
        WeightsError: an invalid value, or a preprocessing beside one that is folded into the weights.
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
        chosen = Preprocessing.from_json(metadata["preprocessing"]) if "preprocessing" in metadata else None
        if preprocessing or (chosen is None and mean and std):
            chosen = preprocessing_of(preprocessing or "torchvision", arch.image_size, arch.in_channels)
        if chosen is None or not (preprocessing or mean or std or order):
            if chosen is not None and GUESSED in metadata:
                means, stds = (" ".join(f"{value:.6g}" for value in values) for values in (chosen.mean, chosen.std))
                report(
                    f"note: these weights do not say how to prepare images, but have {metadata[GUESSED]}'s names: "
                    f"taken as --mean {means} --std {stds} --order {chosen.order}"
                )
            return chosen
        if isinstance(net, VGG) and is_folded(net):
            raise ValueError("expected weights without folded preprocessing to prepare otherwise, got some with it")
        scale = chosen.scale if not mean else 255.0 if max(map(abs, mean)) > 1 else 1.0
        std = std or tuple(value * scale / chosen.scale for value in chosen.std)
        return replace(chosen, mean=mean or chosen.mean, std=std, order=order or chosen.order, scale=scale)
    except ValueError as error:
        raise WeightsError(str(error)) from None
