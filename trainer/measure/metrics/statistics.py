"""Correlation, and how sure a mean over scenes is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from bokeh_ops.errors import BokehError

RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean and the bounds of its confidence interval; NaN is what there was nothing to take of."""

    mean: float
    low: float
    high: float


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson correlation, -1..1; NaN for fewer than two values, or where one side does not vary.

    Raises:
        BokehError: lengths differ.
    """
    if len(x) != len(y):
        raise BokehError(f"A correlation needs as many values on both sides; got {len(x)} and {len(y)}.")
    if len(x) < 2:
        return math.nan
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that do not vary
        found: Any = stats.pearsonr(x, y)
    return float(found.statistic)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: :func:`pearson` of the ranks, equal values sharing their mean rank."""
    from scipy import stats

    return pearson(stats.rankdata(x).tolist(), stats.rankdata(y).tolist())


def bootstrap(values: Sequence[float | None], level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of the values that are there, and its percentile-bootstrap confidence interval.

    Not scipy's, which refuses a single value, and would draw other scenes than those behind the figures in docs.

    The scenes are what is drawn, so ``values`` has one for each scene: the interval says how the mean would vary with
    other scenes of the same kind. It is too narrow for fewer than about ten; one scene says nothing of others, so its
    bounds are NaN.

    Args:
        values: ``None`` and NaN are left out.
        level: of confidence, 0..1.
        seed: the same values give the same interval.
    """
    there = [value for value in values if value is not None and not math.isnan(value)]
    if len(there) < 2:
        return Interval(there[0] if there else math.nan, math.nan, math.nan)
    tensor = torch.tensor(there, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack(
        [
            tensor[
                torch.randint(len(there), (min(1000, RESAMPLES - done), len(there)), generator=generator)
            ].mean(1)
            for done in range(0, RESAMPLES, 1000)
        ]
    ).reshape(-1)
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    return Interval(float(tensor.mean()), float(low), float(high))
