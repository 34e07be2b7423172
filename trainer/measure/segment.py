"""Segmenters for content consistency: a function of the user's, or an ONNX file.

A function is named ``module:function``. It is called with a picture, uint8 ``[H, W, 3]``, and returns the numbers of
the likeliest classes of each pixel: integers ``[H, W]``, or ``[N, H, W]`` with the likeliest first.

An ONNX file takes one picture ``[1, 3, h, w]`` and returns scores ``[1, classes, h', w']`` or classes ``[1, h', w']``.
How pictures are shown to it, the JSON file beside it says (:mod:`bokeh_ops.onnx_network`).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.onnx_network import OnnxPictures

Segmenter = Callable[[Tensor], Tensor]
"""From a picture ``[3, H, W]``, values 0..1, to classes ``[N, H, W]``."""

CANDIDATES = 3
"""Classes kept of each pixel."""


def load_segmenter(name: str) -> Segmenter:
    """The segmenter that a name stands for.

    Args:
        name: ``module:function``, the module as Python would import it from the current folder; or an ``.onnx`` file.

    Raises:
        BokehError: no such file, module or function.
    """
    if name.endswith(".onnx"):
        return _onnx(Path(name))
    module, _, function = name.partition(":")
    if not module or not function:
        raise BokehError(f"The segmenter {name!r} is neither module:function nor an .onnx file.")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise BokehError(f"The segmenter {name!r}: the module cannot be imported: {error}.") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise BokehError(f"The segmenter {name!r}: {module} has no function {function!r}.")

    def segment(picture: Tensor) -> Tensor:
        pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        return checked(found(pixels), (picture.shape[1], picture.shape[2]), name)

    return segment


def checked(classes: Any, size: tuple[int, int], name: str) -> Tensor:
    """Classes as they came, as a tensor ``[N, H, W]``.

    Raises:
        BokehError: anything else than integers ``[H, W]`` or ``[N, H, W]`` of the picture's size.
    """
    array = np.asarray(classes)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[1:] != size or not np.issubdtype(array.dtype, np.integer):
        raise BokehError(
            f"The segmenter {name!r} returned {array.dtype} {array.shape} for a picture of {size}; expected integers "
            "[H, W] or [N, H, W]."
        )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))


def _onnx(path: Path) -> Segmenter:
    pictures = OnnxPictures(path)

    def segment(picture: Tensor) -> Tensor:
        height, width = picture.shape[1:]
        output = pictures(picture)
        if output.ndim == 4 and output.shape[1] > 1:
            scores = F.interpolate(output.float(), (height, width), mode="bilinear")
            return scores[0].topk(min(CANDIDATES, scores.shape[1]), dim=0).indices
        if output.ndim == 4 or output.ndim == 3:
            labels = output.reshape(1, 1, *output.shape[-2:]).float()
            return F.interpolate(labels, (height, width), mode="nearest")[0].round().long()
        raise BokehError(f"{path} returned {tuple(output.shape)}; expected [1, classes, h, w] or [1, h, w].")

    return segment
