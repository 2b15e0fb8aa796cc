"""The flags of every verb that says how to prepare images for weights; imports no torch."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from tyro.conf import arg

from vggkit.verbs.terminal import given


@dataclass(frozen=True)
class PreparationFlags:
    """Without them, images are prepared as the weight file says, or as the publisher does whose names it has."""

    preprocessing: Literal["torchvision", "timm", "keras", "caffe"] | None = None
    """Prepare images as this publisher does: Caffe's numbers may have torchvision's names."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, in [0, 1]; in [0, 255] if one is above 1."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, in the mean's unit."""
    order: Literal["rgb", "bgr"] | None = None
    """Order of the channels that the weights expect."""

    def given(self) -> dict[str, Any]:
        """The flags that were given, as keyword arguments of `load_classifier`."""
        return given(**asdict(self))


Preparation = Annotated[PreparationFlags, arg(name="")]
