"""The classical scatter against its definition, closed forms and path-traced ground truth."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from bokeh_ops import render as models
from bokeh_ops.errors import BokehError
from bokeh_ops.render import Aperture, Lens, blur_amount, classical, colour_defocus
from bokeh_ops.render.offsets import Plan, aperture_scale

render = partial(models.render, model="classical")
render_sweep = partial(models.render_sweep, model="classical")


def literal(light: np.ndarray, defocus: np.ndarray, blades: int = 0, rotation: float = 0.0) -> np.ndarray:
    """The definition, pixel by pixel, in double precision: ``sum w light / sum w`` for ``light`` [C, H, W]."""
    planes, height, width = light.shape
    total, weight = np.zeros((planes, height, width)), np.zeros((height, width))
    v, u = np.mgrid[:height, :width]
    for y in range(height):
        for x in range(width):
            r = edge = abs(defocus[y, x])
            turn = -1 if defocus[y, x] > 0 else 1  # in front of the focal plane the opening is upside down
            if blades:
                side = 2 * math.pi / blades
                angle = np.arctan2(turn * (v - y), turn * (u - x))
                turned = np.abs(angle + math.radians(rotation)) % side
                opening = math.pi / 2 - math.pi / blades
                edge = r * math.sin(opening) / np.sin(turned + opening)
            w = (0.5 + 0.5 * np.tanh(4 * (edge - np.hypot(v - y, u - x)))) / (r**2 + 0.2)
            weight += w
            total += w * light[:, y, x, None, None]
    return total / weight


def scene(height: int = 26, width: int = 33, channels: int = 3, dtype: torch.dtype = torch.float64):
    """A noisy picture over a disparity with smooth, stepped and single-pixel parts."""
    rng = np.random.default_rng(7)
    image = rng.random((1, channels, height, width)) ** 3
    disparity = np.linspace(0.1, 0.5, width)[None, :] + np.zeros((height, 1))
    disparity[5:15, 8:20] = 0.9
    disparity[height - 4, 3] = 0.0
    disparity[18:, 22:] = rng.random((height - 18, width - 22))
    return torch.tensor(image, dtype=dtype), torch.tensor(disparity, dtype=dtype)[None, None]


@pytest.mark.parametrize("gamma", [1.0, 2.2, 4.0])
@pytest.mark.parametrize("k", [0.4, 3.0, 12.0, 70.0, 250.0])
def test_equals_the_definition(k: float, gamma: float, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classical, "CPU_NUMBERS", 4 * 16 * 16)  # several tiles even here
    image, disparity = scene()
    out = render(image.to(device), disparity.to(device), Lens(k, 0.45, gamma))
    made, radius = out.image[0].cpu().numpy(), out.defocus[0, 0].abs().double().cpu().numpy()
    expected = literal(image[0].numpy() ** gamma, radius) ** (1 / gamma)
    assert np.abs(made - expected).max() < 1e-4
    # In light, where the cut-off is stated, it is far closer.
    assert np.abs(made**gamma - expected**gamma).max() < 5e-6


@pytest.mark.parametrize(
    ("blades", "rotation", "focus"),
    [(3, 0.0, 0.2), (5, 20.0, 0.2), (5, 20.0, -0.1), (3, 70.0, 1.1), (6, 0.0, 0.2), (8, -100.0, 0.2)],
)
def test_polygons_equal_the_definition(
    blades: int, rotation: float, focus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classical, "CPU_NUMBERS", 4 * 16 * 16)
    image, disparity = scene()
    out = render(image, disparity, Lens(18.0, focus, 1.0, Aperture(blades, rotation)))
    defocus = out.defocus[0, 0].double().numpy()
    assert np.abs(out.image[0].numpy() - literal(image[0].numpy(), defocus, blades, rotation)).max() < 5e-6


@pytest.mark.parametrize("in_front", [False, True])
def test_a_triangle_is_upside_down_in_front_of_the_focal_plane(in_front: bool) -> None:
    """As :meth:`Aperture.kernel` has it, which is checked against parallax."""
    image = torch.zeros(1, 1, 61, 61, dtype=torch.float64)
    image[..., 30, 30] = 1.0
    aperture = Aperture(3, 20.0)
    lens = Lens(12.0, 0.0 if in_front else 2.0, 1.0, aperture)
    out = render(image, torch.ones_like(image), lens).image[0, 0]
    kernel = aperture.kernel(12.0, in_front=in_front, dtype=torch.float64)
    n = kernel.shape[0] // 2
    made = out[30 - n : 31 + n, 30 - n : 31 + n]
    assert float((made - kernel).abs().sum()) < 0.15  # the two edges differ in softness
    assert float((made - kernel.flip(0, 1)).abs().sum()) > 0.5


@pytest.mark.parametrize(
    "aperture",
    [Aperture(5, curvature=0.5), Aperture(squeeze=2.0), Aperture(cats_eye=0.5), Aperture(spherical=0.3)],
)
def test_apertures_that_the_scatter_cannot_draw_are_refused(aperture: Aperture) -> None:
    image, disparity = scene()
    with pytest.raises(BokehError, match="Choose the lens model 'layered'"):
        render(image, disparity, Lens(3.0, aperture=aperture))


def test_aperture_polygon_has_its_vertices_and_edges_where_it_should() -> None:
    hexagon = aperture_scale(np.radians([0.0, 30.0, 60.0, -60.0, 90.0, 180.0]), 6, 0.0)
    assert np.allclose(hexagon, [1, math.cos(math.pi / 6), 1, 1, math.cos(math.pi / 6), 1])
    turned = aperture_scale(np.radians([-30.0, 0.0]), 6, 30.0)
    assert np.allclose(turned, [1, math.cos(math.pi / 6)])


def test_a_point_of_light_becomes_the_stated_kernel() -> None:
    """Closed form: one radius everywhere makes the denominators cancel, and far from the frame sum w is known."""
    image = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    image[..., 20, 20] = 1000.0  # HDR: faint parts of the kernel keep their precision
    out = render(image, torch.ones(1, 1, 41, 41, dtype=torch.float64), Lens(6.5, 0.0, 1.0)).image[0, 0]
    v, u = np.mgrid[-20:21, -20:21]
    kernel = 0.5 + 0.5 * np.tanh(4 * (6.5 - np.hypot(v, u)))
    near = np.hypot(v, u) < 6.5 + 1.5
    # Each pixel's own sum of weights is the whole kernel, as it lies 20 - 8 > 6.5 + 2 pixels from the frame.
    expected = 1000.0 * kernel / kernel.sum()
    assert np.allclose(out.numpy()[near], expected[near], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_flat_picture_stays_flat_up_to_the_border(dtype: torch.dtype, device: str) -> None:
    _, disparity = scene()
    image = torch.full((1, 3, 26, 33), 0.375, dtype=dtype, device=device)
    out = render(image, disparity.float().to(device), Lens(15.0, 0.3)).image
    assert out.dtype == dtype
    assert float((out.double() - 0.375).abs().max()) < 4 * torch.finfo(dtype).eps


def test_k_zero_and_a_focused_plane_give_the_same_bits_back(device: str) -> None:
    image, disparity = (plane.to(device) for plane in scene(dtype=torch.float32))
    image[0, 0, 0, 0] = -0.25  # would be clipped if it were rendered
    assert torch.equal(render(image, disparity, Lens(0.0, 0.45)).image, image)
    plane = torch.full_like(disparity, 0.3)
    focused = render(image, plane, Lens(25.0, plane[0, 0, 0, 0]))
    assert torch.equal(focused.image, image)
    assert not focused.defocus.any()


def test_defocus_is_signed_and_in_pixels() -> None:
    disparity = torch.tensor([0.0, 0.5, 2.0]).reshape(1, 1, 1, 3)
    out = render(torch.rand(1, 3, 1, 3), disparity, Lens(8.0, 0.5))
    assert out.defocus.flatten().tolist() == [-4.0, 0.0, 12.0]


def test_a_focus_band_is_sharp_and_defocus_counts_from_its_nearer_end() -> None:
    disparity = torch.linspace(-1, 2, 301, dtype=torch.float64).reshape(1, 1, 1, -1)
    lens = Lens(10.0, 0.5, focus_band=0.4)
    expected = 10 * np.where(
        disparity > 0.7, disparity - 0.7, np.where(disparity < 0.3, disparity - 0.3, 0.0)
    )
    assert np.allclose(lens.defocus(disparity).numpy(), expected, atol=1e-12)
    plain, none = Lens(10.0, 0.5), Lens(10.0, 0.5, focus_band=0.0)
    assert torch.equal(plain.defocus(disparity), none.defocus(disparity))
    rows = Lens(10.0, 0.5, focus_band=torch.tensor([0.0, 0.4])).defocus(disparity.repeat(2, 1, 1, 1))
    assert torch.equal(rows[:1], plain.defocus(disparity))
    assert torch.allclose(rows[1:], lens.defocus(disparity))
    with pytest.raises(BokehError, match="focus band has 3 values for 1"):
        Lens(1.0, focus_band=torch.ones(3)).defocus(disparity)


def test_rows_of_a_batch_have_their_own_k_and_focus(device: str) -> None:
    image, disparity = (plane.to(device) for plane in scene(dtype=torch.float32))
    images = torch.cat([image, image.flip(3)])
    disparities = torch.cat([disparity, disparity.flip(2)])
    lens = Lens(torch.tensor([4.0, 9.0]), torch.tensor([0.2, 0.6]))
    both = render(images, disparities, lens)
    for row, (k, focus) in enumerate([(4.0, 0.2), (9.0, 0.6)]):
        one = slice(row, row + 1)
        alone = render(images[one], disparities[one], Lens(k, torch.tensor(focus)))
        assert torch.equal(both.image[one], alone.image)
        assert torch.equal(both.defocus[one], alone.defocus)


def test_tiles_and_grouping_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    image, disparity = scene(70, 90)
    results = []
    for tile in (8, 32, 1000):
        monkeypatch.setattr(classical, "CPU_NUMBERS", 4 * tile * tile)
        results.append(render(image, disparity, Lens(20.0, 0.45)).image)
    assert float((results[0] - results[2]).abs().max()) < 2e-5
    assert float((results[1] - results[2]).abs().max()) < 2e-5


def test_every_pixel_is_in_exactly_one_group() -> None:
    _, disparity = scene(70, 90)
    radius = (disparity[0, 0].float() - 0.15).abs().mul(60).numpy()
    plan = Plan(radius, 0, 0.0, 1e-6, 32)
    seen = np.zeros_like(radius)
    for group in plan.groups:
        box = slice(group.top, group.bottom), slice(group.left, group.right)
        seen[box] += (radius[box] >= group.least) & (radius[box] <= group.most)
    assert (seen == 1).all()
    assert len(plan.groups) > 9  # some tile was split


def test_large_radii_cost_only_where_they_occur() -> None:
    flat = np.full((256, 256), 1.0, np.float32)
    spot = flat.copy()
    spot[:8, :8] = 60.0
    everywhere = Plan(60 * flat, 0, 0.0, 1e-6, 64).total
    assert Plan(spot, 0, 0.0, 1e-6, 64).total < 0.05 * everywhere
    assert (
        everywhere < 0.2 * 256 * 256 * math.pi * 60**2
    )  # the flat part of a disc is not added pixel by pixel


def test_alpha_spreads_and_transparent_colour_does_not() -> None:
    image, disparity = scene(channels=4)
    image[:, 3] = (image[:, 3] > 0.1).double()
    out = render(image, disparity, Lens(8.0, 0.45, 2.2))
    radius = out.defocus[0, 0].abs().double().numpy()
    colour, alpha = image[0, :3].numpy(), image[0, 3:].numpy()
    spread_alpha = literal(alpha, radius)
    expected = (literal(colour**2.2 * alpha, radius) / np.maximum(spread_alpha, 1e-12)) ** (1 / 2.2)
    opaque = spread_alpha[0] > 1e-3
    assert np.abs(out.image[0, 3].numpy() - spread_alpha[0]).max() < 5e-6
    assert np.abs(out.image[0, :3].numpy() - expected)[:, opaque].max() < 1e-4
    clear = torch.cat([image[:, :3], torch.zeros_like(image[:, 3:])], 1)
    assert torch.equal(render(clear, disparity, Lens(8.0, 0.45)).image, clear)


def test_opaque_alpha_and_one_channel_are_like_rgb() -> None:
    image, disparity = scene()
    lens = Lens(8.0, 0.45)
    colour = render(image, disparity, lens).image
    opaque = render(torch.cat([image, torch.ones_like(image[:, :1])], 1), disparity, lens).image
    assert torch.allclose(opaque[:, :3], colour, atol=1e-12)
    assert torch.allclose(opaque[:, 3], torch.ones(()).double(), atol=1e-12)
    grey = render(image[:, 1:2], disparity, lens).image
    assert torch.allclose(grey, colour[:, 1:2], atol=1e-12)


def test_highlight_boost_brightens_blurred_highlights_only() -> None:
    image = torch.full((1, 3, 30, 60), 0.2)
    image[..., 15, 15] = image[..., 15, 45] = 1.0
    disparity = torch.zeros(1, 1, 30, 60)
    disparity[..., 30:] = 1.0  # the left half is in focus
    plain = render(image, disparity, Lens(5.0, 0.0)).image
    boosted = render(image, disparity, Lens(5.0, 0.0, highlight_boost=0.4)).image
    difference = boosted - plain
    assert float(difference[..., 15, 15].abs().max()) == 0
    assert float(difference[..., 15, 45].min()) > 0.005
    # Light, not value, is what is spread: 1.4^2.2 times the highlight's.
    light = boosted**2.2 - plain**2.2
    ratio = float(light[0, 0].sum() / (plain**2.2 - 0.2**2.2)[0, 0, :, 35:55].sum())
    assert ratio == pytest.approx((1.4**2.2 - 1) / (1 - 0.2**2.2), rel=1e-3)


def test_progress_grows_to_the_end_and_may_stop_the_rendering() -> None:
    image, disparity = scene()
    seen: list[tuple[int, int]] = []
    render(image, disparity, Lens(60.0, 0.45), progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 5
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        render(image, disparity, Lens(20.0, 0.45), progress=stop)


def test_sweep_is_value_by_value() -> None:
    image, disparity = scene(dtype=torch.float32)
    images, disparities = torch.cat([image, 1 - image]), torch.cat([disparity, disparity + 0.1])
    lens = Lens(0.0, torch.tensor([0.2, 0.5]), 2.2)
    seen: list[int] = []
    out = render_sweep(images, disparities, lens, [0.0, 7.0], progress=lambda done, _: seen.append(done))
    assert torch.equal(out.image[:2], images)
    at_seven = render(images, disparities, Lens(7.0, torch.tensor([0.2, 0.5]), 2.2))
    assert torch.equal(out.image[2:], at_seven.image)
    assert torch.equal(out.defocus[2:], at_seven.defocus)
    assert seen == sorted(seen)
    assert seen[-1] == 4000


def test_defocus_colours() -> None:
    defocus = torch.tensor([-8.0, 0.0, 4.0, 8.0]).reshape(1, 1, 1, 4)
    behind, focus, before, far_before = colour_defocus(defocus)[0, :, 0].T
    assert focus.tolist() == [1, 1, 1]
    assert behind[2] > behind[1] > behind[0]  # blue
    assert before[0] > before[1] > before[2]  # orange
    assert far_before[0] > 3 * far_before[1]  # red
    assert blur_amount(defocus).flatten().tolist() == [1, 0, 0.5, 1]
    assert colour_defocus(torch.zeros(1, 1, 2, 2)).eq(1).all()


@pytest.mark.parametrize(
    ("lens", "message"),
    [
        ({"k": -1.0}, "K is -1"),
        ({"k": math.nan}, "K is nan"),
        ({"k": torch.tensor([1.0, -2.0])}, "must be 0"),
        ({"k": 1.0, "gamma": 0.0}, "Gamma is 0"),
        ({"k": 1.0, "gamma": "linear"}, "Gamma is linear"),
        ({"k": 1.0, "aperture": 6}, "aperture is 6"),
        ({"k": 1.0, "focus_band": -0.1}, "focus band is -0.1"),
        ({"k": 1.0, "focus_band": torch.tensor([0.1, math.nan])}, "focus band"),
        ({"k": 1.0, "highlight_recovery": -1.0}, "highlight recovery is -1"),
        ({"k": 1.0, "highlight_recovery": math.inf}, "highlight recovery is inf"),
        ({"k": 1.0, "focus_disparity": math.inf}, "focus disparity is inf"),
        ({"k": 1.0, "highlight_boost": -0.1}, "highlight boost"),
        ({"k": 1.0, "highlight_threshold": 1.0}, "threshold"),
    ],
)
def test_impossible_lenses_are_refused(lens: dict[str, Any], message: str) -> None:
    with pytest.raises(BokehError, match=message):
        Lens(**lens)


@pytest.mark.parametrize(
    ("image", "disparity", "message"),
    [
        ((3, 8, 8), (1, 1, 8, 8), "Expected an image"),
        ((0, 3, 8, 8), (0, 1, 8, 8), "empty"),
        ((1, 2, 8, 8), (1, 1, 8, 8), "2 channels"),
        ((2, 3, 8, 8), (1, 1, 8, 8), "batch and size must agree"),
        ((1, 3, 8, 8), (1, 1, 8, 9), "batch and size must agree"),
    ],
)
def test_inputs_that_do_not_belong_together_are_refused(image: Any, disparity: Any, message: str) -> None:
    with pytest.raises(BokehError, match=message):
        render(torch.rand(image), torch.rand(disparity), Lens(1.0))


def test_values_that_are_not_finite_and_unknown_names_are_refused() -> None:
    image, disparity = torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8)
    with pytest.raises(BokehError, match="no lens model named 'telescope'; there are: classical"):
        render(image, disparity, Lens(1.0), model="telescope")
    with pytest.raises(BokehError, match="K has 2 values for 1 images"):
        render(image, disparity, Lens(torch.ones(2)))
    image[0, 0, 0, 0] = math.nan
    with pytest.raises(BokehError, match="image has 1 values that are NaN or infinite"):
        render(image, disparity, Lens(1.0))
    with pytest.raises(BokehError, match="No value of K"):
        render_sweep(image, disparity, Lens(1.0), [])
