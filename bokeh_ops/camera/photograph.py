"""Opening a photograph of a stranger, and finding the EXIF block in it."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from ..errors import BokehError
from .tiff_tags import claimed_bytes

MOST_BYTES = 512 * 2**20
"""Larger files are not opened."""

MOST_PNG_PIXELS = 50_000_000
"""A PNG may hold its EXIF after the pixels, which then have to be decoded: not for more than this."""

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "HEIF", "AVIF")
"""Formats that are opened, those of them that this Pillow knows."""

MOST_CLAIMED = 64 * 2**20
"""A directory whose values overlap such that they come to more than its file and this is there to fill memory."""

MOST_SEGMENTS = 10_000
"""Segments before the pixels of a JPEG; photographs have some dozens."""

NO_EXIF = "the file holds no EXIF"

BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OverflowError,
    ZeroDivisionError,
    RuntimeError,
    MemoryError,
    struct.error,
)
"""What Pillow's parsers raise on damaged blocks, as far as is known."""


@contextmanager
def open_photograph(source: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """Open a picture of one of :data:`FORMATS`, without decoding it.

    Args:
        source: path of a file, or a binary file that can seek.

    Raises:
        BokehError: no such file, no picture, one too large to be opened, or one built to fill the memory.
    """
    name = str(source) if isinstance(source, (str, Path)) else "the picture"
    try:
        if isinstance(source, (str, Path)):
            with open(source, "rb") as file:
                _check(file, name)
        else:
            _check(source, name)
            source.seek(0)
    except FileNotFoundError as error:
        raise BokehError(f"There is no file {name}.") from error
    except OSError as error:
        raise BokehError(f"{name} cannot be read: {error}.") from error
    Image.init()  # knows all formats only afterwards
    formats = [kind for kind in FORMATS if kind in Image.OPEN]
    try:
        image = Image.open(source, formats=formats)
    except UnidentifiedImageError as error:
        raise BokehError(
            f"{name} is no photograph that can be read; save it as JPEG (known are {', '.join(formats)})."
        ) from error
    except Image.DecompressionBombError as error:
        raise BokehError(f"{name} has too many pixels: {error}") from error
    except BROKEN as error:
        raise BokehError(f"{name} cannot be read as a picture: {error}.") from error
    with image:
        yield image


def _check(file: BinaryIO, name: str) -> None:
    """Refuse what Pillow might fill the memory with on opening, where it reads all values of a TIFF structure."""
    size = file.seek(0, 2)
    if size > MOST_BYTES:
        raise BokehError(f"{name} has {size} bytes; photographs of up to {MOST_BYTES} are read.")
    file.seek(0)
    head = file.read(4)
    file.seek(0)
    if head[:2] == b"\xff\xd8":
        block: BinaryIO = io.BytesIO(_jpeg_exif(file, name))
    elif head[:2] in (b"II", b"MM"):
        block = file
    else:
        return
    claimed = claimed_bytes(block)
    if claimed > size + MOST_CLAIMED:
        raise BokehError(
            f"{name} is built to fill the memory: its EXIF claims {claimed} bytes of values in a file of {size}."
        )


def _jpeg_exif(file: BinaryIO, name: str) -> bytes:
    """The EXIF of a JPEG, its segments joined, as Pillow joins them."""
    parts = []
    file.seek(2)
    for _ in range(MOST_SEGMENTS):
        marker = file.read(4)
        if len(marker) < 4 or marker[0] != 0xFF or marker[1] == 0xDA:
            return b"".join(parts)
        length = max(int.from_bytes(marker[2:4], "big") - 2, 0)
        if marker[1] == 0xE1:
            content = file.read(length)
            if content.startswith(b"Exif\0\0"):
                parts.append(content[6:])
        else:
            file.seek(length, 1)
    raise BokehError(
        f"{name} is built to take for ever: it has over {MOST_SEGMENTS} segments before its pixels."
    )


def exif_block(image: Image.Image) -> tuple[BinaryIO | None, str | None]:
    """The EXIF block of an opened picture, from its TIFF header on.

    Returns:
        A file that stands at the header, and None; or None and the reason.
    """
    if image.format == "TIFF":
        file: BinaryIO = image.fp  # type: ignore[attr-defined]
        file.seek(0)
        return file, None
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & set(image.info):
        if image.width * image.height > MOST_PNG_PIXELS:
            return None, "the picture is too large to look for EXIF behind its pixels"
        try:
            image.load()
        except BROKEN as error:
            return None, f"the EXIF block is damaged ({error})"
    content = _block(image.info)
    return (None, NO_EXIF) if content is None else (io.BytesIO(content), None)


def _block(info: Mapping[Any, Any]) -> bytes | None:
    """The EXIF block that Pillow found, from its TIFF header on."""
    content = info.get("exif")
    if not isinstance(content, bytes):
        text = info.get(
            "Raw profile type exif"
        )  # as ImageMagick writes it into PNG: a name, a length, hexadecimal
        if not isinstance(text, str):
            return None
        try:
            content = bytes.fromhex("".join(text.split("\n")[3:]))
        except ValueError:
            return b""
    return content[6:] if content.startswith(b"Exif\0\0") else content
