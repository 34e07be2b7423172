"""How strongly a photograph is blurred, and where it is sharp, from its pixels and its disparity.

A lens spreads a point that is out of focus over a disc of radius ``r = K |disparity - focus|``. That multiplies the
picture's spectrum by the disc's, ``2 J1(2 pi r f) / (2 pi r f)``, which is known in closed form. What the spectrum was
before is not known, but pictures of things are alike there: their power falls as a power of the frequency, mostly
between ``f^-2`` (texture) and ``f^-3`` (lone edges). So the ratio of the energies in two neighbouring bands of
frequency tells r: it is measured in patches that lie at one depth each, and K, the focus, and what all patches of the
picture have in common (a sharpening, a slope of its own) are found together as what explains the ratios best.

Left out are pixels whose band reaches over a change of depth (there, the blur is partly that of what is in front),
clipped ones (their light is not known), the frame's rim, and bands in the noise. A patch that no blur explains, such as
a soft shadow or a sky, counts little: the fit is robust.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BokehError
from ..picture.colour import srgb_to_linear
from .optics import TRAINING_WIDTH

SIDE = 640
"""Longer side in pixels of the reduced copy that is looked at; smaller pictures are not enlarged."""

FEWEST = 8
"""Patches below which nothing is said."""

_SCALES = (0.8, 1.13, 1.6)  # of the Gaussians between which a level's two bands lie, pixels
_LEVELS = 5  # each of half the size
_BANDS = 2 * _LEVELS
_SLOPES = (1.4, 1.7, 2.0, 2.3, 2.6, 2.9, 3.2)  # powers with which a patch's power may fall
_SLOPE, _SLOPE_SPREAD = 2.4, 0.3  # what they mostly are
_COMMON = 0.1  # how far, in log energy, a picture's bands differ together from that
_OWN = 0.4  # Gaussian blur that a sharp picture has of itself, pixels
_TILE = 48  # side of a patch at most, pixels
_STEPS = 24  # in which the disparities of patches are told apart
_ALIKE = 0.06  # share of the whole range of disparity that a patch may span
_MARGIN = 3  # pixels beyond a band's own reach that must be of the same depth
_CLIPPED = 0.985  # value of a channel from which it is clipped
_NOISE = 1e-6  # energy of a band in light squared below which it may be noise
_ABOVE = 3.0  # times the noise that a band must have
_EMPTIEST = 0.05  # share of the patches in which there may be nothing but noise
_ENOUGH_PIXELS, _ENOUGH_RATIOS = 60, 3  # of a patch
_MODEL = 0.15  # error of a ratio, in log energy, that stays with any number of pixels
_OUTLIER = 0.1  # likelihood of a patch that the model does not explain, against one that it explains wholly
_GROUPS = 12  # of disparity, which count alike however many patches they have
_RADII = torch.cat([torch.linspace(0, 1, 5), torch.logspace(math.log10(1.15), math.log10(64), 60)])
_LARGEST = (0.3, 180.0)  # blur radius that is looked for, over the whole range of disparity, pixels
_ROUNDS, _STARTS = 3, 4
_TELLS = 1.0  # log likelihood that blur must explain more than none at all
_REPEATED = 2.0  # patches of one thing resemble each other: so many tell as much as one


@dataclass(frozen=True, eq=False)
class Evidence:
    """What n patches of a picture say.

    Attributes:
        disparity: ``[n]``.
        ratios: ``[n, bands - 1]``, log of the energy in a band over that in the next finer one.
        weights: ``[n, bands - 1]``, one over the variance of each; 0 where it says nothing.
        side: longer side in pixels of the copy that was looked at.
        bounds: least and largest disparity of the picture, but for a hundredth at either end.
    """

    disparity: Tensor
    ratios: Tensor
    weights: Tensor
    side: int
    bounds: tuple[float, float]


@dataclass(frozen=True)
class BlurFit:
    """K and focus of one picture.

    Attributes:
        k: pixels of blur radius per unit of disparity on a picture whose longer side is 512 px.
        focus: disparity in focus.
        k_error: relative error of K as the spread of what explains the picture, about one standard deviation.
        focus_error: the focus's likewise, in units of disparity.
        largest: largest blur radius within the picture's disparities, in pixels of 512.
        patches: how many were looked at.
        confidence: 0 to 1.
        sharp: whether nothing says that any of it is blurred.
    """

    k: float
    focus: float
    k_error: float
    focus_error: float
    largest: float
    patches: int
    confidence: float
    sharp: bool


def working_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the copy that is looked at: the longer side :data:`SIDE`, or the picture's own."""
    share = min(1.0, SIDE / max(height, width))
    return max(1, round(height * share)), max(1, round(width * share))


def gather(picture: Tensor, disparity: Tensor) -> Evidence:
    """Look at a picture's patches.

    Args:
        picture: ``[1, C, H, W]`` as displayed (sRGB), 0..1, C = 1 or 3; of :func:`working_size`.
        disparity: ``[1, 1, H, W]``.

    Raises:
        BokehError: depth that is the same everywhere, or fewer than :data:`FEWEST` patches with detail at one depth.
    """
    values = disparity.flatten()[:: max(1, disparity.numel() // 100_000)].float()
    low, high = values.quantile(torch.tensor([0.01, 0.99])).tolist()
    if not high > low:
        raise BokehError(
            f"The depth is {low:g} everywhere, so blur cannot be told from depth. Link the depth map of this picture."
        )
    height, width = picture.shape[-2:]
    light, clipped = srgb_to_linear(picture.float().clamp(0, 1)), (picture > _CLIPPED).any(1, True).float()
    middle = near = far = disparity.float()
    across = -(-width // _TILE)
    cells = -(-height // _TILE) * across * _STEPS
    fine, coarse, pixels = (torch.zeros(_BANDS - 1, cells) for _ in range(3))
    depths, counted = torch.zeros(cells), torch.zeros(cells)
    before = None
    for level in range(_LEVELS):
        step = 2**level
        rows, columns = light.shape[-2:]
        if min(rows, columns) < 16:
            break
        tile = (torch.arange(rows) * step // _TILE * across)[:, None] + torch.arange(columns) * step // _TILE
        part = ((middle[0, 0] - low) / (high - low) * _STEPS).floor().clamp(0, _STEPS - 1).long()
        cell = tile.clamp(max=cells // _STEPS - 1) * _STEPS + part
        blurred = [_gaussian(light, scale) for scale in _SCALES]
        for index in range(2):
            band = 2 * level + index
            energy = (blurred[index] - blurred[index + 1]).square().sum(1)[0]
            if before is not None:
                reach = math.ceil(2 * _SCALES[index + 1] + _MARGIN / step)
                sound = _sound(near, far, clipped, reach, _ALIKE * (high - low))
                last = before if index else F.avg_pool2d(before[None], 2)[0]
                where = cell[sound]
                fine[band - 1].index_add_(0, where, last[sound])
                coarse[band - 1].index_add_(0, where, energy[sound])
                pixels[band - 1].index_add_(0, where, torch.ones(len(where)))
                if band == 1:
                    depths.index_add_(0, where, middle[0, 0][sound])
                    counted.index_add_(0, where, torch.ones(len(where)))
            before = energy
        light, middle = F.avg_pool2d(light, 2), F.avg_pool2d(middle, 2)
        clipped, near, far = F.max_pool2d(clipped, 2), F.max_pool2d(near, 2), -F.max_pool2d(-far, 2)
    kept = counted >= _ENOUGH_PIXELS
    fine, coarse, pixels = (each[:, kept].T for each in (fine, coarse, pixels))
    scale = torch.tensor([_SCALES[1] * 2 ** (index % 2 / 2) for index in range(1, _BANDS)])
    samples = pixels / (6 * scale**2)
    fine, coarse = fine / pixels.clamp_min(1), coarse / pixels.clamp_min(1)
    noise = _noise(fine[:, 0])
    said = (samples >= 3) & (fine > _NOISE) & (fine > _ABOVE * noise[:-1]) & (coarse > _ABOVE * noise[1:])
    ratios = torch.where(said, ((coarse - noise[1:]) / (fine - noise[:-1]).clamp_min(1e-20)).log(), 0.0)
    weights = said / (1.5 / samples.clamp_min(1) + _MODEL**2)
    enough = said.sum(1) >= _ENOUGH_RATIOS
    if int(enough.sum()) < FEWEST:
        raise BokehError(
            f"Only {int(enough.sum())} patches of the picture have detail at a single depth; at least {FEWEST} are "
            "needed to tell its blur. It is too flat, too small, or its depth jumps everywhere; say K by hand."
        )
    disparities = (depths / counted.clamp_min(1))[kept][enough]
    return Evidence(disparities, ratios[enough], weights[enough], max(height, width), (low, high))


def fit(evidence: Evidence, k: float | None = None, focus: tuple[float, float] | None = None) -> BlurFit:
    """K and the focus that explain a picture's blur best.

    Args:
        evidence: from :func:`gather`.
        k: K where it is known (pixels per unit of disparity at 512 px): then the focus alone is looked for.
        focus: least and largest disparity between which the focus lies, where that is known.

    Raises:
        BokehError: the patches have all one disparity.
    """
    disparity, low, high = evidence.disparity, *evidence.bounds
    spread = float(disparity.max() - disparity.min())
    if spread <= 2 * _ALIKE * (high - low):
        raise BokehError(
            "All patches of the picture that have detail lie at one depth, so K and the focus cannot be told apart. "
            "Say K by hand, or link a photograph whose EXIF data tell it."
        )
    unit = evidence.side / TRAINING_WIDTH  # pixels of the copy per pixel of 512
    ends = [math.log10(radius / (high - low)) for radius in _LARGEST]
    strengths = torch.logspace(ends[0], ends[1], 88)
    if k is not None:
        strengths = torch.tensor([k * unit])
    ends = evidence.bounds if focus is None else focus
    foci = torch.linspace(*ends, 66 if ends[1] > ends[0] else 1)
    places = _places(evidence, strengths, foci)
    common = _common(evidence, strengths, foci, places)
    misfit = _misfit(evidence, common, places)[0]
    chance = torch.softmax(-(misfit - misfit.min()).flatten() / _REPEATED, 0).view_as(misfit)
    row, column = divmod(int(misfit.argmin()), len(foci))
    # Once more on a finer grid about the best.
    finer = strengths[row] * torch.logspace(-0.04, 0.04, 17) if k is None else strengths
    step = float(foci[1] - foci[0]) if len(foci) > 1 else 0.0
    near = (foci[column] + torch.linspace(-step, step, 17)).clamp(*ends) if step else foci
    fine = _misfit(evidence, common, _places(evidence, finer, near))[0]
    best, at = divmod(int(fine.argmin()), len(near))
    found, focused = float(finer[best]), float(near[at])
    k_error = _deviation(chance.sum(1), strengths.log(), math.log(found))
    focus_error = _deviation(chance.sum(0), foci, focused)
    largest = found * max(abs(low - focused), abs(high - focused))
    sharp = k is None and float(misfit[0].min() - misfit.min()) < _TELLS
    confidence = _confidence(k_error, focus_error / (high - low), len(disparity)) * (0.3 if sharp else 1)
    return BlurFit(
        found / unit, focused, k_error, focus_error, largest / unit, len(disparity), confidence, sharp
    )


def _confidence(k_error: float, focus_error: float, patches: int) -> float:
    """From the spread of what explains the picture, and how much there was to explain."""
    return math.exp(-k_error / 0.3 - focus_error / 0.15) * patches / (patches + FEWEST)


def _deviation(chance: Tensor, values: Tensor, middle: float) -> float:
    """Standard deviation about the best value, with that of the grid's own step."""
    step = float(values[1] - values[0]) if len(values) > 1 else 0.0
    return math.sqrt(float((chance * (values - middle).square()).sum()) + step**2 / 12)


def _common(evidence: Evidence, strengths: Tensor, foci: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """What all patches' ratios have in common beyond the model, ``[bands - 1]``, from the start that ends best."""
    model, rows = _model(), torch.arange(len(evidence.disparity))
    none = torch.zeros(_BANDS - 1)
    first = _misfit(evidence, none, places)
    outcomes, begin = [], 0
    for part in first[0].chunk(_STARTS, 1):
        row, column = divmod(int(part.argmin()), part.shape[1])
        column, begin = column + begin, begin + part.shape[1]
        common, (misfit, cost, slope) = none, first
        for _ in range(_ROUNDS):
            radius = _nearest(strengths[row] * (foci[column] - evidence.disparity).abs())
            likely = torch.exp(-cost[rows, radius] / 2)
            trust = likely / (likely + _OUTLIER) * _shares(evidence.disparity) / 4  # their errors go together
            weights = evidence.weights * trust[:, None]
            rest = evidence.ratios - model[slope[rows, radius], radius]
            common = (weights * rest).sum(0) / (weights.sum(0) + _COMMON**-2)
            misfit, cost, slope = _misfit(evidence, common, places)
            row, column = divmod(int(misfit.argmin()), len(foci))
        outcomes.append((float(misfit.min() + (common / _COMMON).square().sum() / 2), common))
    return min(outcomes, key=lambda outcome: outcome[0])[1]


def _misfit(
    evidence: Evidence, common: Tensor, places: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Minus log likelihood ``[strengths, foci]`` of :func:`_places`.

    Also each patch's cost ``[n, radii]``, and which slope that is with.
    """
    model = _model()
    ratios, weights = evidence.ratios - common, evidence.weights
    square = (weights * ratios**2).sum(1)[:, None, None] + torch.einsum("nk,brk->nbr", weights, model**2)
    cost = (square - 2 * torch.einsum("nk,brk->nbr", weights * ratios, model)).clamp_min(0)
    unlike = ((torch.tensor(_SLOPES) - _SLOPE) / _SLOPE_SPREAD).square()
    cost, slope = (cost + unlike[:, None]).min(1)
    unlikely = -torch.log(torch.exp(-cost / 2) + _OUTLIER) * _shares(evidence.disparity)[:, None]
    upper, share = places
    rows = torch.arange(len(evidence.disparity))
    found = torch.lerp(unlikely[rows, upper - 1], unlikely[rows, upper], share)
    return found.sum(-1), cost, slope


def _places(evidence: Evidence, strengths: Tensor, foci: Tensor) -> tuple[Tensor, Tensor]:
    """Where the radius of each patch lies in the table, ``[strengths, foci, n]``: the next larger, and how near to it.

    Between two radii of the table the likelihood is taken linearly, or a finer grid would see steps.
    """
    radii = strengths[:, None, None] * (foci[:, None] - evidence.disparity).abs()
    upper = torch.bucketize(radii.clamp(max=float(_RADII[-1])), _RADII).clamp(1, len(_RADII) - 1)
    share = ((radii - _RADII[upper - 1]) / (_RADII[upper] - _RADII[upper - 1])).clamp(0, 1)
    return upper, share


def _shares(disparity: Tensor) -> Tensor:
    """Weights of patches ``[n]``, 1 on average, by which all depths count alike."""
    low, high = disparity.aminmax()
    group = ((disparity - low) / (high - low).clamp_min(1e-12) * _GROUPS).long().clamp(max=_GROUPS - 1)
    share = 1 / torch.bincount(group, minlength=_GROUPS)[group].float()
    return share / share.mean()


def _noise(finest: Tensor) -> Tensor:
    """Energy of the picture's noise in each band, from that of the finest in the patches ``[n]``.

    Where a patch has next to nothing in it, all that is there is noise; white noise then has in every further level a
    quarter of its energy, and a fixed share in a level's second band.
    """
    if not len(finest):
        return torch.zeros(_BANDS)
    floor = float(finest.quantile(_EMPTIEST))
    impulse = torch.zeros(1, 1, 31, 31)
    impulse[..., 15, 15] = 1
    blurred = [_gaussian(impulse, scale) for scale in _SCALES]
    fine, coarse = (float((one - other).square().sum()) for one, other in itertools.pairwise(blurred))
    shares = torch.tensor([1.0, coarse / fine]).repeat(_LEVELS)
    return floor * shares * 4.0 ** -(torch.arange(_BANDS) // 2)


def _nearest(radii: Tensor) -> Tensor:
    return torch.bucketize(radii, (_RADII[1:] + _RADII[:-1]) / 2)


def _sound(near: Tensor, far: Tensor, clipped: Tensor, reach: int, alike: float) -> Tensor:
    """Pixels ``[h, w]`` around which all is of one depth, not clipped, and within the frame."""
    window = 2 * reach + 1
    if min(near.shape[-2:]) <= window:
        return torch.zeros(near.shape[-2:], dtype=torch.bool)
    span = F.max_pool2d(near, window, 1) + F.max_pool2d(-far, window, 1)
    sound = (span <= alike) & (F.max_pool2d(clipped, window, 1) == 0)
    return F.pad(sound, [reach] * 4)[0, 0]


def _gaussian(planes: Tensor, scale: float) -> Tensor:
    """``[1, C, h, w]`` blurred, the frame's rim repeated beyond it."""
    reach = math.ceil(3 * scale)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * scale**2))
    kernel = (kernel / kernel.sum()).expand(planes.shape[1], 1, 1, -1)
    for _ in range(2):
        planes = F.conv2d(
            F.pad(planes, [reach, reach, 0, 0], mode="replicate"), kernel, groups=len(kernel)
        ).mT
    return planes


@cache
def _model() -> Tensor:
    """Ratios ``[slopes, radii, bands - 1]`` of a picture whose power falls so, blurred by a disc of such a radius.

    The energy of a band is ``integral |disc(r f)|^2 |band(f)|^2 |pixel(f)|^2 f^(1 - slope) df``, with
    ``disc(x) = 2 J1(2 pi x) / (2 pi x)``.
    """
    frequency = torch.logspace(-3.5, math.log10(2.0), 2000, dtype=torch.float64)
    width = frequency * frequency.log().diff().mean()
    phase = 2 * math.pi * _RADII.double()[:, None] * frequency
    disc = torch.where(phase > 1e-4, 2 * torch.special.bessel_j1(phase) / phase.clamp_min(1e-9), 1.0) ** 2
    disc = disc * torch.exp(-((2 * math.pi * frequency * _OWN) ** 2))
    bands = []
    for level in range(_LEVELS):
        pixel = torch.sinc(frequency * 2**level) ** 2
        for low, high in itertools.pairwise(_SCALES):
            passed = [torch.exp(-2 * (math.pi * frequency * s * 2**level) ** 2) for s in (low, high)]
            bands.append((passed[0] - passed[1]) ** 2 * pixel * width)
    power = torch.stack([frequency ** (1 - slope) for slope in _SLOPES])
    energy = torch.einsum("rf,kf,bf->brk", disc, torch.stack(bands), power)
    return energy.log().diff(dim=2).float()
