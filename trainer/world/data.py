"""Pictures of the world in the trainer's own format, with what a camera would have written into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bokeh_ops.camera.optics import k_at_width
from trainer.data import DatasetWriter, encode_sample
from trainer.data.pairs import render_set
from trainer.data.sample import Sample
from trainer.world.paint import SIDE, paint
from trainer.world.scene import Scene, caption, draw_scene

_TEXTURES = 5_000_000
"""Seeds from one texture of a scene to the next, more than there are scenes."""


def scene_sample(scene: Scene) -> Sample:
    """The photograph of a scene: blurred as its camera does, or sharp where that is a pinhole."""
    painted = paint(scene)
    shot = scene.shot
    pinhole = shot.f_number is None
    info = {
        "captions": [caption(scene)],
        "k": shot.k_at(SIDE),
        "all_in_focus": pinhole,
        "s1_m": shot.focus_distance,
        "f_mm": 1000 * shot.focal_length,
        "f_number": shot.f_number,
        "sensor_shown_mm": 1000 * shot.sensor_width,
        "seed": scene.seed,
    }
    sharp = Sample(
        f"scene{scene.seed}",
        painted.image,
        painted.disparity,
        painted.mask,
        tuple(info["captions"]),
        info["k"],
        pinhole,
        info,
    )
    if pinhole:
        return sharp
    image = render_set(sharp, [info["k"]])[0]
    return Sample(sharp.key, image, sharp.disparity, sharp.mask, sharp.captions, sharp.k, False, info)


def write_dataset(folder: Path, photographs: int, sharp: int, first: int = 0) -> Path:
    """A data set of ``photographs`` taken at random K, and of ``sharp`` other scenes that are all in focus.

    A killed run goes on where it stopped.

    Args:
        folder: new, or one that a killed run left.
        first: seed of the first scene.
    """
    settings = {"made": "trainer.world", "photographs": photographs, "sharp": sharp, "first": first}
    writer = DatasetWriter(folder, (SIDE, SIDE), settings)
    for number in range(photographs + sharp):
        key = f"scene{first + number}"
        if key in writer.keys:
            continue
        # Spread, so that the first part of a data set is like the whole.
        pinhole = (number + 1) * sharp // (photographs + sharp) > number * sharp // (photographs + sharp)
        sample = scene_sample(draw_scene(first + number, pinhole))
        writer.add(key, encode_sample(sample.image, sample.disparity, sample.mask, sample.info, "png"))
    writer.finish()
    return folder


def scene_sweep(seed: int, ks: Sequence[float], texture: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One scene at several K (counted at 512 pixels): the reference of a sweep.

    Args:
        seed: of the scene.
        ks: to render it at.
        texture: another number, and the same scene has other grass, leaves and bricks.

    Returns:
        uint8 ``[len(ks), S, S, 3]``, and the mask of what is in focus, 0..1, ``[S, S]``.
    """
    scene = draw_scene(seed, sharp=True)
    sample = scene_sample(replace(scene, seed=seed + texture * _TEXTURES))
    return render_set(sample, [float(k_at_width(k, SIDE)) for k in ks]), sample.mask
