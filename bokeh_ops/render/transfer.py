"""From pixel values to light and back: light adds linearly, pixel values do not.

Three kinds of picture are known: encoded with a plain power (2.2 is what displays are about; BokehMe's command line
takes 4 to bring highlights out), encoded with the exact sRGB curve of IEC 61966-2-1, as most files are, and linear
already (``gamma = 1``: renderings and HDR photographs). All three go on above 1 by the same formula, so that HDR
values and recovered highlights keep their size, and count what is negative as 0: there is no negative light.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..errors import BokehError
from ..picture.colour import linear_to_srgb, srgb_to_linear

SRGB = "srgb"

Gamma = float | Literal["srgb"]
"""An exponent above 0, or the sRGB curve."""

TRANSFERS: dict[str, Gamma] = {"sRGB": SRGB, "gamma 2.2": 2.2, "linear (HDR)": 1.0}
"""The usual ones, as a user chooses them; the first where nothing is said."""


def to_light(values: Tensor, gamma: Gamma) -> Tensor:
    """Linear light from pixel values: ``values^gamma``, or the sRGB curve.

    Differentiable; where a value is 0 the derivative of a power counts as 0.

    Args:
        values: any shape, 1 is white; may exceed 1. Negative values count as 0.
        gamma: the exponent, 1 for pictures that are linear, or ``"srgb"``.

    Returns:
        The same shape, >= 0, in fp32 (fp64 from fp64).
    """
    values = _positive(values)
    return srgb_to_linear(values) if gamma == SRGB else _power(values, float(gamma))


def from_light(light: Tensor, gamma: Gamma) -> Tensor:
    """Pixel values from linear light; the inverse of :func:`to_light`, with the same arguments and result."""
    light = _positive(light)
    return linear_to_srgb(light) if gamma == SRGB else _power(light, 1 / float(gamma))


def check_gamma(gamma: Gamma) -> None:
    """Refuse what is neither an exponent above 0 nor ``"srgb"``.

    Raises:
        BokehError: just that.
    """
    if gamma == SRGB:
        return
    if isinstance(gamma, str) or not (math.isfinite(gamma) and gamma > 0):
        raise BokehError(
            f"Gamma is {gamma}; it must be above 0 (2.2 is display gamma, 1 is linear) or {SRGB!r}, the exact curve."
        )


def _positive(x: Tensor) -> Tensor:
    return (x if x.dtype == torch.float64 else x.float()).clamp_min(0)


def _power(x: Tensor, exponent: float) -> Tensor:
    """``x^exponent`` for x >= 0, with the derivative 0 instead of infinite where x is 0."""
    if exponent == 1:
        return x
    above = x > 0
    return torch.where(above, torch.where(above, x, 1).pow(exponent), 0)
