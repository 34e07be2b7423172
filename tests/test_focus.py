"""Focus by point, by mask and by distance."""

from __future__ import annotations

import math

import pytest
import torch

from bokeh_ops.errors import BokehError
from bokeh_ops.focus import focus_at_distance, focus_at_point, focus_in_mask


def quadrants(height: int = 40, width: int = 60) -> torch.Tensor:
    """Two maps whose quarters have the disparities 1, 2, 3, 4 and 10, 20, 30, 40."""
    one = torch.empty(1, 1, height, width)
    one[..., : height // 2, : width // 2], one[..., : height // 2, width // 2 :] = 1.0, 2.0
    one[..., height // 2 :, : width // 2], one[..., height // 2 :, width // 2 :] = 3.0, 4.0
    return torch.cat([one, one * 10])


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [(0, 0, 1), (1, 0, 2), (0, 1, 3), (1, 1, 4), (0.25, 0.25, 1), (0.9, 0.2, 2), (0.2, 0.9, 3)],
)
def test_point(x: float, y: float, expected: float) -> None:
    assert focus_at_point(quadrants(), x, y).tolist() == [expected, expected * 10]


def test_a_wrong_pixel_at_the_point_does_not_matter() -> None:
    disparity = quadrants()
    disparity[:, :, 10, 15] = 1000.0
    assert focus_at_point(disparity, 15.5 / 60, 10.5 / 40).tolist() == [1, 10]


def test_the_window_is_three_pixels_or_a_share_of_the_picture() -> None:
    disparity = torch.zeros(1, 1, 300, 400)
    disparity[..., 149:152, 199:202] = 5.0
    assert focus_at_point(disparity, 0.5, 0.5, window=0.0).tolist() == [5]
    assert focus_at_point(disparity, 0.5, 0.5, window=0.05).tolist() == [0]
    assert focus_at_point(torch.full((1, 1, 1, 1), 2.0), 0.5, 0.5).tolist() == [2]


@pytest.mark.parametrize(("x", "y"), [(-0.1, 0.5), (0.5, 1.01), (math.nan, 0.5)])
def test_points_outside_are_refused(x: float, y: float) -> None:
    with pytest.raises(BokehError, match="outside the picture"):
        focus_at_point(quadrants(), x, y)


def test_mask_takes_the_median_inside() -> None:
    disparity = quadrants()
    mask = torch.zeros(1, 40, 60)
    mask[:, 2:18, 40:55] = 1.0
    mask[:, 20:23, 40:42] = 1.0  # a few pixels of another quarter
    mask[:, :20, :30] = 0.4  # not inside
    assert focus_in_mask(disparity, mask).tolist() == [2, 20]


def test_masks_of_another_size_and_one_per_image() -> None:
    masks = torch.zeros(2, 20, 30)
    masks[0, 12:18, 2:10] = 1.0
    masks[1, 2:8, 20:28] = 1.0
    assert focus_in_mask(quadrants(), masks).tolist() == [3, 20]


def test_masks_that_cannot_be_used_are_refused() -> None:
    masks = torch.ones(2, 40, 60)
    masks[1] = 0.3
    with pytest.raises(BokehError, match=r"empty: no value above 0\.5 for image 2 of 2"):
        focus_in_mask(quadrants(), masks)
    with pytest.raises(BokehError, match="3 focus masks for 2 images"):
        focus_in_mask(quadrants(), torch.ones(3, 40, 60))
    with pytest.raises(BokehError, match="Expected a focus mask"):
        focus_in_mask(quadrants(), torch.ones(40, 60))


def test_distance() -> None:
    assert focus_at_distance(0.5) == 2.0
    assert focus_at_distance(math.inf) == 0.0
    for metres in (0.0, -1.0, math.nan):
        with pytest.raises(BokehError, match="above 0"):
            focus_at_distance(metres)
