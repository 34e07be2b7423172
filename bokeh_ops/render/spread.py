"""Light of one surface spread over the aperture: a blur whose radius changes from pixel to pixel.

A pixel of radius r is shared between the two nearest of a few fixed radii, linearly, so that the blur changes
continuously with depth; each fixed radius is one convolution, done by FFT. The aperture can be cut into sectors,
for the visibility of :mod:`bokeh_ops.render.layered`: then each sector is a kernel of its own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .aperture import Aperture
from .cache import ByteCache
from .surfaces import Box, Slice, Surface

_DIRECT = 3.0  # radius up to which a convolution is quicker than its Fourier transform
_UNSEEN = 5e-6  # share of an opening that is nothing but the error of the Fourier transform
_GRAIN = 1 / 64  # pixels: kernels that differ by less cannot be told apart
_MASKS: ByteCache[Tensor] = ByteCache(32_000_000)
_SPECTRA = 256_000_000  # bytes of Fourier transforms of kernels that are kept while a picture is painted
_STEP = 0.2  # neighbouring radii differ by this share, or by one and a half pixels


class Lattice:
    """The kernels of one aperture, at one place of the picture, and their Fourier transforms.

    Args:
        aperture: its shape.
        at: place in the picture, for a cat's eye; see :meth:`Aperture.kernel`.
        like: a tensor whose type and device to use.
    """

    def __init__(self, aperture: Aperture, at: tuple[float, float], like: Tensor) -> None:
        self.aperture, self.at, self.like = aperture, at, like
        self._kernels: dict[tuple[float, bool], Tensor] = {}
        self._spectra: ByteCache[Tensor] = ByteCache(_SPECTRA)

    def kernel(self, radius: float, in_front: bool) -> Tensor:
        """The whole aperture's kernel, as :meth:`Aperture.kernel` gives it."""
        if (radius, in_front) not in self._kernels:
            self._kernels[radius, in_front] = self.aperture.kernel(
                radius, in_front=in_front, at=self.at, dtype=self.like.dtype, device=self.like.device
            )
        return self._kernels[radius, in_front]

    def reach(self, radius: float) -> int:
        """Pixels from its middle to which a kernel of this radius extends."""
        return self.aperture.reach(radius, self.at)

    def shares(self, sectors: int) -> Tensor:
        """How much of the lens's light comes through each sector: ``[S, 1, 1, 1]``, of sum 1."""
        kernel = self.kernel(16.0, False)
        parts = (kernel * _sector_masks(kernel.shape[-1], sectors, False).to(kernel)).sum((1, 2))
        return (parts / parts.sum())[:, None, None, None]

    def spectrum(self, radius: float, in_front: bool, sectors: int, size: tuple[int, int]) -> Tensor:
        """Transform of each sector's kernel, ``[S, h, w / 2 + 1]``; each of sum 1."""

        def make() -> Tensor:
            kernel = self.kernel(radius, in_front)
            parts = kernel * _sector_masks(kernel.shape[-1], sectors, in_front).to(kernel)
            parts = parts / parts.sum((1, 2), keepdim=True).clamp_min(1e-12)
            reach = kernel.shape[-1] // 2
            canvas = kernel.new_zeros(sectors, *size)
            canvas[:, : 2 * reach + 1, : 2 * reach + 1] = parts
            return torch.fft.rfft2(canvas.roll((-reach, -reach), (1, 2)))

        return self._spectra.get((radius, in_front, sectors, size), make)


def _sector_masks(size: int, sectors: int, in_front: bool) -> Tensor:
    """``[S, size, size]``: which share of each pixel's direction lies in which sector of the lens; sum 1.

    In front of the focal plane the same part of the lens lies on the opposite side.
    """
    return _MASKS.get((size, sectors, in_front), lambda: _make_sector_masks(size, sectors, in_front))


def _make_sector_masks(size: int, sectors: int, in_front: bool) -> Tensor:
    if sectors == 1:
        return torch.ones(1, size, size)
    reach = size // 2
    fine = 5
    line = (torch.arange(size * fine) + 0.5) / fine - 0.5 - reach
    angle = torch.atan2(line[:, None], line[None]) + (math.pi if in_front else 0.0)
    number = torch.floor(angle / (2 * math.pi) * sectors).long() % sectors
    masks = torch.stack([(number == sector).float() for sector in range(sectors)])
    masks = masks.reshape(sectors, size, fine, size, fine).mean((2, 4))
    masks[:, reach, reach] = 1 / sectors
    return masks


def radii(part: Slice, grain: float = 0.0) -> list[float]:
    """The fixed radii of a slice, in pixels of the picture, from the sharpest it has to the most blurred.

    Args:
        part: the slice.
        grain: pixels, of which the ends are made multiples, outwards; 0 leaves them.
    """
    low, high = part.sharpest, part.broadest
    if grain:
        low, high = math.floor(low / grain) * grain, math.ceil(high / grain) * grain
    count = 1 + math.ceil((high - low) / max(1.5 if high > 2 else 0.6, _STEP * high) - 1e-6)
    return [low + (high - low) * i / max(1, count - 1) for i in range(count)]


def shares(radius: Tensor, nodes: list[float]) -> list[Tensor]:
    """How much of each pixel is spread with each of the fixed radii, such that second moments are exact.

    Args:
        radius: any shape.
        nodes: growing radii, one or more.

    Returns:
        For each of them a tensor like ``radius``, >= 0, together 1.
    """
    if len(nodes) == 1:
        return [torch.ones_like(radius)]
    square = radius.square().clamp(nodes[0] ** 2, nodes[-1] ** 2)
    result = []
    for i, node in enumerate(nodes):
        up = down = None
        if i > 0:
            up = (square - nodes[i - 1] ** 2) / (node**2 - nodes[i - 1] ** 2)
        if i + 1 < len(nodes):
            down = (nodes[i + 1] ** 2 - square) / (nodes[i + 1] ** 2 - node**2)
        share = up if down is None else down if up is None else torch.minimum(up, down)
        assert share is not None
        result.append(share.clamp_min(0))
    return result


def own_radius(radius: float, scale: int) -> float:
    """Radius of the kernel, in pixels of a slice, that gives ``radius`` pixels in the picture after growing.

    Averaging blocks and interpolating back blurs too; second moments add: (scale^2 - 1) / 12 per axis for the
    blocks and 3/16 of a squared pixel for every doubling. A disc with such a soft edge cannot have both the second
    moment and the plateau of a sharp one; a third of the surplus is taken back, which leaves both nearly as far off.
    """
    lost = (scale * scale - 1) / 12
    step = scale
    while step > 1:
        lost += 3 / 16 * step * step
        step //= 2
    return math.sqrt(max(radius * radius - 4 * lost / 3, 0.0)) / scale


def spread(surface: Surface, lattice: Lattice, sectors: int, window: Box, nominal: tuple[int, int]) -> Tensor:
    """What each sector of the lens sees of a surface alone, in a window.

    Args:
        surface: one completed slice.
        lattice: the aperture's kernels.
        sectors: number of parts of the lens.
        window: rows and columns of the surface's own scale, inside its box.
        nominal: height and width that most windows have; of the same size are their Fourier transforms.

    Returns:
        ``[S, C + 1, h, w]`` light and, last, opacity.
    """
    part = surface.slice
    # A cat's eye has kernels of its own in every place: drawn once for all frames of a film that are blurred alike.
    nodes = radii(part, _GRAIN if lattice.aperture.cats_eye > 0 else 0.0)
    own = [own_radius(radius, part.scale) for radius in nodes]
    reach = lattice.reach(own[-1])
    taken, kept = [], []
    for side, of in zip(window, surface.box, strict=True):
        low, high = max(of.start, side.start - reach), min(of.stop, side.stop + reach)
        taken.append(slice(low - of.start, high - of.start))
        kept.append(slice(side.start - low, side.stop - low))
    rows, columns = taken
    light, opacity = surface.light[:, rows, columns], surface.opacity[:, rows, columns]
    mixed = shares(surface.defocus[:, rows, columns].abs(), nodes)
    weights = [(radius, share) for radius, share in zip(own, mixed, strict=True) if bool(share.any())]
    # Where all is opaque, opacity is what an opaque surface would give.
    opaque = bool((opacity >= 1).all())
    source = torch.cat(
        [light, torch.ones_like(opacity)] if opaque else [light, opacity, torch.ones_like(opacity)]
    )
    in_front = part.low >= 0
    if sectors == 1 and own[-1] <= _DIRECT:
        seen = _directly(source, weights, lattice, in_front)
    else:
        size = [
            fast_size(max(least, side.stop - side.start) + 2 * reach)
            for least, side in zip(nominal, window, strict=True)
        ]
        seen = _by_fourier(source, weights, lattice, in_front, sectors, (size[0], size[1]))
    seen = seen[..., kept[0], kept[1]].clamp_min(0)
    # Divided by what an opaque surface would give: 1, but for the frame and where the radius changes quickly.
    whole = seen[:, -1:]
    if bool((whole < _UNSEEN).any()):
        seen = _beyond_the_frame(seen, source)
        whole = seen[:, -1:]
    whole = whole.clamp_min(1e-6)
    if opaque:
        return torch.cat([seen[:, :-1] / whole, torch.ones_like(whole)], 1)
    seen = seen[:, :-1] / whole
    over = seen[:, -1:]
    return seen / over.clamp_min(1) if bool((over > 1).any()) else seen


def _beyond_the_frame(seen: Tensor, source: Tensor) -> Tensor:
    """``seen``, where a part of the lens sees nothing of the picture: there, what the other parts see.

    An opening with a hole in it, or one far longer than wide, looks past the picture where its blur is nearly as large.
    Where all of the lens does, it is the mean of the surface that it most likely sees.
    """
    lost = seen[:, -1:] < _UNSEEN
    rest = torch.where(lost, 0, seen).sum(0, keepdim=True)
    rest = torch.where(rest[:, -1:] < _UNSEEN, source.mean((1, 2))[:, None, None], rest)
    return torch.where(lost, rest, seen)


def _directly(
    source: Tensor, weights: list[tuple[float, Tensor]], lattice: Lattice, in_front: bool
) -> Tensor:
    # Channels last: several times faster on a CPU for as few planes as these.
    planes = source[None].contiguous(memory_format=torch.channels_last)
    total = None
    for radius, weight in weights:
        kernel = lattice.kernel(radius, in_front).flip(0, 1)  # conv2d correlates
        kernel = kernel.expand(len(source), 1, -1, -1).contiguous()
        weighed = planes if len(weights) == 1 else planes * weight
        term = F.conv2d(weighed, kernel, padding=kernel.shape[-1] // 2, groups=len(source))
        total = term if total is None else total.add_(term)
    assert total is not None
    return total.contiguous()


def _by_fourier(
    source: Tensor,
    weights: list[tuple[float, Tensor]],
    lattice: Lattice,
    in_front: bool,
    sectors: int,
    size: tuple[int, int],
) -> Tensor:
    """Convolved around a torus of ``size``: right where that is as much larger than what is kept as kernels reach."""
    height, width = source.shape[-2:]
    total = None
    for radius, weight in weights:
        kernels = lattice.spectrum(radius, in_front, sectors, size)[:, None]
        light = torch.fft.rfft2(source if len(weights) == 1 else source * weight, s=size)
        total = light * kernels if total is None else torch.addcmul(total, light, kernels, out=total)
    assert total is not None
    return torch.fft.irfft2(total, s=size)[..., :height, :width]


def fast_size(least: int) -> int:
    """The next number that is a product of 2, 3 and 5, for which the FFT is fast."""
    size = max(1, least)
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 1
