"""Measures of sweeps against OpenCV, scipy-like closed forms and hand-made trends."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

from bokeh_ops.errors import BokehError
from bokeh_ops.picture.colour import rgb_to_lab
from trainer.measure.metrics import (
    Drift,
    Lpips,
    LvCorr,
    blur_monotonicity,
    bootstrap,
    both_sides,
    content_consistency,
    drift,
    energy,
    focus_drift,
    frechet_distance,
    laplacian_variance,
    lvcorr,
    mean_lab,
    pearson,
    rank_correlation,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_laplacian_variance_is_opencvs() -> None:
    cv2 = pytest.importorskip("cv2")
    for size in ((40, 57), (2, 3), (128, 128)):
        pixels = (noise(*size, 3) * 255).round().byte().numpy()
        expected = cv2.Laplacian(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var()
        found = laplacian_variance(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
        assert found == pytest.approx(expected, rel=2e-3)


def test_laplacian_variance_by_hand() -> None:
    picture = torch.zeros(3, 5, 5)
    picture[:, 2, 2] = 1
    # -4 at the point, 1 at its four neighbours, 0 elsewhere: mean 0, so the variance is 20 / 25 of 255 squared.
    assert laplacian_variance(picture) == pytest.approx(0.8 * 255**2)
    assert laplacian_variance(torch.full((3, 4, 4), 0.7)) == 0
    around = torch.ones(5, 5, dtype=torch.bool)
    around[1:4, 1:4] = False
    assert laplacian_variance(picture, around) == 0
    # The point and its eight neighbours alone: the mean of -4, 1, 1, 1, 1 and four zeros is 0.
    assert laplacian_variance(picture, ~around) == pytest.approx(20 / 9 * 255**2)
    with pytest.raises(BokehError, match=r"\[3, H, W\]"):
        laplacian_variance(torch.zeros(1, 4, 4))
    with pytest.raises(BokehError, match="at least 2 x 2"):
        laplacian_variance(torch.zeros(3, 1, 4))


def test_pearson_is_the_standard_librarys() -> None:
    x, y = noise(20).tolist(), noise(20, seed=1).tolist()
    assert pearson(x, y) == pytest.approx(statistics.correlation(x, y))
    assert pearson([1, 2, 3], [5, 7, 9]) == pytest.approx(1)
    assert pearson([1, 2], [7, 3]) == pytest.approx(-1)
    for undefined in (([1, 1, 1], [1, 2, 3]), ([1], [1]), ([], [])):
        assert math.isnan(pearson(*undefined))
    with pytest.raises(BokehError, match="3 and 2"):
        pearson([1, 2, 3], [1, 2])


def test_rank_correlation_sees_order_alone() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 10, 11, 1000]) == pytest.approx(1)
    x, y = [3, 1, 1, 5, 2], [2, 2, 7, 9, 1]
    ranks = ([4, 1.5, 1.5, 5, 3], [2.5, 2.5, 4, 5, 1])
    assert rank_correlation(x, y) == pytest.approx(statistics.correlation(*ranks))


def test_lvcorr_of_levels_and_of_differences() -> None:
    reference = [100.0, 60.0, 40.0, 30.0]
    assert lvcorr(reference, reference) == pytest.approx(LvCorr(1, 1))
    # The same order but the largest step last: levels still agree well, differences are opposed.
    late = [100.0, 90.0, 70.0, 30.0]
    found = lvcorr(late, reference)
    assert found.levels == pytest.approx(statistics.correlation(late, reference))
    assert found.differences == pytest.approx(statistics.correlation([-10, -20, -40], [-40, -20, -10]))
    assert found.levels > 0.7
    assert found.differences < -0.5
    assert math.isnan(lvcorr([2, 1], [4, 3]).differences)


def test_monotonicity_counts_rises() -> None:
    assert blur_monotonicity([1, 2, 3, 4]) == 1
    assert blur_monotonicity([1, 2, 2, 4]) == pytest.approx(2 / 3)  # equal is no rise
    assert blur_monotonicity([4, 3]) == 0
    assert math.isnan(blur_monotonicity([1]))


def test_energy_is_that_of_the_spectrum() -> None:
    """Parseval: what the paper says of its two definitions."""
    picture = noise(3, 16, 24)
    spectrum = np.abs(np.fft.fft2(picture.double().numpy())) ** 2
    assert energy(picture) == pytest.approx(spectrum.sum() / (16 * 24))


def test_drift_of_means() -> None:
    red = mean_lab(torch.tensor([1.0, 0, 0]).reshape(3, 1, 1).expand(3, 4, 4))
    assert red == pytest.approx((53.24, 80.09, 67.20), abs=0.02)  # sRGB red in CIE L*a*b*
    assert drift([red]) == Drift(0, 0)
    assert drift([(50, 0, 0), (53, 3, 4), (49, -3, -4)]) == pytest.approx(Drift(4, 10))


def test_bootstrap() -> None:
    values = noise(200).tolist()
    interval = bootstrap(values)
    assert interval.mean == pytest.approx(statistics.fmean(values))
    # The central limit theorem: 1.96 standard errors each way.
    error = 1.96 * statistics.stdev(values) / 200**0.5
    assert interval.low == pytest.approx(interval.mean - error, abs=0.1 * error)
    assert interval.high == pytest.approx(interval.mean + error, abs=0.1 * error)
    assert bootstrap(values) == interval
    assert bootstrap([*values, None, math.nan]) == interval
    assert bootstrap([0.25, 0.25]) == (0.25, 0.25, 0.25)
    assert all(math.isnan(value) for value in bootstrap([None]))
    one = bootstrap([0.25, None])
    assert one.mean == 0.25
    assert math.isnan(one.low)  # one scene says nothing of others
    assert math.isnan(one.high)


def test_content_consistency_by_hand() -> None:
    # Four pixels: same class; swapped places; one of three in common; nothing in common with the third picture.
    first = torch.tensor([[1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]])[:, None]
    second = torch.tensor([[1, 2, 7, 1], [2, 1, 8, 2], [3, 9, 3, 3]])[:, None]
    third = torch.tensor([[1, 2, 3, 7], [5, 5, 5, 8], [6, 6, 6, 9]])[:, None]
    assert content_consistency([first, second]) == 1
    assert content_consistency([first, second, third]) == 0.75
    assert content_consistency([first[:1], second[:1], third[:1]]) == 0.25  # the likeliest class alone
    with pytest.raises(BokehError, match="at least two maps"):
        content_consistency([first])
    with pytest.raises(BokehError, match="one shape"):
        content_consistency([first, first[:, :, :2]])


def test_features_once_for_many_pairs() -> None:
    from tests.test_metrics import random_weights

    model = Lpips(random_weights())
    a, b = noise(1, 3, 40, 40), noise(1, 3, 40, 40, seed=1)
    with torch.no_grad():
        found = model.distance(model.unit_features(a), model.unit_features(b))
    assert float(found) == pytest.approx(float(model(a, b)), rel=1e-5)


def test_both_sides_of_the_pivot() -> None:
    values, trend = [0, 7, 14, 21, 28], [9.0, 7.0, 5.0, 5.5, 1.0]
    assert both_sides(values, trend, (14, 5.0)) == (1, 0)
    assert both_sides(values, trend, (14, 6.0)) == (
        1,
        1,
    )  # the pivot's own sharpness counts, not that of its copy
    assert both_sides(values, trend, (14, 7.5)) == (0, 1)
    assert both_sides([0, 7], [9, 9], (7, 8)) == (1, pytest.approx(math.nan, nan_ok=True))


def test_what_is_in_focus_is_compared_with_the_anchor() -> None:
    anchor = torch.full((3, 4, 4), 0.5)
    brighter, moved = anchor.clone(), anchor.clone()
    brighter[:, :, :2] = 0.6
    moved[:, :, 2:] = 0  # outside
    focus = torch.zeros(4, 4, dtype=torch.bool)
    focus[:, :2] = True
    one = float(rgb_to_lab(brighter.double(), dim=0)[0, 0, 0] - rgb_to_lab(anchor.double(), dim=0)[0, 0, 0])
    assert focus_drift(anchor, [brighter, moved], focus) == pytest.approx(one / 2, rel=1e-3)
    assert math.isnan(focus_drift(anchor, [moved], ~focus & focus))


def test_the_frechet_distance_in_closed_form() -> None:
    rows = torch.randn(500, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(rows, rows + torch.tensor([3.0, 0.0, 4.0])) == pytest.approx(25)
    # Covariances C and 4 C about the same mean: tr(C + 4 C - 2 * 2 C) = tr C.
    centred = rows - rows.mean(0)
    assert frechet_distance(centred, 2 * centred) == pytest.approx(float(rows.var(0).sum()))
    with pytest.raises(
        BokehError, match=r"two sets \[N, C\] of at least 2 rows .* got \(1, 3\) and \(500, 3\)"
    ):
        frechet_distance(rows[:1], rows)
