"""Segmenters for content consistency: a function of the user's, or an ONNX file.

A function is named ``module:function``. It is called with a picture, uint8 ``[H, W, 3]``, and returns the numbers of
the likeliest classes of each pixel: integers ``[H, W]``, or ``[N, H, W]`` with the likeliest first.

An ONNX file takes one picture ``[1, 3, h, w]`` and returns scores ``[1, classes, h', w']`` or classes ``[1, h', w']``.
Beside it may lie a JSON file of the same name, ``{"size": [512, 512], "scale": 255, "mean": [...], "std": [...]}``, so
that the input is ``(values 0..255 / scale - mean) / std``. Unless told, that is 255 with ImageNet's mean and deviation,
and the size is the file's own, or that of the picture rounded to a multiple of 32.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.errors import BokehError

Segmenter = Callable[[Tensor], Tensor]
"""From a picture ``[3, H, W]``, values 0..1, to classes ``[N, H, W]``."""

CANDIDATES = 3
"""Classes kept of each pixel."""

_IMAGENET = {"scale": 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


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
    try:
        import onnxruntime
    except ImportError as error:
        raise BokehError(f"{path} needs the package onnxruntime, which is not installed.") from error
    if not path.is_file():
        raise BokehError(f"There is no segmenter {path}.")
    settings = _settings(path)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base but this
        raise BokehError(f"{path} is not an ONNX file that can be run: {error}.") from error
    taken = session.get_inputs()[0]
    fixed = [side for side in (taken.shape or [])[2:] if isinstance(side, int)]
    mean, std = (torch.tensor(settings[key], dtype=torch.float32).reshape(3, 1, 1) for key in ("mean", "std"))

    def segment(picture: Tensor) -> Tensor:
        height, width = picture.shape[1:]
        size: list[int] = settings.get("size") or (fixed if len(fixed) == 2 else [])
        if not size:
            size = [max(32, round(side / 32) * 32) for side in (height, width)]
        given = F.interpolate(picture[None].cpu(), size, mode="bilinear", antialias=True)[0]
        given = (given * 255 / settings["scale"] - mean) / std
        try:
            output = torch.from_numpy(session.run(None, {taken.name: given[None].numpy()})[0])
        except Exception as error:
            raise BokehError(f"{path} failed on a picture of {size}: {error}.") from error
        if output.ndim == 4 and output.shape[1] > 1:
            scores = F.interpolate(output.float(), (height, width), mode="bilinear")
            return scores[0].topk(min(CANDIDATES, scores.shape[1]), dim=0).indices
        if output.ndim == 4 or output.ndim == 3:
            labels = output.reshape(1, 1, *output.shape[-2:]).float()
            return F.interpolate(labels, (height, width), mode="nearest")[0].round().long()
        raise BokehError(f"{path} returned {tuple(output.shape)}; expected [1, classes, h, w] or [1, h, w].")

    return segment


def _settings(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return dict(_IMAGENET)
    try:
        own = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BokehError(f"{beside} cannot be read as JSON: {error}.") from error
    unknown = set(own) - {"size", *_IMAGENET} if isinstance(own, dict) else {"..."}
    if unknown:
        raise BokehError(
            f"{beside}: unknown {', '.join(sorted(unknown))}; expected size, scale, mean and std."
        )
    settings = {**_IMAGENET, **own}
    good = isinstance(settings["scale"], (int, float)) and settings["scale"] > 0
    for key, count, kind in (("mean", 3, (int, float)), ("std", 3, (int, float)), ("size", 2, int)):
        value = settings.get(key, [32] * count)
        good &= isinstance(value, list) and len(value) == count and all(isinstance(v, kind) for v in value)
    if not good:
        raise BokehError(
            f"{beside}: expected mean and std as lists of three numbers, scale above 0 and size as [height, width]."
        )
    return settings
