"""What is known of the lens: from the file's EXIF, and from data that came beside it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bokeh_ops.camera.exif import SHAPES_AGREE, CameraExif, shape
from bokeh_ops.camera.sensors import is_smartphone
from trainer.data.prepare.rejection import Rejected
from trainer.data.prepare.settings import Settings

PORTRAIT_MODES = (7, 8)
"""Values of CustomRendered by which phones mark blur that was computed."""

MOST_JSON = 2**20

_PLAUSIBLE = {  # field: least and most that can be true, in the field's own unit
    "f_number": (0.5, 128.0),
    "focal_length": (0.5, 5000.0),
    "focal_length_35": (4.0, 10_000.0),
    "sensor_width_mm": (2.0, 70.0),
    "subject_distance": (0.001, 10_000.0),
    "exposure_time": (1e-7, 1e5),
}


@dataclass(frozen=True)
class Lens:
    """The lens of a photograph. Lengths are in metres; None is unknown.

    Attributes:
        f_number: N.
        focal_length: the true one.
        sensor_across: of the sensor, along the width of the whole picture as it stands upright.
        sensor_from: what that was taken from.
        subject_distance: as the camera wrote it.
        exposure_time: seconds.
        make: maker of the camera.
        model: the camera.
        missing: why what is None is.
    """

    f_number: float | None
    focal_length: float | None
    sensor_across: float | None
    sensor_from: str | None
    subject_distance: float | None
    exposure_time: float | None
    make: str | None
    model: str | None
    missing: tuple[str, ...]

    @property
    def known(self) -> bool:
        """Whether K can be computed."""
        return None not in (self.f_number, self.focal_length, self.sensor_across)


def read_lens(exif: CameraExif, given: Mapping[str, Any], upright: tuple[int, int]) -> Lens:
    """The lens from EXIF and from data beside the picture, which has the last word.

    The sensor's width is ``sensor_width_mm`` beside the picture, or what :class:`.CameraExif` makes of the
    other fields.

    Args:
        exif: of the file.
        given: fields beside the picture: ``f_number``, ``focal_length`` and ``focal_length_35`` in millimetres,
            ``sensor_width_mm`` (of the picture's width), ``subject_distance`` in metres, ``exposure_time`` in
            seconds, ``make``, ``model``, and ``flickr_exif`` (the JSON of Flickr's interface), of which make and
            model are read. Numbers may be text: ``"50.0 mm"``, ``"f/2.8"``, ``"1/60"``.
        upright: width and height of the whole picture in pixels.

    Raises:
        Rejected: a given number that cannot be true.
    """
    numbers = {name: given_number(given, name) for name in _PLAUSIBLE}
    flickr = _flickr_fields(given.get("flickr_exif"))
    make = _first_text(given.get("make"), exif.make, flickr.get("make"))
    model = _first_text(given.get("model"), exif.model, flickr.get("model"))

    def choose(name: str, held: float | None, unit: float = 1.0) -> float | None:
        number = numbers[name]
        return held if number is None else number * unit

    focal_length = choose("focal_length", exif.focal_length, 0.001)
    equivalent = choose("focal_length_35", exif.focal_length_35mm, 0.001)
    f_number = choose("f_number", exif.f_number)
    if numbers["sensor_width_mm"] is not None:
        across, source = numbers["sensor_width_mm"] / 1000, "given"
    else:
        told = replace(
            exif,
            width=upright[0],
            height=upright[1],
            make=make,
            model=model,
            focal_length=focal_length,
            focal_length_35mm=equivalent,
        )
        shown, source = told.sensor_shown, told.sensor_source
        across = None if shown is None else shown * min(1.0, upright[0] / upright[1])
    missing = [
        exif.reasons.get(name, f"{name} is missing")
        for name, value in (("f_number", f_number), ("focal_length", focal_length))
        if value is None
    ]
    if across is None and (make or model):
        missing.append(
            f"{camera_name(make, model)} is not in the table, and has no 35 mm equivalent that can be true"
        )
    elif across is None:
        missing.append("the camera is unknown")
    return Lens(
        f_number=f_number,
        focal_length=focal_length,
        sensor_across=across,
        sensor_from=source,
        subject_distance=choose("subject_distance", exif.focus_distance),
        exposure_time=choose("exposure_time", exif.exposure_time),
        make=make,
        model=model,
        missing=tuple(dict.fromkeys(missing)),
    )


def check_lens(lens: Lens, exif: CameraExif, settings: Settings, upright: tuple[int, int]) -> None:
    """Refuse a photograph for what its camera is, or for what is not known of it.

    Args:
        lens: from :func:`read_lens`.
        exif: of the file.
        settings: whether smartphones are taken.
        upright: width and height of the whole picture in pixels.

    Raises:
        Rejected: ``smartphone``, ``rendered_blur``, ``cropped`` or ``no_lens_data``.
    """
    if exif.custom_rendered in PORTRAIT_MODES:
        raise Rejected("rendered_blur", f"CustomRendered is {exif.custom_rendered}: a portrait mode")
    if not settings.smartphones and is_smartphone(lens.make, lens.model):
        raise Rejected("smartphone", camera_name(lens.make, lens.model))
    if not lens.known:
        raise Rejected("no_lens_data", "; ".join(lens.missing))
    if exif.recorded_size is not None and lens.sensor_from != "given":
        was, now = shape(exif.recorded_size), shape(upright)
        if max(was / now, now / was) > SHAPES_AGREE:
            raise Rejected(
                "cropped",
                f"{upright[0]} x {upright[1]}, recorded as {exif.recorded_size[0]} x {exif.recorded_size[1]}",
            )


def camera_name(make: str | None, model: str | None) -> str:
    """Maker and model, the maker once."""
    return CameraExif(1, 1, make=make, model=model).camera or "unknown camera"


def given_number(given: Mapping[str, Any], name: str) -> float | None:
    """A number that came beside the picture, or None where there is none: missing, null, empty, 0 or NaN.

    Raises:
        Rejected: it is no number, or cannot be true.
    """
    value = given.get(name)
    if isinstance(value, str):
        found = re.search(r"(\d+(?:\.\d+)?)(?:\s*/\s*(\d+(?:\.\d+)?))?", value[:64])
        if found is None:
            if value.strip():
                raise Rejected("bad_fields", f"{name} is {value[:64]!r}")
            return None
        value = float(found[1]) / (float(found[2] or 1) or math.nan)
    if value is None or value is False:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Rejected("bad_fields", f"{name} is {str(value)[:64]!r}")
    if math.isnan(value) or value == 0:
        return None
    least, most = _PLAUSIBLE[name]
    if not least <= value <= most:
        raise Rejected("bad_fields", f"{name} is {value:g}")
    return float(value)


def _first_text(*values: Any) -> str | None:
    return next((value.strip()[:64] for value in values if isinstance(value, str) and value.strip()), None)


def _flickr_fields(value: Any) -> dict[str, str]:
    """Make and model from what Flickr's interface says: a list of tags (perhaps wrapped), or an object."""
    if isinstance(value, (str, bytes)):
        if len(value) > MOST_JSON:
            return {}
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    for name in ("photo", "exif"):
        if isinstance(value, Mapping) and isinstance(value.get(name), (Mapping, list)):
            value = value[name]
    found: dict[str, str] = {}
    if isinstance(value, Mapping):
        found = {str(name).lower(): entry for name, entry in value.items() if isinstance(entry, str)}
    elif isinstance(value, list):
        for entry in value[:1000]:
            if not isinstance(entry, Mapping):
                continue
            raw = entry.get("raw", entry.get("value"))
            raw = raw.get("_content") if isinstance(raw, Mapping) else raw
            name = str(entry.get("tag") or entry.get("label") or "").lower()
            if isinstance(raw, str) and name in ("make", "model"):
                found.setdefault(name, raw)
    return {name: found[name] for name in ("make", "model") if name in found}
