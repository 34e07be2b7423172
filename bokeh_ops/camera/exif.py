"""What a photograph file says about the lens that took it.

Only the standard EXIF fields are read, without decoding the picture where the format allows that; maker notes are
left alone. Cameras and editors write all sorts of values for "unknown" (0, 0/0, 4294967295, 65535):
whatever cannot be true becomes None, with the reason beside it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from .optics import FULL_FRAME_DIAGONAL, SENSORS, Camera, sensor_width_from_35mm
from .photograph import NO_EXIF, exif_block, open_photograph
from .sensors import is_smartphone, table_sensor
from .tiff_tags import read_tags

LONGEST_TEXT = 64
SHAPES_AGREE = 1.03
"""Ratios of sides that differ by less are the same shape; cameras trim a few rows."""
_UNKNOWN = 0xFFFFFFFF  # EXIF 2.3: a numerator of this is infinity; many cameras mean "unknown"
# Lengths of FocalPlaneResolutionUnit in metres.
_PLANE_UNITS = {2: 0.0254, 3: 0.01, 4: 0.001, 5: 1e-6}
_PLAUSIBLE_SENSOR = (0.002, 0.07)
_SENSOR_SHAPES = (4 / 3, 1.5)  # long side over short side, of nearly all
_SENSORS_AGREE = 1.1  # widths of sensors likewise; equivalents are rounded

# Tags of the first directory and of the EXIF directory, by their names there.
_FIRST = {"ImageWidth": 0x100, "ImageLength": 0x101, "Make": 0x10F, "Model": 0x110, "Orientation": 0x112}
_EXIF = {
    "ExposureTime": 0x829A,
    "FNumber": 0x829D,
    "SubjectDistance": 0x9206,
    "FocalLength": 0x920A,
    "ExifImageWidth": 0xA002,
    "ExifImageHeight": 0xA003,
    "FocalPlaneXResolution": 0xA20E,
    "FocalPlaneResolutionUnit": 0xA210,
    "CustomRendered": 0xA401,
    "DigitalZoomRatio": 0xA404,
    "FocalLengthIn35mmFilm": 0xA405,
    "LensModel": 0xA434,
}


@dataclass(frozen=True)
class CameraExif:
    """Camera and lens of a photograph. Lengths are in metres; None is unknown.

    Attributes:
        width: pixels, as stored.
        height: pixels, as stored.
        orientation: EXIF orientation, 1 to 8 (5 to 8 swap the sides when shown upright).
        make: maker of the camera.
        model: the camera.
        lens: the lens.
        f_number: N.
        focal_length: metres, the true one.
        focal_length_35mm: metres, of the lens that sees the same on 36 x 24 mm.
        focus_distance: metres (SubjectDistance); most cameras leave it out.
        exposure_time: seconds.
        focal_plane: metres, long and short side of the sensor that FocalPlaneXResolution tells of.
        reasons: by attribute, why it is None.
        digital_zoom: DigitalZoomRatio where it is above 1.
        custom_rendered: CustomRendered, the camera's own number for special processing (phones: 7 and 8 are portrait
            mode, whose blur no lens made).
        recorded_size: width and height in pixels that the camera recorded; another shape than the file's tells that
            the picture was cropped later.
    """

    width: int
    height: int
    orientation: int | None = None
    make: str | None = None
    model: str | None = None
    lens: str | None = None
    f_number: float | None = None
    focal_length: float | None = None
    focal_length_35mm: float | None = None
    focus_distance: float | None = None
    exposure_time: float | None = None
    focal_plane: tuple[float, float] | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    digital_zoom: float | None = None
    custom_rendered: int | None = None
    recorded_size: tuple[int, int] | None = None

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height in pixels as the picture is shown."""
        turned = self.orientation is not None and self.orientation >= 5
        return (self.height, self.width) if turned else (self.width, self.height)

    @cached_property
    def _sensor(self) -> tuple[float, float, str] | None:
        """Long and short side in metres of the part of the sensor that the camera used, and where they are from."""
        zoom = self.digital_zoom or 1.0
        table = table_sensor(self.make, self.model)
        equivalent = None
        if self.focal_length and self.focal_length_35mm:
            # Of another shape than sensors have, the picture was cropped, in the camera or later.
            least, most = _SENSOR_SHAPES
            aspect = min(max(shape(self.recorded_size or (self.width, self.height)), least), most)
            width = sensor_width_from_35mm(
                self.focal_length, self.focal_length_35mm, aspect
            )  # of what zoom left
            if _PLAUSIBLE_SENSOR[0] <= width <= _PLAUSIBLE_SENSOR[1]:
                # Telephones that crop say so in the equivalent, as if they zoomed.
                if self.recorded_size and is_smartphone(self.make, self.model):
                    aspect = shape(self.recorded_size)
                equivalent = width, width / aspect
        # An equivalent of a clearly smaller sensor tells of a crop mode.
        if table and not (equivalent and equivalent[0] * _SENSORS_AGREE < table[0] / zoom):
            return table[0] / zoom, table[1] / zoom, "the table of cameras"
        if equivalent:
            return *equivalent, "the 35 mm equivalent"
        if self.focal_plane:
            return self.focal_plane[0] / zoom, self.focal_plane[1] / zoom, "the resolution of the focal plane"
        return None

    @property
    def sensor_width(self) -> float | None:
        """Metres, an estimate of the long side of the part of the sensor that digital zoom left.

        By the table of cameras; the 35 mm equivalent, which counts more where its sensor is the smaller one, and has
        the zoom in it; or the resolution of the focal plane.
        """
        return self._sensor[0] if self._sensor else None

    @property
    def sensor_source(self) -> str | None:
        """What :attr:`sensor_width` was taken from."""
        return self._sensor[2] if self._sensor else None

    @property
    def sensor_shown(self) -> float | None:
        """Metres of sensor along the longer side of the picture, which may be cropped."""
        return self.part_shown(*self._sensor[:2]) if self._sensor else None

    def part_shown(self, long: float, short: float) -> float:
        """Metres of a sensor of these sides along the longer side of the picture.

        A picture squarer than the sensor has its whole short side, any other its whole long side: so the camera
        crops, and after it the one who cuts the picture. How much more was cut off nothing tells.
        """
        for size in filter(None, (self.recorded_size, (self.width, self.height))):
            aspect = shape(size)
            if aspect * SHAPES_AGREE < long / short:
                long = short * aspect
            elif aspect > long / short * SHAPES_AGREE:
                short = long / aspect
        return long

    @property
    def camera(self) -> str | None:
        """Maker and model, the maker once."""
        if self.make and self.model and self.model.lower().startswith(self.make.split()[0].lower()):
            return self.model
        return " ".join(filter(None, (self.make, self.model))) or None


# attribute: (EXIF field, factor to the attribute's unit, least and most that can be true)
_NUMBERS: dict[str, tuple[str, float, float, float]] = {
    "f_number": ("FNumber", 1.0, 0.5, 128.0),
    "focal_length": ("FocalLength", 0.001, 0.0005, 5.0),
    "focal_length_35mm": ("FocalLengthIn35mmFilm", 0.001, 0.004, 10.0),
    "focus_distance": ("SubjectDistance", 1.0, 0.001, 10_000.0),
    "exposure_time": ("ExposureTime", 1.0, 1e-7, 1e5),
}
_TEXTS = {"make": "Make", "model": "Model", "lens": "LensModel"}


def read_exif(source: str | Path | BinaryIO) -> CameraExif:
    """Read camera and lens from a photograph.

    Args:
        source: path of a file, or a binary file that can seek.

    Returns:
        What is known. A picture without EXIF gives a :class:`CameraExif` with its size and reasons only.

    Raises:
        BokehError: no such file, no picture, or one too large to be opened.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with open_photograph(source) as image:
            found = exif_of(image)
    if "exif" not in found.reasons and any(issubclass(each.category, UserWarning) for each in caught):
        return replace(found, reasons={**found.reasons, "exif": "the file is damaged"})
    return found


def exif_of(image: Image.Image) -> CameraExif:
    """Camera and lens of an opened picture (:func:`open_photograph`), which is not decoded for it.

    The exception is a PNG of up to :data:`MOST_PNG_PIXELS`, whose EXIF may follow its pixels.
    """
    width, height = image.size
    fields, damage = _fields(image)
    if image.format == "TIFF" and all(
        isinstance(fields.get(tag), int) for tag in ("ImageWidth", "ImageLength")
    ):
        width, height = fields["ImageWidth"], fields["ImageLength"]  # Pillow's are upright already
    reasons: dict[str, str] = {}
    found: dict[str, Any] = {}
    for attribute, (tag, factor, least, most) in _NUMBERS.items():
        number, reason = _number(fields.get(tag), factor, least, most)
        found[attribute] = number
        if number is None:
            reasons[attribute] = f"{tag} {reason}" if fields or damage is None else damage
    for attribute, tag in _TEXTS.items():
        found[attribute] = _text(fields.get(tag))
        if found[attribute] is None:
            reasons[attribute] = f"{tag} is missing"
    orientation = fields.get("Orientation")
    found["orientation"] = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else None
    if found["orientation"] is None:
        reasons["orientation"] = "Orientation is missing or none of 1 to 8"
    if damage is not None:
        reasons["exif"] = damage
    zoom = _number(fields.get("DigitalZoomRatio"), 1.0, 1.0, 100.0)[0]
    rendered = fields.get("CustomRendered")
    recorded = _recorded(fields)
    return CameraExif(
        width,
        height,
        **found,
        focal_plane=_focal_plane(fields, recorded),
        reasons=reasons,
        digital_zoom=zoom if zoom != 1 else None,
        custom_rendered=rendered if isinstance(rendered, int) else None,
        recorded_size=recorded,
    )


def written_exif(camera: Camera, width: int, height: int) -> Image.Exif:
    """EXIF that tells of a camera, as :func:`read_exif` reads it: f-number, focal length, focus, and the sensor by the
    focal plane's resolution and a 35 mm equivalent.

    Equivalents are of whole sensors, 3:2 to 4:3: of a picture of another shape, that of the one it would be cut from.

    Args:
        camera: of the picture; an infinite focus is left out.
        width, height: of the picture, in pixels.
    """
    found = Image.Exif()
    found[0x0131] = "ComfyUI, bokeh"  # Software: no camera took it
    long, short = max(width, height), min(width, height)
    per_millimetre = long / (1000 * camera.sensor_width)
    least, most = _SENSOR_SHAPES
    aspect = min(max(long / short, least), most)
    whole = camera.sensor_width * max(1.0, aspect * short / long)
    equivalent = camera.focal_length * FULL_FRAME_DIAGONAL / (whole * math.hypot(1, 1 / aspect))
    part = {
        0x829D: _ratio(camera.f_number),  # FNumber
        0x920A: _ratio(1000 * camera.focal_length),  # FocalLength
        0xA405: max(1, round(1000 * equivalent)),  # FocalLengthIn35mmFilm
        0xA002: width,  # PixelXDimension
        0xA003: height,
        0xA20E: _ratio(per_millimetre),  # FocalPlaneXResolution
        0xA20F: _ratio(per_millimetre),
        0xA210: 4,  # FocalPlaneResolutionUnit: millimetres
    }
    if math.isfinite(camera.focus_distance):
        part[0x9206] = _ratio(camera.focus_distance)  # SubjectDistance
    found.get_ifd(0x8769).update(part)
    return found


def _ratio(value: float) -> IFDRational:
    return IFDRational(Fraction(value).limit_denominator(10000))


def fill_in(camera: Camera, photograph: CameraExif) -> tuple[Camera, list[str], list[str]]:
    """A camera whose settings are the photograph's where it holds them.

    Args:
        camera: what holds where the photograph is silent; its sensor is the whole one.
        photograph: from :func:`read_exif`.

    Returns:
        The camera; a text for each setting that is the photograph's; and one for each that is not, with the reason.
    """
    labels = {
        "f_number": "f/{:.4g}",
        "focal_length": "focal length {:.4g} mm",
        "focus_distance": "focus at {:.4g} m",
    }
    changes: dict[str, float] = {}
    taken, missing = [], []
    for name, label in labels.items():
        value = getattr(photograph, name)
        if value is None:
            missing.append(f"{name.replace('_', ' ')} ({photograph.reasons.get(name, 'unknown')})")
            continue
        changes[name] = value
        taken.append(label.format(value * 1000 if label.endswith("mm") else value))
    shown = photograph.sensor_shown
    if shown is not None:
        part = "" if shown == photograph.sensor_width else ", cropped"
        part += f", digital zoom {photograph.digital_zoom:g}" if photograph.digital_zoom else ""
        taken.append(
            f"sensor {shown * 1000:.4g} mm along the longer side (by {photograph.sensor_source}{part})"
        )
    else:
        shown = whole = camera.sensor_width
        if "exif" not in photograph.reasons:  # or nothing tells that a camera took it
            shown = photograph.part_shown(whole, whole / _SENSOR_SHAPES[1]) / (photograph.digital_zoom or 1.0)
        what = "the camera is in no table, and has neither a 35 mm equivalent nor a resolution of the focal plane"
        missing.append(f"sensor width ({what})")
        if shown != whole:
            taken.append(f"crop and digital zoom: {shown * 1000:.4g} mm of the sensor along the longer side")
    return replace(camera, **changes, sensor_width=shown), taken, missing


def _fields(image: Image.Image) -> tuple[dict[str, Any], str | None]:
    """EXIF fields by name, and what is wrong with the block, if anything."""
    block, reason = exif_block(image)
    if block is None:
        return {}, reason
    tags, damage = read_tags(block, set(_FIRST.values()), set(_EXIF.values()))
    names = {tag: name for name, tag in {**_FIRST, **_EXIF}.items()}
    fields = {names[tag]: value for tag, value in tags.items()}
    if damage is not None:
        return fields, f"the EXIF block is damaged ({damage})"
    return fields, None if fields else NO_EXIF


def _recorded(fields: Mapping[str, Any]) -> tuple[int, int] | None:
    """The camera's own size of the picture, which survives a later reduction better than the file's."""
    sides = [_number(fields.get(tag), 1.0, 1.0, 1e6)[0] for tag in ("ExifImageWidth", "ExifImageHeight")]
    return None if sides[0] is None or sides[1] is None else (int(sides[0]), int(sides[1]))


def _number(value: Any, factor: float, least: float, most: float) -> tuple[float | None, str]:
    """The value if it can be true, or why not."""
    if value is None:
        return None, "is missing"
    try:
        number = float(value)
        unknown = getattr(value, "numerator", value) == _UNKNOWN
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None, "is not a number"
    if math.isnan(number):
        return None, "is 0/0 or another fraction without value"
    if unknown or math.isinf(number):
        return None, "is infinite or unknown"
    if number == 0:
        return None, "is 0, which stands for unknown"
    if not least <= number * factor <= most:
        return None, f"is {number:g}, which cannot be true"
    return number * factor, ""


def _text(value: Any) -> str | None:
    """Printable text, not too long; it is shown to people."""
    if isinstance(value, bytes):
        value = value.decode("ascii", "ignore")
    if not isinstance(value, str):
        return None
    clean = "".join(char for char in value if char.isprintable()).strip()
    return clean[:LONGEST_TEXT].strip() or None


def _focal_plane(fields: Mapping[str, Any], recorded: tuple[int, int] | None) -> tuple[float, float] | None:
    """Long and short side of the sensor in metres."""
    unit = _PLANE_UNITS.get(fields.get("FocalPlaneResolutionUnit", 2))
    resolution = _number(fields.get("FocalPlaneXResolution"), 1.0, 1e-3, 1e9)[0]
    if not (recorded and unit and resolution):
        return None
    width = max(recorded) / resolution * unit
    # Editors scale the recorded size but not the resolution: only a width that sensors have is believed.
    for long, short in SENSORS.values():
        if abs(width * 1000 / long - 1) < 0.03:
            return width, width * short / long
    return None


def shape(size: tuple[int, int]) -> float:
    """Long side over short side, of a picture or a sensor."""
    return max(size) / min(size)
