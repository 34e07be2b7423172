"""The small world: the same from the same seed, depth and mask that are exact, captions that are true."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bokeh_ops.camera.optics import blur_radius, k_at_width, k_from_camera
from trainer.data import DatasetWriter, open_dataset
from trainer.data.pairs import render_set
from trainer.measure.metrics.sweep import laplacian_variance
from trainer.world.camera import K_MOST
from trainer.world.data import scene_sample, scene_sweep, write_dataset
from trainer.world.paint import SIDE, paint
from trainer.world.scene import BACKDROPS, COLOURS, GROUNDS, KINDS, TIMES, Scene, caption, draw_scene

pytest.importorskip("skimage")
SEEDS = range(24)


def sharpness(image: np.ndarray) -> float:
    return laplacian_variance(torch.from_numpy(image).movedim(-1, 0).float() / 255)


def test_the_same_seed_gives_the_same_picture() -> None:
    for seed in (0, 7, 1_000_003):
        first, second = scene_sample(draw_scene(seed)), scene_sample(draw_scene(seed))
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.disparity, second.disparity)
        assert first.info == second.info
    assert not np.array_equal(paint(draw_scene(0)).image, paint(draw_scene(1)).image)


def test_sharp_or_not_the_scene_is_the_same() -> None:
    for seed in SEEDS:
        taken, pinhole = draw_scene(seed), draw_scene(seed, sharp=True)
        assert pinhole.shot.k == 0
        assert replace(pinhole, shot=taken.shot) == taken


@pytest.mark.parametrize("seed", SEEDS)
def test_depth_is_what_the_description_says(seed: int) -> None:
    scene = draw_scene(seed)
    painted = paint(scene)
    for number, thing in enumerate(scene.things):
        assert np.all(painted.disparity[painted.owner == number] == np.float32(thing.disparity))
    assert np.all(painted.disparity[painted.owner == -2] == np.float32(scene.backdrop_disparity))
    rows = (np.arange(SIDE) + 0.5) / SIDE
    ground = np.broadcast_to(((rows - scene.horizon) / scene.reach)[:, None], (SIDE, SIDE))
    here = painted.owner == -1
    assert here.sum() > 200
    assert np.abs(painted.disparity - ground)[here].max() < 1e-6
    # The mask is the main thing, which hides all behind it, and stands where its depth says.
    assert np.array_equal(painted.mask, (painted.owner == 0).astype(np.float32))
    assert 0.03 < painted.mask.mean() < 0.35
    lowest = np.nonzero(painted.mask.any(1))[0].max()
    assert abs((lowest + 1) / SIDE - scene.foot(scene.things[0].disparity)) <= 1.01 / SIDE


def test_k_is_that_of_the_camera_and_uniform() -> None:
    found = []
    for seed in range(400):
        shot = draw_scene(seed).shot
        assert shot.f_number is not None
        wanted = k_from_camera(shot.focal_length, shot.f_number, shot.focus_distance, shot.sensor_width)
        assert shot.k == pytest.approx(wanted)
        found.append(shot.k)
    found.sort()
    even = np.linspace(0, K_MOST, len(found))
    assert np.abs(np.array(found) - even).max() < 2.5


def test_the_backdrop_is_blurred_by_the_radius_that_k_says() -> None:
    """A point of light on the backdrop becomes a disc of K |1/S1 - 1/S2| pixels, and what is in focus stays."""
    scene = next(s for s in map(draw_scene, range(100)) if s.time == "day" and len(s.things) == 1)
    painted = paint(scene)
    image = np.zeros_like(painted.image)
    row, column = 8, 32
    image[row, column] = 255
    sample = replace(scene_sample(replace(scene, shot=draw_scene(scene.seed, sharp=True).shot)), image=image)
    for k in (15.0, 30.0):
        own = float(k_at_width(k, SIDE))
        distance = 1 / scene.backdrop_disparity
        radius = blur_radius(own, scene.shot.focus_distance, distance)
        assert 2 < radius < 9
        spread = render_set(sample, [own])[0].astype(float).mean(-1) ** 2.2
        y, x = np.mgrid[:SIDE, :SIDE]
        second = (spread * ((y - row) ** 2 + (x - column) ** 2)).sum() / spread.sum()
        assert math.sqrt(2 * second) == pytest.approx(radius, rel=0.12)  # of a full disc


def test_k_30_blurs_the_backdrop_by_5_to_9_pixels() -> None:
    for seed in range(300):
        scene = draw_scene(seed)
        radius = blur_radius(
            float(k_at_width(30, SIDE)), scene.shot.focus_distance, 1 / scene.backdrop_disparity
        )
        assert 5 <= radius <= 9


def named(text: str) -> tuple[list[tuple[str, str]], set[str]]:
    words = text.replace(",", " ").split()
    things = [(words[n - 1], word) for n, word in enumerate(words) if word in KINDS]
    return things, set(words)


def test_captions_name_what_is_there_and_nothing_else() -> None:
    for seed in range(200):
        scene = draw_scene(seed)
        things, words = named(caption(scene))
        assert things == [(thing.colour, thing.kind) for thing in scene.things]
        for group, own in ((GROUNDS, scene.ground), (BACKDROPS, scene.backdrop), (TIMES, scene.time)):
            assert words & set(group) == {own}
        assert words & set(COLOURS) == {thing.colour for thing in scene.things}


def test_what_the_caption_names_can_be_seen() -> None:
    """Where a thing is, its colour is nearer to the named one than the average of the others is."""
    right, seen = 0, 0
    for seed in range(60):
        scene = replace(draw_scene(seed), time="day")
        painted = paint(scene)
        for number, thing in enumerate(scene.things):
            pixels = painted.image[painted.owner == number].astype(float) / 255
            if len(pixels) < 30:
                continue
            seen += 1
            distances = {
                name: np.quantile(np.linalg.norm(pixels - value, axis=1), 0.3)
                for name, value in COLOURS.items()
                if thing.colour in ("white", "black") or name not in ("white", "black")
            }
            right += min(distances, key=lambda name: distances[name]) == thing.colour
    assert seen > 80
    assert right / seen > 0.9


def test_things_are_seen() -> None:
    """No thing is hidden whole or outside; the others beside the main one show at least a few pixels."""
    for seed in range(150):
        scene = draw_scene(seed)
        owner = paint(scene).owner
        areas = [int((owner == number).sum()) for number in range(len(scene.things))]
        assert areas[0] > 120
        assert min(areas) >= 12, (seed, areas)


def test_more_k_is_less_sharp_in_every_scene() -> None:
    for seed in range(8):
        trend = [sharpness(picture) for picture in scene_sweep(seed, [0, 5, 10, 20, 30])[0]]
        assert trend == sorted(trend, reverse=True)
        assert trend[-1] < 0.75 * trend[0]


def test_the_data_set_is_one_that_fit_opens(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", photographs=9, sharp=3, first=50)
    dataset = open_dataset(tmp_path / "data")
    assert dataset.resolution == (SIDE, SIDE)
    k, all_in_focus = dataset.facts()
    assert len(dataset) == 12
    assert all_in_focus.sum() == 3
    assert (k[all_in_focus] == 0).all()
    assert (k[~all_in_focus] > 0).all()
    for index in range(12):
        sample = dataset.sample(index)
        scene: Scene = draw_scene(sample.info["seed"], sample.all_in_focus)
        assert sample.key == f"scene{50 + index}"
        assert sample.captions == (caption(scene),)
        assert sample.k == pytest.approx(scene.shot.k * SIDE / 512)
        assert sample.info["s1_m"] == pytest.approx(1 / scene.things[0].disparity)
        again = scene_sample(scene)
        assert np.array_equal(sample.image, again.image)
        assert np.abs(sample.disparity - again.disparity).max() < 1e-4
        assert sharpness(sample.image) <= sharpness(paint(scene).image)


def test_photographs_are_taken_at_their_own_k() -> None:
    for seed in range(6):
        scene = draw_scene(seed)
        assert np.array_equal(scene_sample(scene).image, scene_sweep(seed, [scene.shot.k])[0][0])


def test_a_killed_writer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trainer.world.data as data

    write_dataset(tmp_path / "whole", photographs=4, sharp=2)
    made = data.scene_sample
    seen: list[int] = []
    monkeypatch.setattr(data, "DatasetWriter", partial(DatasetWriter, samples_per_shard=2))

    def failing(scene: Scene) -> object:
        seen.append(scene.seed)
        if seen == [0, 1, 2, 3, 4]:
            raise KeyboardInterrupt
        return made(scene)

    monkeypatch.setattr(data, "scene_sample", failing)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "cut", photographs=4, sharp=2)
    write_dataset(tmp_path / "cut", photographs=4, sharp=2)
    assert seen == [0, 1, 2, 3, 4, 4, 5]
    first, second = open_dataset(tmp_path / "whole"), open_dataset(tmp_path / "cut")
    assert [first.key(n) for n in range(6)] == [second.key(n) for n in range(6)]
    assert all(np.array_equal(first.sample(n).image, second.sample(n).image) for n in range(6))
