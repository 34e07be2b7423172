"""Decoding a stranger's photograph: in bounded memory, upright, in sRGB."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms

from bokeh_ops.camera.exif import CameraExif, exif_of
from bokeh_ops.camera.photograph import BROKEN, open_photograph
from bokeh_ops.errors import BokehError
from trainer.data.prepare.rejection import Rejected

REDUCED = 8
"""A baseline JPEG is decoded at up to an eighth of its size, so it may have this many times the pixels, and more."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Header:
    """A photograph before it is decoded.

    Attributes:
        exif: camera and lens.
        upright: width and height of the whole picture in pixels, as it is shown.
        format: as Pillow calls it.
    """

    exif: CameraExif
    upright: tuple[int, int]
    format: str


def register_formats() -> None:
    """Teach Pillow HEIC."""
    import pillow_heif

    pillow_heif.register_heif_opener()


@contextmanager
def pixels_allowed(most: float) -> Iterator[None]:
    """Let Pillow open, not decode, pictures of up to ``most`` pixels; the check before decoding is ours."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = int(most)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextmanager
def opened(source: Path | bytes, most_megapixels: float) -> Iterator[tuple[Image.Image, Header]]:
    """Open a photograph and read its header.

    Args:
        source: a path, or the file's content.
        most_megapixels: that may be decoded; baseline JPEGs may have :data:`REDUCED` times as many.

    Raises:
        Rejected: ``unreadable``, ``animated``, ``too_large``.
    """
    file: Path | BinaryIO = source if isinstance(source, Path) else io.BytesIO(source)
    try:
        with pixels_allowed(most_megapixels * 1e6 * REDUCED), open_photograph(file) as image:
            _check(image, most_megapixels)
            exif = exif_of(image)
            turned = image.format not in ("TIFF",)  # Pillow turns those by itself, its size is upright
            orientation = (exif.orientation or 1) if turned else 1
            upright = image.size[::-1] if orientation >= 5 else image.size
            yield image, Header(exif, (upright[0], upright[1]), image.format or "")
    except BokehError as error:
        reason = "too_large" if "too many pixels" in str(error) else "unreadable"
        raise Rejected(reason, str(error)) from error


def decode(image: Image.Image, header: Header, size: tuple[int, int]) -> Image.Image:
    """Decode an opened photograph at a size.

    JPEGs are decoded at half, a quarter or an eighth where that still has twice the pixels wanted. Embedded colour
    profiles are converted to sRGB; 16 bits are reduced to 8.

    Args:
        image: from :func:`opened`.
        header: from there.
        size: width and height wanted, upright.

    Returns:
        RGB, upright, of exactly that size.

    Raises:
        Rejected: ``unreadable`` or ``transparent``.
    """
    turn = None if header.format == "TIFF" else _TURNS.get(header.exif.orientation or 1)
    sideways = turn is not None and (header.exif.orientation or 1) >= 5
    stored = (size[1], size[0]) if sideways else size
    try:
        if header.format in ("JPEG", "MPO"):
            image.draft(image.mode, (2 * stored[0], 2 * stored[1]))
        image.load()
        whole = _opaque(_eight_bits(image))
        # The profile's conversion comes after the reduction, which leaves it less to do.
        small = _srgb(
            whole.resize(stored, Image.Resampling.LANCZOS, reducing_gap=3), image.info.get("icc_profile")
        )
    except BROKEN as error:
        raise Rejected("unreadable", f"{type(error).__name__}: {error}") from error
    return small if turn is None else small.transpose(turn)


def _check(image: Image.Image, most_megapixels: float) -> None:
    width, height = image.size
    if min(width, height) < 1:
        raise Rejected("unreadable", f"{width} x {height} pixels")
    try:  # HEIF and MPO name one of their pictures the main one
        frames = getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP", "AVIF", "TIFF") else 1
    except BROKEN as error:
        raise Rejected("unreadable", f"{type(error).__name__}: {error}") from error
    if frames > 1:
        raise Rejected("animated", f"{image.format} with {frames} pictures")
    reducible = image.format in ("JPEG", "MPO") and not image.info.get("progressive")
    most = most_megapixels * 1e6 * (REDUCED if reducible else 1)
    if width * height > most:
        raise Rejected(
            "too_large",
            f"{width} x {height} pixels, {width * height / 1e6:.0f} megapixels of at most {most / 1e6:.0f}",
        )


def _eight_bits(image: Image.Image) -> Image.Image:
    """The same picture with 8 bits a channel."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise Rejected(
                "unreadable", f"grey values from {values.min()} to {values.max()}; expected 16 bits"
            )
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise Rejected("unreadable", "floating point pixels, of which nobody knows the white")
    return image


def _opaque(image: Image.Image) -> Image.Image:
    """The same picture without opacity or palette, so that its values may be averaged."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        least = image.getchannel("A").getextrema()[0]
        if least < 255:  # type: ignore[operator]
            raise Rejected("transparent", f"opacity from {least} of 255")
        return image.convert("RGB")
    return image.convert("RGB") if image.mode in ("P", "1", "HSV", "YCbCr") else image


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in sRGB. A colour profile that is broken, or not for this kind of picture, is left aside."""
    if profile:
        try:
            held = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(
                image, held, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")
