"""What every lens model takes and gives: a :class:`Lens` in, a :class:`Rendered` out.

The models differ in how light is spread, not in what they are told, so one can be swapped for another
without touching what calls it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import BokehError
from .aperture import Aperture
from .transfer import Gamma, check_gamma, from_light, to_light

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` while rendering. Raising from it stops the rendering."""


USUAL_RECOVERY = 3.0

LARGEST_BLUR = 2.0
"""Diagonals of the picture: the largest blur radius that is drawn (:func:`drawn`)."""


@dataclass(frozen=True, eq=False)
class Lens:
    """How strongly and around which plane a picture is blurred, in the units of Peng et al. 2022 (BokehMe).

    Args:
        k: pixels of blur *radius* per unit of disparity, at the image's own resolution; >= 0.
            A number, or a tensor ``[B]`` with one value per image.
        focus_disparity: disparity that stays sharp, in the units of the disparity map. A number or ``[B]``.
        gamma: how pixel values become light before they are added, and values again afterwards: an exponent > 0
            (2.2 is display gamma, larger brings highlights out, 1 is for pictures that are linear already), or
            ``"srgb"`` for the exact curve. See :mod:`bokeh_ops.render.transfer`.
        aperture: shape of the opening. Each lens model refuses the shapes it cannot draw.
        highlight_boost: how much brighter out-of-focus highlights are made first; 0 is off, 0.4 is usual.
        highlight_threshold: value of the brightest channel above which a pixel is a highlight; 220/255.
        highlight_recovery: how far light that the picture's white clipped is guessed back, in units of white
            (:mod:`bokeh_ops.render.highlights`); 0 is off. By default 3 for pictures that are encoded, and off for
            linear ones, which need not be clipped.
        focus_band: width of a band of disparity about the focus disparity, in its units, in which everything is
            perfectly sharp; outside, defocus counts from the nearer end of the band. A number or ``[B]``; >= 0.
        sharp: pixels that are in focus whatever their disparity, ``[B or 1, H, W]``, boolean: no lens does this, but
            portrait modes do.

    Raises:
        BokehError: a value outside what is said above.
    """

    k: float | Tensor
    focus_disparity: float | Tensor = 0.0
    gamma: Gamma = 2.2
    aperture: Aperture = field(default_factory=Aperture)
    highlight_boost: float = 0.0
    highlight_threshold: float = 220 / 255
    highlight_recovery: float | None = None
    focus_band: float | Tensor = 0.0
    sharp: Tensor | None = None

    def __post_init__(self) -> None:
        k = torch.as_tensor(self.k)
        if not bool(torch.isfinite(k.float()).all()) or bool((k < 0).any()):
            raise BokehError(f"K is {self.k}; it must be 0 (all in focus) or larger, and finite.")
        if not bool(torch.isfinite(torch.as_tensor(self.focus_disparity)).all()):
            raise BokehError(f"The focus disparity is {self.focus_disparity}; it must be a finite number.")
        check_gamma(self.gamma)
        if not isinstance(self.aperture, Aperture):
            raise BokehError(
                f"The lens's aperture is {self.aperture!r}; expected a bokeh_ops.render.Aperture, such as "
                "Aperture(blades=6)."
            )
        if not (math.isfinite(self.highlight_boost) and self.highlight_boost >= 0):
            raise BokehError(f"The highlight boost is {self.highlight_boost}; it must be 0 (off) or larger.")
        if not 0 <= self.highlight_threshold < 1:
            raise BokehError(
                f"The highlight threshold is {self.highlight_threshold}; expected 0 up to below 1."
            )
        if not (math.isfinite(self.recovery) and self.recovery >= 0):
            raise BokehError(
                f"The highlight recovery is {self.highlight_recovery}; it must be 0 (off) or larger, and finite."
            )
        band = torch.as_tensor(self.focus_band)
        if not bool(torch.isfinite(band).all()) or bool((band < 0).any()):
            raise BokehError(
                f"The focus band is {self.focus_band}; it must be 0 (a single plane) or larger, and finite."
            )
        if self.sharp is not None and (self.sharp.ndim != 3 or self.sharp.dtype != torch.bool):
            raise BokehError(
                f"What is held sharp is {self.sharp.dtype} {tuple(self.sharp.shape)}; expected boolean [B or 1, H, W]."
            )

    @property
    def recovery(self) -> float:
        """``highlight_recovery``, or its default for this lens's gamma."""
        if self.highlight_recovery is not None:
            return self.highlight_recovery
        return 0.0 if self.gamma == 1 else USUAL_RECOVERY

    def to_light(self, image: Tensor) -> Tensor:
        """Linear light from this lens's pixel values (:func:`bokeh_ops.render.transfer.to_light`)."""
        return to_light(image, self.gamma)

    def from_light(self, light: Tensor) -> Tensor:
        """Pixel values from linear light (:func:`bokeh_ops.render.transfer.from_light`)."""
        return from_light(light, self.gamma)

    def defocus(self, disparity: Tensor) -> Tensor:
        """Signed defocus ``delta = K (disparity - focus_disparity)``, in pixels of blur radius.

        With a focus band of width ``b`` the difference is first drawn towards 0 by ``b / 2``. It is 0 where
        ``sharp`` is set. Always finite: what is beyond the largest number there is counts as that. What a lens model
        draws of it is :func:`drawn`.

        Args:
            disparity: ``[B, 1, H, W]``, larger is nearer.

        Returns:
            ``[B, 1, H, W]``: 0 in focus, positive in front of the focal plane, negative behind it.

        Raises:
            BokehError: K, the focus disparity, the focus band or what is held sharp has neither one value nor one per
                image, or the last another size.
        """
        work = torch.float64 if disparity.dtype == torch.float64 else torch.float32
        batch = disparity.shape[0]

        def rows(value: float | Tensor, name: str) -> Tensor:
            tensor = torch.as_tensor(value).to(disparity.device, work).reshape(-1)
            if tensor.numel() not in (1, batch):
                raise BokehError(
                    f"{name} has {tensor.numel()} values for {batch} images; give one, or one per image."
                )
            return tensor.reshape(-1, 1, 1, 1)

        focus = rows(self.focus_disparity, "The focus disparity")
        largest = torch.finfo(work).max
        away = (disparity.to(work) - focus).clamp(-largest, largest)
        if bool((torch.as_tensor(self.focus_band) > 0).any()):
            half = rows(self.focus_band, "The focus band") / 2
            away = away - torch.minimum(torch.maximum(away, -half), half)
        if self.sharp is not None:
            if self.sharp.shape[0] not in (1, batch) or self.sharp.shape[1:] != disparity.shape[2:]:
                raise BokehError(
                    f"What is held sharp is {tuple(self.sharp.shape)} but the disparity map is "
                    f"{tuple(disparity.shape)}: size and batch must agree (or one serve all)."
                )
            away = away.masked_fill(self.sharp[:, None].to(away.device), 0)
        return (rows(self.k, "K") * away).clamp(-largest, largest)


def largest_radius(height: int, width: int, diagonals: float | None = None) -> float:
    """The largest blur radius that is drawn in a picture of this size, in pixels: :data:`LARGEST_BLUR` diagonals."""
    return (LARGEST_BLUR if diagonals is None else diagonals) * math.hypot(height, width)


def drawn(defocus: Tensor, diagonals: float | None = None) -> Tensor:
    """The defocus that is drawn: no larger than the picture has any use for.

    A disc whose radius is the picture's diagonal covers the whole picture from everywhere in it, and a larger one does
    so too, only fainter. So what is blurred more is drawn with :data:`LARGEST_BLUR` diagonals, which leaves room for
    openings narrower than their radius. Without this bound a kernel may be far larger than the picture, and a few
    pixels take all the memory there is.

    Args:
        defocus: ``[..., H, W]`` signed defocus in pixels of blur radius.
        diagonals: the bound of a model whose work does not grow beyond a diagonal, in place of the usual one.

    Returns:
        The same shape.
    """
    limit = largest_radius(defocus.shape[-2], defocus.shape[-1], diagonals)
    return defocus.clamp(-limit, limit)


class Rendered(NamedTuple):
    """What a lens model gives back."""

    image: Tensor
    """``[B, C, H, W]``, the input's type. Not clamped: a boosted highlight may exceed 1."""
    defocus: Tensor
    """``[B, 1, H, W]`` signed defocus in pixels of blur radius, positive in front of the focal plane.

    What the lens says, :meth:`Lens.defocus`; the picture is drawn with no more than :func:`drawn` leaves of it."""


class LensModel(Protocol):
    """One way to spread light. Inputs are already checked by :func:`bokeh_ops.render.render`.

    ``tile`` is what a model may be told where memory is short: about how many pixels along what it computes at once.
    A smaller one takes less memory and more time, and gives the same picture up to rounding. None: what is quickest.
    """

    def __call__(
        self,
        image: Tensor,
        disparity: Tensor,
        lens: Lens,
        progress: Progress | None = None,
        tile: int | None = None,
    ) -> Rendered: ...


def check_inputs(image: Tensor, disparity: Tensor) -> None:
    """Refuse a picture and a disparity map that do not belong together.

    Args:
        image: ``[B, C, H, W]`` with C = 1, 3 or 4 (RGB and alpha), floating point.
        disparity: ``[B, 1, H, W]``, finite.

    Raises:
        BokehError: wrong rank, channels, size, batch or type; an empty batch; values that are not finite.
    """
    if image.ndim != 4 or disparity.ndim != 4 or disparity.shape[1] != 1:
        raise BokehError(
            f"Expected an image [B, C, H, W] and a disparity map [B, 1, H, W]; "
            f"got {tuple(image.shape)} and {tuple(disparity.shape)}."
        )
    if 0 in image.shape:
        raise BokehError(f"The image is empty: its shape is {tuple(image.shape)}. Give at least one picture.")
    if image.shape[1] not in (1, 3, 4):
        raise BokehError(
            f"The image has {image.shape[1]} channels; expected 1, 3 (RGB) or 4 (RGB and alpha)."
        )
    if image.shape[0] != disparity.shape[0] or image.shape[2:] != disparity.shape[2:]:
        raise BokehError(
            f"The image is {tuple(image.shape)} but the disparity map is {tuple(disparity.shape)}: "
            "batch and size must agree. Fit the map first (bokeh_ops.depth.conventions.fit_to_image)."
        )
    if not image.is_floating_point() or not disparity.is_floating_point():
        raise BokehError(f"Expected floating point tensors; got {image.dtype} and {disparity.dtype}.")
    for name, tensor in (("image", image), ("disparity map", disparity)):
        # One by one: the check of a whole video would take more memory than the video.
        bad = sum(one.numel() - int(torch.isfinite(one).sum()) for one in tensor)
        if bad:
            raise BokehError(f"The {name} has {bad} values that are NaN or infinite; all must be finite.")
