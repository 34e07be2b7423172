"""Meshes of the scenes: flat arrays of corners and triangles, and the shapes that the scenes are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .optics import Geometry, Lamp

Vector = Sequence[float] | np.ndarray


@dataclass
class Part:
    """Triangles of one look.

    Coordinates are the picture's: x right, y down, z away from the camera, metres.
    """

    corners: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    normals: np.ndarray
    colours: np.ndarray | None = None
    """Linear radiance at each corner; or ``texture``."""
    texture: np.ndarray | None = None
    """``[h, w, 3]`` linear; u runs right, v down."""
    lit: bool = True
    """Shaded by the scene's light; lamps and backdrops are not."""
    group: str = "scene"

    def moved(self, offset: Vector, turn: np.ndarray | None = None, scale: Any = 1.0) -> Part:
        """Scaled, then turned (a rotation matrix), then moved."""
        turn = np.eye(3) if turn is None else turn
        corners = (self.corners * np.asarray(scale)) @ turn.T + np.asarray(offset)
        return Part(
            corners,
            self.faces,
            self.uv,
            self.normals @ turn.T,
            self.colours,
            self.texture,
            self.lit,
            self.group,
        )

    def look(
        self,
        texture: np.ndarray | None = None,
        colour: Vector | None = None,
        lit: bool = True,
        group: str = "scene",
        window: tuple[float, float, float, float] = (0, 0, 1, 1),
    ) -> Part:
        """With a texture (the part of it within ``window``: u0, v0, u1, v1) or with a colour."""
        colours = None if colour is None else np.tile(np.asarray(colour, float), (len(self.corners), 1))
        low, high = np.array(window[:2]), np.array(window[2:])
        uv = low + self.uv * (high - low)
        return Part(self.corners, self.faces, uv, self.normals, colours, texture, lit, group)


@dataclass
class World:
    """Everything there is to see."""

    parts: list[Part] = field(default_factory=list)
    lamps: list[tuple[Lamp, str]] = field(default_factory=list)
    """Each with its group."""

    def add(self, *parts: Part) -> None:
        self.parts.extend(parts)

    def build(self, without: Sequence[str] = ()) -> Geometry:
        """All parts and lamps but those of some groups, ready to trace."""
        parts = [part for part in self.parts if part.group not in without]
        lamps = [lamp for lamp, group in self.lamps if group not in without]
        discs = [disc(lamp.radius).moved(lamp.place).look(colour=lamp.radiance, lit=False) for lamp in lamps]
        numbers = [0] * len(parts) + list(range(1, len(lamps) + 1))
        return geometry(parts + discs, numbers, lamps)


def geometry(parts: Sequence[Part], numbers: Sequence[int], lamps: list[Lamp]) -> Geometry:
    """One mesh of all parts; ``numbers`` say which lamp each part is, 0 for none."""
    textures: dict[int, tuple[int, np.ndarray]] = {0: (0, np.ones((1, 1, 3), np.float32))}
    used = 1
    faces, corners, points, first = [], [], [], 0
    for part, number in zip(parts, numbers, strict=True):
        key = 0 if part.texture is None else id(part.texture)
        if part.texture is not None and key not in textures:
            textures[key] = (used, part.texture)
            used += part.texture.shape[0] * part.texture.shape[1]
        start, texture = textures[key]
        height, width = texture.shape[:2]
        rest = np.tile([start, width, height, int(part.lit), number], (len(part.faces), 1))
        faces.append(np.concatenate([part.faces + first, rest], 1))
        colours = np.ones((len(part.corners), 3)) if part.colours is None else part.colours
        corners.append(np.concatenate([part.uv, part.normals, colours], 1))
        points.append(part.corners)
        first += len(part.corners)
    texels = np.concatenate([texture.reshape(-1, 3) for _, texture in textures.values()])
    return Geometry(
        np.concatenate(points).astype(np.float32),
        np.concatenate(faces).astype(np.uint32),
        np.concatenate(corners).astype(np.float32),
        texels.astype(np.float32),
        lamps,
    )


def turn(axis: Vector, degrees: float) -> np.ndarray:
    """Rotation matrix about an axis (Rodrigues)."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def grid(points: np.ndarray, normals: np.ndarray | None = None) -> Part:
    """A surface through ``[rows, columns, 3]`` points. Normals default to those of the surface."""
    rows, columns = points.shape[:2]
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = (x.ravel() for x in (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]))
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])
    v, u = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    if normals is None:
        across = np.cross(np.gradient(points, axis=1), np.gradient(points, axis=0))
        normals = np.asarray(across / (np.linalg.norm(across, axis=-1, keepdims=True) + 1e-12))
    return Part(points.reshape(-1, 3), faces, np.stack([u, v], -1).reshape(-1, 2), normals.reshape(-1, 3))


def quad(width: float = 1.0, height: float = 1.0) -> Part:
    """A rectangle about the origin that faces the camera."""
    x, y = width / 2, height / 2
    return grid(np.array([[[-x, -y, 0], [x, -y, 0]], [[-x, y, 0], [x, y, 0]]], float))


def between(a: Vector, b: Vector, c: Vector, d: Vector) -> Part:
    """The quadrilateral with the corners a (top left), b (top right), c (bottom right), d (bottom left)."""
    return grid(np.array([[a, b], [d, c]], float))


def disc(radius: float, sides: int = 48) -> Part:
    """A flat disc about the origin that faces the camera; its area is exact."""
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    corner = radius * np.sqrt(np.pi / (sides / 2 * np.sin(2 * np.pi / sides)))
    return outline(np.stack([corner * np.cos(angle), corner * np.sin(angle)], -1))


def sphere(radius: float = 1.0, rows: int = 32) -> Part:
    """A ball about the origin."""
    theta, phi = np.meshgrid(
        np.linspace(0, np.pi, rows + 1), np.linspace(0, 2 * np.pi, 2 * rows + 1), indexing="ij"
    )
    out = np.stack([np.sin(theta) * np.cos(phi), -np.cos(theta), np.sin(theta) * np.sin(phi)], -1)
    return grid(out * radius, out)


def box(width: float, height: float, length: float) -> Part:
    """A box about the origin; every side bears the whole texture."""
    half = np.array([width, height, length]) / 2
    sides = []
    for axis, angle in (
        ((0, 1, 0), 0),
        ((0, 1, 0), 90),
        ((0, 1, 0), 180),
        ((0, 1, 0), 270),
        ((1, 0, 0), 90),
        ((1, 0, 0), -90),
    ):
        side = quad(2, 2).moved((0, 0, -1)).moved((0, 0, 0), turn(axis, angle))
        side.corners = side.corners * half
        outward = side.corners.mean(0)
        side.normals = np.tile(outward / np.linalg.norm(outward), (4, 1))
        sides.append(side)
    return join(sides)


def join(parts: Sequence[Part]) -> Part:
    """Several parts as one; the look is the first one's."""
    starts = np.cumsum([0] + [len(p.corners) for p in parts[:-1]])
    colours = (
        None
        if parts[0].colours is None
        else np.concatenate([p.colours for p in parts if p.colours is not None])
    )
    return Part(
        np.concatenate([p.corners for p in parts]),
        np.concatenate([p.faces + s for p, s in zip(parts, starts, strict=True)]),
        np.concatenate([p.uv for p in parts]),
        np.concatenate([p.normals for p in parts]),
        colours,
        parts[0].texture,
        parts[0].lit,
        parts[0].group,
    )


def tube(path: np.ndarray, radius: float | np.ndarray, sides: int = 10) -> Part:
    """A round rod along ``[n, 3]`` points; one radius or one per point."""
    path = np.asarray(path, float)
    if len(path) == 2:
        # Cut into short pieces: the boxes about long slanted triangles are mostly empty, and slow to trace.
        length = float(np.linalg.norm(path[1] - path[0]))
        t = np.linspace(0, 1, 1 + min(120, math.ceil(length / (25 * float(np.max(radius))))))
        radius = np.interp(t, [0, 1], np.broadcast_to(np.asarray(radius, float), 2))
        path = path[0] + t[:, None] * (path[1] - path[0])
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-12
    helper = np.where(np.abs(along[:, 2:3]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    first = np.cross(along, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    out = np.cos(angle)[None, :, None] * first[:, None] + np.sin(angle)[None, :, None] * second[:, None]
    radii = np.broadcast_to(np.asarray(radius, float), len(path))
    return grid(path[:, None] + out * radii[:, None, None], out)


def outline(points: np.ndarray, normal: Vector = (0, 0, -1)) -> Part:
    """A flat cut-out: the inside of a simple polygon ``[n, 2]`` (x, y), triangulated by clipping ears."""
    points = np.asarray(points, float)
    faces = _ears(points)
    low, high = points.min(0), points.max(0)
    corners = np.concatenate([points, np.zeros((len(points), 1))], 1)
    return Part(
        corners, faces, (points - low) / (high - low), np.tile(np.asarray(normal, float), (len(points), 1))
    )


def _ears(points: np.ndarray) -> np.ndarray:
    def cross(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> Any:
        return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (
            c[..., 0] - a[..., 0]
        )

    x, y = points.T
    order = list(range(len(points)))
    if np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) < 0:
        order.reverse()
    faces = []
    while len(order) > 3:
        for i in range(len(order)):
            ia, ib, ic = order[i - 1], order[i], order[(i + 1) % len(order)]
            a, b, c = points[ia], points[ib], points[ic]
            if cross(a, b, c) <= 1e-12:
                continue
            others = points[[k for k in order if k not in (ia, ib, ic)]]
            inside = (cross(a, b, others) >= 0) & (cross(b, c, others) >= 0) & (cross(c, a, others) >= 0)
            if not inside.any():
                faces.append((ia, ib, ic))
                del order[i]
                break
        else:
            raise ValueError("the polygon crosses itself: give its corners in order, without crossings")
    faces.append(tuple(order))
    a, b, c = (points[[face[k] for face in faces]] for k in range(3))
    whole = abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))
    if not np.isclose(np.abs(cross(a, b, c)).sum(), whole):
        raise ValueError("the polygon crosses itself: give its corners in order, without crossings")
    return np.array(faces)
