"""The two networks of BokehMe (Peng et al., CVPR 2022), with the parameter names of the released checkpoints.

Both fold 2 x 2 pixels into channels, run a convolution, three residual blocks of two convolutions and a last
convolution, and unfold. All convolutions are 3 x 3 with bias and zero padding, followed by ELU but for the last;
there is no normalisation. A residual block adds its input to the output of its last ELU.

Plain modules: a trainer may use them as they are.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOLD = 2  # pixels a side that are folded into channels
BLOCKS = 3
TILE = 1024
"""Pixels along the parts in which larger pictures go through the convolutions: 0.7 GB at a time, where 4K has 5.6."""
_REACH = 2 * BLOCKS + 2  # folded pixels that a convolution after the other sees to every side


def _convolution(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, out, 3, padding=1), activation=nn.ELU()))


class _Blocks(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(_convolution(width, width), _convolution(width, width)) for _ in range(BLOCKS)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class _Folded(nn.Module):
    """What both networks share: folded picture channels, and channels that come at half size already."""

    def __init__(self, folded: int, beside: int, out: int, width: int) -> None:
        super().__init__()
        self.conv0 = _convolution(folded * FOLD**2 + beside, width)
        self.block_stack = _Blocks(width)
        self.conv1 = nn.Sequential(OrderedDict(conv=nn.Conv2d(width, out * FOLD**2, 3, padding=1)))

    def _convolved(self, x: Tensor) -> Tensor:
        return self.conv1(self.block_stack(self.conv0(x)))

    def _in_tiles(self, x: Tensor, side: int) -> Tensor:
        """:meth:`_convolved`, part by part: the same up to rounding, as every part has all that it sees about it."""
        height, width = x.shape[-2:]
        if height <= side and width <= side:
            return self._convolved(x)
        last = self.conv1[0]
        assert isinstance(last, nn.Conv2d)
        out = x.new_empty(x.shape[0], last.out_channels, height, width)
        for top in range(0, height, side):
            for left in range(0, width, side):
                rows, columns = slice(top, min(top + side, height)), slice(left, min(left + side, width))
                first, start = max(0, top - _REACH), max(0, left - _REACH)
                part = self._convolved(x[..., first : rows.stop + _REACH, start : columns.stop + _REACH])
                part = part[..., top - first : rows.stop - first, left - start : columns.stop - start]
                out[..., rows, columns] = part
        return out

    def _run(self, picture: Tensor, beside: Tensor | None, gamma: float | Tensor, tile: int) -> Tensor:
        size = picture.shape[-2:]
        even = [max(FOLD, side // FOLD * FOLD) for side in size]
        x = F.pixel_unshuffle(_resized(picture, even), FOLD)
        extra = torch.as_tensor(gamma, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
        extra = extra.expand(x.shape[0], 1, *x.shape[-2:])
        if beside is not None:
            if beside.shape[-2:] != x.shape[-2:]:
                beside = F.interpolate(beside, x.shape[-2:], mode="bilinear", align_corners=False)
            extra = torch.cat([beside, extra], 1)
        x = self._in_tiles(torch.cat([x, extra], 1), max(1, tile // FOLD))
        return _resized(F.pixel_shuffle(x, FOLD), size)


class ARNet(_Folded):
    """The adaptive rendering network: a bokeh picture and where the classical one is wrong. 923,664 parameters.

    Args:
        width: channels within; 128 as published.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__(folded=4, beside=1, out=4, width=width)

    def forward(
        self, image: Tensor, defocus: Tensor, gamma: float | Tensor, tile: int = TILE
    ) -> tuple[Tensor, Tensor]:
        """Render at the scale at which no blur radius exceeds 10 pixels.

        Args:
            image: ``[B, 3, H, W]``, 0..1, as displayed (not linear).
            defocus: ``[B, 1, H, W]`` signed, in units of 10 pixels of blur radius, so -1..1.
            gamma: ``(gamma - 1) / 4``, a number or ``[B]``; trained on gamma 1 to 5, so 0..1.
            tile: pixels along the parts in which a larger picture goes through the convolutions.

        Returns:
            the picture ``[B, 3, H, W]``, not clamped, and the error map ``[B, 1, H, W]``, 0..1.
        """
        x = self._run(torch.cat([image, defocus], 1), None, gamma, tile)
        return x[:, :3], torch.sigmoid(x[:, 3:])


class IUNet(_Folded):
    """The iterative upsampling network: a coarse bokeh picture at twice its size. 240,076 parameters.

    Args:
        width: channels within; 64 as published.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__(folded=4, beside=4, out=3, width=width)

    def forward(
        self, image: Tensor, defocus: Tensor, coarse: Tensor, gamma: float | Tensor, tile: int = TILE
    ) -> Tensor:
        """Refine ``coarse`` by what is seen at this scale.

        Args:
            image: ``[B, 3, H, W]``, 0..1, as displayed.
            defocus: ``[B, 1, H, W]`` signed, in units of 10 pixels of blur radius, clamped to -1..1.
            coarse: ``[B, 3, h, w]``, fitted to half of H and W.
            gamma, tile: as for :class:`ARNet`.

        Returns:
            ``[B, 3, H, W]``, not clamped.
        """
        return self._run(torch.cat([image, defocus], 1), coarse, gamma, tile)


def _resized(x: Tensor, size: list[int] | torch.Size) -> Tensor:
    """Bilinear from corner to corner, as the networks were trained. The same size leaves the bits alone."""
    if list(x.shape[-2:]) == list(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)
