"""Depth maps of every kind become disparity, or an error that says what is wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bokeh_ops.depth import DepthKind, DepthRange, fit_to_image, load_depth, to_disparity
from bokeh_ops.errors import BokehError

DISPARITY, INVERTED, METRIC = DepthKind.DISPARITY, DepthKind.INVERTED, DepthKind.METRIC
AS_IS, NORMALISE, SCALE = DepthRange.AS_IS, DepthRange.NORMALISE, DepthRange.SCALE


@pytest.mark.parametrize(
    ("kind", "scaling", "scale", "expected"),
    [
        (DISPARITY, AS_IS, 9.0, [0.25, 0.5, 1.0]),  # a scale that was not asked for is not used
        (DISPARITY, SCALE, 8.0, [2.0, 4.0, 8.0]),
        (DISPARITY, NORMALISE, 9.0, [0.0, 1 / 3, 1.0]),
        (INVERTED, AS_IS, 9.0, [0.75, 0.5, 0.0]),
        (INVERTED, SCALE, 8.0, [6.0, 4.0, 0.0]),
        (INVERTED, NORMALISE, 9.0, [1.0, 2 / 3, 0.0]),
        (METRIC, AS_IS, 9.0, [4.0, 2.0, 1.0]),
        (METRIC, SCALE, 10.0, [0.4, 0.2, 0.1]),
        (METRIC, NORMALISE, 9.0, [1.0, 1 / 3, 0.0]),
    ],
)
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_kinds_and_ranges(
    kind: DepthKind, scaling: DepthRange, scale: float, expected: list[float], channels: int | None
) -> None:
    depth = torch.tensor([0.25, 0.5, 1.0]).reshape(1, 1, 3)
    if channels:
        depth = depth[..., None].repeat(1, 1, 1, channels)
        if channels == 4:
            depth[..., 3] = 1.0
    out = to_disparity(depth, kind, scaling, scale)
    assert out.shape == (1, 1, 1, 3)
    assert out.flatten().tolist() == pytest.approx(expected)
    assert torch.equal(out, to_disparity(depth, kind.value, scaling.value, scale))


def test_each_map_is_normalised_by_itself() -> None:
    depth = torch.tensor([[[1.0, 2.0, 3.0]], [[10.0, 10.0, 30.0]]])
    assert to_disparity(depth, DISPARITY, NORMALISE).flatten().tolist() == [0, 0.5, 1, 0, 0, 1]


def test_sky_at_infinity_is_metric_only() -> None:
    depth = torch.tensor([[[2.0, math.inf]]])
    assert to_disparity(depth, METRIC).flatten().tolist() == [0.5, 0.0]
    for kind in (DISPARITY, INVERTED):
        with pytest.raises(BokehError, match=r"1 of 2 values of the depth map are infinite .*x = 1, y = 0"):
            to_disparity(depth, kind)


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (math.nan, DISPARITY, "are NaN"),
        (math.nan, METRIC, "are NaN"),
        (0.0, METRIC, "are 0 or negative metres"),
        (-3.0, METRIC, "are 0 or negative metres"),
        (-math.inf, METRIC, "are 0 or negative metres"),
        (1e-42, METRIC, "overflows"),
        (1.5, INVERTED, r"outside 0\.\.1"),
    ],
)
def test_bad_values_are_counted_and_located(bad: float, kind: DepthKind, message: str) -> None:
    depth = torch.full((2, 4, 5), 0.5)
    depth[1, 2, 3] = depth[1, 3, 4] = bad
    with pytest.raises(BokehError, match=f"2 of 40 values .*{message}.* in map 2 at x = 3, y = 2"):
        to_disparity(depth, kind)


def test_a_constant_map_is_remarked_on_or_cannot_be_normalised() -> None:
    said: list[str] = []
    out = to_disparity(torch.full((1, 4, 4), 0.25), DISPARITY, AS_IS, notice=said.append)
    assert out.eq(0.25).all()
    assert len(said) == 1
    assert "same value 0.25 everywhere" in said[0]
    assert "16-bit" not in said[0]
    maps = torch.rand(2, 4, 4)
    maps[1] = 0.5
    with pytest.raises(BokehError, match=r"map 2 of 2 has the same value 0\.5 everywhere"):
        to_disparity(maps, DISPARITY, NORMALISE)


def test_a_map_clipped_to_white_points_to_the_loader() -> None:
    said: list[str] = []
    white = torch.ones(1, 10, 10, 3)
    with pytest.raises(BokehError, match="Load Depth Map"):
        to_disparity(white, DISPARITY, NORMALISE)
    white[0, 0, 0] = 0.5
    to_disparity(white, DISPARITY, NORMALISE, notice=said.append)
    assert len(said) == 1
    assert "99 %" in said[0]
    assert "Load Depth Map" in said[0]


def test_coloured_maps_are_refused_and_nearly_grey_ones_are_not() -> None:
    colours = torch.rand(1, 8, 8, 3)
    with pytest.raises(BokehError, match="coloured"):
        to_disparity(colours)
    grey = torch.linspace(0, 1, 64).reshape(1, 8, 8, 1).repeat(1, 1, 1, 3)
    noisy = grey + torch.tensor([1.0, 0.0, -1.0]) / 255
    assert torch.allclose(to_disparity(noisy)[0, 0], grey[0, ..., 0], atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((4, 4), "got"), ((1, 4, 4, 2), "got"), ((0, 4, 4), "empty"), ((1, 0, 4, 3), "empty")],
)
def test_what_is_no_map_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(BokehError, match=message):
        to_disparity(torch.rand(shape))


def test_options_and_scale_are_checked() -> None:
    depth = torch.rand(1, 4, 4)
    with pytest.raises(BokehError, match=r"'depth' is not one of: 'disparity \(near is bright\)'"):
        to_disparity(depth, "depth")
    with pytest.raises(BokehError, match="not one of: 'as is'"):
        to_disparity(depth, DISPARITY, "auto")
    for scale in (0.0, -1.0, math.nan):
        with pytest.raises(BokehError, match="must be above 0"):
            to_disparity(depth, DISPARITY, SCALE, scale)


def test_fitting_to_the_picture() -> None:
    said: list[str] = []
    one = torch.rand(1, 1, 6, 8)
    assert torch.equal(fit_to_image(one, 3, 6, 8, said.append), one.expand(3, -1, -1, -1))
    assert said == []
    ramp = torch.arange(8.0).expand(1, 1, 6, 8)
    larger = fit_to_image(ramp, 2, 12, 16, said.append)
    assert larger.shape == (2, 1, 12, 16)
    # Pixel centres agree (align_corners=False): the ramp's slope halves, its ends stay.
    assert larger[1, 0, 5].tolist() == pytest.approx(np.clip((np.arange(16) + 0.5) / 2 - 0.5, 0, 7).tolist())
    assert said == ["The depth map was resized from 8 x 6 to 16 x 12."]
    checks = (torch.arange(64).reshape(8, 8).sum(0) * 0 + torch.arange(8) % 2).float().expand(1, 1, 8, 8)
    smaller = fit_to_image(checks, 1, 2, 2)
    assert float((smaller - 0.5).abs().max()) < 0.1  # averaged, not picked


def test_fitting_refuses_another_shape_or_batch() -> None:
    maps = torch.rand(2, 1, 60, 80)
    fit_to_image(maps, 2, 59, 80)
    with pytest.raises(BokehError, match="80 x 60 but the image is 60 x 80"):
        fit_to_image(maps, 2, 80, 60)
    with pytest.raises(BokehError, match="2 depth maps for 3 images"):
        fit_to_image(maps, 3, 60, 80)


def test_files_keep_their_precision(tmp_path: Path) -> None:
    values = np.array([[0, 1, 255, 256], [257, 30000, 65534, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "sixteen.png")
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "integers.tif")
    for name in ("sixteen.png", "integers.tif"):
        loaded = load_depth(tmp_path / name)
        assert loaded.shape == (1, 2, 4)
        assert np.array_equal((loaded[0].double().numpy() * 65535).round().astype(np.uint16), values), name
    metres = np.array([[0.5, 1.25], [8.0, 1000.0]], dtype=np.float32)
    Image.fromarray(metres).save(tmp_path / "metres.tif")
    assert np.array_equal(load_depth(tmp_path / "metres.tif")[0].numpy(), metres)
    Image.fromarray(np.array([[0, 51], [102, 255]], dtype=np.uint8)).save(tmp_path / "eight.png")
    assert load_depth(tmp_path / "eight.png").flatten().tolist() == pytest.approx([0, 0.2, 0.4, 1])
    Image.fromarray(np.full((2, 2, 3), 51, np.uint8)).save(tmp_path / "grey.png")
    assert load_depth(tmp_path / "grey.png").flatten().tolist() == pytest.approx([0.2] * 4)


def test_a_colour_file_of_16_bits_is_read_with_8_and_a_notice(tmp_path: Path) -> None:
    import cv2

    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    said: list[str] = []
    for name in ("map.png", "map.tif"):
        assert cv2.imwrite(str(tmp_path / name), np.repeat(values[..., None], 3, -1))
        depth = load_depth(tmp_path / name, said.append)
        assert np.abs(depth[0].numpy() - values / 65535).max() < 1 / 255
        assert f"{name}' is a colour picture of 16 bits, of which only 8 are read" in said.pop()
    assert cv2.imwrite(str(tmp_path / "grey.png"), values)
    assert cv2.imwrite(
        str(tmp_path / "plain.png"), np.repeat((values // 257)[..., None], 3, -1).astype(np.uint8)
    )
    for name in ("grey.png", "plain.png"):
        load_depth(tmp_path / name, said.append)
    assert said == []


def test_files_that_are_no_map_are_refused(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_text("<html>")
    with pytest.raises(BokehError, match=r"Could not read the depth map '.*page\.png'"):
        load_depth(tmp_path / "page.png")
    with pytest.raises(BokehError, match=r"nothing\.png"):
        load_depth(tmp_path / "nothing.png")
    Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(BokehError, match="from 0 to 70000; expected 16 bits"):
        load_depth(tmp_path / "wide.tif")
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save(tmp_path / "red.png")
    with pytest.raises(BokehError, match="coloured"):
        load_depth(tmp_path / "red.png")


def test_a_phone_photograph_s_disparity_is_in_dioptres(shared: Path) -> None:
    disparity = to_disparity(load_depth(shared / "data" / "pug_disparity.png"), DISPARITY, SCALE, 8.0)
    assert disparity.shape == (1, 1, 576, 768)
    # The file's own extremes, 12272 and 35903 of 65535, times 8 dioptres.
    assert float(disparity.min()) == pytest.approx(1.49807, abs=1e-4)
    assert float(disparity.max()) == pytest.approx(4.38276, abs=1e-4)
    assert len(torch.unique(disparity)) > 240


def test_canonical_inverse_depth_is_depth_pro_s() -> None:
    """Metres are f / (w v): a map 4 wide, focal length 6 pixels, so 1.5 / v."""
    depth = torch.tensor([0.25, 0.5, 1.0, 3.0]).reshape(1, 1, 4)
    metres = 6 / (4 * depth)
    made = to_disparity(depth, DepthKind.CANONICAL, focal_pixels=6.0)
    assert made.flatten().tolist() == pytest.approx((1 / metres).flatten().tolist())
    assert torch.allclose(made, to_disparity(metres, METRIC))
    doubled = to_disparity(depth, DepthKind.CANONICAL, SCALE, 2.0, focal_pixels=6.0)
    assert torch.allclose(doubled, 2 * made)
    plain = to_disparity(depth, DepthKind.CANONICAL, NORMALISE)  # forgets the units anyway
    assert torch.equal(plain, to_disparity(depth, DISPARITY, NORMALISE))
    for focal in (0.0, -5.0, math.nan, math.inf):
        with pytest.raises(BokehError, match="needs the focal length in pixels"):
            to_disparity(depth, DepthKind.CANONICAL, focal_pixels=focal)


def test_over_the_batch_all_maps_have_one_measure() -> None:
    depth = torch.tensor([[[1.0, 2.0, 3.0]], [[10.0, 10.0, 11.0]]])
    made = to_disparity(depth, DISPARITY, DepthRange.NORMALISE_BATCH)
    assert made.flatten().tolist() == pytest.approx([0, 0.1, 0.2, 0.9, 0.9, 1.0])
    inverted = to_disparity(depth, INVERTED, DepthRange.NORMALISE_BATCH)
    assert inverted.flatten().tolist() == pytest.approx([1, 0.9, 0.8, 0.1, 0.1, 0.0])
    one_flat = torch.stack(
        [torch.full((2, 2), 0.5), torch.rand(2, 2)]
    )  # a frame may be flat, the film may not
    assert to_disparity(one_flat, DISPARITY, DepthRange.NORMALISE_BATCH).shape == (2, 1, 2, 2)
    with pytest.raises(BokehError, match=r"Together, the 2 depth maps have the same value 0\.5 everywhere"):
        to_disparity(torch.full((2, 3, 3), 0.5), DISPARITY, DepthRange.NORMALISE_BATCH)


def test_edges_are_moved_to_a_guide_if_there_is_one() -> None:
    truth = torch.full((1, 1, 32, 48), 0.2)
    truth[..., 21:] = 0.8
    guide = truth.expand(2, 3, -1, -1).contiguous()
    small = torch.nn.functional.interpolate(truth, size=(8, 12), mode="area")
    said: list[str] = []
    soft = fit_to_image(small, 2, 32, 48, said.append)
    crisp = fit_to_image(small, 2, 32, 48, said.append, guide)
    assert float((soft - truth).abs().max()) > 0.2
    assert torch.equal(crisp > 0.5, (truth > 0.5).expand(2, -1, -1, -1))
    assert float((crisp - truth).abs().max()) < 0.1
    assert said == ["The depth map was resized from 12 x 8 to 48 x 32."] * 2
