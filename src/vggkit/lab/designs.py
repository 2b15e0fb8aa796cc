"""Every network of VGG blocks inside a budget, by closed forms: hundreds of thousands a second. Imports no torch."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vggkit.errors import ArchitectureError

WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Channels that a block may have; those of the blocks after it are as many or more."""
MOST_CONVS, MOST_BLOCKS = 4, 5
"""Convolutions of a block, and blocks."""
LEAST_SHARE = 0.5
"""Of some limit, which a drawn design uses: far smaller networks are seldom the best."""


@dataclass(frozen=True)
class Budget:
    """What a network may cost; None for no limit."""

    parameters: int | None = None
    macs: int | None = None
    """Of one image."""

    def __post_init__(self) -> None:
        if self.parameters is None and self.macs is None:
            raise ArchitectureError("expected a limit of parameters or of MACs, got none")
        for name, limit in vars(self).items():
            if limit is not None and limit < 1:
                raise ArchitectureError(f"expected a limit of {name} from 1, got {limit}")

    def holds(self, parameters: int, macs: int) -> bool:
        """Whether both are inside."""
        return (self.parameters is None or parameters <= self.parameters) and (self.macs is None or macs <= self.macs)

    def share(self, parameters: int, macs: int) -> float:
        """The share of the limit that is used most."""
        return max(parameters / self.parameters if self.parameters else 0, macs / self.macs if self.macs else 0)


class Design(NamedTuple):
    """A network with batch norm, and a head without hidden layers, behind an average over the last map."""

    notation: str
    parameters: int
    macs: int
    """Of one image."""


def designs(
    budget: Budget, *, image_size: int, in_channels: int = 1, num_classes: int = 10, widths: Sequence[int] = WIDTHS
) -> Iterator[Design]:
    """All designs of up to `MOST_BLOCKS` blocks of 1 to `MOST_CONVS` convolutions of 3x3 inside `budget`.

    Args:
        budget: the limits.
        image_size: pixels along a side; each block halves it.
        in_channels: of an image.
        num_classes: outputs.
        widths: channels that a block may have, in rising order.

    >>> next(designs(Budget(parameters=2_000), image_size=28))
    Design(notation='1x8_bn', parameters=186, macs=56528)
    """

    def extended(blocks: tuple[str, ...], channels: int, size: int, parameters: int, macs: int) -> Iterator[Design]:
        if size < 2 or len(blocks) == MOST_BLOCKS:
            return
        for width in (width for width in widths if not blocks or width >= channels):
            grown, counted, into, is_inside = parameters, macs, channels, True
            for num_convs in range(1, MOST_CONVS + 1):
                grown += 9 * into * width + 3 * width  # weights, biases, and the norm's scale and shift
                counted += 9 * into * width * size * size
                into = width
                whole = grown + (width + 1) * num_classes, counted + width * num_classes
                is_inside = budget.holds(*whole)
                if not is_inside:
                    break
                longer = (*blocks, f"{num_convs}x{width}")
                yield Design(" ".join(longer) + "_bn", *whole)
                yield from extended(longer, width, size // 2, grown, counted)
            if not is_inside and num_convs == 1:
                return  # wider ones cost more

    yield from extended((), in_channels, image_size, 0, 0)


def drawn(budget: Budget, count: int, seed: int, **options: int) -> list[Design]:
    """Up to `count` designs drawn evenly from those of `designs` that use at least half of some limit.

    Raises:
        ArchitectureError: there is none.
    """
    draws, kept, seen = random.Random(seed), list[Design](), 0  # noqa: S311
    for design in designs(budget, **options):  # type: ignore[arg-type]
        if budget.share(design.parameters, design.macs) < LEAST_SHARE:
            continue
        seen += 1
        if len(kept) < count:
            kept.append(design)
        elif (place := draws.randrange(seen)) < count:
            kept[place] = design
    if not kept:
        raise ArchitectureError(f"expected a budget with room for a network of blocks, got {budget}, try a larger one")
    draws.shuffle(kept)
    return kept
