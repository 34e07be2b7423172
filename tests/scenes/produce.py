"""One scene, from a kind and a seed to a folder in the layout of the BLB data set."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .mesh import World
from .optics import Lens, load
from .textures import Textures
from .things import Things
from .tracer import Tracer

BLUR = (8.0, 18.0, 30.0)


@dataclass(frozen=True)
class Settings:
    """How the scenes are taken."""

    size: tuple[int, int] = (512, 384)
    spp: int = 256
    blades: int = 0
    rotation: float = 0.0
    blur: tuple[float, ...] = BLUR
    textures: Path | None = None


def write(path: Path, picture: np.ndarray) -> None:
    """An EXR file: ``[H, W, 3]`` as half floats RGB, or ``[H, W]`` as floats Y."""
    if not np.isfinite(picture).all():
        raise ValueError(
            f"{path.name} holds values that are not finite: the scene has a broken mesh or texture"
        )
    mi = load()
    bitmap = mi.Bitmap(np.ascontiguousarray(picture[..., None] if picture.ndim == 2 else picture, np.float32))
    if picture.ndim == 3:
        bitmap = bitmap.convert(mi.Bitmap.PixelFormat.RGB, mi.Struct.Type.Float16, srgb_gamma=False)
    bitmap.write(str(path))


def foci(depth: np.ndarray, subject: np.ndarray | None) -> list[float]:
    """Near, subject and far: the depths that share the scene's defocus out well.

    Args:
        depth: metres.
        subject: depths of the subject's pixels, if it has any.
    """
    near, far = np.quantile(depth, [0.02, 0.85])
    middle = (
        float(np.median(subject))
        if subject is not None and len(subject) > 50
        else float(np.quantile(depth, 0.3))
    )
    return [middle, float(far), float(max(near, 0.5))]


def noise_level(first: np.ndarray, second: np.ndarray) -> float:
    """PSNR in dB of the mean of two independent pictures against the truth, clipped and raised to 1/2.2."""
    encoded = [np.clip(picture, 0, 1) ** (1 / 2.2) for picture in (first, second)]
    error = float(((encoded[0] - encoded[1]) ** 2).mean()) / 4
    return round(-10 * math.log10(max(error, 1e-12)), 2)


def produce(
    kind: str, recipe: Callable[[Things], None], seed: int, folder: Path, settings: Settings
) -> float:
    """Build the scene ``kind`` from ``seed``, take its pictures and write them. Returns the seconds it took."""
    begun = time.perf_counter()
    random = np.random.default_rng(seed)
    focal = 711.1111111111111 * max(settings.size) / 512
    reach = (settings.size[0] / 2 / focal, settings.size[1] / 2 / focal)
    world = World()
    recipe(Things(world, Textures(random, settings.textures), random, reach))
    light = (float(random.uniform(-1, 1)), -1.2, -0.8)
    tracer = Tracer(world.build(), settings.size, focal, light)
    groups = {part.group for part in world.parts} | {group for _, group in world.lamps}
    depth = tracer.depth(seed)
    if not (np.isfinite(depth).all() and depth.min() > 0):
        raise ValueError(f"{kind}, seed {seed}: some rays hit nothing; let the backdrop reach further")
    subject = None
    if "subject" in groups:
        without = Tracer(world.build(("subject",)), settings.size, focal, light).depth(seed)
        subject = depth[without > depth + 1e-3]
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "depth.exr", depth)
    write(folder / "image.exr", tracer.picture(Lens(), settings.spp, seed))
    distances = foci(depth, subject)
    noise = [[0.0] * len(distances) for _ in settings.blur]
    for i, blur in enumerate(settings.blur):
        for j, focus in enumerate(distances):
            lens = Lens(blur, focus, settings.blades, settings.rotation)
            first, second = (
                tracer.picture(lens, settings.spp // 2, 2 * (seed + 17 * i + 131 * j) + half)
                for half in (0, 1)
            )
            write(folder / f"bokeh_{i:02d}_{j:02d}.exr", (first + second) / 2)
            noise[i][j] = noise_level(first, second)
    if "front" in groups:
        behind = Tracer(world.build(("front",)), settings.size, focal, light)
        write(folder / "background.exr", behind.picture(Lens(), min(settings.spp, 64), seed))
        write(folder / "background_depth.exr", behind.depth(seed))
    info = {
        "blur_parameters": list(settings.blur),
        "focus_distances": distances,
        "focal_length_px": focal,
        "units": "metres; blur_parameters are pixels of radius per dioptre at this resolution",
        "spp": settings.spp,
        "noise_psnr": noise,
        "seed": seed,
        "kind": kind,
        "blades": settings.blades,
        "rotation": settings.rotation,
        "background": "the same without what is in front; its depth likewise" if "front" in groups else None,
    }
    (folder / "info.json").write_text(json.dumps(info, indent=1))
    return time.perf_counter() - begun
