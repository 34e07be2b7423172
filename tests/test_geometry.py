"""Depth from the geometry of the host's own nodes, which newer hosts have: made here as those nodes make it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bokeh_ops.depth.conventions import DepthMap, DepthUnit
from bokeh_ops.depth.geometry import GeometryUnit, from_geometry
from bokeh_ops.errors import BokehError

METRES = torch.tensor([[[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, 10.0]]])


def da3(**more: Any) -> dict[str, Any]:
    """What Run Depth Anything 3 gives of one picture."""
    return {"depth": METRES.clone(), "image": torch.rand(1, 2, 4, 3), "mode": "mono"} | more


def moge(fov_x: float = 60.0, **more: Any) -> dict[str, Any]:
    """What Run MoGe Inference gives: the last column is sky. Focal lengths are shares of width and height."""
    depth = METRES.clone()
    depth[..., 3] = torch.inf
    focal = 0.5 / math.tan(math.radians(fov_x / 2))
    intrinsics = torch.tensor([[[focal, 0.0, 0.5], [0.0, focal * 2, 0.5], [0.0, 0.0, 1.0]]])
    made = {
        "depth": depth,
        "mask": torch.isfinite(depth),
        "intrinsics": intrinsics,
        "image": torch.rand(1, 2, 4, 3),
    }
    made["points"] = depth[..., None].expand(-1, -1, -1, 3)
    made["normal"] = torch.zeros(1, 2, 4, 3)
    return made | more


def read(geometry: Any, *args: Any, **options: Any) -> tuple[DepthMap, str]:
    said: list[str] = []
    found = from_geometry(geometry, *args, **options, notice=said.append)
    return found, " ".join(said)


def test_moge_is_metres_with_sky_and_a_focal_length() -> None:
    found, said = read(moge())
    assert found.unit is DepthUnit.DIOPTRES
    assert found.disparity[0, 0].tolist() == [[1.0, 0.5, 0.25, 0.0]] * 2
    assert found.focal_pixels == pytest.approx(2 / math.tan(math.radians(30)))  # half of 4 pixels
    assert not said


def test_mask_counts_where_depth_was_left_as_it_was() -> None:
    """``apply_mask`` off: the network's own numbers stand where the mask says sky."""
    found, _ = read(moge(depth=METRES.clone()))
    assert found.disparity[0, 0, :, 3].tolist() == [0.0, 0.0]


def test_the_first_moge_does_not_measure() -> None:
    geometry = moge()
    del geometry["normal"]
    found, said = read(geometry)
    assert found.unit is DepthUnit.RELATIVE
    assert "Choose 'metres' for a model of MoGe 2" in said
    assert read(geometry, "metres")[0].unit is DepthUnit.DIOPTRES


def test_panoramas_have_no_focal_length() -> None:
    geometry = {key: value for key, value in moge().items() if key not in ("normal", "intrinsics")}
    found, said = read(geometry)
    assert found.unit is DepthUnit.RELATIVE
    assert found.focal_pixels is None
    assert "panorama has no unit" in said


def test_sky_of_depth_anything_3() -> None:
    sky = torch.tensor([[[0.0, 0.1, 0.29, 0.3], [0.0, 0.0, 0.0, 1.0]]])
    found, said = read(da3(sky=sky))
    assert found.disparity[0, 0].tolist() == [[1.0, 0.5, 0.25, 0.0]] * 2
    assert found.unit is DepthUnit.RELATIVE
    assert "Mono and Metric look alike" in said


def test_depth_anything_3_metric() -> None:
    """Raw output is metres x 300 / focal length in pixels of what the network saw."""
    seen = 450.0  # on its 504 pixels; the picture has 4
    raw = METRES * 300 / seen
    found, _ = read(da3(depth=raw), GeometryUnit.DA3_METRIC, focal_pixels=seen * 4 / 504, resolution=504)
    assert found.unit is DepthUnit.DIOPTRES
    torch.testing.assert_close(found.disparity, 1 / METRES[None])
    assert found.focal_pixels == pytest.approx(seen * 4 / 504)
    with pytest.raises(BokehError, match=r"needs focal_pixels: .*\(4 pixels"):
        read(da3(), GeometryUnit.DA3_METRIC)


def test_focal_length_of_several_views() -> None:
    """In pixels of the network's picture, 504 wide here; without a camera the node puts the unit matrix there."""
    matrices = torch.eye(3).repeat(1, 3, 1, 1)
    matrices[0, :, 0, 0] = torch.tensor([400.0, 504.0, 600.0])
    matrices[0, :, 0, 2] = 252.0
    views = da3(depth=METRES.repeat(3, 1, 1), mode="multiview", intrinsics=matrices)
    assert read(views)[0].focal_pixels == pytest.approx(4.0)
    assert read(da3(intrinsics=torch.eye(3)[None, None]))[0].focal_pixels is None


def test_what_is_not_confident_is_filled_in() -> None:
    confidence = torch.tensor([[[2.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 4.0]]])
    geometry = da3(confidence=confidence)
    assert read(geometry)[0].disparity[0, 0, 0].tolist() == [1.0, 0.5, 0.25, 0.125]
    found, said = read(geometry, confidence=0.5)
    assert 0.1 < float(found.disparity[0, 0, 0, 0]) != 1.0
    assert found.disparity[0, 0, 0, 1:].tolist() == [0.5, 0.25, 0.125]
    assert "12.5 % of the depth is less confident than 0.5" in said
    assert "filled in" in said


def test_holes() -> None:
    depth = METRES.clone()
    depth[0, 0, 0], depth[0, 1, 1], depth[0, 1, 2] = torch.nan, 0.0, -3.0
    found, said = read(da3(depth=depth))
    assert bool(torch.isfinite(found.disparity).all())
    assert "3 of 8 values" in said


def test_a_frame_of_nothing_but_sky_stops_no_film() -> None:
    found, said = read(
        da3(depth=METRES.repeat(3, 1, 1), sky=torch.stack([torch.zeros(2, 4), torch.ones(2, 4)])[[0, 1, 0]])
    )
    assert found.disparity[1].eq(0).all()
    assert found.disparity[0, 0, 0].tolist() == found.disparity[2, 0, 0].tolist() == [1.0, 0.5, 0.25, 0.125]
    assert "All of picture 2 of 3 is sky or masked out: it is taken to be infinitely far" in said


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (None, "Expected geometry with depth .*got NoneType"),
        ({}, "no depth: it holds nothing"),
        ({"points": METRES, "image": METRES}, "no depth: it holds image, points"),
        (da3(depth=torch.zeros(1, 0, 4)), r"depth is \(1, 0, 4\); expected \[B, H, W\], not empty"),
        (da3(depth=METRES[0]), r"depth is \(2, 4\); expected"),
        (da3(sky=torch.zeros(1, 3, 4)), r"sky is \(1, 3, 4\) but its depth \(1, 2, 4\)"),
        (da3(sky=torch.ones(1, 2, 4)), "All of picture 1 of 1 is sky or masked out"),
        (moge(mask=torch.zeros(1, 2, 4, dtype=torch.bool)), "All of picture 1 of 1 is sky or masked out"),
        (moge(depth=torch.full((1, 2, 4), torch.inf)), "sky or masked out"),
        (da3(depth=torch.full((1, 2, 4), torch.nan)), "is NaN in the geometry"),
        (da3(depth=torch.zeros(1, 2, 4)), "nothing is known of its depth"),
        (da3(confidence=torch.zeros(1, 2, 4)), "is 0 at most: the model is sure of no pixel"),
        (da3(confidence=torch.full((1, 2, 4), torch.nan)), "sure of no pixel"),
    ],
)
def test_geometry_that_is_no_use(geometry: Any, message: str) -> None:
    with pytest.raises(BokehError, match=message):
        read(geometry)
