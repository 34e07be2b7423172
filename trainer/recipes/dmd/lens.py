"""The lens that a generator learns with: from a picture that is all in focus to what a camera makes of it.

Source: Shrivastava et al., "Fine-grained Defocus Blur Control for Generative Image Models", sec. 3.2 and 3.3: the
picture's depth by a frozen network, what is in focus by a transformer (eqs. 4 and 5), the thin lens (eq. 6). A gradient
goes all the way back to the picture, through depth, focus and lens alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.camera.optics import k_from_camera
from bokeh_ops.depth.focus import focus_by_weight
from bokeh_ops.depth.focus_transformer import FocusTransformer, normalised
from bokeh_ops.render import Lens, LensModel, render
from trainer.data.sample import Taken

LARGEST_BLUR = 1 / 8
"""Of the picture's width: the largest blur radius. More says that depth is wrong, and work grows with its square."""
NEAREST = 2.0
"""Focal lengths, scaled, from the lens to the nearest focus: nearer than one of them eq. 6 has no blur to give."""
_LEAST_VALUE = 0.5 / 255
"""Darkest value of a picture, as light grows so slowly from black that its gradient is none, or infinite."""


class Seen(NamedTuple):
    """What is known of pictures before a lens forms them."""

    disparity: Tensor
    """``[R, 1, H, W]``, dioptres."""
    near: Tensor
    """The same from 0, the farthest, to 1, the nearest."""
    saliency: Tensor
    """``[R, H, W]``, 0..1."""
    focus: Tensor
    """``[R]``, dioptres: what is in focus (eq. 4)."""
    scale: Tensor
    """``[R]``: of the focus distance (eq. 5)."""


class LensChain:
    """Depth, focus and lens.

    Args:
        depth: of pictures ``[R, 3, H, W]``, 0..1: disparity ``[R, 1, H, W]`` in dioptres, with a gradient to them.
        focus: the transformer that trains, or has.
        reference: the frozen one that its focus is tied to; None outside of training.
    """

    def __init__(
        self,
        depth: Callable[[Tensor], Tensor],
        focus: FocusTransformer,
        reference: FocusTransformer | None = None,
    ) -> None:
        self.depth, self.focus, self.reference = depth, focus, reference

    def see(self, pictures: Tensor) -> Seen:
        """Where pictures ``[R, 3, H, W]``, about 0..1, are deep, and what they are focused on."""
        shown = pictures.clamp(0, 1)
        disparity = self.depth(shown)
        near = normalised(disparity)
        found = self.focus(shown, near)
        focus = focus_by_weight(disparity, found.saliency)
        return Seen(disparity, near, found.saliency, focus, found.scale)

    def tie(self, pictures: Tensor, seen: Seen) -> Tensor:
        """Huber loss ``[R]`` that ties the focus to the frozen transformer's (sec. 3.2), in the range of the depth.

        It has a gradient to the transformer alone, also where nothing else has one: pictures are not to change so
        that the two agree.
        """
        assert self.reference is not None
        shown, near = pictures.detach().clamp(0, 1), seen.near.detach()
        with torch.no_grad():
            wanted = focus_by_weight(near, self.reference(shown, near).saliency)
        with torch.enable_grad():
            found = focus_by_weight(near, self.focus(shown, near).saliency)
            return F.huber_loss(found, wanted, reduction="none")

    def through(
        self, pictures: Tensor, seen: Seen, taken: Sequence[Taken], model: str | LensModel = "thin_lens"
    ) -> Tensor:
        """Pictures as cameras take them.

        Args:
            pictures: ``[R, 3, H, W]``, about 0..1.
            seen: of them.
            taken: the camera of each.
            model: of lenses; any but ``thin_lens`` may have no gradient.

        Returns:
            ``[R, 3, H, W]``. Where a value is outside 0..1 it stays so by as much.
        """
        lens = Lens(
            k=self.strength(seen, taken, pictures.shape[3]), focus_disparity=self.focused(seen, taken)
        )
        shown = pictures.clamp(_LEAST_VALUE, 1)
        return pictures + (render(shown, seen.disparity, lens, model).image - shown)

    @staticmethod
    def focused(seen: Seen, taken: Sequence[Taken]) -> Tensor:
        """What is in focus ``[R]``, dioptres, no nearer than each camera can focus."""
        focal = seen.focus.new_tensor([each.focal_length for each in taken])
        return torch.minimum(seen.focus, seen.scale / (NEAREST * focal))

    def strength(self, seen: Seen, taken: Sequence[Taken], width: int) -> Tensor:
        """K ``[R]`` of cameras, pixels of blur radius per dioptre at a width in pixels (eq. 6)."""
        f_number, focal, sensor = seen.focus.new_tensor([list(each) for each in taken]).T
        distance = 1 / self.focused(seen, taken)
        k = k_from_camera(focal, f_number, distance, sensor, width, seen.scale)
        assert isinstance(k, Tensor)
        away = (seen.disparity - seen.focus.view(-1, 1, 1, 1)).abs().flatten(1).amax(1)
        return torch.minimum(k, LARGEST_BLUR * width / away.clamp(min=1e-6))
