"""Measures of a sweep: pictures of one scene that should differ in nothing but how blurred they are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.picture.colour import rgb_to_lab
from trainer.measure.metrics.statistics import pearson

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV takes it


def laplacian_variance(picture: Tensor, where: Tensor | None = None) -> float:
    """Variance of the Laplacian of the grey picture on the scale 0..255: a measure of sharpness.

    ``cv2.Laplacian(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var()``, as the public code of Generative
    Photography (Yuan et al. 2024) computes it: grey rounded to whole numbers, borders mirrored without the edge.

    Args:
        picture: ``[3, H, W]``, display-encoded values 0..1, both sides at least 2.
        where: bool ``[H, W]``, the pixels that count; None is all.

    Raises:
        BokehError: another shape.
    """
    _check(picture)
    if min(picture.shape[1:]) < 2:
        raise BokehError(f"A Laplacian needs at least 2 x 2 pixels; got {tuple(picture.shape)}.")
    levels = (picture.double() * 255).round()
    red, green, blue = (weight * channel for weight, channel in zip(_GREY, levels, strict=True))
    grey = F.pad((red + green + blue).round()[None, None], (1, 1, 1, 1), mode="reflect")[0, 0]
    middle = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    return float((laplacian if where is None else laplacian[where]).var(correction=0))


class LvCorr(NamedTuple):
    """LVCorr of one scene, both ways that the papers' words can be read."""

    levels: float
    differences: float


def lvcorr(trend: Sequence[float], reference: Sequence[float]) -> LvCorr:
    """Pearson correlation of two trends of Laplacian variance, of one scene at several K in the same order.

    Bokeh Diffusion (sec. 4.1) takes it from Generative Photography, whose public code correlates the *differences* of
    neighbours; the paper's words fit the *levels* too. Levels are dominated by the sharpest picture; differences need
    at least three of them, that is four pictures, to say anything.

    Returns:
        NaN where a side does not vary or there are too few pictures.

    Raises:
        BokehError: lengths differ.
    """
    steps = [[b - a for a, b in itertools.pairwise(values)] for values in (trend, reference)]
    return LvCorr(pearson(trend, reference), pearson(*steps))


def energy(picture: Tensor) -> float:
    """Sum of squared values (Fine-grained Defocus, "Blur Monotonicity"); blur lowers it, and so does darkening.

    Args:
        picture: ``[3, H, W]``, display-encoded values 0..1.
    """
    _check(picture)
    return float(picture.double().pow(2).sum())


def blur_monotonicity(energies: Sequence[float]) -> float:
    """Share of neighbours whose energy rises, 0..1, from the most blurred picture to the sharpest.

    Fine-grained Defocus counts this along the f-numbers 1.8, 2.8, 4, 5.6, 8, 11, 16, 22; along K it runs downwards.

    Args:
        energies: of :func:`energy`, the most blurred first.

    Returns:
        NaN for fewer than two.
    """
    if len(energies) < 2:
        return math.nan
    rises = [a < b for a, b in itertools.pairwise(energies)]
    return sum(rises) / len(rises)


def mean_lab(picture: Tensor) -> tuple[float, float, float]:
    """Mean L*, a* and b* of a picture ``[3, H, W]`` of sRGB values 0..1."""
    _check(picture)
    lightness, a, b = rgb_to_lab(picture.double(), dim=0).flatten(1).mean(1).tolist()
    return lightness, a, b


class Drift(NamedTuple):
    """How far apart the mean colours of a sweep lie, in units of L*a*b*."""

    lightness: float
    """Largest difference of mean L*."""
    colour: float
    """Largest distance of mean a*, b*."""


def drift(means: Sequence[tuple[float, float, float]]) -> Drift:
    """Drift of brightness and colour over a sweep; blur alone moves neither by much.

    Args:
        means: :func:`mean_lab` of each picture, at least one.
    """
    lightness = [mean[0] for mean in means]
    colour = max(math.dist(one[1:], other[1:]) for one in means for other in means)
    return Drift(max(lightness) - min(lightness), colour)


def focus_drift(anchor: Tensor, others: Sequence[Tensor], focus: Tensor) -> float:
    """How much what is in focus changes over a sweep: the mean colour difference there to one of its pictures.

    Per pixel the Euclidean distance in L*a*b* (CIE 1976), averaged over the map and over all other pictures. It sees
    colour, detail and things that moved alike; blur that reaches into the map counts too.

    Args:
        anchor: the pivot, or the sharpest picture, ``[3, H, W]``, sRGB values 0..1.
        others: the other pictures, at least one.
        focus: bool ``[H, W]``.

    Returns:
        NaN where nothing is in focus.
    """
    if not bool(focus.any()):
        return math.nan
    first, *rest = (rgb_to_lab(picture.double(), dim=0)[:, focus] for picture in (anchor, *others))
    return math.fsum(float((other - first).norm(dim=0).mean()) for other in rest) / len(rest)


def both_sides(values: Sequence[float], trend: Sequence[float], pivot: tuple[float, float]) -> BothSides:
    """Whether sharpness falls with every step of blur, up to the pivot and from it on.

    Args:
        values: strengths of blur, rising.
        trend: sharpness at each, such as :func:`laplacian_variance`.
        pivot: strength and sharpness of the pivot; a picture of the same strength is left out.
    """
    points = list(zip(values, trend, strict=True))
    below = [*(point for point in points if point[0] < pivot[0]), pivot]
    above = [pivot, *(point for point in points if point[0] > pivot[0])]
    return BothSides(*(_falls([sharpness for _, sharpness in side]) for side in (below, above)))


class BothSides(NamedTuple):
    """1 where sharpness falls throughout, 0 where it does not, NaN where there is nothing to compare."""

    sharper: float
    blurrier: float


def _falls(trend: Sequence[float]) -> float:
    if len(trend) < 2:
        return math.nan
    return float(all(before > after for before, after in itertools.pairwise(trend)))


def content_consistency(classes: Sequence[Tensor]) -> float:
    """Share of pixels whose semantic class stays the same over all pictures (Fine-grained Defocus, sec. F.2).

    A segmenter's first guess flips easily, so each pixel has a few classes, and it counts as the same while at least
    one of them is among the classes of every picture.

    Args:
        classes: of each picture ``[N, H, W]``, the numbers of the N likeliest classes (3 in the paper), at least two
            pictures.

    Returns:
        0..1.

    Raises:
        BokehError: fewer than two pictures, or shapes differ.
    """
    if len(classes) < 2 or any(each.ndim != 3 or each.shape != classes[0].shape for each in classes):
        raise BokehError(
            f"Consistency needs at least two maps of classes [N, H, W] of one shape; got "
            f"{[tuple(each.shape) for each in classes]}."
        )
    kept = torch.zeros(classes[0].shape[1:], dtype=torch.bool, device=classes[0].device)
    for candidate in classes[0]:
        kept |= torch.stack([(each == candidate).any(0) for each in classes]).all(0)
    return float(kept.float().mean())


def _check(picture: Tensor) -> None:
    if picture.ndim != 3 or picture.shape[0] != 3 or 0 in picture.shape:
        raise BokehError(f"Expected a picture [3, H, W]; got {tuple(picture.shape)}.")
