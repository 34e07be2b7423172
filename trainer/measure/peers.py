"""What others do, to measure against: the blur that depth-of-field nodes commonly apply. Not for use in pictures.

Their public descriptions have this in common: the whole picture is blurred at a few strengths, each pixel takes the
copy that its distance from the focal depth calls for, and the strength is a slider without a unit. Written anew here:

* ``peer:gaussian-mix``: one blurred copy, mixed with the picture in proportion to the distance from focus.
* ``peer:gaussian-stack-N``: N copies, the first of them sharp, the others blurred by Gaussians up to the strongest;
  each pixel mixes the two nearest. 5 is what a quick node does, 32 a careful one.
* ``peer:disc-stack-N``: the same with discs.

They blur the values they are given: display-encoded ones with ``--input ldr``, as nodes do; linear light with
``--input linear`` and ``hdr``, which none of them does by itself. They get the exact disparity map in place of an
estimated one. As the slider has no unit, its best position is searched for each picture, by PSNR against the ground
truth; the time is that of one rendering.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.errors import BokehError

PREFIX = "peer:"
NAMES = ("gaussian-mix", "gaussian-stack-N", "disc-stack-N")

STRENGTHS = (0.05, 1.5)
"""Where the best strength is sought: deviation or radius of the strongest blur, per pixel of the lens's."""


@dataclass(frozen=True)
class Peer:
    """One of the peers, by its name."""

    kernel: str
    """``gaussian`` or ``disc``."""
    copies: int
    """Pictures blended, the sharp one among them; 2 is a plain mixture."""

    def __call__(self, picture: Tensor, defocus: Tensor, strength: float) -> Tensor:
        """Blend blurred copies.

        Args:
            picture: ``[C, H, W]``.
            defocus: ``[H, W]``, blur radius in pixels that the lens would give, of either sign.
            strength: how strong the strongest copy is blurred: deviation of the Gaussian (or radius of the disc)
                in units of the largest blur radius of ``defocus``.

        Returns:
            ``[C, H, W]``.
        """
        amount = defocus.abs()
        most = float(amount.max())
        if most == 0:
            return picture.clone()
        blur = gaussian_blur if self.kernel == "gaussian" else disc_blur
        if picture.device.type == "cpu":  # in memory as OpenCV wants it, so that nothing is turned round
            picture = picture.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        place = amount * ((self.copies - 1) / most)
        result = picture * (1 - place).clamp(min=0)
        for number in range(1, self.copies):
            share = (1 - (place - number).abs()).clamp(min=0)
            if bool(share.any()):
                result.addcmul_(share, blur(picture, strength * most * number / (self.copies - 1)))
        return result


def find_peer(name: str) -> Peer:
    """The peer of a name like ``peer:gaussian-stack-32``.

    Raises:
        BokehError: no peer has this name.
    """
    bare = name.removeprefix(PREFIX)
    if bare == "gaussian-mix":
        return Peer("gaussian", 2)
    match = re.fullmatch(r"(gaussian|disc)-stack-(\d{1,3})", bare)
    if match is None or int(match[2]) < 2:
        known = ", ".join(PREFIX + each for each in NAMES)
        raise BokehError(f"There is no peer named {name!r}; there are: {known}, with N from 2.")
    return Peer(match[1], int(match[2]))


def gaussian_blur(picture: Tensor, deviation: float) -> Tensor:
    """Separable Gaussian blur at full resolution, cut off at three deviations, borders mirrored.

    On a CPU by OpenCV, the fastest of the common ways.

    Args:
        picture: ``[C, H, W]`` float32.
        deviation: in pixels.
    """
    reach = max(1, round(3 * deviation))
    if deviation < 0.15:  # the neighbours' weight is below 1e-9
        return picture
    if picture.device.type == "cpu":
        import cv2

        planes = picture.permute(1, 2, 0).contiguous().numpy()
        blurred = cv2.GaussianBlur(planes, (2 * reach + 1,) * 2, deviation, borderType=cv2.BORDER_REFLECT)
        return torch.from_numpy(blurred.reshape(planes.shape)).permute(2, 0, 1)
    offsets = torch.arange(-reach, reach + 1, dtype=picture.dtype, device=picture.device)
    weights = torch.exp(-0.5 * (offsets / deviation) ** 2)
    weights = weights / weights.sum()
    return _convolved(_convolved(picture, weights[:, None]), weights[None])


def disc_blur(picture: Tensor, radius: float) -> Tensor:
    """Mean over a disc with an edge one pixel soft, borders mirrored.

    Args:
        picture: ``[C, H, W]`` float32.
        radius: in pixels.
    """
    reach = max(1, int(radius + 0.5))
    offsets = torch.arange(-reach, reach + 1, dtype=picture.dtype, device=picture.device)
    kernel = (radius + 0.5 - torch.hypot(offsets[:, None], offsets[None])).clamp(0, 1)
    kernel = kernel / kernel.sum()
    if picture.device.type == "cpu":
        import cv2

        planes = picture.permute(1, 2, 0).contiguous().numpy()
        blurred = cv2.filter2D(planes, -1, kernel.numpy(), borderType=cv2.BORDER_REFLECT)
        return torch.from_numpy(blurred.reshape(planes.shape)).permute(2, 0, 1)
    return _convolved(picture, kernel)


def _convolved(picture: Tensor, kernel: Tensor) -> Tensor:
    """``[C, H, W]`` convolved with a symmetric kernel of odd sides; borders mirrored, the edge pixels repeated, as
    often as it takes: as OpenCV does, while torch and kornia mirror once at most, and without the edge."""
    for dim in (1, 2):
        size, reach = picture.shape[dim], kernel.shape[dim - 1] // 2
        place = torch.arange(-reach, size + reach, device=picture.device) % (2 * size)
        picture = picture.index_select(dim, torch.where(place < size, place, 2 * size - 1 - place))
    return F.conv2d(picture[:, None], kernel[None, None])[:, 0]
