"""Maps and captions that lie beside the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bokeh_ops.depth.files import load_depth
from bokeh_ops.errors import BokehError
from trainer.data.prepare.picture import pixels_allowed
from trainer.data.prepare.providers.protocol import CaptionProvider, Judge, MapProvider, Photograph
from trainer.data.prepare.providers.question import Question
from trainer.data.prepare.record import BESIDE
from trainer.data.prepare.rejection import Rejected
from trainer.data.prepare.sources import text_beside

MOST_PIXELS = 100_000_000


def depth_beside(pattern: str = "") -> MapProvider:
    """Depth from a file with the picture's name, or a name by a pattern."""
    return _beside((pattern,) if pattern else BESIDE["depth"], "depth")


def mask_beside(pattern: str = "") -> MapProvider:
    """A mask from a file with the picture's name, or a name by a pattern."""
    return _beside((pattern,) if pattern else BESIDE["mask"], "mask")


def captions_beside(pattern: str = "") -> CaptionProvider:
    """Captions from the fields ``captions`` and ``caption``, and from a text file, one a line."""

    def read(photograph: Photograph) -> list[str]:
        found = []
        for value in (photograph.given.get("captions"), photograph.given.get("caption")):
            texts = [value] if isinstance(value, str) else value
            if isinstance(texts, (list, tuple)):
                found += [text.strip() for text in texts if isinstance(text, str) and text.strip()]
        with photograph.record.beside(pattern or BESIDE["captions"][0]) as path:
            if path is not None:
                try:
                    found += text_beside(path)
                except (OSError, ValueError) as error:
                    raise Rejected("bad_fields", f"its captions cannot be read: {error}") from error
        return found

    return read


def answer_beside(question: Question) -> Judge:
    """An answer from the field of the question's name."""

    def read(photograph: Photograph) -> str:
        value = photograph.given.get(question.role)
        if value is None:
            raise Rejected("no_answer", f"there is no field {question.role!r} beside it")
        try:
            return question.answer(value, f"the field {question.role!r}")
        except BokehError as error:
            raise Rejected("bad_fields", str(error)) from error

    return read


def read_map(path: Path) -> np.ndarray:
    """A map from a file: 8 bits / 255, 16 bits / 65535, floating point as it is.

    Args:
        path: PNG, TIFF, NumPy's ``.npy`` (without pickles), or OpenEXR (:func:`trainer.exr.read_plane`).

    Returns:
        float32 ``[h, w]``.

    Raises:
        BokehError: it cannot be read, is coloured, or too large.
    """
    if path.suffix == ".npy":
        return _read_npy(path)
    if path.suffix == ".exr":
        from trainer.exr import read_plane

        return read_plane(path)
    with pixels_allowed(MOST_PIXELS / 2):  # Pillow raises at twice what it is told
        try:
            return load_depth(path)[0].numpy()
        except (Image.DecompressionBombError, ValueError, SyntaxError, RuntimeError) as error:
            raise BokehError(f"{path.name}: {error}") from error


def _beside(endings: tuple[str, ...], what: str) -> MapProvider:
    def read(photograph: Photograph) -> np.ndarray:
        with photograph.record.beside(*endings) as path:
            if path is None:
                wanted = endings[0] if "{" in endings[0] else f"NAME.{endings[0]}"
                raise Rejected(f"no_{what}", f"there is no {wanted} beside it")
            return read_map(path)

    return read


def _read_npy(path: Path) -> np.ndarray:
    try:
        values: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        if values.size > MOST_PIXELS:
            raise BokehError(f"{path.name} has {values.size} values.")
        array = np.array(values, dtype=np.float32)
    except (OSError, ValueError, TypeError, SyntaxError, EOFError) as error:
        raise BokehError(f"{path.name} cannot be read: {error}") from error
    array = np.squeeze(array)
    if array.ndim != 2:
        raise BokehError(f"{path.name} has the shape {list(array.shape)}; expected [h, w].")
    if np.issubdtype(values.dtype, np.integer) or values.dtype == bool:
        array /= {1: 255.0, 2: 65535.0}.get(values.dtype.itemsize, 1.0) if values.dtype != bool else 1.0
    return array
