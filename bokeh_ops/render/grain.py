"""The picture's own grain, given back to what was blurred.

Blur takes the grain of film and sensors with it, and a grainy subject before a background without any looks pasted.
The grain is measured in the picture that was given, and new grain of the same strength at each brightness, of the
same colours and of the same size is laid over the rendering, as much as the blur took: where a disc of radius r leaves
the share s(r) of grain's variance,

    rendered + sqrt(1 - s(r)) * grain

Grain is told from texture by two things. It is everywhere: its power at a frequency is what the quietest blocks of the
picture still have there, each frequency by itself. And it has a size: below the frequency of that size its spectrum is
flat, where that of texture rises towards coarse structures. Nothing is added where nothing was blurred, to a picture
without grain, or where texture leaves no place to measure it. All of this is in display values: grain lives in the
picture as it is shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .contract import Lens
from .spread import fast_size

_SIDE = 32  # pixels of a block
_MOST = 4096  # blocks that are looked at
_FEWEST = 24  # blocks that say something
_QUIET = 0.2  # of the blocks: the quietest, at each frequency
_BANDS = (2.0, 2.8, 4.0, 5.6, 8.0, 11.3, 16.0, 23.0)  # half octaves, in cycles a block
_FLAT = 1.1, 1.5  # the power's exponent over an octave: of grain, and of texture
_BINS = 12  # steps of brightness
_CLIPPED = 0.004  # from black or white: what is cut off there is no grain
_ROUNDING = 1 / 255**2 / 6  # variance that rounding to 8 bits makes, twice
_RADII = tuple(
    0.25 * 2 ** (step / 4) for step in range(25)
)  # pixels, where s is reckoned; beyond, it goes by 1 / area


@dataclass(frozen=True, eq=False)
class Grain:
    """What :func:`measure` found in a picture of C channels."""

    power: Tensor
    """``[bands, C, C]`` covariance of the channels a pixel and cycle, of each of ``_BANDS``' intervals."""
    strength: Tensor
    """``[bins]`` standard deviation at each brightness from 0 to 1, against that of ``power``."""


def add_grain(image: Tensor, given: Tensor, defocus: Tensor, lens: Lens, amount: float, frame: int) -> Tensor:
    """A rendering with the grain that blur took from the picture.

    Args:
        image: ``[C, H, W]`` the rendering, C = 1, 3 or 4 (alpha is kept).
        given: ``[C, H, W]`` the picture it was made from.
        defocus: ``[1, H, W]`` signed pixels of blur radius.
        lens: its transfer says whether values are linear: those are shown with the sRGB curve.
        amount: 1 is the picture's own grain, 0 none.
        frame: number of the picture in its batch: every frame has other grain, and always the same.

    Returns:
        ``[C, H, W]``, like ``image``; where the defocus is 0 not a bit is changed.
    """
    work = torch.float64 if image.dtype == torch.float64 else torch.float32
    planes = 3 if len(image) == 4 else len(image)
    linear = lens.gamma == 1
    display = Lens(0.0, gamma="srgb")

    def shown(picture: Tensor) -> Tensor:
        colour = picture[:planes].to(work).clamp_min(0)
        return display.from_light(colour) if linear else colour

    if amount == 0 or not bool(defocus.any()):
        return image
    grain = measure(shown(given), given[3] if len(given) == 4 else None)
    if grain is None:
        return image
    colour = shown(image)
    radius = defocus[0].abs().to(work)
    noise = synthesise(grain, (radius.shape[0], radius.shape[1]), frame).to(colour)
    level = colour.mean(0).clamp(0, 1) * (_BINS - 1)
    low = level.floor().long().clamp_max(_BINS - 2)
    strength = torch.lerp(grain.strength[low], grain.strength[low + 1], level - low)
    made = colour + noise * (amount * strength * (1 - survives(grain, radius)).clamp_min(0).sqrt())
    made = made.clamp_min(0)
    if not linear:
        made = torch.minimum(made, colour.amax().clamp_min(1))
    made = (display.to_light(made) if linear else made).to(image.dtype)
    return torch.cat([torch.where(radius > 0, made, image[:planes]), image[planes:]])


def measure(picture: Tensor, alpha: Tensor | None = None) -> Grain | None:
    """The grain of a picture.

    Args:
        picture: ``[C, H, W]`` display values.
        alpha: ``[H, W]``; what is not opaque is not looked at.

    Returns:
        What was found; None if there is none, or no place to measure it.
    """
    if min(picture.shape[1:]) < _SIDE:
        return None
    blocks = _blocks(picture)
    if alpha is not None:
        blocks = blocks[_blocks(alpha[None].to(picture)).amin((1, 2, 3)) >= 1]
    inside = (blocks.amin((2, 3)) > _CLIPPED) & (blocks.amax((2, 3)) < 1 - _CLIPPED)
    whole = inside.all(1)
    blocks = blocks[
        whole if int(whole.sum()) >= _FEWEST else inside.any(1)
    ]  # a yellow flower has no blue anywhere
    if len(blocks) < _FEWEST:
        return None
    powers = _powers(blocks)
    rounding = _ROUNDING * torch.eye(len(picture)).to(powers)
    seen = _quietest(powers) - rounding
    if not bool((_total(seen) > 0).all()):
        return None
    # The quietest blocks have less than grain has on the whole: how much less is seen on grain that is known.
    trial = Grain(seen, seen.new_ones(_BINS))
    known = _powers(_blocks(synthesise(trial, (16 * _SIDE, 16 * _SIDE), 0).to(picture)))
    short = _total(seen) / _total(_quietest(known)).clamp_min(1e-12)
    power = seen * short.clamp(1, 3)[:, None, None]
    totals = _total(power)
    exponents = (totals[:-2] / totals[2:]).log2()
    knee = int(exponents.argmin())
    texture = min(1.0, max(0.0, (float(exponents[knee]) - _FLAT[0]) / (_FLAT[1] - _FLAT[0])))
    if texture == 1:
        return None
    # What is coarser than where the spectrum turns flat, and above it, is the picture's.
    most = torch.where(torch.arange(len(totals), device=totals.device) < knee, totals[knee], totals)
    power = power * (totals.minimum(most) / totals * (1 - texture) ** 2)[:, None, None]
    # Brightness by brightness, by what is not coarser than that.
    bins = (blocks.mean((1, 2, 3)) * _BINS).long().clamp(0, _BINS - 1)
    strength = seen.new_full((_BINS,), math.nan)
    for number in range(_BINS):
        here = powers[bins == number]
        if len(here) >= _FEWEST:
            ratio = _total(_quietest(here) - rounding)[knee:].sum() / _total(seen)[knee:].sum()
            strength[number] = ratio.clamp(0, 4).sqrt()
    return Grain(power, _filled(strength))


def synthesise(grain: Grain, size: tuple[int, int], frame: int) -> Tensor:
    """New grain of mean 0: ``[C, H, W]``. Equal for equal arguments, on every device."""
    sides = [fast_size(length + _SIDE) for length in size]  # grain at one end is not to go on at the other
    generator = torch.Generator().manual_seed(0x6772_6169 + frame)
    white = torch.fft.rfft2(torch.randn(len(grain.power[0]), *sides, generator=generator).to(grain.power))
    across = torch.fft.rfftfreq(sides[1], device=white.device).to(grain.power)
    down = torch.fft.fftfreq(sides[0], device=white.device).to(grain.power)
    low, mix = _between(torch.hypot(down[:, None], across))
    values, axes = torch.linalg.eigh(grain.power)
    roots = (axes * values.clamp_min(0).sqrt()[:, None]) @ axes.mT  # [bands, C, C]
    made = torch.zeros_like(white)
    for channel, spectrum in enumerate(made):
        for source, part in enumerate(white):
            gain = roots[:, channel, source]
            spectrum += part * torch.lerp(gain[low], gain[low + 1], mix)
    made[:, 0, 0] = 0
    return torch.fft.irfft2(made, s=sides)[:, : size[0], : size[1]]


def survives(grain: Grain, radius: Tensor) -> Tensor:
    """Share of the grain's variance that a blur leaves; ``radius`` and the result of any shape."""
    line = torch.fft.fftfreq(4 * _SIDE, dtype=torch.float64)
    frequency = torch.hypot(line[:, None], line).flatten()
    low, mix = _between(frequency)
    power = _total(grain.power).cpu().double()
    power = torch.lerp(power[low], power[low + 1], mix)
    phase = 2 * math.pi * frequency * torch.tensor(_RADII, dtype=torch.float64)[:, None]
    disc = torch.where(
        phase > 0, 2 * torch.special.bessel_j1(phase) / phase, 1.0
    )  # a disc's transfer function
    left = ((disc.square() * power).sum(1) / power.sum()).to(radius)
    left, known = torch.cat([left.new_ones(1), left]), torch.cat([left.new_zeros(1), left.new_tensor(_RADII)])
    upper = torch.bucketize(radius.contiguous(), known).clamp(1, len(known) - 1)
    mix = ((radius - known[upper - 1]) / (known[upper] - known[upper - 1])).clamp(0, 1)
    return torch.lerp(left[upper - 1], left[upper], mix) * (known[-1] / radius.clamp_min(known[-1])).square()


def _between(frequency: Tensor) -> tuple[Tensor, Tensor]:
    """Bands between whose middles frequencies (cycles a pixel) lie: number of the lower one, way to the next."""
    middles = [math.sqrt(low * high) for low, high in pairwise(_BANDS)]
    at = 2 * (frequency * _SIDE).clamp_min(1).div(middles[0]).log2().clamp(0, (len(middles) - 1) / 2)
    low = at.long().clamp_max(len(middles) - 2)
    return low, at - low


def _blocks(picture: Tensor) -> Tensor:
    """Blocks ``[N, C, side, side]``: half overlapping, or as many as are enough."""
    height, width = picture.shape[1:]
    step = max(_SIDE // 2, math.ceil(math.sqrt(height * width / _MOST)))
    return picture.unfold(1, _SIDE, step).unfold(2, _SIDE, step).movedim(0, 2).flatten(0, 1)


def _powers(blocks: Tensor) -> Tensor:
    """``[N, bands, C, C]`` of ``[N, C, side, side]``: the channels' covariance in each band."""
    window = torch.hann_window(_SIDE, dtype=blocks.dtype, device=blocks.device)
    window = window[:, None] * window
    line = torch.fft.fftfreq(_SIDE, 1 / _SIDE, device=blocks.device)
    frequency = torch.hypot(line[:, None], line)
    waves = torch.fft.fft2((blocks - blocks.mean((2, 3), keepdim=True)) * window) / window.norm()
    rings = [waves[..., (frequency >= low) & (frequency < high)] for low, high in pairwise(_BANDS)]
    return torch.stack([(ring @ ring.mH).real / ring.shape[-1] for ring in rings], 1)


def _quietest(powers: Tensor) -> Tensor:
    """``[bands, C, C]``: in each band the mean of the blocks that have least."""
    least = _total(powers).argsort(0)[: max(1, round(_QUIET * len(powers)))]
    return torch.stack([powers[least[:, band], band].mean(0) for band in range(powers.shape[1])])


def _total(powers: Tensor) -> Tensor:
    """Trace of matrices."""
    return powers.diagonal(dim1=-2, dim2=-1).sum(-1)


def _filled(values: Tensor) -> Tensor:
    """NaN replaced by what lies between the neighbours that are known, of a line; 1 if none is."""
    known = (~values.isnan()).nonzero()[:, 0]
    if len(known) == 0:
        return torch.ones_like(values)
    at = torch.arange(len(values), device=values.device)
    upper = torch.searchsorted(known, at).clamp_max(len(known) - 1)
    lower = (torch.searchsorted(known, at, right=True) - 1).clamp_min(0)
    low, high = known[lower], known[upper]
    mix = ((at - low) / (high - low).clamp_min(1)).clamp(0, 1).to(values)
    return torch.lerp(values[low], values[high], mix)
