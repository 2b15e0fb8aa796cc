"""Sanity checks of an attribution map: two tests, on its image, of whether it depends on the network.

Randomisation (Adebayo et al., arXiv 1810.03292): parts of the network are reinitialised, from the last to the first. A
map that does not change shows the image, not what the network has learned.

Deletion and insertion (Samek et al., arXiv 1509.06321; Petsiuk et al., arXiv 1806.07421): square regions are replaced
by the mean colour, in the order of the map, or inserted into an image of that colour. With a good map, the probability
of the class falls or rises earlier than with a random order or with that of the edges of the image.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggkit.design.table import Table
from vggkit.errors import UserError
from vggkit.inference.explain import Explanation, how_to
from vggkit.inference.explain_methods import layers_of, maps, vgg_of
from vggkit.inference.predict import AnyModel, load_classifier
from vggkit.networks.modules import init_weights
from vggkit.networks.vgg import VGG

MAX_CORRELATION = 0.5
"""Mean correlation with the maps of randomised networks, above which a map fails; guided backprop is above it."""
MIN_GAIN = 0.1
"""Margin, in probability, by which the gain of a map must exceed those of random orders and edges."""
REGIONS_PER_SIDE, STEPS, RANDOM_ORDERS = 14, 14, 5


@dataclass(frozen=True, eq=False, repr=False)
class Check:
    """The results of `check` for a map."""

    explanation: Explanation
    correlation: dict[str, float]
    """Spearman's rank correlation with the map of the network reinitialised from its last part down to this one."""
    deletion: dict[str, tuple[float, ...]]
    """The probability of the class from the whole image to none of it, in the orders `map`, `edges` and `random`."""
    insertion: dict[str, tuple[float, ...]]
    """The same from none of it to the whole image."""

    @cached_property
    def mean_correlation(self) -> float:
        """The mean over all parts."""
        return float(np.mean([*self.correlation.values()]))

    @cached_property
    def gain(self) -> dict[str, float]:
        """The area under the insertion curve minus that under the deletion curve, -1 to 1; 0 if the order is no use."""
        return {name: _area(self.insertion[name]) - _area(self.deletion[name]) for name in self.deletion}

    @property
    def passes(self) -> bool:
        """Whether the map depends on the network and finds what the class depends on."""
        best = max(self.gain["edges"], self.gain["random"])
        return self.mean_correlation < MAX_CORRELATION and self.gain["map"] >= best + MIN_GAIN

    @property
    def verdict(self) -> str:
        """The result and its reason in one line."""
        gain, correlation = self.gain, f"{self.mean_correlation:.2f}"
        gains = f"{gain['map']:.2f}, edges {gain['edges']:.2f}, random {gain['random']:.2f}"
        if self.mean_correlation >= MAX_CORRELATION:
            return f"no: the map hardly depends on the weights (rank correlation with randomised ones {correlation})"
        if not self.passes:
            return f"no: the map does not find what the class depends on (insertion - deletion {gains})"
        return f"yes: the map depends on the weights ({correlation}) and finds what the class depends on ({gains})"

    def table(self) -> Table:
        """The numbers of both tests."""
        rows = [
            (f"reinitialised down to {part}", f"{value:.2f}", "", "", "") for part, value in self.correlation.items()
        ]
        curves = []
        for name, gain in self.gain.items():
            areas = (_area(self.deletion[name]), _area(self.insertion[name]), gain)
            curves.append((f"order of {name}", "", *(f"{area:.2f}" for area in areas)))
        header = ("", "rank correlation", "deletion", "insertion", "gain")
        notes = (
            "reinitialised down to a part: the weights of that part and of all later ones are random",
            "deletion, insertion: the mean probability of the class; gain: insertion - deletion",
            self.verdict,
        )
        return Table(header, [rows, curves], 1, str(self.explanation), notes)

    def __repr__(self) -> str:
        return str(self.table())


def check(model: AnyModel, explanation: Explanation, seed: int = 0) -> Check:
    """Check whether a map depends on the network that it was made from.

    Args:
        model: the one that was explained.
        explanation: the map.
        seed: of new weights and random orders.

    Raises:
        UserError: the map is zero everywhere.
    """
    if explanation.blank:
        raise UserError(f"expected a map to check, got none: {explanation.blank}")
    classifier = load_classifier(model)
    how = how_to(classifier, explanation.method, explanation.layer, seed)
    net = vgg_of(classifier.net)
    x = classifier.preprocessing.scaled(torch.tensor(explanation.pixels, device=classifier.device).movedim(-1, 0)[None])
    target = torch.tensor([explanation.target], device=x.device)
    correlation = {
        part: rank_correlation(explanation.heat, maps(other, x, target, how).cpu().numpy()[0])
        for part, other in _randomised(net, seed)
    }
    orders = {"map": [_regions(torch.tensor(explanation.heat))], "edges": [_regions(_edges(x[0].cpu()))]}
    generator = torch.Generator().manual_seed(seed)
    orders["random"] = [torch.rand(REGIONS_PER_SIDE**2, generator=generator) for _ in range(RANDOM_ORDERS)]
    curves = {
        name: np.mean([_curves(classifier.fast, x, explanation.target, order) for order in repeats], axis=0)
        for name, repeats in orders.items()
    }
    deletion, insertion = ({name: tuple(pair[i].tolist()) for name, pair in curves.items()} for i in (0, 1))
    return Check(explanation, correlation, deletion, insertion)


def rank_correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Spearman's rank correlation, -1 to 1; 0 if one of the two is constant.

    >>> rank_correlation(np.array([1, 2, 4], np.float32), np.array([5, 6, 60], np.float32))
    1.0
    """
    ranks = []
    for values in (a, b):
        _, indices, counts = np.unique(values, return_inverse=True, return_counts=True)
        rank = (np.cumsum(counts) - (counts - 1) / 2)[indices.ravel()]  # equal values share the mean of their ranks
        ranks.append(rank - rank.mean())
    size = float(np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1]))
    return round(float(ranks[0] @ ranks[1]) / size, 6) if size else 0.0


def _randomised(net: VGG, seed: int) -> Iterator[tuple[str, VGG]]:
    """The network with its last part, its last two and so on reinitialised; the same copy each time."""
    net = copy.deepcopy(net)
    layers = layers_of(net)
    parts = dict.fromkeys(layer.part for layer in net.architecture.layers())
    for number, part in enumerate(reversed(parts)):
        with torch.random.fork_rng(devices=[*range(torch.cuda.device_count())]):
            torch.manual_seed(seed + number)
            for layer in net.architecture.layers():
                if layer.part == part:
                    init_weights(layers[layer.name], "kaiming")
                    if isinstance(norm := layers[layer.name], nn.BatchNorm2d):
                        norm.reset_parameters()
        yield part, net


def _edges(x: Tensor) -> Tensor:
    """The norm of Sobel's gradient of an image (channels, height, width), summed over the channels: (height, width)."""
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([across, across.T])[:, None]
    padded = F.pad(x[:, None], (1, 1, 1, 1), mode="replicate")
    norms: Tensor = F.conv2d(padded, kernels).norm(dim=1)
    return norms.sum(dim=0)


def _regions(heat: Tensor) -> Tensor:
    """The mean of a map (height, width) in each region: (regions,)."""
    return F.adaptive_avg_pool2d(heat[None], REGIONS_PER_SIDE).flatten()


@torch.no_grad()
def _curves(net: nn.Module, x: Tensor, target: int, values: Tensor) -> npt.NDArray[np.float64]:
    """The deletion and the insertion curve, (2, STEPS + 1), by regions in descending order of `values`."""
    ranks = values.argsort(descending=True, stable=True).argsort().view(1, 1, REGIONS_PER_SIDE, REGIONS_PER_SIDE)
    pixel_ranks = F.interpolate(ranks.float(), size=x.shape[-2:]).to(x.device)
    points = []
    for step in range(STEPS + 1):
        is_marked = pixel_ranks < step * REGIONS_PER_SIDE**2 / STEPS
        probabilities = net(torch.cat([x * ~is_marked, x * is_marked])).softmax(dim=1)
        points.append(probabilities[:, target].double().cpu().numpy())
    return np.stack(points, axis=1)


def _area(curve: tuple[float, ...]) -> float:
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))
