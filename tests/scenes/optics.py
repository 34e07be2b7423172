"""Cameras and ray tracing of the scenes: pinhole, Mitsuba's thin lens, and a lens with any number of blades.

Coordinates are the picture's, in metres: x to the right, y down, z along the optical axis, camera at the
origin. A point at depth z seen through the lens position a lands ``f a (1/focus - 1/z)`` pixels from where
the pinhole at the lens's centre sees it, with f in pixels; hence ``K = aperture radius * f`` and the signed
defocus ``K (1/z - 1/focus)``. Nothing reflects: every surface has a radiance of its own that looks alike
from all sides, so that sampling the lens and the pixel is the only noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

VARIANT = "llvm_ad_rgb"
RAYS = 1 << 23  # traced at once; some 0.6 GB of memory


@dataclass(frozen=True)
class Lens:
    """What takes the picture. ``K`` = 0 is a pinhole."""

    K: float = 0.0
    """Pixels of blur radius per dioptre of defocus."""
    focus: float = 1.0
    """Distance of the plane in focus, in metres along the optical axis."""
    blades: int = 0
    """0 for a disc, else the corners of the aperture. K is then the radius at a corner."""
    rotation: float = 0.0
    """Degrees, as in :func:`bokeh_ops.render.plan.aperture_scale`; of discs behind the focus."""


def load() -> Any:
    """Mitsuba, with its variant set. Raises ImportError where the package is missing."""
    import mitsuba

    if mitsuba.variant() != VARIANT:
        mitsuba.set_variant(VARIANT)
    return mitsuba


def polygon_sample(u: Any, v: Any, blades: int, rotation: float, module: Any = np) -> tuple[Any, Any]:
    """Uniform points on a regular polygon of radius 1 with a corner at the angle ``-rotation`` (y down).

    Args:
        u, v: uniform in [0, 1).
        blades: number of corners, at least 3.
        rotation: degrees.
        module: what has ``floor``, ``sqrt``, ``cos`` and ``sin`` for these arrays.
    """
    step = 2 * math.pi / blades
    sector = module.floor(u * blades)
    along = u * blades - sector
    start = sector * step - math.radians(rotation)
    out = module.sqrt(v)
    x = out * ((1 - along) * module.cos(start) + along * module.cos(start + step))
    y = out * ((1 - along) * module.sin(start) + along * module.sin(start + step))
    return x, y


@dataclass(frozen=True)
class Lamp:
    """A luminous flat disc that faces the camera."""

    place: tuple[float, float, float]
    radius: float
    radiance: tuple[float, float, float]


class Geometry(NamedTuple):
    """Everything that can be seen, as one mesh."""

    points: np.ndarray
    """``[V, 3]`` metres."""
    faces: np.ndarray
    """``[F, 8]``: three corners; the texture's first texel, width and height; 1 if lit; its lamp, from 1."""
    corners: np.ndarray
    """``[V, 8]``: u and v; normal; linear RGB."""
    texels: np.ndarray
    """``[N, 3]`` linear RGB, all textures one after the other."""
    lamps: list[Lamp]


class Tracer:
    """Takes pictures of one scene.

    A small lamp out of focus is met by few rays, each very bright. Such lamps are black to the rays that
    start at the pixels; instead every pixel that a lamp's blur can reach is joined to points on the lamp,
    which gives the place on the lens and leaves visibility to be traced (:meth:`_lamp_light`).

    Args:
        geometry: what there is to see.
        size: width and height in pixels.
        focal: focal length in pixels.
        light: direction towards the light (x right, y down, z away from the camera).
    """

    def __init__(
        self,
        geometry: Geometry,
        size: tuple[int, int],
        focal: float,
        light: tuple[float, float, float] = (0.5, -1.2, -0.8),
    ) -> None:
        mi = self.mi = load()
        self.lamps, self.size, self.focal = geometry.lamps, size, focal
        # Half-Lambert: smooth, without a side that faces the camera, hence alike from every place on the lens.
        towards = geometry.corners[:, 2:5] @ (np.array(light) / np.linalg.norm(light))
        shade = 0.25 + 0.75 * (0.5 + 0.5 * towards) ** 2
        corners = np.concatenate([geometry.corners[:, :2], shade[:, None], geometry.corners[:, 5:]], 1)
        self.corners = mi.Float(np.pad(corners, ((0, 0), (0, 2))).astype(np.float32).ravel())
        self.faces = mi.UInt32(geometry.faces.ravel())
        self.texels = mi.Float(np.pad(geometry.texels, ((0, 0), (0, 1))).ravel())
        self.scene = _scene(mi, geometry)

    def picture(
        self, lens: Lens, spp: int, seed: int, own_rays: bool = False, join_lamps: bool = True
    ) -> np.ndarray:
        """``[H, W, 3]`` float32 linear radiance, averaged over each pixel's square (a box filter).

        Args:
            spp: rays per pixel; a square number spreads best over pixel and lens.
            seed: of the sampling.
            own_rays: do not use Mitsuba's camera even where it could be used (an independent check).
            join_lamps: join blurred lamps to pixels; else all light is met by chance.
        """
        joined = [join_lamps and self._is_joined(lamp, lens) for lamp in self.lamps]
        shown = self.mi.Float([1.0] + [0.0 if j else 1.0 for j in joined])
        out = np.empty((self.size[1], self.size[0], 3), np.float32)
        band = max(1, RAYS // (spp * self.size[0]))
        for top in range(0, self.size[1], band):
            bottom = min(top + band, self.size[1])
            out[top:bottom] = self._band(lens, spp, seed * 8191 + top, top, bottom, own_rays, shown)
        if any(joined):
            lamps = [lamp for lamp, join in zip(self.lamps, joined, strict=True) if join]
            out += self._lamp_light(lamps, lens, min(spp, 64), seed)
        return out

    def depth(self, seed: int) -> np.ndarray:
        """``[H, W]`` float32 metres along the optical axis, of one ray at a random place within each pixel."""
        mi = self.mi
        count = self.size[0] * self.size[1]
        sampler = mi.load_dict({"type": "independent", "sample_count": 1})
        sampler.seed(seed, count)
        x, y = self._pixels(0, count, 1)
        jitter = sampler.next_2d()
        ray = self._own_ray(Lens(), x + jitter.x, y + jitter.y, mi.Point2f(0, 0))
        hit = self.scene.ray_intersect_preliminary(ray)
        return np.array(hit.t * ray.d.z).reshape(self.size[1], self.size[0]).astype(np.float32)

    def _pixels(self, top: int, count: int, spp: int) -> tuple[Any, Any]:
        import drjit as dr

        index = dr.arange(self.mi.UInt32, count * spp) // spp
        row = index // self.size[0]
        return self.mi.Float(index - row * self.size[0]), self.mi.Float(row + top)

    def _sampler(self, spp: int) -> tuple[Any, int]:
        """A stratified sampler, and ``spp`` raised to a product of two nearly equal numbers, which it needs."""
        rows = math.isqrt(spp)
        spp = rows * math.ceil(spp / rows)
        sampler = self.mi.load_dict({"type": "multijitter", "sample_count": spp})
        sampler.set_samples_per_wavefront(spp)
        return sampler, spp

    def _band(
        self, lens: Lens, spp: int, seed: int, top: int, bottom: int, own_rays: bool, shown: Any
    ) -> np.ndarray:
        import drjit as dr

        mi = self.mi
        count = (bottom - top) * self.size[0]
        sampler, spp = self._sampler(spp)
        sampler.seed(seed, count * spp)
        x, y = self._pixels(top, count, spp)
        jitter, aperture = sampler.next_2d(), sampler.next_2d()
        x, y = x + jitter.x, y + jitter.y
        if own_rays or lens.blades or not lens.K:
            ray = self._own_ray(lens, x, y, aperture)
        else:
            place = mi.Point2f(x / self.size[0], y / self.size[1])
            ray, _ = self._sensor(lens).sample_ray(0.0, 0.0, place, aperture)
        radiance = self._radiance(ray, shown)
        summed = [dr.block_sum(channel, spp) / spp for channel in radiance]
        dr.eval(summed)
        return np.stack([np.array(c) for c in summed], -1).reshape(bottom - top, self.size[0], 3)

    def _own_ray(self, lens: Lens, x: Any, y: Any, aperture: Any) -> Any:
        """The ray from a place on the lens through the place in the plane of focus that pixel (x, y) sees."""
        import drjit as dr

        mi = self.mi
        focus = dr.opaque(mi.Float, lens.focus)  # so that the same code serves another focus uncompiled
        across = (x - self.size[0] / 2) * (focus / self.focal)
        down = (y - self.size[1] / 2) * (focus / self.focal)
        lens_x, lens_y = mi.Float(0), mi.Float(0)
        if lens.K:
            if lens.blades:
                lens_x, lens_y = polygon_sample(aperture.x, aperture.y, lens.blades, lens.rotation, dr)
            else:
                out, angle = dr.sqrt(aperture.x), 2 * math.pi * aperture.y
                lens_x, lens_y = out * dr.cos(angle), out * dr.sin(angle)
        radius = dr.opaque(mi.Float, lens.K / self.focal)
        lens_x, lens_y = lens_x * radius, lens_y * radius
        towards = mi.Vector3f(-(across - lens_x), -(down - lens_y), focus)
        return mi.Ray3f(mi.Point3f(-lens_x, -lens_y, 0), dr.normalize(towards))

    def _sensor(self, lens: Lens) -> Any:
        film = {"type": "hdrfilm", "width": self.size[0], "height": self.size[1], "rfilter": {"type": "box"}}
        return self.mi.load_dict(
            {
                "type": "thinlens",
                "fov": 2 * math.degrees(math.atan(self.size[0] / (2 * self.focal))),
                "fov_axis": "x",
                "aperture_radius": lens.K / self.focal,
                "focus_distance": lens.focus,
                "near_clip": 0.01,
                "film": film,
            }
        )

    def _radiance(self, ray: Any, shown: Any) -> Any:
        import drjit as dr

        mi = self.mi
        hit = self.scene.ray_intersect_preliminary(ray, coherent=True)
        there = hit.is_valid()
        face = dr.gather(mi.ArrayXu, self.faces, hit.prim_index, there, shape=(8, dr.width(ray.d)))
        weights = (1 - hit.prim_uv.x - hit.prim_uv.y, hit.prim_uv.x, hit.prim_uv.y)
        values = [mi.Float(0)] * 6
        for k in range(3):
            corner = dr.gather(mi.ArrayXf, self.corners, face[k], there, shape=(8, dr.width(ray.d)))
            values = [value + weights[k] * corner[c] for c, value in enumerate(values)]
        u, v, shade, *colour = values
        light = dr.gather(mi.Float, shown, face[7], there) * dr.select(face[6] == 1, shade, 1.0)
        seen = mi.Color3f(*colour) * self._texture(u, v, face[3], face[4], face[5], there) * light
        return dr.select(there, seen, 0.0)

    def _texture(self, u: Any, v: Any, first: Any, width: Any, height: Any, there: Any) -> Any:
        """Bilinear, mirrored beyond its edges."""
        import drjit as dr

        mi = self.mi

        def mirrored(index: Any, count: Any) -> Any:
            count = mi.Int(count)
            index = index - 2 * count * mi.Int(dr.floor(mi.Float(index) / mi.Float(2 * count)))
            return dr.clip(dr.select(index < count, index, 2 * count - 1 - index), 0, count - 1)

        x, y = u * mi.Float(width) - 0.5, v * mi.Float(height) - 0.5
        left, top = dr.floor(x), dr.floor(y)
        colour = mi.Color3f(0)
        for right, across in ((0, 1 - (x - left)), (1, x - left)):
            for below, down in ((0, 1 - (y - top)), (1, y - top)):
                column, row = mirrored(mi.Int(left) + right, width), mirrored(mi.Int(top) + below, height)
                texel = first + mi.UInt32(row) * width + mi.UInt32(column)
                found = dr.gather(mi.ArrayXf, self.texels, texel, there, shape=(4, dr.width(u)))
                colour += mi.Color3f(found[0], found[1], found[2]) * (across * down)
        return colour

    def _is_joined(self, lamp: Lamp, lens: Lens) -> bool:
        defocus = abs(lens.K * (1 / lamp.place[2] - 1 / lens.focus))
        return defocus > 1.5 and defocus > self.focal * lamp.radius / lamp.place[2]

    def _lamp_light(self, lamps: list[Lamp], lens: Lens, spp: int, seed: int) -> np.ndarray:
        """Light of lamps out of focus, ``[H, W, 3]``.

        A pixel p, in pixels from the centre, sees the point P of the lamp through ``a = (p / f - P / z) / g``
        with ``g = 1 / focus - 1 / z``. The lens's area per lamp's area is ``1 / (z g)^2``, so the pixel gets
        ``radiance * lamp's area / ((z g)^2 * aperture's area)`` times the share of the P whose a lies within
        the aperture and is seen.
        """
        out = np.zeros((self.size[1] * self.size[0], 3))
        radius, n = lens.K / self.focal, lens.blades
        area = radius**2 * (n / 2 * math.sin(2 * math.pi / n) if n else math.pi)
        values = np.array([(*lamp.place, lamp.radius) for lamp in lamps])
        z = values[:, 2]
        defocus = 1 / lens.focus - 1 / z
        light = math.pi * values[:, 3] ** 2 / ((z * defocus) ** 2 * area)
        light = light[:, None] * np.array([lamp.radiance for lamp in lamps])
        centre = np.array(self.size) / 2 + self.focal * values[:, :2] / z[:, None]
        reach = lens.K * np.abs(defocus) + self.focal * values[:, 3] / z + 1
        low = np.clip(np.floor(centre - reach[:, None]), 0, self.size).astype(np.int64)
        high = np.clip(np.ceil(centre + reach[:, None]), 0, self.size).astype(np.int64)
        pixels = []
        for (left, top), (right, bottom) in zip(low, high, strict=True):
            rows, columns = np.mgrid[top:bottom, left:right]
            pixels.append((rows * self.size[0] + columns).ravel())
        owner = np.repeat(np.arange(len(lamps)), [len(p) for p in pixels])
        pixel = np.concatenate(pixels)
        step = max(1, RAYS // spp)
        for start in range(0, len(pixel), step):
            some = slice(start, start + step)
            seen = self._seen(values[owner[some]], lens, pixel[some], spp, seed * 8191 + 5 + start)
            np.add.at(out, pixel[some], seen[:, None] * light[owner[some]])
        return out.reshape(self.size[1], self.size[0], 3).astype(np.float32)

    def _seen(self, lamps: np.ndarray, lens: Lens, pixels: np.ndarray, spp: int, seed: int) -> np.ndarray:
        """Share of a lamp's points that a pixel sees through the aperture, for pairs of lamp and pixel."""
        import drjit as dr

        mi = self.mi
        sampler, spp = self._sampler(spp)
        sampler.seed(seed, len(pixels) * spp)
        index = dr.arange(mi.UInt32, len(pixels) * spp) // spp
        jitter, point = sampler.next_2d(), sampler.next_2d()
        columns, rows = mi.Float(pixels % self.size[0]), mi.Float(pixels // self.size[0])
        across = dr.gather(mi.Float, columns, index) + jitter.x - self.size[0] / 2
        down = dr.gather(mi.Float, rows, index) + jitter.y - self.size[1] / 2
        x, y, z, radius = (dr.gather(mi.Float, mi.Float(column), index) for column in lamps.T)
        out, angle = radius * dr.sqrt(point.x), 2 * math.pi * point.y
        at_x, at_y = x + out * dr.cos(angle), y + out * dr.sin(angle)
        g = dr.opaque(mi.Float, 1 / lens.focus) - 1 / z
        lens_x = (across / self.focal - at_x / z) / g
        lens_y = (down / self.focal - at_y / z) / g
        inside = self._in_aperture(lens_x, lens_y, lens)
        ray = mi.Ray3f(mi.Point3f(-lens_x, -lens_y, 0), mi.Vector3f(-(at_x - lens_x), -(at_y - lens_y), z))
        ray.maxt = 1 - 1e-4
        seen = inside & ~self.scene.ray_test(ray, inside)
        return np.array(dr.block_sum(dr.select(seen, mi.Float(1 / spp), 0.0), spp))

    def _in_aperture(self, x: Any, y: Any, lens: Lens) -> Any:
        import drjit as dr

        radius = dr.opaque(self.mi.Float, lens.K / self.focal)
        if not lens.blades:
            return x * x + y * y <= radius * radius
        inside = dr.full(self.mi.Bool, True, dr.width(x))
        inner = radius * math.cos(math.pi / lens.blades)
        for side in range(lens.blades):
            angle = (2 * side + 1) * math.pi / lens.blades - math.radians(lens.rotation)
            inside &= x * math.cos(angle) + y * math.sin(angle) <= inner
        return inside


def _scene(mi: Any, geometry: Geometry) -> Any:
    mesh = mi.Mesh("all", len(geometry.points), len(geometry.faces))
    parameters = mi.traverse(mesh)
    # Mitsuba's cameras look along z with x to the left and y up.
    parameters["vertex_positions"] = (geometry.points * np.array([-1, -1, 1], np.float32)).ravel()
    parameters["faces"] = geometry.faces[:, :3].ravel()
    parameters.update()
    return mi.load_dict({"type": "scene", "mesh": mesh})
