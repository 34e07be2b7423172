"""Pictures of an evaluation: result, ground truth and error side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.picture.sheet import contact_sheet

ERROR_GAIN = 5
"""Factor by which errors are shown."""

# Black, violet, red, orange, pale yellow: brightness rises all the way, so that it reads in grey too.
_HEAT = ((0.0, 0.0, 0.0), (0.34, 0.06, 0.43), (0.73, 0.21, 0.33), (0.98, 0.55, 0.04), (0.99, 1.0, 0.64))


def error_map(image: Tensor, reference: Tensor, gain: float = ERROR_GAIN) -> Tensor:
    """The largest absolute difference of the channels, times ``gain``, in colours from black (none) to pale yellow.

    Args:
        image: ``[3, H, W]``, values 0..1.
        reference: of the same shape.
        gain: factor; a difference of ``1 / gain`` and more is the brightest.

    Returns:
        ``[3, H, W]``, values 0..1.
    """
    height = ((image - reference).abs().amax(0) * gain).clamp(0, 1) * (len(_HEAT) - 1)
    below = height.floor().clamp(max=len(_HEAT) - 2)
    heat = torch.tensor(_HEAT, dtype=height.dtype, device=height.device)
    index = below.long()
    return torch.lerp(heat[index], heat[index + 1], (height - below)[..., None]).permute(2, 0, 1)


def write_comparison(
    path: Path, image: Tensor, reference: Tensor, title: str, figures: Mapping[str, Any]
) -> None:
    """Write a PNG of a picture, its ground truth and its error, pixel by pixel, with the figures above.

    Args:
        path: the file.
        image: ``[3, H, W]``, display-encoded values 0..1.
        reference: of the same shape.
        title: what made the picture.
        figures: ``scene``, ``case``, ``psnr``, ``ssim``, ``lpips``.

    Raises:
        BokehError: the file cannot be written.
    """
    sheet = torch.stack((image, reference, error_map(image, reference))).permute(0, 2, 3, 1).float().cpu()
    shown = " ".join(
        f"{name} {figures[name]:{spec}}"
        for name, spec in (("psnr", ".2f"), ("ssim", ".3f"), ("lpips", ".3f"))
        if figures.get(name) is not None
    )
    heading = f"{figures['scene']} {figures['case']}: {shown}"
    labels = [title, "ground truth", f"error x {ERROR_GAIN}"]
    write_png(path, contact_sheet(sheet, labels, columns=3, title=heading)[0])


def write_png(path: Path, picture: Tensor) -> None:
    """Write ``[H, W, 3]``, values 0..1 (clipped), as an 8-bit PNG.

    Raises:
        BokehError: the file cannot be written.
    """
    pixels = (picture.clamp(0, 1) * 255).round().byte().cpu().numpy()
    try:
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    except OSError as error:
        raise BokehError(f"{path} cannot be written: {error}.") from error
