"""One annotated photograph: its files, and what they hold."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from bokeh_ops.errors import BokehError

PICTURES = ("jpg", "png")
DISPARITY, MASK, INFO = "disparity.png", "mask.png", "json"
WHITE = 65535
JPEG_QUALITY = 95

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class Taken(NamedTuple):
    """How a photograph was taken.

    Attributes:
        f_number: N.
        focal_length: metres.
        sensor_width: metres, of what the picture's width shows.
    """

    f_number: float
    focal_length: float
    sensor_width: float


@dataclass(frozen=True)
class Sample:
    """An annotated photograph, at the training resolution.

    Attributes:
        key: its name in the data set.
        image: uint8 ``[H, W, 3]``, sRGB.
        disparity: float32 ``[H, W]``, dioptres (1/metre), 0 or more; larger is nearer.
        mask: float32 ``[H, W]``, 0 to 1, 1 in the foreground.
        captions: any number.
        k: pixels of blur radius per dioptre at this very resolution (eq. 9), or None where the lens is unknown.
        all_in_focus: whether it is sharp from front to back, so that blur may be rendered onto it.
        info: everything that is known, as in ``KEY.json``; among it ``s1_m``, the focus distance in metres.
    """

    key: str
    image: np.ndarray
    disparity: np.ndarray
    mask: np.ndarray
    captions: tuple[str, ...]
    k: float | None
    all_in_focus: bool
    info: dict[str, Any]

    @property
    def taken(self) -> Taken | None:
        """How it was taken; None where part of that is unknown."""
        known: list[Any] = [self.info.get(name) for name in ("f_number", "f_mm", "sensor_shown_mm")]
        if not all(_is_number(value) and value > 0 for value in known):
            return None
        return Taken(float(known[0]), known[1] / 1000, known[2] / 1000)


def encode_sample(
    image: np.ndarray,
    disparity: np.ndarray,
    mask: np.ndarray,
    info: Mapping[str, Any],
    picture: str = "jpg",
) -> dict[str, bytes]:
    """The four files of a photograph, by the ending that follows its key.

    Args:
        image: uint8 ``[H, W, 3]``, sRGB.
        disparity: ``[H, W]``, dioptres, finite, 0 or more. 16 bits are spread from 0 to its largest value, so the
            rounding error is at most 1/131070 of that.
        mask: ``[H, W]``, 0 to 1.
        info: must hold ``captions``, ``k`` and ``all_in_focus``; ``disparity_scale`` is added.
        picture: ``"jpg"`` (quality 95, colour at full resolution) or ``"png"`` (lossless).

    Raises:
        BokehError: shapes, types or values that the format cannot hold.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise BokehError(f"The image is {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3].")
    if disparity.shape != image.shape[:2] or mask.shape != image.shape[:2]:
        raise BokehError(
            f"The image is {list(image.shape)}, the disparity {list(disparity.shape)} and the mask "
            f"{list(mask.shape)}; all must have the same height and width."
        )
    if picture not in PICTURES:
        raise BokehError(f"Pictures are kept as {' or '.join(PICTURES)}, not as {picture!r}.")
    largest = float(disparity.max())
    if not (math.isfinite(float(disparity.sum())) and float(disparity.min()) >= 0 and largest > 0):
        raise BokehError(
            f"The disparity runs from {float(disparity.min()):g} to {largest:g}; it must be finite, 0 or more, and "
            "not 0 everywhere."
        )
    info = {**info, "disparity_scale": largest}
    _check_info(info)
    grey = np.rint(disparity.astype(np.float64) * (WHITE / largest)).clip(0, WHITE).astype(np.uint16)
    levels = np.rint(np.clip(mask, 0, 1) * 255).astype(np.uint8)
    options: dict[str, Any] = {"quality": JPEG_QUALITY, "subsampling": 0} if picture == "jpg" else {}
    text = json.dumps(info, ensure_ascii=False, allow_nan=False, sort_keys=True)
    return {
        picture: _encode(image, "JPEG" if picture == "jpg" else "PNG", options),
        DISPARITY: _encode(grey, "PNG", {}),
        MASK: _encode(levels, "PNG", {}),
        INFO: text.encode(),
    }


def decode_sample(key: str, files: Mapping[str, bytes], size: tuple[int, int]) -> Sample:
    """A photograph from its files.

    Args:
        key: its name.
        files: by the ending that follows the key.
        size: width and height that the pictures must have.

    Raises:
        BokehError: a file is missing, damaged, or of another size or kind.
    """
    picture = next((ending for ending in PICTURES if ending in files), None)
    missing = [ending for ending in (DISPARITY, MASK, INFO) if ending not in files]
    if picture is None:
        missing.insert(0, " or ".join(PICTURES))
    if picture is None or missing:
        raise BokehError(f"there is no {', no '.join(missing)}")
    info = decode_info(files[INFO])
    image = _decode(files[picture], picture, size, ("RGB",))
    disparity = _decode(files[DISPARITY], DISPARITY, size, ("I;16", "I;16B", "I"))
    mask = _decode(files[MASK], MASK, size, ("L",))
    return Sample(
        key=key,
        image=image,
        disparity=(disparity.astype(np.float32) * np.float32(info["disparity_scale"] / WHITE)),
        mask=mask.astype(np.float32) / 255,
        captions=tuple(info["captions"]),
        k=info["k"],
        all_in_focus=info["all_in_focus"],
        info=info,
    )


def decode_info(content: bytes) -> dict[str, Any]:
    """What is known of a photograph, from its ``KEY.json``.

    Raises:
        BokehError: no JSON, or fields that are missing or cannot be true.
    """
    try:
        info = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BokehError(f"its json cannot be read ({error})") from error
    if not isinstance(info, dict):
        raise BokehError(f"its json holds a {type(info).__name__}, expected an object")
    _check_info(info)
    return info


def _check_info(info: Mapping[str, Any]) -> None:
    k, captions, scale = info.get("k"), info.get("captions"), info.get("disparity_scale")
    if "k" not in info or not (k is None or (_is_number(k) and k >= 0)):
        raise BokehError(f"its 'k' is {k!r}; expected a number of 0 or more, or null")
    if not isinstance(info.get("all_in_focus"), bool):
        raise BokehError(f"its 'all_in_focus' is {info.get('all_in_focus')!r}; expected true or false")
    if not isinstance(captions, (list, tuple)) or not all(isinstance(text, str) for text in captions):
        raise BokehError(f"its 'captions' is {str(captions)[:80]!r}; expected a list of texts")
    if scale is None or not (_is_number(scale) and scale > 0):
        raise BokehError(f"its 'disparity_scale' is {scale!r}; expected a number above 0")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _encode(values: np.ndarray, kind: str, options: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **options)
    return buffer.getvalue()


def _decode(content: bytes, what: str, size: tuple[int, int], modes: tuple[str, ...]) -> np.ndarray:
    kind = "JPEG" if what == "jpg" else "PNG"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a size that is refused just below
            with Image.open(io.BytesIO(content), formats=(kind,)) as opened:
                if opened.size == size and opened.mode in modes:
                    return np.array(opened)
                found = f"{opened.size[0]} x {opened.size[1]}, {opened.mode}"
    except _BROKEN as error:
        raise BokehError(f"its {what} cannot be read ({error})") from error
    raise BokehError(f"its {what} is {found}; expected {size[0]} x {size[1]}, {modes[0]}")
