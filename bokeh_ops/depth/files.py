"""Depth maps from files, without losing precision."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import BokehError
from .conventions import Notice, one_channel

BY_AV = (".exr", ".hdr", ".pfm")
"""Files of floating point numbers that Pillow does not read."""
FILES = (".npy", *BY_AV)
"""Endings beyond those of pictures."""


def load_depth(path: str | os.PathLike[str], notice: Notice | None = None) -> Tensor:
    """Read a depth map from a file without losing its precision.

    8-bit files give value/255, 16-bit files value/65535 (also where Pillow reads them as 32-bit integers), and floating
    point (TIFF, EXR, HDR, PFM, NumPy) its values as they are. EXIF orientation is applied, alpha is not looked at.

    Args:
        path: a greyscale PNG, TIFF, ..., an RGB picture of equal channels, an EXR with a channel Y or R, G and B, or a
            NumPy array ``[H, W]`` or ``[1, H, W]``.
        notice: told when precision is lost.

    Returns:
        ``[1, H, W]`` fp32.

    Raises:
        BokehError: the file cannot be read, is coloured, or holds integers above 65535.
    """
    ending = Path(path).suffix.lower()
    if ending == ".npy":
        return _from_numpy(path)
    if ending in BY_AV:
        return one_channel(torch.from_numpy(_by_av(path).astype(np.float32))[None])
    try:
        with Image.open(path) as opened:
            deep = any(";16" in str(tile[3]) for tile in getattr(opened, "tile", []))
            opened.load()
            picture = ImageOps.exif_transpose(opened) or opened
            turned = picture.size != opened.size or opened.getexif().get(0x112, 1) != 1
    except OSError as error:
        raise BokehError(f"Could not read the depth map {os.fspath(path)!r}: {error}") from error
    if picture.mode == "F":
        values = np.array(picture, dtype=np.float32)
    elif picture.mode == "I" or picture.mode.startswith("I;16"):
        values = _from_integers(np.array(picture).astype(np.int64), path)
    elif picture.mode in ("1", "L"):
        values = np.array(picture.convert("L"), dtype=np.float32) / 255
    elif deep and not turned:
        values = _by_av(path, "rgb48le").astype(np.float32) / 65535  # Pillow reads 8 of its 16 bits
    else:
        values = np.array(picture.convert("RGB"), dtype=np.float32) / 255
        if deep and notice:
            notice(
                f"The depth map {os.fspath(path)!r} is a turned picture of 16 bits and several channels, of which only "
                "8 bits are read: the blur may show steps. Save the map as a greyscale picture of 16 bits."
            )
    return one_channel(torch.from_numpy(values)[None])


def _from_integers(values: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise BokehError(
            f"The depth map {os.fspath(path)!r} holds integers from {values.min()} to {values.max()}; expected 16 bits "
            "(0 to 65535) or floating point."
        )
    return (values / 65535).astype(np.float32)


def _from_numpy(path: str | os.PathLike[str]) -> Tensor:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BokehError(f"Could not read the depth map {os.fspath(path)!r}: {error}") from error
    if not isinstance(values, np.ndarray):
        raise BokehError(f"{os.fspath(path)!r} holds several arrays; expected one, a depth map.")
    values = values[0] if values.ndim == 3 and len(values) == 1 else values
    if values.ndim not in (2, 3) or 0 in values.shape or values.dtype.kind not in "iuf":
        raise BokehError(
            f"{os.fspath(path)!r} holds {values.dtype} of shape {values.shape}; expected numbers [H, W]."
        )
    if values.dtype == np.uint8:
        return one_channel(torch.from_numpy(values.astype(np.float32) / 255)[None])
    if values.dtype.kind in "iu":
        return one_channel(torch.from_numpy(_from_integers(values.astype(np.int64), path))[None])
    return one_channel(torch.from_numpy(values.astype(np.float32))[None])


def _by_av(path: str | os.PathLike[str], layout: str | None = None) -> np.ndarray:
    """The first picture of a file ``[H, W]`` or ``[H, W, 3]``, in a pixel format of FFmpeg's; its own by default.

    (Between formats of floating point numbers FFmpeg cuts off what lies outside 0..1.)
    """
    import av  # here, as few maps need it
    from av.error import FFmpegError

    try:
        with av.open(os.fspath(path)) as container:
            return next(container.decode(video=0)).to_ndarray(format=layout)
    except (OSError, FFmpegError, StopIteration, ValueError) as error:
        raise BokehError(
            f"Could not read the depth map {os.fspath(path)!r}: {error}. An EXR must have a channel Y, or R, G and B; "
            "one with a channel Z alone is not read: save it as a 32-bit TIFF or .npy."
        ) from error
