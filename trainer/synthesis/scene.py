"""A scene: planes with something painted on them, where the lens is focused, and how wide it is opened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bokeh_ops.camera.optics import k_at_width
from bokeh_ops.render.transfer import SRGB, from_light
from trainer.data.pairs.render import Levels, draw_levels
from trainer.seeded import generator
from trainer.synthesis.canvas import Sheet
from trainer.synthesis.settings import Settings
from trainer.synthesis.sources import Painted, background, foreground
from trainer.synthesis.trace import RAYS, Layer, Plane, apart, distances, inside, over, reach, trace

_ATTEMPTS = 8
_SHOWN = (0.02, 0.75)  # share of the picture that a foreground covers, if one of the attempts does
_FLATTER = 0.8  # by which tilts are reduced until the planes are clear of one another
_BETWEEN = 0.15  # of its band, that a plane keeps away from the next band


@dataclass(frozen=True, eq=False)
class Scene:
    """All that a picture shows.

    Attributes:
        index: number of the scene.
        layers: from far to near; the first is the background, and opaque.
        focused: number of the layer in focus.
        focus: its mean disparity, where it shows in the picture, dioptres.
        ks: K of the pictures, pixels of blur radius per dioptre at their own resolution, rising, the first 0.
        caption: what is shown, in a sentence.
    """

    index: int
    layers: tuple[Layer, ...]
    focused: int
    focus: float
    ks: tuple[float, ...]
    caption: str


class Pictures(NamedTuple):
    """A scene as data, on the device that it was traced on."""

    sharp: Tensor
    """uint8 ``[H, W, 3]``: sRGB, all in focus."""
    disparity: Tensor
    """``[H, W]`` dioptres, exact, of the nearest surface with an alpha of at least 0.5."""
    alpha: Tensor
    """``[H, W]`` 0 to 1, of all the foregrounds together."""
    blurred: Tensor
    """uint8 ``[len(ks), H, W, 3]``: sRGB, one of each K."""


def scene(seed: int, index: int, settings: Settings | None = None) -> Scene:
    """The scene of a number. It depends on nothing but the arguments, and on the pictures that are named in them.

    Args:
        seed: 0 or more.
        index: 0 or more.
        settings: what to draw from.

    Raises:
        BokehError: pictures that cannot be used.
    """
    settings = settings or Settings()
    chance = generator(seed, "synthesis", index)
    count = int(chance.integers(settings.foregrounds[0], settings.foregrounds[1] + 1))
    planes, margin = _planes(chance, count, settings)
    focused = int(chance.integers(count + 1))
    drawn = draw_levels(chance, Levels(settings.levels - 1, settings.k[0], settings.k[1], sharp=0))
    ks = [0.0, *(float(k_at_width(k, max(settings.width, settings.height))) for k in drawn)]
    sheet = Sheet(settings.height, settings.width, margin)
    painted = [_painted(seed, index, number, settings, sheet) for number in range(count + 1)]
    layers = tuple(Layer(one.paint, plane, margin) for one, plane in zip(painted, planes, strict=True))
    return Scene(
        index, layers, focused, _mean_disparity(layers[focused]), tuple(ks), _caption(painted, focused)
    )


def rendered(
    scene: Scene,
    ks: Sequence[float] | None = None,
    rays: int = RAYS,
    device: torch.device | str = "cpu",
) -> Pictures:
    """A scene as pictures and maps.

    Args:
        scene: from :func:`scene`.
        ks: K, pixels of blur radius per dioptre at the pictures' own resolution, 0 up to the largest that the scene
            was drawn for; by default the scene's own.
        rays: of a pixel.
        device: where to trace.

    Raises:
        BokehError: K so large that rays leave what is painted.
    """
    layers = [replace(layer, paint=layer.paint.to(device)) for layer in scene.layers]
    pictures = {0.0: _picture(trace(layers, 0, scene.focus))}
    ks = scene.ks if ks is None else ks
    for k in ks:
        if k not in pictures:
            pictures[k] = _picture(trace(layers, k, scene.focus, rays))
    shown = [inside(layer) for layer in layers]
    x, y = distances(shown[0].shape[1], shown[0].shape[2], device)
    disparity = layers[0].plane.at(x, y)
    for layer, paint in zip(layers[1:], shown[1:], strict=True):
        disparity = torch.where(paint[3] >= 0.5, layer.plane.at(x, y), disparity)
    _, alpha = over(shown[1:])
    return Pictures(pictures[0.0], disparity, alpha, torch.stack([pictures[k] for k in ks]))


def _planes(chance: np.random.Generator, count: int, settings: Settings) -> tuple[list[Plane], int]:
    """Planes from far to near, tilted at random, and how far rays go beyond the picture, in pixels.

    Each has its own part of the range of disparities. Tilts are reduced, all alike, until the planes are in front of
    the camera and clear of one another wherever rays meet them.
    """
    size = settings.height, settings.width
    edges = np.geomspace(*settings.disparity, count + 2)
    places = chance.uniform(_BETWEEN, 1 - _BETWEEN, count + 1)
    middles = edges[:-1] * (edges[1:] / edges[:-1]) ** places
    towards = chance.uniform(0, 2 * math.pi, count + 1)
    tilts = settings.tilt * chance.random(count + 1) * middles / max(size)
    while True:
        planes = [
            Plane(float(middle), (float(tilt * math.cos(angle)), float(tilt * math.sin(angle))))
            for middle, tilt, angle in zip(middles, tilts, towards, strict=True)
        ]
        seen = [d for plane in planes for d in plane.corners(*size)]
        # Any of them may be in focus.
        farthest = max(
            reach(plane, settings.k_most, focus, size) for plane in planes for focus in (min(seen), max(seen))
        )
        margin = math.ceil(farthest) + 1
        if min(planes[0].corners(*size, margin)) > 0 and apart(planes, size, margin):
            return planes, margin
        tilts = tilts * _FLATTER


def _painted(seed: int, index: int, number: int, settings: Settings, sheet: Sheet) -> Painted:
    """What is on a plane, 0 being the background. A foreground shows in the picture and does not fill it."""
    sources = settings.front if number else settings.back
    chance = generator(seed, "synthesis source", index, number)
    source = sources[int(chance.integers(len(sources)))]
    if number == 0:
        return background(generator(seed, "synthesis layer", index, 0), source, sheet)
    m, attempt = sheet.margin, 0
    while True:
        made = foreground(generator(seed, "synthesis layer", index, number, attempt), source, sheet)
        covered = float(made.paint[3, m : m + sheet.height, m : m + sheet.width].mean())
        attempt += 1
        if _SHOWN[0] <= covered <= _SHOWN[1] or attempt == _ATTEMPTS:
            return made


def _mean_disparity(layer: Layer) -> float:
    """Mean disparity of what shows of a layer in the picture; of the whole plane where nothing does."""
    alpha = inside(layer)[3].double()
    x, y = distances(alpha.shape[0], alpha.shape[1])
    total = float(alpha.sum())
    return float((alpha * layer.plane.at(x, y)).sum()) / total if total > 0 else layer.plane.middle


def _picture(light: Tensor) -> Tensor:
    values = from_light(light, SRGB).clamp(0, 1)
    return (values * 255).round().to(torch.uint8).movedim(0, -1)


def _caption(painted: Sequence[Painted], focused: int) -> str:
    """Such as ``grass and hair in front of a wall, focused on the hair``."""
    names = [one.name for one in painted[:0:-1]]  # the nearest first
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    on = "the background" if focused == 0 else painted[focused].name
    return f"{listed} in front of {painted[0].name}, focused on {on}"
