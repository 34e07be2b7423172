"""sRGB, linear light and CIE L*a*b*, and the transfer of colour statistics from one picture to another.

The conversions take tensors of any shape whose three channels lie along ``dim``, the last one unless told
otherwise (``[..., H, W, 3]``, as ComfyUI's pictures; ``dim=-3`` for ``[..., 3, H, W]``). They compute in float32,
or float64 when given it, have no NaN gradient anywhere, and do not clip: out-of-gamut colours survive a round trip.

Constants: IEC 61966-2-1 for sRGB; CIE 15 for L*a*b* with the D65 white of the 2 degree observer. The matrix and the
white are those of scikit-image and kornia, whose numbers these functions reproduce. They are our own since kornia's
way back clips: of colours between -0.5 and 1.5 3 % come back wrong, by up to 0.31, and half precision stays half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BokehError

MODES = ("mean", "mean and deviation")
"""What :func:`match_lab` transfers: as the released code does, or as eq. 13 says."""

FLAT = 0.01
"""A standard deviation below this, in units of L*a*b*, is a flat channel: rounding, not picture."""

_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_WHITE = (0.95047, 1.0, 1.08883)
_DELTA = 6 / 29


def srgb_to_linear(values: Tensor) -> Tensor:
    """Linear light from sRGB values (0..1), elementwise; negative values go through the straight part."""
    values = _computable(values)
    curved = ((values.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(values > 0.04045, curved, values / 12.92)


def linear_to_srgb(values: Tensor) -> Tensor:
    """sRGB values from linear light (0..1), elementwise; the inverse of :func:`srgb_to_linear`."""
    values = _computable(values)
    curved = 1.055 * values.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(values > 0.0031308, curved, values * 12.92)


def rgb_to_lab(rgb: Tensor, dim: int = -1) -> Tensor:
    """CIE L*a*b* (D65, 2 degree) of sRGB colours.

    Args:
        rgb: sRGB values 0..1, three channels along ``dim``.
        dim: the channels' dimension.

    Returns:
        Same shape: L* 0..100, a* and b* about -128..127.

    Raises:
        BokehError: other than three channels.
    """
    xyz = _mix(srgb_to_linear(rgb), _matrix(), dim)
    x, y, z = (_compress(channel) for channel in xyz)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim)


def lab_to_rgb(lab: Tensor, dim: int = -1) -> Tensor:
    """sRGB colours of CIE L*a*b*, the inverse of :func:`rgb_to_lab`; not clipped to 0..1."""
    lightness, a, b = _channels(_computable(lab), dim)
    y = (lightness + 16) / 116
    xyz = torch.stack([_expand(channel) for channel in (y + a / 500, y, y - b / 200)], dim)
    return linear_to_srgb(torch.stack(_mix(xyz, torch.linalg.inv(_matrix()), dim), dim))


def match_lab(images: Tensor, reference: Tensor, mode: str = "mean", strength: float = 1.0) -> Tensor:
    """Give pictures the colours of others: eq. 13 of Bokeh Diffusion (after Reinhard et al. 2001), in float.

    Per channel of L*a*b* and per picture, ``I <- sigma_ref / sigma (I - mu) + mu_ref``. With mode ``"mean"``
    the factor is 1, as in the released code (which rounds to 8-bit L*a*b*; this does not).

    * A channel that is flat (deviation below :data:`FLAT`) has no deviation to scale: only its mean is moved.
    * Transparent pixels do not count: statistics are weighted by alpha, unless everything is transparent.
    * Where pictures or reference are grey (one channel), only L* is matched.
    * Results outside the gamut are clipped to 0..1, so a mean may end a little off the reference's.

    Args:
        images: ``[B, H, W, C]`` of sRGB values 0..1; C is 1, 3 or 4 (alpha, which is kept).
        reference: ``[R, H', W', C']``, any size. ``R`` divides ``B`` (1 and ``B`` do): picture ``i`` takes after
            reference ``i % R``, so that batches in the order of values (all scenes at the first K, then all at
            the second) are matched to one reference per scene.
        mode: one of :data:`MODES`.
        strength: 0 (the very input) to 1 (matched), a linear mixture in L*a*b*.

    Returns:
        Like ``images`` in shape, dtype and device.

    Raises:
        BokehError: shapes, channels, dtype, mode or strength as above not met, or NaN in a picture.
    """
    _check_pictures(images, "images")
    _check_pictures(reference, "reference")
    if mode not in MODES:
        raise BokehError(f"The mode of the colour match is {mode!r}; it must be one of {', '.join(MODES)}.")
    if not 0 <= strength <= 1:
        raise BokehError(f"The strength of the colour match is {strength}; it must be from 0 to 1.")
    batch, references = len(images), len(reference)
    if batch % references:
        raise BokehError(
            f"{references} reference pictures for {batch} pictures: give one, or one for each, or a number that "
            f"divides {batch} (they are then used in turn)."
        )
    if strength == 0:
        return images
    grey = images.shape[-1] == 1 or reference.shape[-1] == 1
    targets = [_statistics(*_lab_and_weight(picture), "reference", i) for i, picture in enumerate(reference)]
    result = images.clone()
    for i, picture in enumerate(images):  # one at a time: a film in float32 L*a*b* would not fit
        lab, weight = _lab_and_weight(picture)
        mean, deviation = _statistics(lab, weight, "images", i)
        mean_target, deviation_target = (value.to(lab.device) for value in targets[i % references])
        if mode == "mean":
            matched = lab + (mean_target - mean)
        else:
            scale = torch.where(deviation > FLAT, deviation_target / deviation.clamp(min=FLAT), 1.0)
            matched = scale * (lab - mean) + mean_target
        if grey:
            matched = torch.cat((matched[..., :1], lab[..., 1:]), -1)
        mixed = matched if strength == 1 else torch.lerp(lab, matched, strength)
        rgb = lab_to_rgb(mixed).clamp(0, 1)
        colours = min(3, images.shape[-1])
        # A grey picture stays grey: its a* and b* are zero but for rounding, so that any channel will do.
        result[i, ..., :colours] = (rgb[..., 1:2] if colours == 1 else rgb).to(images.dtype)
    return result


def _computable(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _matrix() -> Tensor:
    """Linear sRGB to XYZ relative to the white, float64 on the CPU."""
    return torch.tensor(_TO_XYZ, dtype=torch.float64) / torch.tensor(_WHITE, dtype=torch.float64)[:, None]


def _channels(colours: Tensor, dim: int) -> tuple[Tensor, ...]:
    if not -colours.ndim <= dim < colours.ndim or colours.shape[dim] != 3:
        raise BokehError(f"Expected three channels along dimension {dim}; got shape {tuple(colours.shape)}.")
    return colours.unbind(dim)


def _mix(colours: Tensor, matrix: Tensor, dim: int) -> list[Tensor]:
    # Written out: a matrix product may run in TF32 on a GPU, which is visible in L*a*b*.
    r, g, b = _channels(colours, dim)
    return [row[0] * r + row[1] * g + row[2] * b for row in matrix.tolist()]


def _compress(t: Tensor) -> Tensor:
    """CIE's ``f``: a cube root with a straight line near zero."""
    return torch.where(t > _DELTA**3, t.clamp(min=_DELTA**3) ** (1 / 3), t / (3 * _DELTA**2) + 4 / 29)


def _expand(f: Tensor) -> Tensor:
    return torch.where(f > _DELTA, f**3, 3 * _DELTA**2 * (f - 4 / 29))


def _check_pictures(pictures: Tensor, what: str) -> None:
    if pictures.ndim != 4 or 0 in pictures.shape or pictures.shape[-1] not in (1, 3, 4):
        raise BokehError(
            f"{what}: expected pictures [B, H, W, C], at least one, with 1, 3 or 4 channels; "
            f"got {tuple(pictures.shape)}."
        )
    if not pictures.is_floating_point():
        raise BokehError(f"{what}: expected floating point values from 0 to 1; got {pictures.dtype}.")


def _lab_and_weight(picture: Tensor) -> tuple[Tensor, Tensor]:
    """``[H, W, 3]`` L*a*b* in float32, and what each pixel counts ``[H, W, 1]``."""
    picture = picture.float()
    lab = rgb_to_lab(picture[..., :3].expand(*picture.shape[:2], 3))
    alpha = picture[..., 3:].clamp(0, 1)
    visible = picture.shape[-1] == 4 and bool(alpha.any())
    return lab, alpha if visible else torch.ones_like(lab[..., :1])


def _statistics(lab: Tensor, weight: Tensor, what: str, index: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (of the population) per channel, ``[3]`` each."""
    weight = weight / weight.mean()
    mean = (weight * lab).mean((0, 1))
    variance = (weight * (lab - mean) ** 2).mean((0, 1))
    deviation = variance.clamp(min=1e-12).sqrt()  # a root of zero has no gradient
    if not bool(torch.isfinite(mean + deviation).all()):
        raise BokehError(f"{what}: picture {index} holds NaN or infinite values; colours cannot be matched.")
    return mean, deviation
