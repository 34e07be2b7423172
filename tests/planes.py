"""Two tilted planes that a path tracer rendered through a thin lens, for `test_synthesis.py`.

    python -m tests.planes FILE.npz

renders them anew with Mitsuba (made with mitsuba 3.9.1, ``scalar_rgb``): its own thin lens, cameras, triangles and
textures; nothing of this project computes there. A plane is a mesh of one cell per pixel, its corners where the
picture's pixels meet the plane, and its painting a light-emitting texture with bilinear look-up. Mitsuba averages over
pixels and the project's tracer looks at their middles, so pixels are rendered in nine parts and the middle one is kept.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

SIDE, MARGIN = 64, 24
FOCAL = 64.0  # of the camera, in pixels
CASES = ((3.0, 0.5), (8.0, 0.9), (8.0, 2.0))
"""K in pixels per dioptre, and focus in dioptres; the planes are the same."""
PLANES = ((0.55, (0.004, -0.003)), (1.6, (-0.009, 0.006)))
"""Disparity in the middle of the picture, dioptres, and slope, dioptres per pixel; from far to near."""
SAMPLES = 2304
FILE = Path(__file__).parent / "data" / "planes.npz"


def paintings() -> tuple[np.ndarray, np.ndarray]:
    """What is on the planes, smooth over some pixels: light times alpha, and alpha, float32 ``[4, 112, 112]``."""
    along = np.arange(SIDE + 2 * MARGIN) + 0.5
    x, y = np.meshgrid(along, along)

    def waves(seed: int, shortest: float) -> np.ndarray:
        chance = np.random.default_rng(seed)
        total = np.zeros_like(x)
        for _ in range(6):
            angle, period = chance.uniform(0, 2 * math.pi), chance.uniform(shortest, 3 * shortest)
            total += np.sin(
                2 * math.pi * ((x * math.cos(angle) + y * math.sin(angle)) / period + chance.random())
            )
        return total / 3

    far = np.stack([*(0.5 + 0.45 * np.tanh(waves(seed, 8)) for seed in (1, 2, 3)), np.ones_like(x)])
    alpha = 1 / (1 + np.exp(-4 * waves(7, 14)))
    near = np.stack([*((0.5 + 0.45 * np.tanh(waves(seed, 8))) * alpha for seed in (4, 5, 6)), alpha])
    return far.astype(np.float32), near.astype(np.float32)


def main(path: Path) -> None:
    """Render all cases and write them: ``[case, 3, side, side]``, linear light in half precision."""
    import mitsuba as mi  # pyright: ignore[reportMissingImports]

    mi.set_variant("scalar_rgb")
    made = []
    for k, focus in CASES:
        found = mi.load_dict(_scene(mi, k, focus))
        picture = np.array(mi.render(found, spp=SAMPLES, seed=len(made)))
        made.append(picture[1::3, 1::3].transpose(2, 0, 1))
    np.savez_compressed(path, light=np.stack(made).astype(np.float16))


def _scene(mi: Any, k: float, focus: float) -> dict[str, Any]:
    described: dict[str, Any] = {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": 8},
        "sensor": {
            "type": "thinlens",
            "fov": math.degrees(2 * math.atan(SIDE / 2 / FOCAL)),
            "aperture_radius": k / FOCAL,
            "focus_distance": 1 / focus,
            "to_world": mi.ScalarTransform4f().look_at([0, 0, 0], [0, 0, 1], [0, 1, 0]),
            "film": {
                "type": "hdrfilm",
                "width": 3 * SIDE,
                "height": 3 * SIDE,
                "pixel_format": "rgb",
                "component_format": "float32",
                "rfilter": {"type": "box"},
            },
            "sampler": {"type": "multijitter", "sample_count": SAMPLES},
        },
    }
    for number, (painting, plane) in enumerate(zip(paintings(), PLANES, strict=True)):
        described[f"plane{number}"] = _mesh(mi, painting, plane)
    return described


def _mesh(mi: Any, painting: np.ndarray, plane: tuple[float, tuple[float, float]]) -> Any:
    side = SIDE + 2 * MARGIN
    across = np.arange(side + 1) - side / 2
    x, y = (axis.ravel() for axis in np.meshgrid(across, across))
    middle, slope = plane
    far = 1 / (middle + slope[0] * x + slope[1] * y)
    # The camera looks along z with x to the left and y up.
    places = np.stack([-x * far / FOCAL, -y * far / FOCAL, far], 1)
    corner = (np.arange(side)[:, None] * (side + 1) + np.arange(side)).ravel()
    right, below, opposite = corner + 1, corner + side + 1, corner + side + 2
    faces = np.concatenate([np.stack([corner, below, right], 1), np.stack([right, below, opposite], 1)])
    light, alpha = (
        {
            "type": "bitmap",
            "bitmap": mi.Bitmap(np.ascontiguousarray(part.transpose(1, 2, 0))),
            "raw": True,
            "filter_type": "bilinear",
            "wrap_mode": "clamp",
            "format": "variant",
        }
        for part in (painting[:3], painting[3:])
    )
    black = {"type": "diffuse", "reflectance": {"type": "rgb", "value": 0.0}}
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict({"type": "mask", "opacity": alpha, "nested": black})
    properties["emitter"] = mi.load_dict({"type": "area", "radiance": light})
    mesh = mi.Mesh("plane", len(places), len(faces), has_vertex_texcoords=True, props=properties)
    told = mi.traverse(mesh)
    told["vertex_positions"] = places.astype(np.float32).ravel()
    told["vertex_texcoords"] = (np.stack([x, y], 1) / side + 0.5).astype(np.float32).ravel()
    told["faces"] = faces.astype(np.uint32).ravel()
    told.update()
    return mesh


if __name__ == "__main__":
    main(Path(sys.argv[1]))
