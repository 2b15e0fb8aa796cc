"""A perceptual loss: two images compared by what a trained network's layers make of them.

Sources: Gatys, Ecker & Bethge, arXiv 1508.06576 (content and style, the Gram matrix); Johnson, Alahi & Fei-Fei,
arXiv 1603.08155 (both as a loss to train with, divided by the size of the maps).
"""

import math
from collections.abc import Mapping

from torch import Tensor, nn

from vggkit.data.preprocessing import Preprocessing
from vggkit.errors import check_type
from vggkit.networks.vgg import VGG


class PerceptualLoss(nn.Module):
    """The weighted sum, over named layers, of mean squared differences of maps (content) and Gram matrices (style).

    Args:
        net: trained; it is put into evaluation mode and frozen, and only run up to the deepest layer named.
        preprocessing: of its weights; images are not resized, since the layers of blocks take any size.
        content: the weight of each layer whose maps are to agree, such as `{"relu3_3": 1.0}`.
        style: the weight of each layer whose Gram matrices are to agree.

    Raises:
        ValueError: no layer, or one that the blocks of the network do not have.

    >>> import torch
    >>> from vggkit import Architecture
    >>> net = VGG(Architecture.parse("vgg16/16", image_size=32))
    >>> loss = PerceptualLoss(net, Preprocessing(32, 3, (0.5,) * 3, (0.25,) * 3), content={"relu3_3": 1.0})
    >>> x = torch.zeros(1, 3, 48, 64)
    >>> loss(x, x).item()
    0.0
    """

    def __init__(
        self,
        net: VGG,
        preprocessing: Preprocessing,
        *,
        content: Mapping[str, float] | None = None,
        style: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        check_type(net, VGG, "a VGG network", "load_classifier(...).net")
        check_type(preprocessing, Preprocessing, "a Preprocessing", "load_classifier(...).preprocessing")
        for weights in (content, style):
            check_type(weights, Mapping | None, "a weight for each layer", "{'relu3_3': 1.0}")
        self.net = net.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.content, self.style = dict(content or {}), dict(style or {})
        names = {layer.name for layer in net.architecture.layers() if layer.part.startswith("block")}
        for name in self.layers:
            if name not in names:
                raise ValueError(f"expected layers of the blocks of {net.architecture.name}, got {name!r}")
        if not self.layers:
            raise ValueError("expected a layer in content or style, got none, try content={'relu3_3': 1.0}")

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """As `nn.Module.train`; the network stays in evaluation mode."""
        super().train(mode)
        self.net.eval()
        return self

    @property
    def layers(self) -> list[str]:
        """All layers that are compared."""
        return list(dict.fromkeys([*self.content, *self.style]))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar; its gradient flows to `output` (and to `target`, if that wants one).

        Args:
            output: float (batch, channels, height, width), RGB in [0, 1].
            target: of the same shape and range.
        """
        if output.shape != target.shape or output.ndim != 4 or output.shape[1] != self.preprocessing.channels:
            raise ValueError(
                f"expected two batches of one shape and {self.preprocessing.channels} channels, "
                f"got {tuple(output.shape)} and {tuple(target.shape)}"
            )
        ours, theirs = (self.net.features(self.preprocessing.normalize(x), self.layers) for x in (output, target))
        loss = output.new_zeros(())
        for name, weight in self.content.items():
            loss = loss + weight * (ours[name] - theirs[name]).square().mean()
        for name, weight in self.style.items():
            loss = loss + weight * (gram_matrix(ours[name]) - gram_matrix(theirs[name])).square().mean()
        return loss


def gram_matrix(maps: Tensor) -> Tensor:
    """The products of each pair of channels, summed over the map and divided by its size.

    Args:
        maps: (batch, channels, height, width).

    Returns:
        (batch, channels, channels), divided by channels x height x width.
    """
    flat = maps.flatten(start_dim=2) / math.sqrt(maps.shape[1:].numel())  # before the product, for float16's sake
    return flat @ flat.transpose(1, 2)
