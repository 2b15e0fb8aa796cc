"""Intervals and tests against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from vggkit.inference.evaluation import mcnemar
from vggkit.lab.statistics import Interval, mean_interval, t_quantile


@pytest.mark.parametrize("degrees", [*range(1, 31), 100, 999])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_quantiles_of_student(degrees, confidence):
    expected = stats.t.ppf((1 + confidence) / 2, degrees)
    assert t_quantile(degrees, confidence) == pytest.approx(expected, rel=1e-9)


def test_intervals():
    values = [0.91, 0.93, 0.92, 0.915]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found := mean_interval(values)).low == pytest.approx(low)
    assert (found.mean, found.high) == (pytest.approx(np.mean(values)), pytest.approx(high))
    assert mean_interval([0.9]) == Interval(0.9, -math.inf, math.inf)
    assert not mean_interval([0.9]).is_decided


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (5, 15), (15, 5), (200, 260)])
def test_mcnemar(counts):
    expected = stats.binomtest(counts[0], sum(counts), 0.5).pvalue if any(counts) else 1
    assert mcnemar(*counts) == pytest.approx(expected)
