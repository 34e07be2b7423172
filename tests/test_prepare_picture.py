"""Decoding: every format and orientation, 16 bits, CMYK, profiles, and files that must be refused."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, features

from tests.photographs import CAMERA, exif, pixels
from trainer.data.prepare.framing import work_size
from trainer.data.prepare.picture import decode, opened, register_formats
from trainer.data.prepare.rejection import Rejected

SIZE = (96, 64)


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def load(content: bytes, size: tuple[int, int] | None = None, most: float = 100) -> Image.Image:
    with opened(content, most) as (image, header):
        return decode(image, header, size or header.upright)


def refused(content: bytes, most: float = 100) -> tuple[str, str]:
    with pytest.raises(Rejected) as caught:
        load(content, SIZE, most)
    return caught.value.reason, caught.value.detail


def difference(image: Image.Image, wanted: Image.Image | np.ndarray) -> float:
    assert image.mode == "RGB"
    values, expected = np.asarray(image, dtype=float), np.asarray(wanted, dtype=float)
    assert values.shape == expected.shape
    return float(np.abs(values - expected).mean())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_in_every_format(kind: str, orientation: int) -> None:
    """Against Pillow's own turning of the same pixels."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    register_formats()
    stored = Image.fromarray(pixels(SIZE, 3))
    held = exif(**CAMERA, orientation=orientation)
    lossless = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    plain = stored.copy()
    plain.info["exif"] = held.tobytes()
    wanted = ImageOps.exif_transpose(plain)
    options = {"quality": 95, "chroma": 444} if kind == "HEIF" else lossless
    if kind == "HEIF":  # only so does it turn the picture, by a mark of its own format
        stored.info["exif"] = held.tobytes()
    else:
        options["exif"] = held
    content = save(stored, kind, **options)  # some take the orientation out of what they are given
    with opened(content, 100) as (image, header):
        assert header.exif.f_number == pytest.approx(2.0)
        assert header.upright == wanted.size
        found = decode(image, header, header.upright)
    assert difference(found, wanted) < 3


def test_reduced_as_by_area() -> None:
    """A small picture holds what a large one does, whatever shortcut decoding took."""
    large = pixels((1600, 1200), 4)
    for kind, orientation in (("JPEG", 1), ("JPEG", 6), ("PNG", 1)):
        content = save(Image.fromarray(large), kind, exif=exif(orientation=orientation))
        size = (80, 60) if orientation == 1 else (60, 80)
        wanted = np.asarray(Image.fromarray(large).resize((80, 60), Image.Resampling.BOX))
        assert difference(load(content, size), wanted if orientation == 1 else np.rot90(wanted, -1)) < 2


def test_sixteen_bits_and_grey() -> None:
    ramp = np.tile(np.linspace(0, 65535, 96).astype(np.uint16), (64, 1))
    for content in (save(Image.fromarray(ramp), "PNG"), save(Image.fromarray(ramp), "TIFF")):
        found = np.asarray(load(content))
        assert np.array_equal(found, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, 2))
    grey = Image.fromarray(pixels(SIZE)[..., 0])
    assert difference(load(save(grey, "PNG")), grey.convert("RGB")) == 0
    floats = Image.fromarray(np.ones((64, 96), np.float32))
    assert refused(save(floats, "TIFF"))[0] == "unreadable"


def test_sixteen_bit_colour_tiff() -> None:
    """As editors write it; here by OpenCV."""
    cv2 = pytest.importorskip("cv2")
    colours = pixels(SIZE, 11).astype(np.uint16) * 257
    for compression in (1, 5):
        _, content = cv2.imencode(".tif", colours[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, compression])
        assert difference(load(content.tobytes()), colours >> 8) == 0


def test_sixteen_bit_colour_png() -> None:
    """Written byte by byte, as Pillow cannot."""
    import struct
    import zlib

    colours = np.repeat(np.repeat(np.linspace(0, 65535, 96)[None, :, None], 64, 0), 3, 2).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in colours)
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", 96, 64, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
    )
    assert difference(load(content), colours.astype(np.uint16) >> 8) <= 1


def test_palettes_bits_and_cmyk() -> None:
    image = Image.fromarray(pixels(SIZE, 5))
    assert difference(load(save(image.quantize(64), "PNG")), image.quantize(64).convert("RGB")) == 0
    bits = image.convert("1")
    assert difference(load(save(bits, "PNG")), bits.convert("RGB")) == 0
    cmyk = save(image.convert("CMYK"), "JPEG", quality=95)
    assert difference(load(cmyk), image) < 4


def test_colour_profiles() -> None:
    """Lab's grey of L = 50 is 119 of 255 in sRGB by any book; a profile that is nonsense is left aside."""
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    image = Image.fromarray(pixels(SIZE, 6))
    assert difference(load(save(image, "PNG", icc_profile=linear.tobytes())), image) < 1
    lab = Image.new("LAB", SIZE, (128, 128, 128))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    found = np.asarray(load(save(lab, "TIFF", icc_profile=profile)))
    assert np.abs(found.astype(int) - 119).max() <= 2
    for nonsense in (b"", b"not a profile", linear.tobytes()[:100], profile):
        assert difference(load(save(image, "PNG", icc_profile=nonsense)), image) == 0


def test_transparent_pictures_are_refused_and_opaque_ones_not() -> None:
    image = Image.fromarray(pixels(SIZE, 7))
    opaque = image.convert("RGBA")
    assert difference(load(save(opaque, "PNG")), image) == 0
    opaque.putpixel((3, 3), (0, 0, 0, 100))
    assert refused(save(opaque, "PNG")) == ("transparent", "opacity from 100 of 255")
    assert refused(save(image.quantize(8), "PNG", transparency=0))[0] == "transparent"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_several_pictures_in_one_file(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    frames = [Image.fromarray(pixels(SIZE, seed)) for seed in range(3)]
    assert refused(save(frames[0], kind, save_all=True, append_images=frames[1:])) == (
        "animated",
        f"{kind} with 3 pictures",
    )


def test_broken_files() -> None:
    image = Image.fromarray(pixels((400, 300), 8))
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        content = save(image, kind)
        assert refused(content[: len(content) // 2])[0] == "unreadable", kind
    nonsense = b"", b"GIF89a", b"<html>", b"\xff\xd8\xff\xe0", b"\0" * 5000
    for content in (*nonsense, save(image, "GIF"), save(image, "BMP")):
        assert refused(content)[0] == "unreadable"
    assert load(save(Image.new("RGB", (1, 1)), "PNG")).size == (
        1,
        1,
    )  # it is for the size to be judged by others


def test_too_many_pixels() -> None:
    image = Image.new("RGB", (1200, 1000))
    assert refused(save(image, "PNG"), most=1)[0] == "too_large"
    assert refused(save(image, "JPEG", progressive=True), most=1)[0] == "too_large"
    assert load(save(image, "JPEG"), SIZE, most=1).size == SIZE  # decoded at an eighth
    assert refused(save(image, "JPEG"), most=0.1)[0] == "too_large"
    content = bytearray(save(Image.new("1", (8, 8)), "PNG"))  # of which the header says more than there is
    content[16:24] = struct.pack(">II", 40_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    reason, detail = refused(bytes(content))
    assert (reason, "1200 megapixels" in detail or "too many pixels" in detail) == ("too_large", True)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by Linux's own means")
def test_two_hundred_megapixels_in_little_memory(tmp_path: Path) -> None:
    """A JPEG of 20000 x 10000 pixels would take 600 MB; it is decoded in a process that may have 400."""
    path = tmp_path / "large.jpg"
    Image.new("RGB", (20_000, 10_000), "peru").save(path, quality=20)
    code = f"""
        import resource, sys
        from pathlib import Path
        from trainer.data.prepare.picture import decode, opened
        import bokeh_ops.camera.exif
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with opened(Path({str(path)!r}), 100) as (image, header):
            small = decode(image, header, (1024, 512))
        assert small.size == (1024, 512) and header.upright == (20000, 10000)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400


def test_size_of_work() -> None:
    """The least at which the crop fits in, by hand."""
    assert work_size((6000, 4000), (512, 512)) == (768, 512)
    assert work_size((4000, 6000), (512, 512)) == (512, 768)
    assert work_size((4000, 4000), (512, 512)) == (512, 512)
    assert work_size((6000, 4000), (768, 512)) == (768, 512)
    assert work_size((6000, 4000), (1024, 512)) == (1024, 683)
