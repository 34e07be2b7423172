"""Depth maps of every kind become disparity, or an error that says what is wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bokeh_ops.depth.conventions import DepthKind, DepthMap, DepthRange, DepthUnit, fit_to_image, to_depth_map
from bokeh_ops.depth.files import load_depth
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
    kind: DepthKind,
    scaling: DepthRange,
    scale: float,
    expected: list[float],
    channels: int | None,
    device: str,
) -> None:
    depth = torch.tensor([0.25, 0.5, 1.0], device=device).reshape(1, 1, 3)
    if channels:
        depth = depth[..., None].repeat(1, 1, 1, channels)
        if channels == 4:
            depth[..., 3] = 1.0
    out = to_depth_map(depth, kind, scaling, scale).disparity
    assert out.shape == (1, 1, 1, 3)
    assert out.flatten().tolist() == pytest.approx(expected)
    assert torch.equal(out, to_depth_map(depth, kind.value, scaling.value, scale).disparity)


def test_each_map_is_normalised_by_itself(device: str) -> None:
    depth = torch.tensor([[[1.0, 2.0, 3.0]], [[10.0, 10.0, 30.0]]], device=device)
    assert to_depth_map(depth, DISPARITY, NORMALISE).disparity.flatten().tolist() == [0, 0.5, 1, 0, 0, 1]


def test_sky_is_at_infinity_in_metric_maps_and_a_hole_in_others() -> None:
    depth = torch.tensor([[[2.0, math.inf]]])
    assert to_depth_map(depth, METRIC).disparity.flatten().tolist() == [0.5, 0.0]
    assert to_depth_map(depth, METRIC, SCALE, 2.0).disparity.flatten().tolist() == [0.25, 0.0]
    for kind, known in ((DISPARITY, 2.0), (INVERTED, 0.25)):
        depth[0, 0, 0] = 2.0 if kind is DISPARITY else 0.75
        assert to_depth_map(depth, kind).disparity.flatten().tolist() == [known, known]


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (math.nan, DISPARITY),
        (math.inf, DISPARITY),
        (-math.inf, INVERTED),
        (math.nan, METRIC),
        (0.0, METRIC),
        (-3.0, METRIC),
        (-math.inf, METRIC),
        (0.0, DepthKind.MILLIMETRES),
    ],
)
@pytest.mark.parametrize("scaling", [AS_IS, NORMALISE])
def test_what_is_not_known_is_filled_in_from_around_it(
    bad: float, kind: DepthKind, scaling: DepthRange, device: str
) -> None:
    depth = torch.linspace(0.4, 0.6, 20, device=device).expand(2, 12, 20).clone()
    right = to_depth_map(depth, kind, scaling).disparity
    depth[1, 4:7, 8:11] = bad
    said: list[str] = []
    found = to_depth_map(depth, kind, scaling, notice=said.append).disparity
    assert torch.equal(found[0], right[0])
    reach = float(right.max() - right.min())
    assert float((found - right).abs().max()) < 0.15 * reach
    assert len(said) == 1
    assert "9 of 480 values of the depth map (the first in map 2 at x = 8, y = 4) are" in said[0]
    depth[1] = bad
    with pytest.raises(BokehError, match=r"All values of depth map 2 of 2 are .*: nothing is known"):
        to_depth_map(depth, kind, scaling)


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [(1e-42, METRIC, "overflows"), (1.5, INVERTED, r"outside 0\.\.1")],
)
def test_values_that_cannot_be_are_counted_and_located(bad: float, kind: DepthKind, message: str) -> None:
    depth = torch.full((2, 4, 5), 0.5)
    depth[1, 2, 3] = depth[1, 3, 4] = bad
    with pytest.raises(BokehError, match=f"2 of 40 values .* in map 2 at x = 3, y = 2.*{message}"):
        to_depth_map(depth, kind)


def test_the_unit_is_known() -> None:
    depth = torch.tensor([[[0.25, 0.5, 1.0]]])
    for scaling in (AS_IS, SCALE, DepthRange.BETWEEN):
        assert to_depth_map(depth, METRIC, scaling, distances=(1.0, 2.0)).unit is DepthUnit.DIOPTRES
    assert to_depth_map(depth, METRIC, NORMALISE).unit is DepthUnit.RELATIVE
    known = DepthMap(torch.tensor([[[[4.0, 2.0, 1.0]]]]), DepthUnit.DIOPTRES, 700.0)
    assert to_depth_map(known, INVERTED, AS_IS) is known  # it knows, whatever the kind says
    normalised = to_depth_map(known, INVERTED, NORMALISE)
    assert normalised.disparity.flatten().tolist() == pytest.approx([1, 1 / 3, 0])
    assert (normalised.unit, normalised.focal_pixels) == (DepthUnit.RELATIVE, 700.0)


# From 0 (black) to 1 (white), as the programs write them, and what they mean in metres at black, middle and white.
CONVENTIONS = {
    "GDepth RangeInverse: near at 0": (DISPARITY, (0.5, 8.0), lambda v: 8 * 0.5 / (8 - v * (8 - 0.5))),
    "GDepth RangeLinear": (METRIC, (0.5, 8.0), lambda v: 0.5 + v * (8 - 0.5)),
    "Apple: 8 bits between its least and largest disparity": (
        DISPARITY,
        (8.0, 0.5),
        lambda v: 1 / (0.125 + v * 1.875),
    ),
    "1 - normalised metres": (METRIC, (8.0, 0.5), lambda v: 0.5 + (1 - v) * 7.5),
    "disparity from infinity": (DISPARITY, (0.0, 2.0), lambda v: 1 / (0.5 * v) if v else math.inf),
    "inverted from infinity": (INVERTED, (2.0, 0.0), lambda v: 1 / (0.5 * (1 - v)) if v < 1 else math.inf),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_maps_between_two_distances(name: str) -> None:
    kind, distances, metres = CONVENTIONS[name]
    depth = torch.tensor([[[0.0, 0.5, 1.0]]])
    found = to_depth_map(depth, kind, DepthRange.BETWEEN, distances=distances).disparity
    assert found.flatten().tolist() == pytest.approx([1 / metres(v) for v in (0.0, 0.5, 1.0)])


@pytest.mark.parametrize(
    ("kind", "distances", "message"),
    [
        (DISPARITY, (2.0, 2.0), "they must differ"),
        (DISPARITY, (-1.0, 2.0), "above 0"),
        (DISPARITY, (math.nan, 2.0), "above 0"),
        (METRIC, (0.0, 2.0), "two that are finite"),
        (DepthKind.CANONICAL, (1.0, 2.0), "not measured between two distances"),
    ],
)
def test_distances_that_make_no_sense(kind: DepthKind, distances: tuple[float, float], message: str) -> None:
    with pytest.raises(BokehError, match=message):
        to_depth_map(torch.rand(1, 4, 4), kind, DepthRange.BETWEEN, focal_pixels=5.0, distances=distances)


def test_millimetres_are_metres_by_1000() -> None:
    metres = torch.tensor([[[0.25, 2.0, 65.0]]])
    for scaling in (AS_IS, SCALE):
        one = to_depth_map(metres * 1000, DepthKind.MILLIMETRES, scaling, 3.0).disparity
        assert torch.allclose(one, to_depth_map(metres, METRIC, scaling, 3.0).disparity)


@pytest.mark.parametrize("scaling", [NORMALISE, DepthRange.NORMALISE_BATCH])
def test_a_wild_pixel_does_not_change_the_measure(scaling: DepthRange) -> None:
    depth = torch.rand(1, 50, 60)
    right = to_depth_map(depth, DISPARITY, scaling).disparity
    assert torch.equal(right, (depth[:, None] - depth.min()) / (depth.max() - depth.min()))
    wild = depth.clone()
    wild[0, 3, 4], wild[0, 8, 9] = 900.0, -70.0
    said: list[str] = []
    found = to_depth_map(wild, DISPARITY, scaling, notice=said.append).disparity
    assert "2 values of the depth map lie far outside" in said[0]
    assert (float(found[0, 0, 3, 4]), float(found[0, 0, 8, 9])) == (1.0, 0.0)
    others = torch.ones_like(found, dtype=torch.bool)
    others[0, 0, 3, 4] = others[0, 0, 8, 9] = False
    slope = float(found[others].std() / right[others].std())
    assert 0.4 < slope < 1.0


def test_a_constant_map_is_remarked_on_or_cannot_be_normalised() -> None:
    said: list[str] = []
    out = to_depth_map(torch.full((1, 4, 4), 0.25), DISPARITY, AS_IS, notice=said.append).disparity
    assert out.eq(0.25).all()
    assert len(said) == 1
    assert "same disparity 0.25 everywhere" in said[0]
    assert "16-bit" not in said[0]
    maps = torch.rand(2, 4, 4)
    maps[1] = 0.5
    with pytest.raises(BokehError, match=r"map 2 of 2 has the same disparity 0\.5 everywhere"):
        to_depth_map(maps, DISPARITY, NORMALISE)


def test_a_map_clipped_to_white_points_to_the_loader() -> None:
    said: list[str] = []
    white = torch.ones(1, 10, 10, 3)
    with pytest.raises(BokehError, match="Load Depth Map"):
        to_depth_map(white, DISPARITY, NORMALISE)
    white[0, 0, 0] = 0.5
    to_depth_map(white, DISPARITY, NORMALISE, notice=said.append)
    assert len(said) == 1
    assert "99 %" in said[0]
    assert "Load Depth Map" in said[0]


def test_coloured_maps_are_refused_and_nearly_grey_ones_are_not() -> None:
    colours = torch.rand(1, 8, 8, 3)
    with pytest.raises(BokehError, match="coloured"):
        to_depth_map(colours)
    grey = torch.linspace(0, 1, 64).reshape(1, 8, 8, 1).repeat(1, 1, 1, 3)
    noisy = grey + torch.tensor([1.0, 0.0, -1.0]) / 255
    assert torch.allclose(to_depth_map(noisy).disparity[0, 0], grey[0, ..., 0], atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((4, 4), "got"), ((1, 4, 4, 2), "got"), ((0, 4, 4), "empty"), ((1, 0, 4, 3), "empty")],
)
def test_what_is_no_map_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(BokehError, match=message):
        to_depth_map(torch.rand(shape))


def test_options_and_scale_are_checked() -> None:
    depth = torch.rand(1, 4, 4)
    with pytest.raises(BokehError, match=r"'depth' is not one of: 'disparity \(near is bright\)'"):
        to_depth_map(depth, "depth")
    with pytest.raises(BokehError, match="not one of: 'as is'"):
        to_depth_map(depth, DISPARITY, "auto")
    for scale in (0.0, -1.0, math.nan):
        with pytest.raises(BokehError, match="must be above 0"):
            to_depth_map(depth, DISPARITY, SCALE, scale)


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


def test_a_map_of_another_shape_shows_the_whole_view() -> None:
    """As networks give it that see every picture as a square."""
    ramp = torch.linspace(0, 1, 60).expand(2, 1, 60, 60)
    said: list[str] = []
    wide = fit_to_image(ramp, 2, 45, 60, said.append)
    assert wide.shape == (2, 1, 45, 60)
    assert torch.allclose(wide[0, 0, 20], torch.linspace(0, 1, 60), atol=1e-6)
    assert said == [
        "The depth map is 60 x 60 but the image is 60 x 45. It is taken to show the whole view and stretched to fit; "
        "if it was cropped, crop the image alike."
    ]


def test_fitting_refuses_a_map_on_its_side_or_another_batch() -> None:
    maps = torch.rand(2, 1, 60, 80)
    fit_to_image(maps, 2, 59, 80)
    with pytest.raises(BokehError, match="80 x 60 but the image is 60 x 80: one is upright"):
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


def test_files_of_16_bits_with_more_channels_keep_them(tmp_path: Path) -> None:
    import cv2

    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("map.png", "map.tif"):
        assert cv2.imwrite(str(tmp_path / name), np.repeat(values[..., None], 3, -1))
    _grey_and_alpha(tmp_path / "alpha.png", values)
    for name in ("map.png", "map.tif", "alpha.png"):
        depth = load_depth(tmp_path / name)
        assert np.abs(depth[0].double().numpy() * 65535 - values).max() < 1.5, name


def _grey_and_alpha(path: Path, values: np.ndarray) -> None:
    """A PNG of 16 bits grey and alpha, which Pillow does not write."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape
    rows = np.stack([values, np.full_like(values, 65535)], -1).astype(">u2").reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, 16, 4, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def test_floating_point_files(tmp_path: Path) -> None:
    import OpenEXR

    metres = np.array([[0.5, 1.25, 3.0, 7.0], [8.0, 1000.0, 0.125, 2.0]], dtype=np.float32)
    np.save(tmp_path / "metres.npy", metres)
    np.save(tmp_path / "batch.npy", metres[None].astype(np.float64))
    np.save(tmp_path / "sixteen.npy", np.array([[0, 65535]], np.uint16))
    pfm = b"Pf\n4 2\n-1.0\n" + metres[::-1].astype("<f4").tobytes()
    (tmp_path / "metres.pfm").write_bytes(pfm)
    layers = {
        name: {"RGB": np.repeat(metres[..., None], 3, -1)} if name == "RGB" else {name: metres}
        for name in ("RGB", "Y", "Z")
    }
    for name, channels in layers.items():
        with OpenEXR.File(
            {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}, channels
        ) as file:
            file.write(str(tmp_path / f"{name}.exr"))
    for name in ("metres.npy", "batch.npy", "metres.pfm", "RGB.exr", "Y.exr"):
        assert np.allclose(load_depth(tmp_path / name)[0].numpy(), metres, rtol=1e-6), name
    assert load_depth(tmp_path / "sixteen.npy").flatten().tolist() == [0, 1]
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "line.npy", np.zeros(5))
    for name, message in (
        ("objects.npy", "Could not read"),
        ("Z.exr", "channel Z alone"),
        ("line.npy", r"shape \(5,\)"),
    ):
        with pytest.raises(BokehError, match=message):
            load_depth(tmp_path / name)


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
    disparity = to_depth_map(
        load_depth(shared / "data" / "pug_disparity.png"), DISPARITY, SCALE, 8.0
    ).disparity
    assert disparity.shape == (1, 1, 576, 768)
    # The file's own extremes, 12272 and 35903 of 65535, times 8 dioptres.
    assert float(disparity.min()) == pytest.approx(1.49807, abs=1e-4)
    assert float(disparity.max()) == pytest.approx(4.38276, abs=1e-4)
    assert len(torch.unique(disparity)) > 240


def test_canonical_inverse_depth_is_depth_pro_s() -> None:
    """Metres are f / (w v): a map 4 wide, focal length 6 pixels, so 1.5 / v."""
    depth = torch.tensor([0.25, 0.5, 1.0, 3.0]).reshape(1, 1, 4)
    metres = 6 / (4 * depth)
    made = to_depth_map(depth, DepthKind.CANONICAL, focal_pixels=6.0).disparity
    assert made.flatten().tolist() == pytest.approx((1 / metres).flatten().tolist())
    assert torch.allclose(made, to_depth_map(metres, METRIC).disparity)
    doubled = to_depth_map(depth, DepthKind.CANONICAL, SCALE, 2.0, focal_pixels=6.0).disparity
    assert torch.allclose(doubled, 2 * made)
    plain = to_depth_map(depth, DepthKind.CANONICAL, NORMALISE).disparity  # forgets the units anyway
    assert torch.equal(plain, to_depth_map(depth, DISPARITY, NORMALISE).disparity)
    for focal in (0.0, -5.0, math.nan, math.inf):
        with pytest.raises(BokehError, match="needs the focal length in pixels"):
            to_depth_map(depth, DepthKind.CANONICAL, focal_pixels=focal)


def test_over_the_batch_all_maps_have_one_measure() -> None:
    depth = torch.tensor([[[1.0, 2.0, 3.0]], [[10.0, 10.0, 11.0]]])
    made = to_depth_map(depth, DISPARITY, DepthRange.NORMALISE_BATCH).disparity
    assert made.flatten().tolist() == pytest.approx([0, 0.1, 0.2, 0.9, 0.9, 1.0])
    inverted = to_depth_map(depth, INVERTED, DepthRange.NORMALISE_BATCH).disparity
    assert inverted.flatten().tolist() == pytest.approx([1, 0.9, 0.8, 0.1, 0.1, 0.0])
    one_flat = torch.stack(
        [torch.full((2, 2), 0.5), torch.rand(2, 2)]
    )  # a frame may be flat, the film may not
    assert to_depth_map(one_flat, DISPARITY, DepthRange.NORMALISE_BATCH).disparity.shape == (2, 1, 2, 2)
    with pytest.raises(
        BokehError, match=r"Together, the 2 depth maps have the same disparity 0\.5 everywhere"
    ):
        to_depth_map(torch.full((2, 3, 3), 0.5), DISPARITY, DepthRange.NORMALISE_BATCH)


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
