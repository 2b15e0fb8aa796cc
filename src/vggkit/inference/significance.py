"""Whether two classifiers differ. Imports no torch."""

import math


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value that two classifiers err alike, from the images that only one of them gets right.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947; exact by the
    binomial distribution.

    >>> round(mcnemar(5, 15), 4)
    0.0414
    """
    total, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, k) for k in range(least + 1))
    return float(min(1.0, 2 * tail / 2**total))
