"""Statistics of a few repeated measurements. Imports no torch."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% confidence interval; the bounds are infinite for a single value."""

    mean: float
    low: float
    high: float

    @property
    def is_decided(self) -> bool:
        """Whether a difference of 0 is ruled out."""
        return self.low > 0 or self.high < 0

    def __neg__(self) -> "Interval":
        return Interval(-self.mean, -self.high, -self.low)


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of at least one value and its 95% interval by Student's t distribution.

    Source: "Student", "The probable error of a mean", Biometrika 1908.

    >>> round(mean_interval([0.92, 0.93, 0.94]).low, 4)
    0.9052
    """
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """The t with P(|T| < t) = `confidence` for Student's t distribution with `degrees` (1 or more) of freedom.

    >>> round(t_quantile(9), 4)
    2.2622
    """
    low, high = 0.0, 1.0
    while _probability_within(high, degrees) < confidence:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability_within(middle, degrees) < confidence else (low, middle)
    return high


def _probability_within(t: float, degrees: int) -> float:
    """P(|T| < t). Source: Abramowitz & Stegun, "Handbook of Mathematical Functions", 26.7.3 and 4."""
    angle = math.atan2(t, math.sqrt(degrees))
    cosine_squared = math.cos(angle) ** 2
    is_odd = degrees % 2
    term = math.cos(angle) if is_odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + is_odd, degrees - 1, 2):
        term *= cosine_squared * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if is_odd else math.sin(angle) * total


def pareto_front(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Whether each point is on the Pareto front: no other is as high in every value and higher in one.

    >>> pareto_front([(0.9, 10), (0.8, 20), (0.8, 10)])
    [True, True, False]
    """

    def is_beaten(point: tuple[float, ...]) -> bool:
        return any(other != point and all(a >= b for a, b in zip(other, point, strict=True)) for other in points)

    return [not is_beaten(point) for point in points]
