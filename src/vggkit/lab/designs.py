"""All networks of VGG blocks within a budget, by closed forms: hundreds of thousands a second. Imports no torch."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vggkit.errors import ArchitectureError

WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Channels that a block may have; they never decrease from block to block."""
MOST_CONVS, MOST_BLOCKS = 4, 5
"""Most convolutions of a block, and most blocks."""
LEAST_SHARE = 0.5
"""The share of a limit that a drawn design uses at least: far smaller networks are seldom the best."""
NEARBY_TRIES, STEPS = 200, ((1, 0), (-1, 0), (0, 1), (0, -1))
"""Attempts of `nearby`, and its changes of a block: convolutions, and places in `WIDTHS`."""

Blocks = tuple[tuple[int, int], ...]
"""Pairs of convolutions and channels."""


@dataclass(frozen=True)
class Budget:
    """Limits of a network's costs; None for no limit. Parameters or MACs need one, so that designs can be listed."""

    parameters: int | None = None
    macs: int | None = None
    """Of one image."""
    memory_bytes: float | None = None
    """Peak of a training step at the recipe's batch size, by `training_memory`."""
    milliseconds: float | None = None
    """To classify one image, measured on this machine."""

    def __post_init__(self) -> None:
        if self.parameters is None and self.macs is None:
            raise ArchitectureError("expected a limit of parameters or of MACs, got none")
        for name, limit in vars(self).items():
            if limit is not None and not limit > 0:
                raise ArchitectureError(f"expected a limit of {name} above 0, got {limit}")

    def holds(self, parameters: int, macs: int) -> bool:
        """Whether both are within the limits."""
        return self.share(parameters, macs) <= 1

    def share(self, parameters: int, macs: int) -> float:
        """The larger of the shares of both limits."""
        return max(parameters / self.parameters if self.parameters else 0, macs / self.macs if self.macs else 0)


class Design(NamedTuple):
    """A network with batch norm and the head gap without hidden layers."""

    notation: str
    parameters: int
    macs: int
    """Of one image."""


def sized(blocks: Blocks, image_size: int, in_channels: int = 1, num_classes: int = 10) -> Design:
    """The design of `blocks` for images of `image_size` pixels along a side."""
    parameters = macs = 0
    channels, size = in_channels, image_size
    for convs, width in blocks:
        weights = 9 * width * (channels + (convs - 1) * width)
        parameters += weights + 3 * width * convs  # biases, and the norm's scale and shift
        macs += weights * size * size
        channels, size = width, size // 2
    notation = " ".join(f"{convs}x{width}" for convs, width in blocks) + "_bn"
    return Design(notation, parameters + (channels + 1) * num_classes, macs + channels * num_classes)


def blocks_of(notation: str) -> Blocks:
    """The blocks of a design's notation; raises `ValueError` for any other text."""
    pairs = (block.split("x") for block in notation.removesuffix("_bn").split(" "))
    return tuple((int(convs), WIDTHS[WIDTHS.index(int(width))]) for convs, width in pairs)


def designs(budget: Budget, *, widths: Sequence[int] = WIDTHS, **sizes: int) -> Iterator[Design]:
    """All designs of up to `MOST_BLOCKS` blocks of 1 to `MOST_CONVS` convolutions of 3x3 within `budget`.

    Of the budget only the limits of parameters and MACs are used; `widths` rise, and `sizes` are arguments of `sized`.

    >>> next(designs(Budget(parameters=2_000), image_size=28))
    Design(notation='1x8_bn', parameters=186, macs=56528)
    """

    def extended(blocks: Blocks) -> Iterator[Design]:
        for width in (width for width in widths if not blocks or width >= blocks[-1][1]):
            for convs in range(1, MOST_CONVS + 1):
                longer = (*blocks, (convs, width))
                design = sized(longer, **sizes)
                if not budget.holds(design.parameters, design.macs):
                    break
                yield design
                if is_possible(longer + longer[-1:], sizes["image_size"]):
                    yield from extended(longer)
            if convs == 1 and not budget.holds(design.parameters, design.macs):  # wider ones cost more
                return

    yield from extended(())


def is_possible(blocks: Blocks, image_size: int) -> bool:
    """Whether `blocks` are a design: each can halve the image, and the widths do not decrease."""
    if not 1 <= len(blocks) <= MOST_BLOCKS or image_size >> len(blocks) < 1:
        return False
    widths = [width for _, width in blocks]
    return all(1 <= convs <= MOST_CONVS for convs, _ in blocks) and widths == sorted(widths)


def drawn(budget: Budget, count: int, seed: int, **sizes: int) -> list[Design]:
    """A uniform sample of up to `count` of the `designs` that use at least `LEAST_SHARE` of a limit, in random order.

    Raises:
        ArchitectureError: there is no such design.
    """
    draws, sample, seen = random.Random(seed), list[Design](), 0  # noqa: S311
    for design in designs(budget, widths=WIDTHS, **sizes):
        if budget.share(design.parameters, design.macs) < LEAST_SHARE:
            continue
        seen += 1
        if len(sample) < count:
            sample.append(design)
        elif (place := draws.randrange(seen)) < count:
            sample[place] = design
    if not sample:
        limits = {"--max-params": budget.parameters, "--max-macs": budget.macs}
        got = " ".join(f"{flag} {limit}" for flag, limit in limits.items() if limit is not None)
        raise ArchitectureError(f"expected a budget with room for a network of blocks, got {got}, try a larger one")
    draws.shuffle(sample)
    return sample


def nearby(design: str, budget: Budget, draws: random.Random, **sizes: int) -> Design | None:
    """A design within `budget`, one to three steps from that with the notation `design`; None if none is found.

    A step adds or removes a convolution or a block, or makes a block one width wider or narrower.
    """
    for _ in range(NEARBY_TRIES):
        blocks = blocks_of(design)
        for _ in range(draws.randint(1, 3)):
            place = draws.randrange(len(blocks))
            convs, width = blocks[place]
            near = ((convs + more, WIDTHS[(WIDTHS.index(width) + by) % len(WIDTHS)]) for more, by in STEPS)
            changes: list[Blocks] = [*((block,) for block in near), (), ((convs, width), (1, width))]
            blocks = (*blocks[:place], *draws.choice(changes), *blocks[place + 1 :])
            if not is_possible(blocks, sizes["image_size"]):
                break
        else:
            other = sized(blocks, **sizes)
            if LEAST_SHARE <= budget.share(other.parameters, other.macs) <= 1 and other.notation != design:
                return other
    return None
