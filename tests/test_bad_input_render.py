"""Bad pictures, depth maps, lenses and foci: each its own clear message through the node, or the documented result."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.test_node_render import aperture, call, focus, said  # noqa: F401

pytestmark = pytest.mark.host

METRIC = {"depth_kind": "metric (metres)", "depth_range": "as is"}
NAN, INFINITY = math.nan, math.inf


def spoilt(value: float, count: int = 1) -> torch.Tensor:
    depth = torch.linspace(0.2, 0.8, 32).repeat(24, 1)[None]
    depth[0, 3, 5 : 5 + count] = value
    return depth


def picture(value: float) -> torch.Tensor:
    image = torch.rand(1, 24, 32, 3)
    image[0, 1, 2, 0] = value
    return image


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": torch.rand(0, 24, 32, 3)}, "at least one"),
        ({"image": torch.rand(24, 32, 3)}, r"Expected pictures \[B, H, W, C\]"),
        ({"image": torch.rand(1, 24, 32, 2)}, "2 channels"),
        ({"image": picture(NAN)}, "The image has 1 values that are NaN or infinite"),
        ({"image": picture(INFINITY)}, "The image has 1 values that are NaN or infinite"),
        ({"image": picture(NAN), "edges": "aligned to the image"}, "The image has 1 values that are NaN"),
        ({"depth": torch.rand(2, 24, 32)}, "2 depth maps for 1 images; give one, or one per image"),
        ({"depth": torch.rand(1, 32, 24)}, "one is upright and the other is not"),
        ({"depth": torch.ones(1, 24, 32, 3)}, "nothing to normalise.*Load Depth Map"),
        ({"depth": torch.full((1, 24, 32), 0.25)}, r"same disparity 0\.25 everywhere"),
        ({"depth": torch.full((1, 24, 32), NAN)}, "All values of depth map 1 of 1 are NaN or infinite"),
        (
            {"depth": torch.zeros(1, 24, 32), **METRIC},
            "All values of depth map 1 of 1 are 0, negative or NaN",
        ),
        (
            {"k_values": "10, 5 px/dioptre"},
            "K is in pixels per dioptre.*read by 'normalise.*Use a map in metres",
        ),
        (
            {"depth_range": "between two distances", "depth_black": 2.0, "depth_white": 2.0},
            "they must differ",
        ),
        (
            {
                "depth": torch.rand(1, 24, 32) * 9,
                "depth_kind": "inverted (far is bright)",
                "depth_range": "as is",
            },
            "outside 0..1",
        ),
        ({"depth_kind": "canonical (Depth Pro)", "depth_range": "as is"}, "needs the focal length in pixels"),
        ({"depth_range": "multiply by scale", "depth_scale": 0.0}, "depth scale is 0"),
        ({"k": -1.0}, r"K is .*-1.*must be 0"),
        ({"k": NAN}, "K is .*nan"),
        ({"k_values": "4, soft"}, "soft"),
        ({"focus_x": 1.5}, "outside the picture"),
        ({"focus_mask": torch.zeros(1, 24, 32)}, "focus mask is empty"),
        ({"focus_mask": torch.ones(2, 24, 32)}, "2 focus masks for 1 images"),
        ({"highlight_recovery": -1.0}, "highlight recovery is -1"),
    ],
)
def test_bad_input_is_refused(pack: ModuleType, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=message) as raised:
        call(pack, **changes)
    assert str(raised.value)[-1] in ".)", "a message is a sentence"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "mask"}, "'mask' but no mask is connected"),
        ({"mode": "whole mask sharp", "mask": torch.zeros(1, 24, 32)}, "focus mask is empty"),
        ({"mode": "distance in metres"}, "forgets the units"),
        ({"mode": "disparity value", "values": "0, 1, 2", "one_each": True}, "3 focus values for 1 images"),
        ({"mode": "disparity value", "values": "0, x"}, "Focus: 'x' is not a number"),
        ({"band": -0.5}, r"focus band is -0\.5"),
        ({"x": NAN}, "outside the picture"),
    ],
)
def test_bad_foci_are_refused(pack: ModuleType, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=message):
        call(pack, focus=focus(pack, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blades": 2}, "2 blades"),
        ({"picture": torch.zeros(1, 8, 8)}, "all black"),
        ({"picture": torch.zeros(1, 8, 8, 4)}, "all black"),
        ({"picture": torch.zeros(1, 0, 8)}, "not empty"),
        ({"picture": torch.ones(8, 8)}, "expected one picture"),
        ({"picture": torch.full((1, 8, 8), NAN)}, "negative, NaN or infinite"),
        ({"picture": torch.full((1, 8, 8), -1.0)}, "negative, NaN or infinite"),
        ({"picture": torch.ones(3, 8, 8)}, "3 pictures for one aperture"),
    ],
)
def test_bad_apertures_are_refused(pack: ModuleType, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=message):
        aperture(pack, **changes)


def test_apertures_a_model_cannot_draw_are_refused(pack: ModuleType) -> None:
    oval, _ = aperture(pack, squeeze=1.5)
    for model in ("classical", "thin_lens"):
        with pytest.raises(pack.bokeh_ops.errors.BokehError, match="Choose the lens model 'layered'"):
            call(pack, aperture=oval, model=model)


@pytest.mark.parametrize("model", ["every"])
def test_one_pixel_is_a_picture(pack: ModuleType, model: str) -> None:
    for each in pack.bokeh_ops.render.MODELS:
        image = torch.rand(1, 1, 1, 3)
        depth = torch.full((1, 1, 1), 0.5)
        away = focus(pack, "disparity value", value=0.0)
        for edges in ("as is", "aligned to the image"):
            made = call(
                pack,
                image=image,
                depth=depth,
                depth_range="as is",
                k=20.0,
                focus=away,
                edges=edges,
                model=each,
            )
            assert torch.allclose(made[0], image, atol=1e-4), each  # all its light stays in the frame


def test_a_radius_beyond_the_picture_is_rendered_and_said(pack: ModuleType, said: list[str]) -> None:  # noqa: F811
    """Every pixel then takes light from all of the plane behind the focus."""
    depth = torch.full((1, 24, 32), 0.5)
    away = focus(pack, "disparity value", value=0.0)
    for model in pack.bokeh_ops.render.MODELS:
        said.clear()
        made = call(pack, depth=depth, depth_range="as is", k=200.0, focus=away, model=model)[0]
        assert bool(torch.isfinite(made).all())
        assert float(made.std((1, 2)).max()) < 0.03, model  # nearly one colour
        assert any("radius is 100 pixels, more than the picture's longer side of 32" in text for text in said)
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match="use another lens model"):
        call(pack, depth=depth, depth_range="as is", k=900.0, focus=away, model="thin_lens")


def test_sky_at_infinity_and_constant_depth_are_rendered(pack: ModuleType, said: list[str]) -> None:  # noqa: F811
    sky = spoilt(INFINITY, 20) * 5
    made = call(pack, depth=sky, **METRIC, focus=focus(pack, "distance in metres", value=2.0))
    assert bool(torch.isfinite(made[0]).all())
    assert said == []
    image = torch.rand(1, 24, 32, 3)
    flat = call(pack, image=image, depth=torch.full((1, 24, 32), 0.25), depth_range="as is")
    assert torch.equal(flat[0], image)  # focused on itself
    assert "same disparity 0.25 everywhere" in said[0]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            {"depth": spoilt(NAN)},
            "1 of 768 values of the depth map (the first in map 1 at x = 5, y = 3) are NaN",
        ),
        ({"depth": spoilt(INFINITY)}, "1 of 768 values"),
        (
            {"depth": spoilt(0.0, 2), **METRIC},
            "2 of 768 values of the depth map (the first in map 1 at x = 5, y = 3)",
        ),
        ({"depth": spoilt(-2.0), **METRIC}, "are 0, negative or NaN"),
    ],
)
def test_holes_are_filled_in_and_said(
    pack: ModuleType,
    said: list[str],  # noqa: F811
    changes: dict[str, Any],
    what: str,
) -> None:
    made = call(pack, **changes)
    assert bool(torch.isfinite(made[0]).all())
    assert bool(torch.isfinite(made[1]).all())
    assert what in said[0]
    assert "filled in from around" in said[0]


def test_transparent_pictures_stay_so_and_give_no_colour(pack: ModuleType) -> None:
    image = torch.rand(1, 24, 32, 4)
    image[..., 3] = (torch.arange(32) < 16).float()
    image[:, :, 16:, :3] = torch.tensor([0.0, 1.0, 0.0])
    for model in pack.bokeh_ops.render.MODELS:
        made = call(pack, image=image, model=model, edges="aligned to the image")[0]
        assert made.shape == image.shape
        other = image.clone()
        other[:, :, 16:, :3] = 0.0
        opaque = made[..., 3] > 0.01
        changed = (
            call(pack, image=other, model=model, edges="as is")[0] - call(pack, image=image, model=model)[0]
        ).abs()
        assert float(changed[..., :3][opaque].max()) < 1e-3, model


def test_negative_pixels_count_as_black(pack: ModuleType) -> None:
    image = picture(-5.0)
    black = image.clamp_min(0)
    for model in pack.bokeh_ops.render.MODELS:
        one, other = (
            call(pack, image=each, model=model, focus=focus(pack, "disparity value", value=-1.0))[0]
            for each in (image, black)
        )
        assert torch.allclose(one, other, atol=1e-5), model
