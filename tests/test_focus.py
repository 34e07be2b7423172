"""Focus by point, by mask, by saliency and by distance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bokeh_ops.depth.focus import (
    Focus,
    FocusMode,
    focus_at_distance,
    focus_at_point,
    focus_by_weight,
    focus_in_mask,
    focus_on_salient,
    focus_on_whole_mask,
)
from bokeh_ops.errors import BokehError
from bokeh_ops.render import Lens


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


def test_a_wrong_pixel_at_the_point_does_not_matter(device: str) -> None:
    disparity = quadrants().to(device)
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


def test_mask_takes_the_median_inside(device: str) -> None:
    disparity = quadrants().to(device)
    mask = torch.zeros(1, 40, 60, device=device)
    mask[:, 2:18, 40:55] = 1.0
    mask[:, 20:23, 40:42] = 1.0  # a few pixels of another quarter
    mask[:, :20, :30] = 0.4  # not inside
    assert focus_in_mask(disparity, mask).tolist() == [2, 20]


def test_masks_of_another_size_and_one_per_image(device: str) -> None:
    masks = torch.zeros(2, 20, 30, device=device)
    masks[0, 12:18, 2:10] = 1.0
    masks[1, 2:8, 20:28] = 1.0
    assert focus_in_mask(quadrants().to(device), masks).tolist() == [3, 20]


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


def test_the_weighted_mean_by_hand(device: str) -> None:
    """Eq. 4: (1 x 0.5 + 2 x 0 + 3 x 1 + 4 x 0.25) / 1.75, and ten times that."""
    weights = torch.zeros(1, 40, 60, device=device)
    weights[:, :20, :30], weights[:, 20:, :30], weights[:, 20:, 30:] = 0.5, 1.0, 0.25
    expected = 4.5 / 1.75
    disparity = quadrants().to(device)
    assert focus_by_weight(disparity, weights).tolist() == pytest.approx([expected, expected * 10])
    assert focus_by_weight(disparity, weights * 3e38).tolist() == pytest.approx([expected, expected * 10])
    halves = focus_by_weight(disparity.half(), weights.half())
    assert halves.tolist() == pytest.approx([expected, expected * 10])
    (step,) = Focus(FocusMode.WEIGHTED, mask=weights, band=0.5).find(disparity)
    assert step.disparity.tolist() == pytest.approx([expected, expected * 10])
    assert step.sharp is None
    small = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]], device=device)  # resized, so soft between the quarters
    assert 2.5 < float(focus_by_weight(disparity, small)[0]) < 3.0
    each = focus_by_weight(disparity, torch.cat([weights, (weights == 0.25).float()]))
    assert each.tolist() == pytest.approx([expected, 40])


def test_the_weighted_mean_stays_in_the_range_of_the_map() -> None:
    source = torch.Generator().manual_seed(0)
    for value in (0.1, 0.7, 1e6):  # sums of many of these are rounded
        flat = torch.full((1, 1, 101, 97), value)
        assert (
            focus_by_weight(flat, torch.rand(1, 101, 97, generator=source)).tolist()
            == flat[0, 0, 0, :1].tolist()
        )
    maps = torch.randn(20, 1, 9, 7, generator=source)
    found = focus_by_weight(maps, torch.rand(20, 9, 7, generator=source) ** 8)
    assert bool((found >= maps.amin((1, 2, 3))).all() and (found <= maps.amax((1, 2, 3))).all())


def test_gradients_of_the_weighted_mean() -> None:
    source = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 1, 3, 4, generator=source, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 3, 4, generator=source, dtype=torch.float64, requires_grad=True)
    coarse = torch.rand(1, 2, 2, generator=source, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(focus_by_weight, (maps, weights))
    assert torch.autograd.gradcheck(focus_by_weight, (maps, coarse))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0, r"mask of image 2 of 2 is 0 everywhere; expected values from 0 to 1, some above 0\. Paint"),
        (math.nan, "mask of image 2 of 2 is from nan to nan; expected values from 0 to 1"),
        (-0.5, r"mask of image 2 of 2 is from -0\.5 to -0\.5"),
        (math.inf, "mask of image 2 of 2 is from inf to inf"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(value: float, message: str) -> None:
    weights = torch.ones(2, 40, 60)
    weights[1] = value
    with pytest.raises(BokehError, match=message):
        focus_by_weight(quadrants(), weights)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_maps_whose_mean_is_none_are_refused(value: float) -> None:
    disparity = quadrants()
    disparity[1, 0, 3, 3] = value
    with pytest.raises(
        BokehError, match=r"map of image 2 of 2 runs from .*Give disparity, in which infinitely far is 0"
    ):
        focus_by_weight(disparity, torch.ones(1, 40, 60))
    with pytest.raises(BokehError, match="3 focus masks for 2 images"):
        focus_by_weight(quadrants(), torch.ones(3, 40, 60))


def test_the_whole_mask_is_sharp_and_nothing_else_by_it() -> None:
    """A subject that recedes, before a floor of the same depths: the focus is its middle, and it alone is sharp."""
    disparity = torch.linspace(0, 1, 101).repeat(50, 1).expand(1, 1, 50, 101).clone()
    mask = torch.zeros(1, 50, 101)
    mask[:, :40, 30:71] = 1.0
    middle, sharp = focus_on_whole_mask(disparity, mask)
    assert middle.tolist() == pytest.approx([0.5], abs=1e-3)
    assert torch.equal(sharp, mask > 0.5)
    disparity[..., 0, 30:33] = 50.0  # errors of the map, or of the mask
    assert focus_on_whole_mask(disparity, mask)[0].tolist() == pytest.approx([0.5], abs=1e-3)
    defocus = Lens(30.0, middle, sharp=sharp).defocus(disparity)[:, 0]
    assert float(defocus[sharp].abs().max()) == 0
    assert torch.equal(defocus[~sharp], Lens(30.0, middle).defocus(disparity)[:, 0][~sharp])
    assert float(defocus[0, 45, 31:35].max()) < -4  # beside the mask, at a depth that it holds
    assert float(defocus[0, 45, 50]) == pytest.approx(0, abs=1e-4)  # at the depth of the focus


def test_the_mask_is_cut_at_a_half_whatever_its_size(device: str) -> None:
    """A soft edge gives no depth between the subject's and what is behind it."""
    disparity = torch.zeros(2, 1, 40, 60, device=device)
    soft = torch.linspace(0, 1, 30, device=device).expand(2, 20, 30).clone()
    soft[1] = soft[1].flip(1)
    middle, sharp = focus_on_whole_mask(disparity, soft)
    assert sharp.shape == (2, 40, 60)
    assert torch.equal(sharp[1], sharp[0].flip(1))
    assert float(sharp[0].float().mean()) == pytest.approx(0.5, abs=0.02)
    lens = Lens(10.0, middle + 1, sharp=sharp)
    assert lens.defocus(disparity).unique().tolist() == [-10, 0]
    one = Lens(10.0, middle + 1, sharp=sharp[:1]).defocus(disparity)
    assert torch.equal(one[0], one[1])
    for bad in (sharp[:, :-1], sharp[[0, 1, 1]]):
        with pytest.raises(BokehError, match="What is held sharp"):
            Lens(10.0, middle, sharp=bad).defocus(disparity)
    with pytest.raises(BokehError, match="expected boolean"):
        Lens(10.0, middle, sharp=soft)


def test_maps_may_lie_apart() -> None:
    """A list of maps, as of a video, is looked up as one tensor is."""
    disparity, mask = quadrants(), torch.zeros(2, 40, 60)
    mask[0, :20, :20], mask[1, 20:, 40:] = 1.0, 1.0
    apart = [one[None] for one in disparity]
    for mode in FocusMode:
        focus = Focus(mode, 0.9, 0.2, values=(1.5, 2.5), band=0.25, mask=mask)
        for one, other in zip(focus.find(disparity), focus.find(apart), strict=True):
            assert torch.equal(one.disparity, other.disparity)
            assert torch.equal(one.band, other.band)
            assert (one.sharp is None) == (other.sharp is None) == (mode is not FocusMode.WHOLE_MASK)


def test_automatic_takes_the_nearest_region_that_is_not_small() -> None:
    disparity = torch.zeros(1, 1, 100, 160)
    saliency = torch.zeros(1, 100, 160)
    for (top, left, side), value in {(10, 10, 30): 0.3, (50, 60, 40): 0.6, (5, 140, 4): 0.9}.items():
        box = slice(top, top + side), slice(left, left + side)
        disparity[0, 0][box], saliency[0][box] = value, 0.9
    assert focus_on_salient(disparity, saliency).tolist() == pytest.approx([0.6])
    saliency[0, 50:90, 60:100] = 0.4  # not salient
    assert focus_on_salient(disparity, saliency).tolist() == pytest.approx([0.3])
    # The same region, crossed by a line of wrong depth, and at another size.
    disparity[0, 0, 20, :] = 5.0
    small = torch.nn.functional.interpolate(saliency[None], size=(50, 80), mode="nearest")[0]
    assert focus_on_salient(disparity, small).tolist() == pytest.approx([0.3])
    ring = torch.zeros(1, 64, 64)  # one region, however it bends
    ring[:, 4:60, 4:60] = 1.0
    ring[:, 8:56, 8:56] = 0.0
    depth = torch.zeros(1, 1, 64, 64)
    depth[..., :20, :] = 1.0
    assert focus_on_salient(depth, ring).tolist() == [0.0]
    with pytest.raises(BokehError, match="empty"):
        focus_on_salient(depth, torch.zeros(1, 64, 64))


def test_a_choice_finds_what_its_function_finds() -> None:
    disparity = quadrants()
    mask = torch.zeros(1, 40, 60)
    mask[:, 20:, :30] = 1.0
    point = Focus(x=0.9, y=0.2, band=0.25).find(disparity)
    assert [part.tolist() for part in point[0][:2]] == [[2, 20], [0.25, 0.25]]
    assert point[0].sharp is None
    assert Focus(FocusMode.MASK, mask=mask).find(disparity)[0][0].tolist() == [3, 30]
    assert Focus(FocusMode.AUTOMATIC).with_mask(mask).find(disparity)[0][0].tolist() == [3, 30]
    mask[:, :, :] = 1.0
    middle, band, sharp = Focus(FocusMode.WHOLE_MASK, band=0.5, mask=mask).find(disparity)[0]
    assert middle.tolist() == [2, 20]
    assert band.tolist() == [0.5, 0.5]  # the user's own, nothing of the mask's
    assert sharp is not None
    assert bool(sharp.all())
    far = Focus(FocusMode.DISTANCE, values=(0.5, math.inf)).find(disparity)
    assert [step[0].tolist() for step in far] == [[2, 2], [0, 0]]
    each = Focus(FocusMode.DISPARITY, values=(1.5, 12.0), one_each=True).find(disparity)
    assert [step[0].tolist() for step in each] == [[1.5, 12.0]]


def test_a_choice_keeps_its_own_mask() -> None:
    own, other = torch.ones(1, 2, 2), torch.zeros(1, 2, 2)
    assert Focus(FocusMode.MASK, mask=own).with_mask(other).mask is own
    assert Focus(FocusMode.MASK).with_mask(None).mask is None


def test_a_focus_outside_the_map_is_remarked_on() -> None:
    said: list[str] = []
    disparity = quadrants()
    Focus(FocusMode.DISPARITY, values=(4.0, 10.0), one_each=True).find(disparity, notice=said.append)
    Focus(FocusMode.DISPARITY, values=(5.0,), band=20.0).find(disparity, notice=said.append)
    assert said == []
    Focus(FocusMode.DISPARITY, values=(10.0, 41.0)).find(disparity, notice=said.append)
    assert said == [
        "The focus disparity 10 lies outside the depth map of picture 1, which runs from 1 to 4: nothing there is in "
        "focus."
    ]


@pytest.mark.parametrize(
    ("focus", "units", "message"),
    [
        ({"mode": FocusMode.MASK}, True, "'mask' but no mask is connected"),
        ({"mode": FocusMode.AUTOMATIC}, True, "'automatic' but no mask is connected"),
        ({"mode": FocusMode.WEIGHTED}, True, "'weighted by the mask' but no mask is connected"),
        ({"mode": FocusMode.DISTANCE}, False, "forgets the units"),
        ({"mode": FocusMode.DISTANCE, "values": (0.0,)}, True, "focus distance is 0"),
        (
            {"mode": FocusMode.DISPARITY, "values": (1.0, 2.0, 3.0), "one_each": True},
            True,
            "3 focus values for 2 images",
        ),
        ({"x": 2.0}, True, "outside the picture"),
        ({"band": -1.0}, True, "focus band is -1"),
        ({"band": math.nan}, True, "focus band is nan"),
        ({"values": ()}, True, "no value"),
    ],
)
def test_choices_that_cannot_be_found_are_refused(focus: dict[str, Any], units: bool, message: str) -> None:
    with pytest.raises(BokehError, match=message):
        Focus(**focus).find(quadrants(), units)


def receding() -> torch.Tensor:
    """A thing whose disparity falls from 0.9 to 0.5 from row 20 to row 79, columns 40 to 79, before a wall at 0.1."""
    disparity = torch.full((1, 1, 100, 120), 0.1)
    disparity[..., 20:80, 40:80] = torch.linspace(0.9, 0.5, 60)[:, None]
    return disparity


def test_a_mask_that_ends_short_of_the_edge_leaves_no_soft_rim() -> None:
    disparity = receding()
    thing = disparity[:, 0] > 0.4
    mask = torch.zeros(1, 100, 120)
    mask[:, 23:78, 43:78] = 1.0
    assert torch.equal(focus_on_whole_mask(disparity, mask)[1], thing)
    mask[:, 23:78, 78:86] = 1.0  # and too wide on the right: what it holds is sharp, the wall beyond is not
    mask[0, 50:54, 43:50] = 0.0  # a hole is not at the edge
    sharp = focus_on_whole_mask(disparity, mask)[1]
    assert torch.equal(sharp[0, :, :40], thing[0, :, :40])
    assert torch.equal(sharp[0, :, 80:] & ~(mask[0, :, 80:] > 0.5), torch.zeros(100, 40, dtype=torch.bool))
    assert bool(sharp[0, 23:78, 78:86].all())


def test_a_mask_takes_nothing_in_that_is_not_the_thing_s() -> None:
    disparity = receding()
    mask = (disparity[:, 0] > 0.4).float()
    disparity[..., 80:, :] = torch.linspace(0.5, 0.9, 20)[:, None]  # the floor it stands on
    disparity[..., 30:70, 80:90] = 0.3  # a thing beside it, nearer than the wall
    disparity[..., 30:70, 30:40] = 0.95  # one that hides the wall and is nearer than the mask's part there
    added = focus_on_whole_mask(disparity, mask)[1] & (mask == 0)
    added[:, 80:84, 36:44] = added[:, 80:84, 76:84] = False  # the corners where floor, thing and wall meet
    assert int(added.sum()) == 0
    assert torch.equal(focus_on_whole_mask(torch.ones_like(disparity), mask)[1], mask > 0.5)
