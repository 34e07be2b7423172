"""The generator of scenes against closed-form optics: what a thin lens makes of points, edges and planes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mitsuba", reason="mitsuba, which traces the scenes, is not installed")

from bokeh_ops.render.offsets import aperture_scale
from tests.scenes import development, held
from tests.scenes.mesh import World, between, outline, quad, sphere
from tests.scenes.optics import Lamp, Lens, load, polygon_sample
from tests.scenes.produce import Settings, produce
from tests.scenes.textures import Textures
from tests.scenes.things import Things
from tests.scenes.tracer import Tracer

FOCAL = 711.1111
SIZE = (96, 80)

try:
    load()
except (ImportError, RuntimeError) as reason:
    pytest.skip(
        f"mitsuba cannot compile here (it needs LLVM's shared library): {reason}", allow_module_level=True
    )


def lamp_alone(radius: float, place: tuple[float, float, float] = (0.03, -0.02, 2.0)) -> Tracer:
    """A lamp before a black wall."""
    world = World()
    world.add(quad(90, 90).moved((0, 0, 30)).look(colour=(0, 0, 0), lit=False))
    world.lamps.append((Lamp(place, radius, (100.0, 50.0, 20.0)), "scene"))
    return Tracer(world.build(), SIZE, FOCAL)


def moments(picture: np.ndarray) -> tuple[float, float, float, float]:
    """Sum, centre (from the picture's centre) and mean squared distance from it, in pixels."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] + 0.5
    total = picture.sum()
    at_x, at_y = (picture * x).sum() / total, (picture * y).sum() / total
    spread = (picture * ((x - at_x) ** 2 + (y - at_y) ** 2)).sum() / total
    return float(total), at_x - picture.shape[1] / 2, at_y - picture.shape[0] / 2, float(spread)


@pytest.mark.parametrize("focus", [1.0, 8.0])
@pytest.mark.parametrize("blades", [0, 5, 6])
def test_lamp_becomes_the_aperture(focus: float, blades: int) -> None:
    radius = 30 * abs(1 / 2 - 1 / focus)
    picture = lamp_alone(0.002).picture(Lens(30, focus, blades, 10), 144, 1)
    total, x, y, spread = moments(picture[..., 0].astype(np.float64))
    seen = 0.002 * FOCAL / 2  # the lamp's own radius in pixels
    # Of the aperture (a regular polygon of corner radius r: r^2 (2 + cos(2 pi / n)) / 6), the lamp, the pixel.
    shape = radius**2 * ((2 + math.cos(2 * math.pi / blades)) / 6 if blades else 0.5)
    assert total == pytest.approx(100 * math.pi * seen**2, rel=0.003)
    assert (x, y) == pytest.approx((0.03 * FOCAL / 2, -0.02 * FOCAL / 2), abs=0.03)
    assert spread == pytest.approx(shape + seen**2 / 2 + 1 / 6, rel=0.004)
    assert picture[..., 1].sum() == pytest.approx(total / 2, rel=1e-4)


@pytest.mark.parametrize("focus", [1.0, 8.0])
def test_polygon_points_where_the_renderer_has_its_corners(focus: float) -> None:
    picture = lamp_alone(0.0005, (0, 0, 2.0)).picture(Lens(40, focus, 5, 25), 64, 1)[..., 0]
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5 - np.array(SIZE[::-1])[:, None, None] / 2
    # Behind the focus the aperture lands as it is, before the focus turned by half a circle.
    angle = np.arctan2(y, x) if focus < 2 else np.arctan2(-y, -x)
    edge = 40 * abs(1 / 2 - 1 / focus) * aperture_scale(angle, 5, 25)
    out = np.hypot(x, y)
    assert (picture[out > edge + 1.2] == 0).all()
    inside = picture[out < edge - 1.2]
    assert inside.min() > 0.95 * inside.max()


@pytest.mark.parametrize("blades", [3, 6, 9])
def test_polygon_samples_fill_the_polygon_evenly(blades: int) -> None:
    u, v = np.random.default_rng(0).random((2, 200_000))
    x, y = polygon_sample(u, v, blades, 17.0)
    assert (np.hypot(x, y) <= aperture_scale(np.arctan2(y, x), blades, 17.0) + 1e-9).all()
    assert (x**2 + y**2).mean() == pytest.approx((2 + math.cos(2 * math.pi / blades)) / 6, rel=0.01)


def test_three_ways_to_take_a_picture_agree() -> None:
    """Mitsuba's lens, our own rays and lamps joined to pixels, behind something that hides part of the lens."""
    world = World()
    world.add(quad(90, 90).moved((0, 0, 30)).look(colour=(0.2, 0.1, 0.3), lit=False))
    world.add(quad(1, 1).moved((0.51, 0.1, 0.8)).look(colour=(0.5, 0.4, 0.0), lit=False))
    world.add(sphere(0.02).moved((-0.03, 0.02, 1.4)).look(colour=(0.0, 0.8, 0.1)))
    world.lamps.append((Lamp((0.0, 0.0, 2.0), 0.015, (5.0, 4.0, 3.0)), "scene"))
    tracer = Tracer(world.build(), SIZE, FOCAL)
    lens = Lens(30, 1.0)
    joined = tracer.picture(lens, 400, 1)
    chance = tracer.picture(lens, 400, 2, join_lamps=False)
    own = tracer.picture(lens, 400, 3, join_lamps=False, own_rays=True)
    assert joined.max() > 0.5  # the lamp's disc is there, and partly hidden
    assert np.sqrt(((joined - chance) ** 2).mean()) < 0.012
    assert np.sqrt(((own - chance) ** 2).mean()) < 0.016
    blocks = (joined - chance).reshape(10, 8, 12, 8, 3).mean((1, 3))
    assert np.abs(blocks).max() < 0.012


def test_edge_spreads_as_a_disc_does() -> None:
    world = World()
    world.add(quad(90, 90).moved((0, 0, 5)).look(colour=(0.0, 0.0, 0.0), lit=False))
    world.add(
        between((0, -9, 5 - 1e-4), (9, -9, 5 - 1e-4), (9, 9, 5 - 1e-4), (0, 9, 5 - 1e-4)).look(
            colour=(1, 1, 1), lit=False
        )
    )
    rows = Tracer(world.build(), SIZE, FOCAL).picture(Lens(25, 1.0), 100, 1)[..., 0].mean(0)
    at = np.clip((np.arange(SIZE[0]) + 0.5 - SIZE[0] / 2) / (25 * 0.8), -1, 1)
    assert rows == pytest.approx(0.5 + (at * np.sqrt(1 - at**2) + np.arcsin(at)) / math.pi, abs=0.008)


def test_what_is_in_focus_is_sharp() -> None:
    textures = Textures(np.random.default_rng(0))
    world = World()
    world.add(quad(3, 3).moved((0, 0, 2)).look(textures.pattern("checks"), lit=False))
    tracer = Tracer(world.build(), SIZE, FOCAL)
    sharp = tracer.picture(Lens(), 256, 1)
    assert np.ptp(sharp) > 0.1
    assert tracer.picture(Lens(30, 2.0), 256, 2) == pytest.approx(sharp, abs=0.02)
    assert np.abs(tracer.picture(Lens(30, 2.2), 256, 2) - sharp).max() > 0.03


def test_depth_lies_along_the_axis_and_is_of_one_ray() -> None:
    world = World()
    world.add(between((-9, -9, 2), (9, -9, 2), (9, 9, 6), (-9, 9, 6)).look(colour=(1, 1, 1)))
    depth = Tracer(world.build(), SIZE, FOCAL).depth(1)
    # The plane z = 4 + y 2/9 seen through pixel row v: 1 / z = (1 - v 2/9) / 4, linear in the row.
    row = (np.arange(SIZE[1]) + 0.5 - SIZE[1] / 2) / FOCAL
    off = (1 / depth - ((1 - row * 2 / 9) / 4)[:, None]) * 4 / (2 / 9) * FOCAL  # in pixels
    assert np.abs(off).max() < 0.51
    assert off.std() == pytest.approx(math.sqrt(1 / 12), rel=0.03)  # uniform over the pixel


def test_cut_out_covers_its_polygon() -> None:
    star = [
        (r * math.cos(a), r * math.sin(a))
        for a, r in zip(np.linspace(0, 2 * math.pi, 11)[:-1], [1, 0.4] * 5, strict=True)
    ]
    part = outline(np.array(star))
    a, b, c = (part.corners[part.faces[:, k], :2] for k in range(3))
    areas = 0.5 * ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0])
    assert len(areas) == 8
    assert (areas > 0).all()
    assert areas.sum() == pytest.approx(5 * 0.4 * math.sin(math.pi / 5))
    with pytest.raises(ValueError, match="crosses itself"):
        outline(np.array([(0, 0), (1, 1), (1, 0), (0, 1)]))


@pytest.mark.parametrize("kind", [*development.KINDS, *held.KINDS])
def test_every_kind_fills_the_frame(kind: str) -> None:
    random = np.random.default_rng(5)
    half = (512 / 2 / FOCAL, 384 / 2 / FOCAL)
    world = World()
    (development.KINDS | held.KINDS)[kind](Things(world, Textures(random), random, half))
    # Twice as wide as the frame, so that the lens's edge sees something too.
    depth = Tracer(world.build(), (64, 48), FOCAL / 8 / 1.4, (0.5, -1.2, -0.8)).depth(1)
    assert np.isfinite(depth).all()
    assert {"front", "subject"} <= {part.group for part in world.parts}
    assert depth.min() < 1.0
    assert depth.max() > 4.0


def test_folder_is_complete_and_repeatable(tmp_path: Path) -> None:
    exr = pytest.importorskip("OpenEXR", reason="OpenEXR, which reads the pictures back, is not installed")
    settings = Settings((48, 36), 4, blur=(10.0, 20.0), blades=6, rotation=15.0)
    for name in ("one", "two"):
        produce("still_life", development.still_life, 3, tmp_path / name, settings)
    info = json.loads((tmp_path / "one" / "info.json").read_text())
    assert info["blur_parameters"] == [10.0, 20.0]
    assert (info["blades"], info["rotation"]) == (6, 15.0)
    assert len(info["focus_distances"]) == 3

    def read(folder: str, name: str) -> np.ndarray:
        return next(iter(exr.File(str(tmp_path / folder / name)).channels().values())).pixels

    names = [
        "image.exr",
        "background.exr",
        *(f"bokeh_{i:02d}_{j:02d}.exr" for i in range(2) for j in range(3)),
    ]
    for name in names:
        picture = read("one", name)
        assert picture.shape == (36, 48, 3)
        assert picture.dtype == np.float16
        assert (picture == read("two", name)).all()
    depth, behind = read("one", "depth.exr"), read("one", "background_depth.exr")
    assert depth.dtype == np.float32
    assert (behind >= depth - 1e-4).all()
    assert (behind > depth + 0.1).any()
    assert depth.min() <= min(info["focus_distances"]) + 0.05
    assert (read("one", "bokeh_01_00.exr") != read("one", "image.exr")).any()
