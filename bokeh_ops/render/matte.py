"""Pixels on a depth edge, taken apart into the surface in front and the one behind it.

A pixel on a silhouette shows a little of both surfaces, but a depth map gives it one depth. Blurred as it is, it
draws a bright or dark line where one surface is in focus and the other is not. Here every such pixel becomes two
fragments: in front, with a coverage ``alpha``, and behind. With F and B the light of the two surfaces nearby,

    C = alpha F + (1 - alpha) B      =>      alpha = (C - B).(F - B) / |F - B|^2

in linear light, where mixing is linear. Where the two surfaces look alike, or their mixture does not explain the
pixel, the depth map's own label decides instead. What the mixture leaves over stays with the larger fragment, so
that the fragments together always give the pixel back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW = 2  # pixels to each side in which the two surfaces are looked for ...
_STEPS = 3  # ... and steps from pixel to pixel: farther on there are others
_SPREAD = 3.0  # |F - B|^2 has to exceed this many variances of F and B ...
_MISFIT = 20.0  # ... and this many times what the mixture does not explain, for alpha to be believed
_STRIP = 256  # rows that are looked at at once, so that they stay in a processor's cache
_FAINT = 1e-4  # and this, in squared light


class Fragments(NamedTuple):
    """The pixels on depth edges, n of them. Light has C planes."""

    pixel: Tensor
    """``[n]`` flat index of the pixel."""
    alpha: Tensor
    """``[n]`` share of the pixel that the surface in front covers, 0..1."""
    near: Tensor
    """``[C, n]`` light of the surface in front."""
    far: Tensor
    """``[C, n]`` light of the surface behind."""
    near_defocus: Tensor
    """``[n]`` signed defocus of the surface in front, in pixels."""
    far_defocus: Tensor
    """``[n]`` of the one behind."""


def take_apart(light: Tensor, defocus: Tensor, gap: float = 1.0) -> Fragments:
    """Find the pixels beside a jump of the defocus and estimate what they are made of.

    Args:
        light: ``[C, H, W]`` linear light, >= 0.
        defocus: ``[H, W]`` signed defocus in pixels, larger is nearer.
        gap: the least jump between neighbours that counts, in pixels of defocus.

    Returns:
        :class:`Fragments`, in the order of the pixels.
    """
    height, width = defocus.shape
    y, x, top, bottom = _edges(defocus, gap)
    index = y * width + x
    planes, flat = light.flatten(1), defocus.flatten()
    middle = (top + bottom) / 2
    inside = torch.ones(height * width, dtype=torch.bool, device=light.device)
    inside[index] = False

    def around(dy: int, dx: int) -> Tensor:
        return (y + dy).clamp(0, height - 1) * width + (x + dx).clamp(0, width - 1)

    steps = range(-_WINDOW, _WINDOW + 1)
    offsets = [(dy, dx) for dy in steps for dx in steps if abs(dy) + abs(dx) <= _STEPS]
    near, far = _Mean(light, len(index)), _Mean(light, len(index))
    for dy, dx in offsets:
        other = around(dy, dx)
        d, c = flat[other], planes[:, other]
        in_front = d >= middle
        # Pixels of the surface that meets the edge here, not of others that happen to be on its side.
        weight = torch.exp(-0.5 * torch.where(in_front, d - top, d - bottom).abs())
        weight *= inside[other] / (dy * dy + dx * dx + 0.5)
        near.add(c, d, weight * in_front)
        far.add(c, d, weight * ~in_front)
    front, front_spread, front_defocus = near.close(top)
    behind, behind_spread, behind_defocus = far.close(bottom)
    # A structure so thin that all of it is edge: its pixel that looks least like the other side.
    for mean, seen, opposite, on_side in ((front, near.seen, behind, True), (behind, far.seen, front, False)):
        lost = (~seen).nonzero()[:, 0]
        best = torch.full((len(lost),), -1.0, dtype=light.dtype, device=light.device)
        for dy, dx in offsets if len(lost) else []:
            other = around(dy, dx)[lost]
            c = planes[:, other]
            unlike = (c - opposite[:, lost]).square().sum(0) / (1 + 0.25 * (dy * dy + dx * dx))
            better = ((flat[other] >= middle[lost]) == on_side) & (unlike > best)
            best = torch.where(better, unlike, best)
            mean[:, lost] = torch.where(better, c, mean[:, lost])

    pixel = planes[:, index]
    step = front - behind
    size = step.square().sum(0)
    alpha = (((pixel - behind) * step).sum(0) / size.clamp_min(1e-9)).clamp(0, 1)
    misfit = (pixel - behind - alpha * step).square().sum(0)
    trust = size / (size + _SPREAD * (front_spread + behind_spread) + _MISFIT * misfit + _FAINT)
    alpha = trust * alpha + (1 - trust) * (flat[index] >= middle)
    mostly = alpha >= 0.5
    left_front = ((pixel - (1 - alpha) * behind) / alpha.clamp_min(1e-3)).clamp_min(0)
    left_behind = ((pixel - alpha * front) / (1 - alpha).clamp_min(1e-3)).clamp_min(0)
    return Fragments(
        index,
        alpha,
        torch.where(mostly, left_front, front),
        torch.where(mostly, behind, left_behind),
        front_defocus,
        behind_defocus,
    )


def _edges(defocus: Tensor, gap: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row and column of the pixels beside a jump, and the largest and least defocus about each."""
    found = []
    for top in range(0, len(defocus), _STRIP):
        first = max(0, top - 1)
        strip = defocus[first : top + _STRIP + 1]
        inner = slice(top - first, top - first + _STRIP)
        highest = F.max_pool2d(strip[None, None], 3, 1, 1)[0, 0, inner]
        lowest = -F.max_pool2d(-strip[None, None], 3, 1, 1)[0, 0, inner]
        y, x = ((highest - lowest) > gap).nonzero(as_tuple=True)
        found.append((y + top, x, highest[y, x], lowest[y, x]))
    y, x, highest, lowest = (torch.cat(each) for each in zip(*found, strict=True))
    return y, x, highest, lowest


class _Mean:
    """Weighted mean and variance of light and mean of defocus, added up neighbour by neighbour."""

    def __init__(self, light: Tensor, count: int) -> None:
        self.light = light.new_zeros(light.shape[0], count)
        self.square, self.defocus, self.weight = (light.new_zeros(count) for _ in range(3))

    def add(self, light: Tensor, defocus: Tensor, weight: Tensor) -> None:
        self.light += light * weight
        self.square += light.square().sum(0) * weight
        self.defocus += defocus * weight
        self.weight += weight

    def close(self, otherwise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean light, its variance, mean defocus; ``otherwise`` is the defocus where nothing was seen."""
        self.seen = self.weight > 1e-3
        weight = self.weight.clamp_min(1e-9)
        mean = self.light / weight
        spread = (self.square / weight - mean.square().sum(0)).clamp_min(0)
        zero = torch.zeros_like(spread)
        return (
            torch.where(self.seen, mean, 0),
            torch.where(self.seen, spread, zero),
            torch.where(self.seen, self.defocus / weight, otherwise),
        )
