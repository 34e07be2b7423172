"""The picture's own grain, given back to what was blurred.

Blur takes the grain of film and sensors with it, and a grainy subject before a background without any looks pasted.
The grain is measured in the flattest blocks of the picture that was given: how strong it is at each brightness, how
the channels go together, and its spectrum, which is its size. New grain of the same kind is laid over the rendering,
as much as the blur took: where a disc of radius r leaves the share s(r) of grain's variance,

    rendered + sqrt(1 - s(r)) * grain

Nothing is added where nothing was blurred, or to a picture without grain. All of this is in display values: grain
lives in the picture as it is shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .aperture import Aperture
from .contract import Lens
from .spread import fast_size

_BINS = 12  # steps of brightness
_FEWEST = 4  # blocks that say something about a step of brightness
_FLATTEST = 0.1  # of the blocks of a step of brightness; and all that are hardly rougher
_ROUGHER = 1.5  # times the variance of the flattest: as flat
_OUTLIER = 4.0  # times the variance of the usual step of brightness: texture, where nothing is flat
_FINE = 0.004, 0.01  # share of a diagonal difference in the variance: of smooth texture, and of grain
_ROUNDING = 1 / 255**2 / 6  # variance that rounding to 8 bits makes, twice
_RADII = (
    0.0,
    0.25,
    0.5,
    0.75,
    1.0,
    1.4,
    2.0,
    2.8,
    4.0,
    5.6,
    8.0,
    11.0,
)  # where s is reckoned; beyond it is 1 / area


@dataclass(frozen=True, eq=False)
class Grain:
    """What :func:`measure` found in a picture of C channels."""

    strength: Tensor
    """``[bins]`` standard deviation at each brightness from 0 to 1, against the mean over the picture's blocks."""
    mix: Tensor
    """``[C, C]`` from independent components of variance 1 to the channels."""
    kernels: Tensor
    """``[C, n, n]`` of energy 1: what white noise is filtered with, by component; the middle is at 0, 0."""
    left: Tensor
    """Share of the variance that is left after a blur of each of ``_RADII``."""
    area: float
    """Pixels over which the grain goes together: a blur over a larger area leaves this by that area."""


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

    before = shown(given)
    grain = measure(before, given[3] if len(given) == 4 else None)
    if amount == 0 or grain is None or not bool(defocus.any()):
        return image
    colour = shown(image)
    radius = defocus[0].abs().to(work)
    size = radius.shape
    noise = synthesise(grain, (size[0], size[1]), frame).to(colour)
    level = colour.mean(0).clamp(0, 1) * (len(grain.strength) - 1)
    low = level.floor().long().clamp_max(len(grain.strength) - 2)
    strength = torch.lerp(grain.strength[low], grain.strength[low + 1], level - low)
    made = colour + noise * (amount * strength * (1 - survives(grain, radius)).clamp_min(0).sqrt())
    made = made.clamp_min(0)
    if not linear:
        made = torch.minimum(made, colour.amax().clamp_min(1))
    made = (display.to_light(made) if linear else made).to(image.dtype)
    return torch.cat([torch.where(radius > 0, made, image[:planes]), image[planes:]])


def measure(picture: Tensor, alpha: Tensor | None = None) -> Grain | None:
    """The grain of a picture, from its flattest blocks.

    Args:
        picture: ``[C, H, W]`` display values.
        alpha: ``[H, W]``; what is not opaque is not looked at.

    Returns:
        What was found; None if there is none, or nothing to measure it on.
    """
    height, width = picture.shape[1:]
    side = 32 if min(height, width) >= 192 else 16
    if min(height, width) < side:
        return None
    blocks = _blocks(picture, side)
    if alpha is not None:
        blocks = blocks[_blocks(alpha[None].to(picture), side).amin((1, 2, 3)) >= 1]
    mean = blocks.mean((2, 3), keepdim=True)
    inside = (blocks.amin((1, 2, 3)) > 0.004) & (blocks.amax((1, 2, 3)) < 0.996)  # clipped grain is no grain
    blocks, mean = blocks[inside], mean[inside]
    if len(blocks) < _FEWEST:
        return None
    rest = _levelled(blocks)
    rough = rest.square().mean((1, 2, 3))
    step = (mean.mean((1, 2, 3)) * _BINS).long().clamp(0, _BINS - 1)
    flat = torch.zeros_like(step, dtype=torch.bool)
    for number in range(_BINS):
        here = step == number
        if int(here.sum()) >= _FEWEST:
            least = torch.quantile(rough[here], _FLATTEST)
            flat |= here & (rough <= _ROUGHER * least + 1e-9)
    if not bool(flat.any()):
        return None
    rest, rough, step = rest[flat], rough[flat], step[flat]
    usual = rough.median()
    kept = rough <= _OUTLIER * usual + 1e-9
    rest, rough, step = rest[kept], rough[kept], step[kept]
    # Texture is smooth from pixel to pixel where grain is not.
    diagonal = (rest[..., 1:, 1:] - rest[..., 1:, :-1] - rest[..., :-1, 1:] + rest[..., :-1, :-1]) / 2
    variance = float(rough.mean()) - _ROUNDING
    if variance <= 0:
        return None
    fine = max(0.0, float(diagonal.square().mean()) - _ROUNDING) / variance
    trust = min(1.0, max(0.0, (fine - _FINE[0]) / (_FINE[1] - _FINE[0])))
    if trust == 0:
        return None
    covariance = torch.einsum("ncyx,ndyx->cd", rest, rest) / (len(rest) * side * side)
    values, axes = torch.linalg.eigh(covariance)
    values = values.clamp_min(0)
    window = torch.hann_window(side, periodic=False, dtype=rest.dtype, device=rest.device)
    parts = torch.einsum("ncyx,ck->nkyx", rest, axes) * (window[:, None] * window)
    power = torch.fft.rfft2(parts).abs().square().mean(0)
    kernels = torch.fft.irfft2(power.sqrt(), s=(side, side))
    kernels = kernels / kernels.square().sum((1, 2), keepdim=True).sqrt().clamp_min(1e-12)
    share = (values / values.sum())[:, None, None]
    spectrum = torch.fft.rfft2(kernels).abs().square()
    together = (torch.fft.irfft2(spectrum, s=(side, side)) * share).sum(0)
    near = torch.fft.fftfreq(side, 1 / side, device=rest.device).abs() <= side // 4
    area = max(1.0, float(together[near][:, near].sum()))
    # The plane that was taken from each block took grain with it, as many degrees of freedom as it has.
    lost = max(0.5, 1 - 3 * area / side**2)
    strengths = torch.stack(
        [
            rough[step == n].mean() if bool((step == n).any()) else rough.new_tensor(math.nan)
            for n in range(_BINS)
        ]
    )
    strengths = (strengths - _ROUNDING).clamp_min(0) / (variance + _ROUNDING)
    strengths = _filled(strengths.sqrt())
    edges = F.interpolate(strengths[None, None], _BINS + 1, mode="linear", align_corners=True)[0, 0]
    mix = axes * (values / lost).sqrt() * trust
    left = torch.stack([_left(together, radius) for radius in _RADII])
    return Grain(edges, mix, kernels, left, area)


def synthesise(grain: Grain, size: tuple[int, int], frame: int) -> Tensor:
    """New grain of mean 0: ``[C, H, W]``. Equal for equal arguments, on every device."""
    count, side = len(grain.mix), grain.kernels.shape[-1]
    sides = [fast_size(max(length + side, side)) for length in size]
    generator = torch.Generator().manual_seed(0x6772_6169 + frame)
    white = torch.randn(count, *sides, generator=generator).to(grain.kernels)
    canvas = white.new_zeros(count, *sides)
    half = side // 2
    canvas[:, :side, :side] = grain.kernels.roll((half, half), (1, 2))
    spectrum = torch.fft.rfft2(white) * torch.fft.rfft2(canvas)
    made = torch.fft.irfft2(spectrum, s=sides)[:, side : side + size[0], side : side + size[1]]
    made = torch.einsum("ck,kyx->cyx", grain.mix, made)
    return made - made.mean((1, 2), keepdim=True)


def survives(grain: Grain, radius: Tensor) -> Tensor:
    """Share of the grain's variance that a blur leaves; ``radius`` and the result of any shape."""
    known = radius.new_tensor(_RADII)
    upper = torch.bucketize(radius.contiguous(), known).clamp(1, len(known) - 1)
    left = grain.left.to(radius)
    mix = ((radius - known[upper - 1]) / (known[upper] - known[upper - 1])).clamp(0, 1)
    within = torch.lerp(left[upper - 1], left[upper], mix)
    return within * (known[-1] / radius.clamp_min(known[-1])).square()


def _left(together: Tensor, radius: float) -> Tensor:
    """What a disc leaves of the variance of grain whose autocorrelation is ``[n, n]``, from distance 0 on."""
    if radius == 0:
        return together.new_ones(())
    kernel = Aperture().kernel(radius, dtype=together.dtype, device=together.device)
    kernel = kernel / kernel.sum()
    size = 2 * max(len(kernel), len(together))
    near = torch.fft.irfft2(torch.fft.rfft2(kernel, s=(size, size)).abs().square(), s=(size, size))
    at = torch.fft.fftfreq(len(together), 1 / len(together), device=together.device).long() % size
    return (near[at][:, at] * together).sum().clamp(0, 1)


def _blocks(picture: Tensor, side: int) -> Tensor:
    """Half overlapping blocks ``[N, C, side, side]``."""
    cut = picture.unfold(1, side, side // 2).unfold(2, side, side // 2)
    return cut.movedim(0, 2).flatten(0, 1)


def _levelled(blocks: Tensor) -> Tensor:
    """Blocks without the plane that fits them best."""
    side = blocks.shape[-1]
    line = torch.linspace(-1, 1, side, dtype=blocks.dtype, device=blocks.device)
    line = line / line.square().sum().sqrt() / math.sqrt(side)
    down, across = line[:, None].expand(side, side), line.expand(side, side)
    rest = blocks - blocks.mean((2, 3), keepdim=True)
    for tilt in (down, across):
        rest = rest - (rest * tilt).sum((2, 3), keepdim=True) * tilt
    return rest


def _filled(values: Tensor) -> Tensor:
    """NaN replaced by what lies between the neighbours that are known, of a line."""
    known = (~values.isnan()).nonzero()[:, 0]
    at = torch.arange(len(values), device=values.device)
    upper = torch.searchsorted(known, at).clamp_max(len(known) - 1)
    lower = (torch.searchsorted(known, at, right=True) - 1).clamp_min(0)
    low, high = known[lower], known[upper]
    mix = ((at - low) / (high - low).clamp_min(1)).clamp(0, 1).to(values)
    return torch.lerp(values[low], values[high], mix)
