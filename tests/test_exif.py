"""EXIF of photographs: good, missing, absurd and broken. The blocks are written here byte by byte."""

from __future__ import annotations

import io
import random
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bokeh_ops.camera import photograph as photograph_module
from bokeh_ops.camera.exif import CameraExif, fill_in, read_exif
from bokeh_ops.camera.optics import Camera
from bokeh_ops.errors import BokehError

MAKE, MODEL, ORIENTATION, EXPOSURE, F_NUMBER = 0x010F, 0x0110, 0x0112, 0x829A, 0x829D
DISTANCE, FOCAL, MAKER_NOTE, WIDTH, HEIGHT = 0x9206, 0x920A, 0x927C, 0xA002, 0xA003
PLANE_X, PLANE_UNIT, FOCAL_35, LENS, ZOOM = 0xA20E, 0xA210, 0xA405, 0xA434, 0xA404
IN_FIRST = (MAKE, MODEL, ORIENTATION)


def entry(value: Any) -> tuple[int, int, bytes]:
    """Type, count and bytes of a field: text, a whole number, or a fraction ``(numerator, denominator)``."""
    if isinstance(value, str):
        data = value.encode("latin-1") + b"\0"
        return 2, len(data), data
    if isinstance(value, bytes):
        return 7, len(value), value
    if isinstance(value, tuple):
        return 5, len(value) // 2, struct.pack(f"<{len(value)}I", *value)
    return (3, 1, struct.pack("<H", value)) if value < 65536 else (4, 1, struct.pack("<I", value))


def directory(fields: dict[int, Any], start: int) -> bytes:
    """A TIFF directory that begins ``start`` bytes into the block, its data right behind it."""
    entries, extra = b"", b""
    behind = start + 2 + 12 * len(fields) + 4
    for tag, value in sorted(fields.items()):
        kind, count, data = entry(value)
        if len(data) > 4:
            place = struct.pack("<I", behind + len(extra))
            extra += data
        else:
            place = data.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, count) + place
    return struct.pack("<H", len(fields)) + entries + b"\0\0\0\0" + extra


def block(fields: dict[int, Any]) -> bytes:
    first: dict[int, Any] = {tag: value for tag, value in fields.items() if tag in IN_FIRST}
    rest = {tag: value for tag, value in fields.items() if tag not in IN_FIRST}
    behind = 8 + len(directory({**first, 0x8769: 0}, 8))  # a short, which takes the room of a long
    return (
        b"Exif\0\0II*\0"
        + struct.pack("<I", 8)
        + directory({**first, 0x8769: behind}, 8)
        + directory(rest, behind)
    )


def photograph(fields: dict[int, Any], size: tuple[int, int] = (64, 48), kind: str = "JPEG") -> io.BytesIO:
    file = io.BytesIO()
    Image.new("RGB", size, (90, 120, 60)).save(file, kind, exif=block(fields))
    file.seek(0)
    return file


GOOD: dict[int, Any] = {
    MAKE: "SONY",
    MODEL: "ILCE-6000",
    ORIENTATION: 6,
    EXPOSURE: (1, 250),
    F_NUMBER: (28, 10),
    FOCAL: (350, 10),
    FOCAL_35: 52,
    DISTANCE: (153, 100),
    LENS: "E 35mm F1.8 OSS",
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_photograph_that_says_everything(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"photograph.{kind.lower()}"
    path.write_bytes(photograph(GOOD, (72, 48), kind).getvalue())
    found = read_exif(path)
    assert (found.width, found.height, found.orientation) == (72, 48, 6)
    assert found.upright_size == (48, 72)
    assert found.camera == "SONY ILCE-6000"
    assert found.lens == "E 35mm F1.8 OSS"
    assert found.f_number == pytest.approx(2.8)
    assert found.focal_length == pytest.approx(0.035)
    assert found.focal_length_35mm == pytest.approx(0.052)
    assert found.focus_distance == pytest.approx(1.53)
    assert found.exposure_time == pytest.approx(0.004)
    assert found.sensor_width == pytest.approx(0.0235)
    assert found.sensor_source == "the table of cameras"
    unknown = read_exif(photograph({**GOOD, MODEL: "One"}, (72, 48), kind))
    assert unknown.sensor_width == pytest.approx(0.036 * 35 / 52)  # 3:2, where diagonal and width agree
    assert unknown.sensor_source == "the 35 mm equivalent"
    assert found.reasons == {}


def test_a_real_photograph(shared: Path) -> None:
    found = read_exif(str(shared / "data" / "pug.jpg"))
    assert found.camera == "Apple iPhone 13 Pro"
    assert found.f_number == pytest.approx(1.5)
    assert found.focal_length == pytest.approx(0.0057)
    assert found.focal_length_35mm == pytest.approx(0.026)
    assert found.focus_distance is None
    assert found.reasons == {"focus_distance": "SubjectDistance is missing"}
    assert found.sensor_width == pytest.approx(0.00766, rel=0.02)  # 4032 pixels of 1.9 micrometres


@pytest.mark.parametrize(
    ("tag", "value", "attribute", "reason"),
    [
        (F_NUMBER, (0, 1), "f_number", "FNumber is 0"),
        (F_NUMBER, (0, 0), "f_number", "FNumber is 0/0"),
        (F_NUMBER, (28, 0), "f_number", "without value"),
        (F_NUMBER, (1, 10), "f_number", "FNumber is 0.1, which cannot be true"),
        (F_NUMBER, (9999, 1), "f_number", "cannot be true"),
        (F_NUMBER, "fast", "f_number", "FNumber is not a number"),
        (F_NUMBER, b"\x01\x02", "f_number", "is not a number"),
        (F_NUMBER, (28, 10, 40, 10), "f_number", "is not a number"),
        (FOCAL, (0, 10), "focal_length", "FocalLength is 0"),
        (FOCAL, (35000, 1), "focal_length", "cannot be true"),
        (FOCAL_35, 0, "focal_length_35mm", "FocalLengthIn35mmFilm is 0"),
        (FOCAL_35, 65535, "focal_length_35mm", "cannot be true"),
        (DISTANCE, (0, 1), "focus_distance", "SubjectDistance is 0, which stands for unknown"),
        (DISTANCE, (0xFFFFFFFF, 1), "focus_distance", "infinite or unknown"),
        (DISTANCE, (0xFFFFFFFF, 0xFFFFFFFF), "focus_distance", "infinite or unknown"),
        (DISTANCE, (1, 0), "focus_distance", "without value"),
        (DISTANCE, (4000000, 1), "focus_distance", "cannot be true"),
        (EXPOSURE, (0, 0), "exposure_time", "ExposureTime is 0/0"),
    ],
)
def test_what_cannot_be_true_is_none_with_a_reason(tag: int, value: Any, attribute: str, reason: str) -> None:
    found = read_exif(photograph({**GOOD, tag: value}))
    assert getattr(found, attribute) is None
    assert reason in found.reasons[attribute]
    others = {"f_number", "focal_length", "focal_length_35mm", "focus_distance", "exposure_time"} - {
        attribute
    }
    assert all(getattr(found, other) is not None for other in others)


def test_what_is_missing_is_said_to_be() -> None:
    found = read_exif(photograph({MAKE: "Nobody"}))
    assert found.camera == "Nobody"
    assert found.sensor_width is None
    for attribute, tag in (("f_number", "FNumber"), ("focal_length", "FocalLength"), ("model", "Model")):
        assert found.reasons[attribute] == f"{tag} is missing"
    plain = io.BytesIO()
    Image.new("L", (5, 4)).save(plain, "PNG")
    found = read_exif(plain)
    assert (found.width, found.height, found.upright_size) == (5, 4, (5, 4))
    assert found.reasons["exif"] == found.reasons["f_number"] == "the file holds no EXIF"


def test_sensor_from_the_35_mm_equivalent_by_the_shape_of_the_picture() -> None:
    fields = {FOCAL: (57, 10), FOCAL_35: 26}
    four_thirds = 43.267e-3 * 5.7 / 26 * 0.8
    assert read_exif(photograph(fields, (64, 48))).sensor_width == pytest.approx(four_thirds, rel=1e-4)
    assert read_exif(photograph(fields, (48, 64))).sensor_width == pytest.approx(four_thirds, rel=1e-4)
    # the camera's own size counts, not that of a cut-out made of it later
    recorded = read_exif(photograph({**fields, WIDTH: 4032, HEIGHT: 3024}, (50, 50)))
    assert recorded.sensor_width == pytest.approx(four_thirds, rel=1e-4)
    # a panorama says nothing of the sensor's shape
    assert read_exif(photograph(fields, (300, 40))).sensor_width == pytest.approx(0.036 * 5.7 / 26)
    # and an equivalence that would take a sensor of 0.4 m is not believed
    assert read_exif(photograph({FOCAL: (300, 1), FOCAL_35: 27})).sensor_width is None


def test_sensor_from_the_resolution_of_the_focal_plane() -> None:
    # Canon EOS 400D: 3888 pixels at 3888000/877 per inch, no 35 mm equivalent
    fields = {WIDTH: 3888, HEIGHT: 2592, PLANE_X: (3888000, 877), PLANE_UNIT: 2}
    found = read_exif(photograph(fields, (60, 40)))
    assert found.sensor_width == pytest.approx(0.0223, rel=0.002)
    assert found.sensor_source == "the resolution of the focal plane"
    millimetres = {**fields, PLANE_X: (3888, 22), PLANE_UNIT: 4}
    assert read_exif(photograph(millimetres)).sensor_width == pytest.approx(0.022)
    for spoilt in (
        {PLANE_X: (0, 1)},
        {PLANE_UNIT: 9},
        {WIDTH: 1920, HEIGHT: 1280},
    ):  # the last: scaled by an editor
        assert read_exif(photograph({**fields, **spoilt})).sensor_width is None


def test_texts_are_fit_to_be_shown() -> None:
    found = read_exif(photograph({**GOOD, MAKE: "So\x1b[31mny\x07\r\n ", MODEL: "x" * 900, LENS: "\0\0"}))
    assert found.make == "So[31mny"
    assert found.model is not None
    assert len(found.model) == 64
    assert found.lens is None
    assert CameraExif(1, 1, make="NIKON CORPORATION", model="NIKON D100").camera == "NIKON D100"
    assert CameraExif(1, 1).camera is None


def test_orientation_must_be_one() -> None:
    for value in (0, 9, 700):
        found = read_exif(photograph({**GOOD, ORIENTATION: value}))
        assert found.orientation is None
        assert "orientation" in found.reasons


def test_maker_notes_are_left_alone() -> None:
    note = b"FUJIFILM" + struct.pack("<I", 12) + b"\xff" * 40
    data = photograph({**GOOD, MAKER_NOTE: note}).getvalue()
    entry_of_note = struct.pack("<HHI", MAKER_NOTE, 7, len(note))
    assert data.count(entry_of_note) == 1
    for count in (len(note), 2**32 - 1, 0):  # as it is, four gigabytes, nothing
        found = read_exif(io.BytesIO(data.replace(entry_of_note, struct.pack("<HHI", MAKER_NOTE, 7, count))))
        assert found.f_number == pytest.approx(2.8)
        assert found.reasons == {}


def test_broken_files_never_do_more_than_be_refused() -> None:
    """Thousands of damaged files gave nothing but BokehError or a result; here are some."""
    good = photograph(GOOD).getvalue()
    rng = random.Random(3)
    read = refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's warnings of damage stay inside
        for _ in range(400):
            data = bytearray(good)
            for _ in range(rng.choice((1, 4, 30))):
                data[rng.randrange(len(data))] = rng.randrange(256)
            del data[rng.randrange(20, 2 * len(data)) :]
            try:
                found = read_exif(io.BytesIO(bytes(data)))
            except BokehError:
                refused += 1
            else:
                read += 1
                assert found.f_number is None or 0.5 <= found.f_number <= 128
                assert found.sensor_width is None or 0.002 <= found.sensor_width <= 0.07
    assert read > 50
    assert refused > 20


def test_what_is_no_photograph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BokehError, match=r"There is no file .*nothing\.jpg"):
        read_exif(tmp_path / "nothing.jpg")
    with pytest.raises(BokehError, match="cannot be read"):
        read_exif(tmp_path)
    for name, content in (
        ("page.jpg", b"<html>not found</html>"),
        ("empty.jpg", b""),
        ("art.eps", b"%!PS-Adobe-3.0"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BokehError, match=rf"{name} is no photograph that can be read; save it as JPEG"):
            read_exif(tmp_path / name)
    monkeypatch.setattr(photograph_module, "MOST_BYTES", 100)
    with pytest.raises(BokehError, match="photographs of up to 100"):
        read_exif(photograph(GOOD))


def test_pictures_too_large_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = io.BytesIO()
    Image.new("L", (40, 40)).save(plain, "PNG")
    monkeypatch.setattr(photograph_module, "MOST_PNG_PIXELS", 1000)
    assert "too large" in read_exif(plain).reasons["f_number"]
    assert read_exif(photograph(GOOD, (40, 40), "PNG")).f_number == pytest.approx(2.8)  # ahead of the pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(BokehError, match="too many pixels"):
        read_exif(plain)


CANON_350D = {MAKE: "Canon", MODEL: "Canon EOS 350D DIGITAL", F_NUMBER: (28, 10), FOCAL: (50, 1)}
PHONE = {MAKE: "Apple", MODEL: "iPhone 13 Pro", F_NUMBER: (15, 10), FOCAL: (57, 10)}
UNKNOWN = {MAKE: "Nobody", MODEL: "One", F_NUMBER: (28, 10), FOCAL: (50, 1)}


@pytest.mark.parametrize(
    ("fields", "size", "millimetres"),
    [
        (CANON_350D, (60, 40), 22.3),
        (CANON_350D, (40, 60), 22.3),  # turned
        (CANON_350D, (40, 40), 14.9),  # cut to a square: the whole short side
        (CANON_350D, (64, 36), 22.3),  # cut to 16:9: the whole long side
        ({**CANON_350D, WIDTH: 3456, HEIGHT: 2304}, (50, 40), 14.9 * 1.25),
        ({**CANON_350D, ZOOM: (3, 1)}, (60, 40), 22.3 / 3),
        ({**CANON_350D, ZOOM: (3, 1)}, (40, 40), 14.9 / 3),
        ({**CANON_350D, ZOOM: (0, 1)}, (60, 40), 22.3),  # 0: no zoom
        ({**PHONE, FOCAL_35: 26}, (64, 48), 43.267 * 5.7 / 26 * 0.8),
        ({**PHONE, FOCAL_35: 26}, (48, 48), 43.267 * 5.7 / 26 * 0.6),
        ({**PHONE, FOCAL_35: 78, ZOOM: (3, 1)}, (64, 48), 43.267 * 5.7 / 78 * 0.8),  # the zoom is in it
        # an iPhone 6 Plus in its square mode: 29 mm, told as 39, and 3.6 mm of its sensor (4.8 x 3.6)
        ({MAKE: "Apple", MODEL: "iPhone 6 Plus", FOCAL: (415, 100), FOCAL_35: 39, WIDTH: 2448, HEIGHT: 2448}, (48, 48),
         43.267 * 4.15 / 39 * 0.8),
        # a camera's own square, then a cut-out of that
        ({**CANON_350D, WIDTH: 2304, HEIGHT: 2304}, (60, 40), 14.9),
        # its own crop mode: the equivalent tells of a smaller sensor
        ({**CANON_350D, FOCAL_35: 100}, (60, 40), 18.0),
        ({**UNKNOWN, WIDTH: 3456, HEIGHT: 2304, PLANE_X: (3456000, 874), PLANE_UNIT: 2, ZOOM: (2, 1)}, (60, 40),
         25.4 * 0.874 / 2),
    ],
)  # fmt: skip
def test_the_part_of_the_sensor_that_a_picture_shows(
    fields: dict[int, Any], size: tuple[int, int], millimetres: float
) -> None:
    """Along the longer side, whichever that is: turning a camera changes no blur."""
    found = read_exif(photograph(fields, size))
    assert found.sensor_shown == pytest.approx(millimetres / 1000, rel=1e-3)
    camera, taken, missing = fill_in(Camera(0.05, 1.8, 2.0, 0.036), found)
    assert camera.sensor_width == found.sensor_shown
    (text,) = [text for text in taken if "along the longer side" in text]
    assert (", cropped" in text) == (camera.sensor_width < found.sensor_width)
    assert (", digital zoom 3" in text) == (found.digital_zoom == 3)
    assert not any("sensor" in text for text in missing)


@pytest.mark.parametrize(
    ("fields", "size", "millimetres"),
    [
        (UNKNOWN, (60, 40), 36.0),
        (UNKNOWN, (40, 60), 36.0),
        (UNKNOWN, (40, 40), 24.0),
        ({**UNKNOWN, ZOOM: (3, 1)}, (60, 40), 12.0),
        ({**UNKNOWN, WIDTH: 6000, HEIGHT: 4000, ZOOM: (3, 1)}, (40, 40), 8.0),
    ],
)
def test_crop_and_zoom_of_an_unknown_camera(
    fields: dict[int, Any], size: tuple[int, int], millimetres: float
) -> None:
    """The sensor is then the one that was given, and the part of it what the photograph tells."""
    camera, taken, missing = fill_in(Camera(0.05, 1.8, 2.0, 0.036), read_exif(photograph(fields, size)))
    assert camera.sensor_width == pytest.approx(millimetres / 1000)
    assert any("sensor width (the camera is in no table" in text for text in missing)
    assert any(f"crop and digital zoom: {millimetres:g} mm" in text for text in taken) == (millimetres != 36)
