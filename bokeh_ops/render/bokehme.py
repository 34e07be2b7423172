"""BokehMe (Peng et al., CVPR 2022): the classical scatter, mended by two networks where it is wrong.

With ``delta`` the signed defocus in pixels and ``s = max(max|delta| / 10, 1)``, ARNet renders the picture at the
scale ``1 / s``, where no radius exceeds 10 pixels, and says where the classical renderer errs: the error map
``E``. IUNet brings its picture to the full size, doubling it ``floor(log2 s)`` times and once more to fit; it sees
the defocus clamped to 10 pixels, and counts only where nothing more blurred than that reaches. The result is

    classical (1 - E) + neural E

The networks know round apertures, pictures as displayed (0..1) and gamma 1 to 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BokehError
from .alpha import straight
from .checkpoint import fill, load_weights
from .classical import _light, render_classical
from .contract import Lens, LensModel, Progress, Rendered, drawn
from .networks import ARNet, IUNet

UNIT = 10.0  # pixels of blur radius that the networks count as 1
GAMMAS = (1.0, 5.0)  # trained for
_DILATION = 12.0  # radius in pixels at which the reach of blur is worked out
_CLASSICAL = 0.6  # share of the progress


def load_bokehme(arnet_path: str | Path, iunet_path: str | Path) -> LensModel:
    """BokehMe as a lens model, with the weights of two files.

    Args:
        arnet_path: the released ``arnet.pth``, or ``.safetensors`` with the same names
            (:func:`bokeh_ops.render.checkpoint.load_weights`).
        iunet_path: likewise ``iunet.pth``.

    Returns:
        A model to call like any of :data:`bokeh_ops.render.MODELS`.

    Raises:
        BokehError: a file that is missing, damaged, unsafe or of another network.
    """
    arnet, iunet = ARNet(), IUNet()
    fill(arnet, load_weights(arnet_path), arnet_path)
    fill(iunet, load_weights(iunet_path), iunet_path)
    return BokehMe(arnet, iunet)


@dataclass(frozen=True, eq=False)
class BokehMe:
    """The renderer with its two networks. They move to the picture's device when it is called."""

    arnet: ARNet
    iunet: IUNet

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        disparity: Tensor,
        lens: Lens,
        progress: Progress | None = None,
        tile: int | None = None,
    ) -> Rendered:
        """Render each picture of the batch; see the module.

        Args:
            image: ``[B, C, H, W]``, C = 1, 3 or 4, as displayed. Alpha is that of the classical renderer.
            disparity: ``[B, 1, H, W]``.
            lens: its aperture shapes the classical part only.
            progress: called as ``progress(done, total)``; may raise to stop.
            tile: see :class:`~bokeh_ops.render.contract.LensModel`.

        Returns:
            :class:`~bokeh_ops.render.contract.Rendered`. A picture whose radii are all 0 comes back bit for bit.

        Raises:
            BokehError: a gamma or an aperture the networks or the classical renderer do not know.
        """
        if isinstance(lens.gamma, str) or not GAMMAS[0] <= lens.gamma <= GAMMAS[1]:
            raise BokehError(
                f"Gamma is {lens.gamma}; BokehMe's networks know {GAMMAS[0]:g} to {GAMMAS[1]:g}. "
                "Choose one of these (2.2 is close to the sRGB curve), or another lens model."
            )
        batch = image.shape[0]

        def report(share: float) -> None:
            if progress:
                progress(int(1000 * share), 1000)

        base = render_classical(
            image, disparity, lens, lambda done, total: report(_CLASSICAL * done / total), tile
        )
        result = base.image.clone()
        for row in range(batch):
            one = slice(row, row + 1)
            if bool(base.defocus[one].any()):
                seen = image[one].float()
                if image.shape[1] == 4:
                    # The networks know no alpha: where nothing is they see its neighbours.
                    alpha = seen[:, 3:].clamp(0, 1)
                    near = straight(torch.cat([seen[:, :3].clamp_min(0) * alpha, alpha], 1))
                    seen = torch.where(alpha > 0, seen, near)[:, :3]
                neural, error = self.neural(
                    seen.expand(-1, 3, -1, -1), drawn(base.defocus[one]).float(), lens, tile
                )
                if image.shape[1] == 1:
                    neural = neural.mean(1, keepdim=True)
                if image.shape[1] == 4:  # where nothing is, there is nothing to mend
                    error = error * (base.image[one, 3:] > 0)
                colour = base.image[one, :3].float()
                result[one, :3] = (colour * (1 - error) + neural * error).to(image.dtype)
            report(_CLASSICAL + (1 - _CLASSICAL) * (row + 1) / batch)
        return Rendered(result, base.defocus)

    def neural(
        self, image: Tensor, defocus: Tensor, lens: Lens, tile: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The neural picture and the error map at full size.

        Args:
            image: ``[1, 3, H, W]``, fp32.
            defocus: ``[1, 1, H, W]`` signed pixels, fp32.
            lens: gamma and highlights.
            tile: pixels along the parts in which the networks see a larger picture; None for their usual ones.

        Returns:
            ``[1, 3, H, W]``, >= 0, and ``[1, 1, H, W]``, 0..1.
        """
        self.arnet.to(image.device).eval()
        self.iunet.to(image.device).eval()
        image = _boosted(image, defocus, lens)
        size, parts = image.shape[-2:], {} if tile is None else {"tile": tile}
        assert not isinstance(lens.gamma, str)
        gamma = (lens.gamma - GAMMAS[0]) / (GAMMAS[1] - GAMMAS[0])
        scale = max(float(defocus.abs().max()) / UNIT, 1.0)
        reach = blur_reach(defocus)
        unit = defocus / UNIT
        small = [max(1, int(side / scale)) for side in size]
        picture, error = self.arnet(_resized(image, small), _resized(unit, small) / scale, gamma, **parts)
        picture = picture.clamp_min(0)
        ratios = [2 ** (step + 1) / scale for step in range(int(math.log2(scale)))]
        for ratio in [*ratios, 1.0]:
            step = [max(1, int(ratio * side)) for side in size]
            near = (_resized(unit, step) * ratio).clamp(-1, 1)
            fine = self.iunet(_resized(image, step), near, picture, gamma, **parts).clamp_min(0)
            sharp = (_resized(reach, step).abs() * ratio < UNIT).float()
            sharp = _gaussian(sharp, round(0.005 * (step[0] + step[1])))
            picture = sharp * fine + (1 - sharp) * _resized(picture, step)
        return picture, _resized(error, size)


def blur_reach(defocus: Tensor) -> Tensor:
    """Of all the discs that cover a pixel the largest signed defocus, in whole pixels (towards 0).

    Where blur is large this is worked out on every few pixels, so that its cost does not grow with the blur.

    Args:
        defocus: ``[B, 1, H, W]`` signed pixels of blur radius.

    Returns:
        ``[B, 1, H, W]``.
    """
    size, largest = defocus.shape[-2:], float(defocus.abs().max())
    every = max(1, math.ceil(largest / _DILATION))
    if every > 1:
        defocus = F.max_pool2d(defocus, every, ceil_mode=True)
    radius, value = defocus.abs() / every, defocus.trunc()
    height, width = value.shape[-2:]
    reach = value.clone()
    limit = int(largest / every)
    for dy in range(-min(limit, height - 1), min(limit, height - 1) + 1):
        for dx in range(-min(limit, width - 1), min(limit, width - 1) + 1):
            distance = math.hypot(dy, dx)
            if distance > limit + 1:
                continue
            of = slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx))
            to = slice(max(0, dy), height - max(0, -dy)), slice(max(0, dx), width - max(0, -dx))
            light = torch.where(radius[..., of[0], of[1]] >= distance, value[..., of[0], of[1]], -math.inf)
            target = reach[..., to[0], to[1]]
            torch.maximum(target, light, out=target)
    return F.interpolate(reach, size, mode="nearest") if every > 1 else reach


def _boosted(image: Tensor, defocus: Tensor, lens: Lens) -> Tensor:
    """The picture with the highlights that the classical renderer spreads: brighter where it is not sharp."""
    planes = _light(image[0], defocus[0, 0].abs(), replace(lens, gamma=1.0))
    return planes[None, :3]


def _gaussian(mask: Tensor, radius: int) -> Tensor:
    """Gaussian blur of ``[1, 1, H, W]`` with the standard deviation ``0.3 (radius - 1) + 0.8``, edges repeated."""
    sigma = 0.3 * (radius - 1) + 0.8
    place = torch.arange(-radius, radius + 1, dtype=mask.dtype, device=mask.device)
    kernel = torch.exp(-(place**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    mask = F.pad(mask, (radius, radius, radius, radius), mode="replicate")
    return F.conv2d(F.conv2d(mask, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def _resized(x: Tensor, size: list[int] | torch.Size) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)
