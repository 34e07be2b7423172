"""The thin lens of Wang et al. 2023 (TAF) as "Fine-grained Defocus Blur" uses it, differentiable for training.

Its eq. 6 gives the diameter of the circle of confusion on the sensor,

    coc = |d - f_d| / d * f^2 / (N (f_s f_d - f))

with depth ``d``, focus distance ``f_d``, f-number ``N``, focal length ``f`` and a learned scale ``f_s``, which
multiplies ``f_d`` only in the denominator, as printed. Lengths are metres here; the paper does not say.

The picture is convolved with a disc that varies from pixel to pixel: of radius ``r = coc / 2`` in pixels at the pixel
that *receives* (a gather), with the soft edge ``0.5 + 0.5 tanh(4 (r - distance))`` and sum 1. What lies outside the
frame is left out of that sum. Like any blur by the receiver's depth it knows no occlusion: what is sharp does not
bleed, and what is blurred takes in its sharp surroundings.

How it is computed: the offsets of one distance have one weight, so their sum is taken first. The backward pass makes
these sums anew instead of keeping them, so memory stays at a few pictures, whatever the radius. Work grows with the
square of the largest radius (:data:`LARGEST_RADIUS`): this model is for training at some 512 pixels and moderate blur.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import BokehError
from .alpha import develop
from .contract import Lens, Progress, Rendered
from .offsets import SHARPNESS, Ring, Rings
from .transfer import Gamma

Quantity = float | Tensor

LARGEST_RADIUS = 256
"""Pixels of blur radius above which this model is refused."""


def circle_of_confusion(
    depth: Quantity,
    focus_distance: Quantity,
    focal_length: Quantity,
    f_number: Quantity,
    f_s: Quantity = 1.0,
) -> Tensor:
    """Diameter of the circle of confusion on the sensor, in metres (eq. 6). All arguments broadcast.

    Differentiable in all of them; where the depth is the focus distance, the derivative of ``|d - f_d|`` counts as 0.

    Args:
        depth: ``d``, metres, above 0; may be infinite.
        focus_distance: ``f_d``, metres.
        focal_length: ``f``, metres.
        f_number: ``N``.
        f_s: learned scale of the focus distance in the denominator; 1 is the thin lens itself.

    Raises:
        BokehError: something that is not above 0, or ``f_s f_d`` no longer than the focal length.
    """
    return _signed_coc(depth, focus_distance, focal_length, f_number, f_s).abs()


def thin_lens_blur(
    image: Tensor, radius: Tensor, progress: Progress | None = None, tile: int | None = None
) -> Tensor:
    """Convolve with a disc of sum 1 whose radius varies from pixel to pixel. Differentiable in both.

    Args:
        image: ``[B, C, H, W]``, light (linear), any C.
        radius: ``[B, 1, H, W]`` pixels, >= 0, of the disc over which the pixel takes the mean.
        progress: called as ``progress(done, total)``; may raise to stop.
        tile: see :class:`~bokeh_ops.render.contract.LensModel`; for accelerators.

    Returns:
        ``[B, C, H, W]``, in fp32, or in fp64 if the image is.

    Raises:
        BokehError: shapes that do not belong together, or a radius that is negative, not finite or over
            :data:`LARGEST_RADIUS`.
    """
    if image.ndim != 4 or radius.shape != (image.shape[0], 1, *image.shape[2:]):
        raise BokehError(
            f"Expected an image [B, C, H, W] and a radius [B, 1, H, W] of the same size; "
            f"got {tuple(image.shape)} and {tuple(radius.shape)}."
        )
    least, most = float(radius.detach().min()), float(radius.detach().max())
    if not (least >= 0 and most <= LARGEST_RADIUS):  # NaN is neither
        raise BokehError(
            f"The blur radius runs from {least:g} to {most:g} pixels; the thin lens takes 0 to {LARGEST_RADIUS}. "
            "Its work grows with the square of the radius; for more use another lens model."
        )
    work = torch.float64 if image.dtype == torch.float64 else torch.float32
    blurred = _Gather.apply(image.to(work), radius.to(image.device, work), progress, tile)
    assert isinstance(blurred, Tensor)
    return blurred


def render_thin_lens(
    image: Tensor,
    disparity: Tensor,
    lens: Lens,
    progress: Progress | None = None,
    tile: int | None = None,
) -> Rendered:
    """The thin lens under the common contract: its radius is ``|K (disparity - focus)|``.

    Differentiable in the image, the disparity, and K and focus where these are tensors. A picture whose radii are all
    0 comes back bit for bit. Alpha (a fourth channel, straight) is blurred too, and colour is weighed by it.

    Args:
        image: ``[B, C, H, W]``, C = 1, 3 or 4; negative values count as 0.
        disparity: ``[B, 1, H, W]``.
        lens: K, focus, gamma and highlights; a round aperture.
        progress: called as ``progress(done, total)``; may raise to stop.
        tile: see :class:`~bokeh_ops.render.contract.LensModel`; for accelerators.

    Returns:
        :class:`~bokeh_ops.render.contract.Rendered`.

    Raises:
        BokehError: an aperture that is not an even disc, or what :func:`thin_lens_blur` raises.
    """
    if not lens.aperture.is_disc:
        raise BokehError(
            "The thin lens model draws an even round opening only, no blades, kernel pictures, squeeze, cat's eye or "
            "spherical aberration. Choose the lens model 'layered' for these ('classical' draws straight blades too)."
        )
    defocus = lens.defocus(disparity.to(image.device))
    return Rendered(_rendered(image, defocus, lens, progress, tile), defocus)


def render_thin_lens_camera(
    image: Tensor,
    depth_metres: Tensor,
    focus_distance: Quantity,
    f_s: Quantity,
    f_number: Quantity,
    focal_length: Quantity,
    sensor_width: Quantity,
    gamma: Gamma = 2.2,
    progress: Progress | None = None,
) -> Rendered:
    """The thin lens from a camera's settings. Differentiable in all tensors given.

    Args:
        image: ``[B, C, H, W]``, C = 1, 3 or 4.
        depth_metres: ``[B, 1, H, W]``, above 0; may be infinite.
        focus_distance, f_s, f_number, focal_length: as for :func:`circle_of_confusion`; numbers or ``[B]``.
        sensor_width: metres, of the side that is the image's width; a number or ``[B]``.
        gamma: from pixel values to light, as :class:`~bokeh_ops.render.contract.Lens` takes it; 1 for linear pictures.
        progress: called as ``progress(done, total)``; may raise to stop.

    Returns:
        :class:`~bokeh_ops.render.contract.Rendered`; the defocus is positive in front of the focal plane.

    Raises:
        BokehError: what :func:`circle_of_confusion` and :func:`thin_lens_blur` raise.
    """
    work = torch.float64 if image.dtype == torch.float64 else torch.float32
    batch = image.shape[0]

    def rows(value: Quantity, name: str) -> Tensor:
        tensor = torch.as_tensor(value).to(image.device, work).reshape(-1)
        if tensor.numel() not in (1, batch):
            raise BokehError(
                f"The {name} has {tensor.numel()} values for {batch} images; give one, or one per image."
            )
        return tensor.reshape(-1, 1, 1, 1)

    width = rows(sensor_width, "sensor width")
    _above_zero(width, "sensor width", "metres")
    coc = _signed_coc(
        depth_metres.to(image.device, work),
        rows(focus_distance, "focus distance"),
        rows(focal_length, "focal length"),
        rows(f_number, "f-number"),
        rows(f_s, "scale f_s"),
    )
    defocus = coc / 2 * (image.shape[3] / width)
    return Rendered(_rendered(image, defocus, Lens(0.0, gamma=gamma), progress), defocus)


def _signed_coc(
    depth: Quantity, focus_distance: Quantity, focal_length: Quantity, f_number: Quantity, f_s: Quantity
) -> Tensor:
    """Eq. 6 without the bars and with the other sign: positive in front of the focal plane."""
    named = {"depth": depth, "focus distance": focus_distance, "focal length": focal_length}
    for name, value in named.items():
        _above_zero(value, name, "metres", infinite=name == "depth")
    _above_zero(f_number, "f-number", "")
    _above_zero(f_s, "scale f_s", "")
    beyond = torch.as_tensor(f_s * focus_distance - focal_length)
    if not bool((beyond > 0).all()):
        raise BokehError(
            f"The scaled focus distance f_s f_d is {f_s * focus_distance} m and the focal length {focal_length} m; "
            "the focus must be farther than the focal length. Lengths are in metres: 50 mm is 0.05."
        )
    # (f_d - d) / d, written so that d may be infinite.
    return torch.as_tensor((focus_distance / depth - 1) * focal_length**2 / (f_number * beyond))


def _above_zero(value: Quantity, what: str, unit: str, infinite: bool = False) -> None:
    tensor = torch.as_tensor(value)
    fine = (tensor > 0) if infinite else (tensor > 0) & torch.isfinite(tensor)
    if not bool(fine.all()):
        bad = tensor.detach().flatten()[~fine.flatten()][0]
        raise BokehError(f"The {what} is {float(bad):g}{' ' + unit if unit else ''}; it must be above 0.")


def _rendered(
    image: Tensor, defocus: Tensor, lens: Lens, progress: Progress | None, tile: int | None = None
) -> Tensor:
    """From a picture as displayed to light, through the lens, and back."""
    radius = defocus.abs()
    work = torch.float64 if image.dtype == torch.float64 else torch.float32
    given = image.to(work)
    colour = given[:, :3].clamp_min(0)
    if lens.highlight_boost > 0:
        above = (colour.amax(1, keepdim=True) - lens.highlight_threshold) / (1 - lens.highlight_threshold)
        colour = colour * (1 + lens.highlight_boost * above.clamp(0, 1) * radius.to(work).clamp(max=1))
    light = lens.to_light(colour)
    if image.shape[1] == 4:
        alpha = given[:, 3:].clamp_min(0)
        light = torch.cat([light * alpha, alpha], 1)
    result = develop(thin_lens_blur(light, radius, progress, tile), lens, given)
    moved = (radius > 0).flatten(1).any(1).view(-1, 1, 1, 1)
    return torch.where(moved, result.to(image.dtype), image)


class _Gather(torch.autograd.Function):
    """``sum_k w_k(r) S_k x / sum_k w_k(r) S_k 1`` with ``S_k`` the sum over the offsets of one distance.

    ``S_k`` is its own transpose, as the offsets of a distance are symmetric and what lies outside counts as 0.
    """

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, radius: Tensor, progress: Progress | None, tile: int | None
    ) -> Tensor:
        rings, pad = _rings(radius)
        height, width = radius.shape[-2:]
        # What the sum of the weights needs is a picture that is 1 everywhere, which goes with the others.
        padded = _padded(torch.cat([image, torch.ones_like(radius)], 1), pad)
        sums = torch.zeros_like(padded[:, :, :height, :width])
        strip = height if tile is None else max(1, min(height, tile * tile // width))
        for top in range(0, height, strip):
            rows = slice(top, min(height, top + strip))
            for number, ring in enumerate(rings):
                seen = _ring_sum(padded, ring, (pad[0] + top, pad[1], rows.stop - top, width))
                sums[:, :, rows].addcmul_(_share(radius[:, :, rows], ring), seen)
                if progress:
                    progress(top * len(rings) + (number + 1) * (rows.stop - top), height * len(rings))
        weight = sums[:, -1:]
        result = sums[:, :-1] / weight
        ctx.save_for_backward(image, radius, result, weight)
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator's signature)
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        image, radius, result, weight = ctx.saved_tensors
        rings, pad = _rings(radius)
        frame = (*pad, *radius.shape[-2:])
        to_image, to_radius = ctx.needs_input_grad[:2]
        gradient = grads[0] / weight
        for_image = torch.zeros_like(image) if to_image else None
        for_radius = torch.zeros_like(radius) if to_radius else None
        padded = _padded(torch.cat([image, torch.ones_like(radius)], 1), pad)
        mean = (gradient * result).sum(1, keepdim=True)
        for ring in rings:
            share = _share(radius, ring)
            if for_image is not None:
                for_image += _ring_sum(_padded(share * gradient, pad), ring, frame)
            if for_radius is not None:
                seen = _ring_sum(padded, ring, frame)
                light = (seen[:, :-1] * gradient).sum(1, keepdim=True)
                slope = SHARPNESS * share * (1 - share)
                for_radius += slope * (light - mean * seen[:, -1:])
        return for_image, for_radius, None, None


def _rings(radius: Tensor) -> tuple[Rings, tuple[int, int]]:
    """The offsets whose weight any pixel can tell from 0, and the margin they need."""
    height, width = radius.shape[-2:]
    limit = float(radius.max()) - math.log(torch.finfo(radius.dtype).eps) / SHARPNESS
    pad = min(math.ceil(limit), height - 1), min(math.ceil(limit), width - 1)
    return Rings(limit, pad, 0, 0.0), pad


def _padded(x: Tensor, pad: tuple[int, int]) -> Tensor:
    return F.pad(x, (pad[1], pad[1], pad[0], pad[0]))


def _share(radius: Tensor, ring: Ring) -> Tensor:
    return torch.sigmoid(SHARPNESS * (radius - ring.reach))


def _ring_sum(padded: Tensor, ring: Ring, frame: tuple[int, int, int, int]) -> Tensor:
    """The sum of what each offset sees of a picture; the offset (0, 0) sees ``(top, left, h, w)``."""
    top, left, height, width = frame
    total: Tensor | None = None
    for dy, dx in ring.offsets:
        part = padded[..., top + dy : top + dy + height, left + dx : left + dx + width]
        total = part.clone() if total is None else total.add_(part)
    assert total is not None
    return total
