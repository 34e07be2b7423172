"""Takes pictures of a scene by tracing rays: the scene's colours, its depth, and the light of its lamps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .optics import Geometry, Lamp, Lens, load, polygon_sample

RAYS = 1 << 23  # traced at once; some 0.6 GB of memory
MORE = 8  # times the rays where a lamp's rim falls


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
        out = np.empty((self.size[1] * self.size[0], 3), np.float32)

        def trace(pixels: np.ndarray, rays: int, salt: int) -> None:
            step = max(1, RAYS // rays)
            for start in range(0, len(pixels), step):
                some = pixels[start : start + step]
                out[some] = self._trace(lens, rays, seed * 8191 + start + salt, some, own_rays, shown)

        trace(np.arange(len(out)), spp, 0)
        if join_lamps:
            # The rim of a bright lamp: a hundredth of a pixel covered is as bright as white paper.
            rims = [
                self._reached(lamp, lens, rim=True)
                for lamp, j in zip(self.lamps, joined, strict=True)
                if not j
            ]
            if rims:
                trace(np.unique(np.concatenate(rims)), spp * MORE, 3)
        if any(joined):
            lamps = [lamp for lamp, join in zip(self.lamps, joined, strict=True) if join]
            out += self._lamp_light(lamps, lens, seed)
        return out.reshape(self.size[1], self.size[0], 3)

    def depth(self, seed: int) -> np.ndarray:
        """``[H, W]`` float32 metres along the optical axis, of one ray at a random place within each pixel."""
        mi = self.mi
        count = self.size[0] * self.size[1]
        sampler = mi.load_dict({"type": "independent", "sample_count": 1})
        sampler.seed(seed, count)
        x, y = self._places(np.arange(count), 1)
        jitter = sampler.next_2d()
        ray = self._own_ray(Lens(), x + jitter.x, y + jitter.y, mi.Point2f(0, 0))
        hit = self.scene.ray_intersect_preliminary(ray)
        return np.array(hit.t * ray.d.z).reshape(self.size[1], self.size[0]).astype(np.float32)

    def _sampler(self, spp: int) -> tuple[Any, int]:
        """A stratified sampler, and ``spp`` raised to a product of two nearly equal numbers, which it needs."""
        rows = math.isqrt(spp)
        spp = rows * math.ceil(spp / rows)
        sampler = self.mi.load_dict({"type": "multijitter", "sample_count": spp})
        sampler.set_samples_per_wavefront(spp)
        return sampler, spp

    def _places(self, pixels: np.ndarray, spp: int) -> tuple[Any, Any]:
        """Column and row of every ray's pixel; ``pixels`` count row by row."""
        import drjit as dr

        mi = self.mi
        index = dr.arange(mi.UInt32, len(pixels) * spp) // spp
        columns, rows = mi.Float(pixels % self.size[0]), mi.Float(pixels // self.size[0])
        return dr.gather(mi.Float, columns, index), dr.gather(mi.Float, rows, index)

    def _trace(
        self, lens: Lens, spp: int, seed: int, pixels: np.ndarray, own_rays: bool, shown: Any
    ) -> np.ndarray:
        """``[N, 3]`` of the pixels."""
        import drjit as dr

        mi = self.mi
        sampler, spp = self._sampler(spp)
        sampler.seed(seed, len(pixels) * spp)
        x, y = self._places(pixels, spp)
        jitter, aperture = sampler.next_2d(), sampler.next_2d()
        x, y = x + jitter.x, y + jitter.y
        if own_rays or lens.blades or not lens.K:
            ray = self._own_ray(lens, x, y, aperture)
        else:
            place = mi.Point2f(x / self.size[0], y / self.size[1])
            ray, _ = self._sensor(lens).sample_ray(0.0, 0.0, place, aperture)
        summed = [dr.block_sum(channel, spp) / spp for channel in self._radiance(ray, shown)]
        dr.eval(summed)
        return np.stack([np.array(channel) for channel in summed], -1)

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

    def _spread(self, lamp: Lamp, lens: Lens) -> tuple[float, float]:
        """Radius of the lamp and of its blur, in pixels."""
        z = lamp.place[2]
        return self.focal * lamp.radius / z, lens.K * abs(1 / z - 1 / lens.focus)

    def _is_joined(self, lamp: Lamp, lens: Lens) -> bool:
        sharp, blur = self._spread(lamp, lens)
        return blur > max(0.3 * sharp, 0.3)

    def _reached(self, lamp: Lamp, lens: Lens, rim: bool) -> np.ndarray:
        """Pixels that a lamp's light reaches, or only those where it may be partial."""
        sharp, blur = self._spread(lamp, lens)
        x, y, z = lamp.place
        centre = np.array(self.size) / 2 + self.focal * np.array([x, y]) / z
        reach = sharp + blur + 1.0
        low = np.clip(np.floor(centre - reach), 0, self.size).astype(int)
        high = np.clip(np.ceil(centre + reach), 0, self.size).astype(int)
        rows, columns = np.mgrid[low[1] : high[1], low[0] : high[0]]
        away = np.hypot(columns + 0.5 - centre[0], rows + 0.5 - centre[1])
        inner = self._flat(lens, sharp, blur) if rim else -1.0
        return (rows * self.size[0] + columns)[(away <= reach) & (away >= inner)]

    def _flat(self, lens: Lens, sharp: float, blur: float) -> float:
        """How far from the middle of a lamp's picture nothing but what hides it changes its light, in pixels."""
        inscribed = math.cos(math.pi / lens.blades) if lens.blades else 1.0
        return abs(inscribed * blur - sharp) - 1.0

    def _lamp_light(self, lamps: list[Lamp], lens: Lens, seed: int) -> np.ndarray:
        """Light of lamps out of focus, ``[pixels, 3]``.

        A pixel p, in pixels from the centre, sees the point P of the lamp through ``a = (p / f - P / z) / g``
        with ``g = 1 / focus - 1 / z``. The lens's area per lamp's area is ``1 / (z g)^2``, so the pixel gets
        ``radiance * lamp's area / ((z g)^2 * aperture's area)`` times the share of the P whose a lies within
        the aperture and is seen.
        """
        out = np.zeros((self.size[1] * self.size[0], 3), np.float32)
        radius, n = lens.K / self.focal, lens.blades
        area = radius**2 * (n / 2 * math.sin(2 * math.pi / n) if n else math.pi)
        values = np.array([(*lamp.place, lamp.radius) for lamp in lamps])
        z = values[:, 2]
        light = math.pi * values[:, 3] ** 2 / ((1 / lens.focus - 1 / z) ** 2 * z**2 * area)
        light = light[:, None] * np.array([lamp.radiance for lamp in lamps])
        whole = [self._reached(lamp, lens, rim=False) for lamp in lamps]
        # The share changes only at the rim, but for a lamp wider than its blur, where it is small: more rays.
        hard = [
            pixels if sharp > blur else self._reached(lamp, lens, rim=True)
            for pixels, lamp in zip(whole, lamps, strict=True)
            for sharp, blur in [self._spread(lamp, lens)]
        ]
        easy = [np.setdiff1d(a, b, assume_unique=True) for a, b in zip(whole, hard, strict=True)]
        for salt, (spp, sets) in enumerate(((36, easy), (576, hard))):
            owner = np.repeat(np.arange(len(lamps)), [len(pixels) for pixels in sets])
            pixel = np.concatenate(sets)
            step = max(1, RAYS // spp)
            for start in range(0, len(pixel), step):
                some = slice(start, start + step)
                share = self._seen(
                    values[owner[some]], lens, pixel[some], spp, seed * 8191 + 5 + salt + start
                )
                np.add.at(out, pixel[some], share[:, None] * light[owner[some]])
        return out

    def _seen(self, lamps: np.ndarray, lens: Lens, pixels: np.ndarray, spp: int, seed: int) -> np.ndarray:
        """Share of a lamp's points that a pixel sees through the aperture, for pairs of lamp and pixel."""
        import drjit as dr

        mi = self.mi
        sampler, spp = self._sampler(spp)
        sampler.seed(seed, len(pixels) * spp)
        index = dr.arange(mi.UInt32, len(pixels) * spp) // spp
        jitter, point = sampler.next_2d(), sampler.next_2d()
        column, row = self._places(pixels, spp)
        across, down = column + jitter.x - self.size[0] / 2, row + jitter.y - self.size[1] / 2
        x, y, z, radius = (dr.gather(mi.Float, mi.Float(values), index) for values in lamps.T)
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
