"""What every lens model takes and gives: a :class:`Lens` in, a :class:`Rendered` out.

The models differ in how light is spread, not in what they are told, so one can be swapped for another
without touching what calls it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import BokehError

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` while rendering. Raising from it stops the rendering."""


@dataclass(frozen=True, eq=False)
class Lens:
    """How strongly and around which plane a picture is blurred, in the units of Peng et al. 2022 (BokehMe).

    Args:
        k: pixels of blur *radius* per unit of disparity, at the image's own resolution; >= 0.
            A number, or a tensor ``[B]`` with one value per image.
        focus_disparity: disparity that stays sharp, in the units of the disparity map. A number or ``[B]``.
        gamma: exponent that turns pixel values into light before they are added, and back afterwards;
            > 0. 2.2 is display gamma, 1 is for pictures that are linear already, larger brings highlights
            out.
        blades: 0 for a round aperture, else the number of aperture blades (>= 3).
        rotation: turn of the aperture polygon in degrees.
        highlight_boost: how much brighter out-of-focus highlights are made first; 0 is off, 0.4 is usual.
        highlight_threshold: value of the brightest channel above which a pixel is a highlight; 220/255.

    Raises:
        BokehError: a value outside what is said above.
    """

    k: float | Tensor
    focus_disparity: float | Tensor = 0.0
    gamma: float = 2.2
    blades: int = 0
    rotation: float = 0.0
    highlight_boost: float = 0.0
    highlight_threshold: float = 220 / 255

    def __post_init__(self) -> None:
        k = torch.as_tensor(self.k)
        if not bool(torch.isfinite(k).all()) or bool((k < 0).any()):
            raise BokehError(f"K is {self.k}; it must be 0 (all in focus) or larger, and finite.")
        if not bool(torch.isfinite(torch.as_tensor(self.focus_disparity)).all()):
            raise BokehError(f"The focus disparity is {self.focus_disparity}; it must be a finite number.")
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            raise BokehError(f"Gamma is {self.gamma}; it must be above 0. 2.2 is display gamma, 1 is linear.")
        if self.blades != 0 and self.blades < 3:
            raise BokehError(
                f"An aperture of {self.blades} blades was asked for; use 0 (round) or 3 and more."
            )
        if not math.isfinite(self.rotation):
            raise BokehError(
                f"The aperture's rotation is {self.rotation}; it must be a finite angle in degrees."
            )
        if not (math.isfinite(self.highlight_boost) and self.highlight_boost >= 0):
            raise BokehError(f"The highlight boost is {self.highlight_boost}; it must be 0 (off) or larger.")
        if not 0 <= self.highlight_threshold < 1:
            raise BokehError(
                f"The highlight threshold is {self.highlight_threshold}; expected 0 up to below 1."
            )

    def defocus(self, disparity: Tensor) -> Tensor:
        """Signed defocus ``delta = K (disparity - focus_disparity)``, in pixels of blur radius.

        Args:
            disparity: ``[B, 1, H, W]``, larger is nearer.

        Returns:
            ``[B, 1, H, W]``: 0 in focus, positive in front of the focal plane, negative behind it.

        Raises:
            BokehError: K or the focus disparity has neither one value nor one per image.
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
        return rows(self.k, "K") * (disparity.to(work) - focus)


class Rendered(NamedTuple):
    """What a lens model gives back."""

    image: Tensor
    """``[B, C, H, W]``, the input's type. Not clamped: a boosted highlight may exceed 1."""
    defocus: Tensor
    """``[B, 1, H, W]`` signed defocus in pixels of blur radius, positive in front of the focal plane."""


class LensModel(Protocol):
    """One way to spread light. Inputs are already checked by :func:`bokeh_ops.render.render`."""

    def __call__(
        self, image: Tensor, disparity: Tensor, lens: Lens, progress: Progress | None = None
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
            "batch and size must agree. Fit the map first (bokeh_ops.depth.fit_to_image)."
        )
    if not image.is_floating_point() or not disparity.is_floating_point():
        raise BokehError(f"Expected floating point tensors; got {image.dtype} and {disparity.dtype}.")
    for name, tensor in (("image", image), ("disparity map", disparity)):
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise BokehError(f"The {name} has {bad} values that are NaN or infinite; all must be finite.")
