"""What the workflows on highlights and on video are shown on, made from nothing: ``python -m tests.scenes.assets``.

Writes into ``workflows/assets``:

* ``evening.jpg``, ``evening_disparity.png``: a balcony at night, traced, sharp everywhere, with its exact disparity in
  16 bit (``dioptres = value / 65535 * 2.5``);
* ``dolly.mp4``, ``dolly_disparity.mp4``: the same place from a camera that moves sideways, in 24 frames, and the
  disparity of each (white is 2.5 dioptres);
* ``heart.png``: the shape of an aperture.

Needs the package mitsuba, as the scenes do.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from .evening import evening
from .mesh import World
from .optics import Lens
from .textures import Textures
from .things import Things
from .tracer import Tracer

WHITE = 2.5
"""Dioptres that the brightest value of a disparity map stands for."""
FOCAL = 711.1111111111111 / 512  # of the picture's width: a 50 mm lens on full frame
SEED = 1
FRAMES, RATE, TRAVEL = 24, 12, 0.3  # of the dolly: pictures, pictures a second, metres


def take(size: tuple[int, int], shift: float = 0.0, spp: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """The balcony from ``shift`` metres to the right: 8-bit sRGB ``[H, W, 3]``, and dioptres ``[H, W]``."""
    random = np.random.default_rng(SEED)
    focal = FOCAL * size[0]
    world, textures = World(), Textures(random)
    textures.files = []  # patterns only
    evening(Things(world, textures, random, (size[0] / 2 / focal, size[1] / 2 / focal)))
    geometry = world.build()
    geometry.points[:, 0] -= shift
    tracer = Tracer(geometry, size, focal, (0.3, -1.2, -0.9))
    light = np.clip(tracer.picture(Lens(), spp, SEED), 0, 1)
    fine = Tracer(geometry, (3 * size[0], 3 * size[1]), 3 * focal)
    depth = fine.depth(SEED)[1::3, 1::3]  # at the middle of every pixel
    encoded = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return (encoded * 255).round().astype(np.uint8), 1 / depth


def heart(side: int = 128) -> np.ndarray:
    """White on black: ``(x^2 + y^2 - 1)^3 < x^2 y^3``."""
    y, x = np.mgrid[: 4 * side, : 4 * side] / (4 * side) - 0.5
    x, y = x * 2.34, -(y * 2.34) + 0.12
    inside = (x**2 + y**2 - 1) ** 3 < x**2 * y**3
    return (inside.reshape(side, 4, side, 4).mean((1, 3)) * 255).round().astype(np.uint8)


def write_video(path: Path, frames: list[np.ndarray], quality: int) -> None:
    """H.264 of 8-bit RGB frames; a lower ``quality`` number is better."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(RATE))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(quality), "preset": "slow"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.scenes.assets", description=__doc__)
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--out", type=Path, default=root / "workflows" / "assets")
    parser.add_argument("--only", choices=("still", "dolly", "heart"))
    args = parser.parse_args()
    if args.only in (None, "heart"):
        Image.fromarray(heart()).save(args.out / "heart.png", optimize=True)
    if args.only in (None, "still"):
        picture, disparity = take((768, 576))
        Image.fromarray(picture).save(args.out / "evening.jpg", quality=92, subsampling=0, optimize=True)
        values = (disparity / WHITE * 65535).round().clip(0, 65535).astype(np.uint16)
        Image.fromarray(values).save(args.out / "evening_disparity.png", optimize=True)
    if args.only in (None, "dolly"):
        pictures, maps = [], []
        for frame in range(FRAMES):
            picture, disparity = take((512, 384), TRAVEL * (frame / (FRAMES - 1) - 0.5), 36)
            pictures.append(picture)
            grey = (disparity / WHITE * 255).round().clip(0, 255).astype(np.uint8)
            maps.append(np.repeat(grey[..., None], 3, -1))
        write_video(args.out / "dolly.mp4", pictures, 21)
        write_video(args.out / "dolly_disparity.mp4", maps, 14)


if __name__ == "__main__":
    main()
