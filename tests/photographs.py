"""Photographs for tests: small pictures with EXIF, depth, foreground and captions beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

NEAR, FAR = 1.0, 4.0  # metres: a subject, and what is behind it
CAMERA = {"make": "Canon", "model": "Canon EOS 6D", "f_number": 2.0, "focal_length": 50.0}
_TAGS = {
    "f_number": ExifTags.Base.FNumber,
    "focal_length": ExifTags.Base.FocalLength,
    "focal_length_35": ExifTags.Base.FocalLengthIn35mmFilm,
    "subject_distance": ExifTags.Base.SubjectDistance,
    "exposure_time": ExifTags.Base.ExposureTime,
    "custom_rendered": ExifTags.Base.CustomRendered,
    "digital_zoom": ExifTags.Base.DigitalZoomRatio,
    "width": ExifTags.Base.ExifImageWidth,
    "height": ExifTags.Base.ExifImageHeight,
}


def exif(**fields: Any) -> Image.Exif:
    """An EXIF block: ``make``, ``model``, ``orientation`` and the names above, lengths in millimetres."""
    found = Image.Exif()
    for name, tag in (("make", 0x10F), ("model", 0x110), ("orientation", 0x112)):
        if name in fields:
            found[tag] = fields[name]
    inner = found.get_ifd(ExifTags.IFD.Exif)
    inner.update({_TAGS[name]: value for name, value in fields.items() if name in _TAGS})
    loaded = Image.Exif()  # as read from a file: only so does Pillow write all of it into a TIFF
    loaded.load(found.tobytes())
    return loaded


def pixels(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A picture that looks different for every seed: uint8 ``[h, w, 3]``, smooth."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    return np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))


def subject(
    size: tuple[int, int], centre: tuple[float, float] = (0.5, 0.5), radius: float = 0.25
) -> np.ndarray:
    """Where the subject is: bool ``[h, w]``, a disc whose radius is a share of the height."""
    y, x = np.mgrid[: size[1], : size[0]]
    return (x + 0.5 - centre[0] * size[0]) ** 2 + (y + 0.5 - centre[1] * size[1]) ** 2 < (
        radius * size[1]
    ) ** 2


def photograph(
    path: Path,
    size: tuple[int, int] = (96, 64),
    seed: int = 0,
    *,
    maps: bool = True,
    caption: str | None = "a disc",
    centre: tuple[float, float] = (0.5, 0.5),
    near: float = NEAR,
    far: float = FAR,
    **fields: Any,
) -> Path:
    """A photograph of a disc at ``near`` metres before a wall at ``far``, with its maps beside it (metres)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"quality": 90} if path.suffix == ".jpg" else {}
    Image.fromarray(pixels(size, seed)).save(path, exif=exif(**{**CAMERA, **fields}), **options)
    if maps:
        inside = subject(size, centre)
        np.save(path.with_suffix(".depth.npy"), np.where(inside, near, far).astype(np.float32))
        Image.fromarray(inside.astype(np.uint8) * 255).save(path.with_suffix(".mask.png"))
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path
