"""Correlation, distance of two sets, and how sure a mean over scenes is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

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


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Frechet distance of two sets, each taken for normal: ``|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))``.

    Heusel et al. 2017, there on features of Inception-v3. It falls with the number of rows even where both sets are
    alike, so only sets of equal size may be compared.

    Args:
        one, other: features, ``[N, C]`` and ``[M, C]``, at least two rows each.

    Raises:
        BokehError: too few rows, or other features.
    """
    if one.ndim != 2 or other.ndim != 2 or min(len(one), len(other)) < 2 or one.shape[1] != other.shape[1]:
        raise BokehError(
            f"A Frechet distance needs two sets [N, C] of at least 2 rows each with as many features; got "
            f"{tuple(one.shape)} and {tuple(other.shape)}."
        )
    width = one.shape[1]
    means = [each.double().mean(0) for each in (one, other)]
    spreads = [torch.cov(each.double().T).view(width, width) for each in (one, other)]
    # The trace of the root is the sum of the roots of the eigenvalues, which are not negative but for rounding.
    root = torch.linalg.eigvals(spreads[0] @ spreads[1]).real.clamp(min=0).sqrt().sum()
    traces = spreads[0].trace() + spreads[1].trace()
    return float((means[0] - means[1]).square().sum() + traces - 2 * root)


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
