"""Strengths that know their unit, in the render node: K, K of a camera, f-numbers; and depth that knows its own."""
# ruff: noqa: F811

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from tests.test_node_render import call, focus, said  # noqa: F401

pytestmark = pytest.mark.host


def test_k_counts_at_512_pixels_or_at_the_image(pack: ModuleType) -> None:
    at_512 = call(pack, k=80.0, k_reference="512 px")[0]
    assert torch.equal(at_512, call(pack, k=80.0 * 32 / 512)[0])


def test_turning_a_picture_changes_no_blur(pack: ModuleType) -> None:
    image, depth = torch.rand(1, 24, 32, 3), torch.rand(1, 24, 32)
    turned = {"image": image.transpose(1, 2), "depth": depth.transpose(1, 2)}
    for reference in ("512 px", "image px"):
        lying = call(pack, image=image, depth=depth, k=80.0, k_reference=reference, focus_y=0.0)
        upright = call(pack, **turned, k=80.0, k_reference=reference, focus_y=0.0)
        assert torch.equal(lying[-1], upright[-1].transpose(1, 2))
        assert torch.allclose(lying[0], upright[0].transpose(1, 2), atol=1e-6)


def test_a_camera_gives_the_blur_it_has(pack: ModuleType) -> None:
    """50 mm f/1.8 at 2 m on 36 mm: infinity is blurred by f^2 / (2 N (S - f)) = 0.3561 mm of radius on the sensor."""
    settings = {"f_number": 1.8, "focal_length": 50.0, "focus_distance": 2.0, "sensor": "Full frame"}
    rest = {"sensor_width": 1.0, "image_width": 512}
    k, _, distance, *_ = pack.nodes.camera.BokehFromCamera.execute(**settings, **rest).result
    depth = torch.full((1, 24, 32), float("inf"))
    depth[:, :, :16] = 2.0
    metric = {"depth": depth, "depth_kind": "metric (metres)", "depth_range": "as is"}
    chosen = focus(pack, "distance in metres", value=distance)
    defocus = pack.bokeh_ops.render.Lens(
        float(pack.bokeh_ops.camera.optics.k_at_width(k, 32)), 1 / distance
    ).defocus(pack.bokeh_ops.depth.conventions.to_depth_map(depth, "metric (metres)").disparity)
    radius = 0.05**2 / (2 * 1.8 * (2 - 0.05)) * 32 / 0.036
    assert float(defocus[..., -1].mean()) == pytest.approx(-radius, rel=1e-5)
    blur = call(pack, **metric, k=k, k_reference="512 px", focus=chosen)[2]
    assert float(blur[..., :16].max()) == 0
    assert float(blur[..., 16:].min()) == 1


def test_k_of_a_camera_keeps_its_unit(pack: ModuleType, said: list[str]) -> None:
    """In a map that is normalised it would be several times too strong or too weak."""
    k, _, _, listed, _ = pack.nodes.camera.BokehFromCamera.execute(
        4.0, 50.0, 2.0, "Full frame", 1.0, 512
    ).result
    depth = torch.linspace(1.0, 8.0, 32).expand(1, 24, 32)
    right = call(pack, depth=depth, depth_kind="metric (metres)", depth_range="as is", k=k)[0]
    for given in ({"k": k}, {"k_values": listed}):
        said.clear()
        metric = call(
            pack, depth=depth, depth_kind="metric (metres)", depth_range="normalise to 0..1", **given
        )
        assert torch.allclose(metric[0], right, atol=1e-5)
        assert "read in its own units" in said[0]
        for scaling in ("normalise to 0..1", "normalise over the batch"):
            with pytest.raises(pack.bokeh_ops.errors.BokehError, match="K is in pixels per dioptre"):
                call(pack, depth=1 / depth, depth_range=scaling, **given)
        between = {"depth_range": "between two distances", "depth_black": 8.0, "depth_white": 1.0}
        disparity = (1 / depth - 1 / 8) / (1 - 1 / 8)
        assert torch.allclose(call(pack, depth=disparity, **between, **given)[0], right, atol=1e-4)
    typed = call(pack, depth=1 / depth, depth_range="normalise to 0..1", k=float(k))[0]
    assert not torch.allclose(typed, right, atol=1e-2)  # a number alone counts in the map's own measure


def test_f_numbers_in_lists_of_k(pack: ModuleType) -> None:
    """Where the K beside the list comes from a camera, an f-number is the K that the camera node gives for it."""
    camera = pack.nodes.camera.BokehFromCamera.execute
    k, _, _, listed, _ = camera(4.0, 50.0, 2.0, "Full frame", 1.0, 512, f_numbers="1.4, 8").result
    depth = {"depth": torch.linspace(1.0, 8.0, 32).expand(1, 24, 32), "depth_kind": "metric (metres)"}
    by_stops = call(pack, **depth, k=k, k_values="f/1.4, f/8")[0]
    assert torch.allclose(by_stops, call(pack, **depth, k_values=listed)[0], atol=1e-5)
    sweep = pack.nodes.sampling._sweep(None, k, "f/1.4, 0, f/8", 0, "positive only", 0)
    assert list(sweep.target_k) == pytest.approx([k * 4 / 1.4, 0, k * 4 / 8])
    with pytest.raises(
        pack.bokeh_ops.errors.BokehError, match="an f-number, and becomes a K only with a camera"
    ):
        pack.nodes.sampling._sweep(None, float(k), "f/1.4", 0, "positive only", 0)


METRES = torch.linspace(1.0, 8.0, 32).expand(1, 24, 32).contiguous()


def known(pack: ModuleType, unit: str = "dioptres", focal: float | None = 24.0, depth: Any = METRES) -> Any:
    depths = pack.bokeh_ops.depth.conventions
    return depths.DepthMap(1 / depth[:, None], depths.DepthUnit(unit), focal)


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("size", [1, 2])  # of the picture over its map
def test_an_f_number_is_that_of_a_full_frame_camera(pack: ModuleType, upright: bool, size: int) -> None:
    """Blur on the film is ``f^2 / (N (S - f)) |1 - S / D|`` in diameter, and its 36 mm are the longer side."""
    focal = 24.0
    metres = torch.where(torch.arange(32) < 16, 1.0, 8.0).expand(1, 24, 32).contiguous()
    if upright:
        metres, focal = metres.transpose(1, 2).contiguous(), 18.0
    image = torch.rand(1, metres.shape[1] * size, metres.shape[2] * size, 3)
    depth = known(pack, focal=focal, depth=metres)
    for scaling in ("as is", "normalise to 0..1"):
        signed = call(pack, image=image, depth=depth, depth_range=scaling, f_number=2.0, focus_y=0.0)[-1]
        f, n, s, far = focal / 32 * 0.036, 2.0, 1.0, 8.0
        radius = f**2 / (n * (s - f)) * (1 - s / far) / 2 * 32 * size / 0.036
        assert float(signed[0, -1, -1]) == pytest.approx(-radius, rel=1e-4)
    # the widget counts more than what the depth says, and makes a grey map know it
    by_hand = call(pack, image=image, depth=known(pack, focal=7.0, depth=metres), focal_pixels=focal, f_number=2.0,
                   focus_y=0.0)[-1]  # fmt: skip
    assert torch.equal(by_hand, signed)
    grey = call(pack, image=image, depth=metres, depth_kind="metric (metres)", focal_pixels=focal, f_number=2.0,
                focus_y=0.0)[-1]  # fmt: skip
    assert torch.allclose(grey, signed, atol=1e-6)


def test_an_f_number_beside_a_focus_pull(pack: ModuleType) -> None:
    """K depends on the distance: ``f^2 / (2 N (1 - f / S))`` pixels of 36 mm per dioptre."""
    chosen = focus(pack, "distance in metres", values="1, 4")
    signed = call(pack, depth=known(pack), depth_range="as is", f_number=2.0, focus=chosen)[-1]
    f = 24 / 32 * 0.036
    for row, distance in ((0, 1.0), (1, 4.0)):
        k = f**2 / (2 * 2.0 * (1 - f / distance)) * 32 / 0.036
        assert float(signed[row, 0, -1]) == pytest.approx(k * (1 / 8 - 1 / distance), rel=1e-4)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_f_numbers_that_are_none(pack: ModuleType, bad: float) -> None:
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=f"f-number is {bad}; it must be above 0"):
        call(pack, depth=known(pack), f_number=bad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "f_number needs the focal length of the picture"),
        ({"unit": "relative", "focal": 24.0}, "An f-number needs depth in metres, but .* has no unit"),
    ],
)
def test_what_an_f_number_needs(pack: ModuleType, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=message):
        call(pack, depth=known(pack, **{"focal": None, **changes}), f_number=2.0)


def test_a_grey_map_without_a_unit_takes_no_f_number(pack: ModuleType) -> None:
    with pytest.raises(
        pack.bokeh_ops.errors.BokehError, match="An f-number needs depth in metres, but the depth map"
    ):
        call(pack, depth_range="normalise to 0..1", f_number=2.0)


def test_depth_that_knows_its_unit(pack: ModuleType, said: list[str]) -> None:
    k = pack.bokeh_ops.numbers.PerDioptre(7.0)
    right = call(pack, depth=METRES, depth_kind="metric (metres)", depth_range="as is", k=k)[-1]
    # metres are kept for a K per dioptre, and normalised as every map is for another
    assert torch.equal(call(pack, depth=known(pack), depth_range="normalise to 0..1", k=k)[-1], right)
    assert ["read in its own units" in text for text in said] == [True]
    said.clear()
    plain = call(pack, depth=1 / METRES, depth_range="normalise to 0..1", k=7.0)[-1]
    assert torch.equal(call(pack, depth=known(pack), depth_range="normalise to 0..1", k=7.0)[-1], plain)
    assert torch.equal(call(pack, depth=known(pack), depth_range="as is", k=7.0)[-1], right)
    assert said == []
    # without a unit it is never read as if it had one
    bare = known(pack, "relative")
    assert torch.equal(call(pack, depth=bare, depth_range="as is", k=7.0)[-1], plain)
    assert said == ["The depth that is linked has no unit, so it is normalised over the batch."]
    for scaling in ("as is", "normalise to 0..1"):
        with pytest.raises(
            pack.bokeh_ops.errors.BokehError, match=r"K is in pixels per dioptre, .* has no unit"
        ):
            call(pack, depth=bare, depth_range=scaling, k=k)


@pytest.mark.parametrize(
    "changes",
    [
        {"depth_kind": "metric (metres)"},
        {"depth_kind": "inverted (far is bright)"},
        {"depth_range": "multiply by scale", "depth_scale": 3.0},
        {"depth_range": "between two distances"},
    ],
)
def test_what_a_grey_map_would_be_is_not_asked_of_it(
    pack: ModuleType, said: list[str], changes: dict[str, Any]
) -> None:
    signed = call(pack, **{"depth": known(pack), "depth_range": "as is", **changes})[-1]
    assert torch.equal(signed, call(pack, depth=known(pack), depth_range="as is")[-1])
    assert len(said) == 1
    assert "are not looked at: the depth that is linked knows its unit" in said[0]
