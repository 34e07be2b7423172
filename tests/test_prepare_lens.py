"""What is known of a lens: the table of cameras, 35 mm equivalents, and data beside the picture."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bokeh_ops.camera.exif import CameraExif
from bokeh_ops.camera.sensors import is_smartphone, table_sensor
from trainer.data.prepare.lens import check_lens, given_number, read_lens
from trainer.data.prepare.rejection import Rejected
from trainer.data.prepare.settings import Settings

SIZE = (6000, 4000)


def held(**fields: Any) -> CameraExif:
    return CameraExif(*SIZE, **{"f_number": 2.8, "focal_length": 0.05, **fields})


@pytest.mark.parametrize(
    ("make", "model", "millimetres"),
    [
        ("Canon", "Canon EOS 5D Mark III", 36.0),
        ("Canon", "Canon EOS 400D DIGITAL", 22.3),
        ("NIKON CORPORATION", "NIKON D750", 36.0),
        ("NIKON CORPORATION", "NIKON D3", 36.0),
        ("NIKON CORPORATION", "NIKON Z 6_2", 36.0),
        ("SONY", "ILCE-6000", 23.5),
        ("SONY", "DSC-RX100M4", 13.2),
        ("FUJIFILM", "X-T30 II", 23.5),
        ("OLYMPUS CORPORATION", "E-M1MarkII", 17.3),
        ("Panasonic", "DMC-GX80", 17.3),
        ("RICOH IMAGING COMPANY, LTD.", "RICOH GR III", 23.5),
        ("LEICA CAMERA AG", "LEICA Q2", 36.0),
        ("FUJIFILM", "GFX100S", 43.8),
    ],
)
def test_table_of_cameras(make: str, model: str, millimetres: float) -> None:
    """Widths by the makers' data sheets."""
    sensor = table_sensor(make, model)
    assert sensor is not None
    assert sensor[0] == pytest.approx(millimetres / 1000)
    assert not is_smartphone(make, model)


@pytest.mark.parametrize(
    ("make", "model"), [("Acme", "D3"), (None, "M10"), ("Apple", "iPhone 13 Pro"), (None, None)]
)
def test_cameras_that_are_not_in_the_table(make: str | None, model: str | None) -> None:
    assert table_sensor(make, model) is None


def test_telephones() -> None:
    phones = ("Apple", "iPhone 8"), ("samsung", "SM-G991B"), ("Google", "Pixel 7"), ("Xiaomi", "M2012K11AG")
    phones += (
        ("LG Electronics", "LG-H870"),
        ("Sony", "XQ-BC72"),
        ("Sony", "D5803"),
        ("samsung", "Galaxy S25 Ultra"),
    )
    assert all(is_smartphone(*phone) for phone in phones)
    cameras = (
        ("NIKON", "E5700"),
        ("SAMSUNG", "NX300"),
        ("SONY", "SLT-A58"),
        ("NIKON CORPORATION", "NIKON D3100"),
    )
    assert not any(is_smartphone(*camera) for camera in (*cameras, (None, None), ("DJI", "FC6310")))


def test_sensor_by_table_equivalent_or_focal_plane() -> None:
    known = {"make": "SONY", "model": "ILCE-6000"}
    assert read_lens(held(**known), {}, SIZE).sensor_from == "the table of cameras"
    # The equivalent is rounded, and agrees: the table counts.
    lens = read_lens(held(**known, focal_length=0.016, focal_length_35mm=0.024), {}, SIZE)
    assert lens.sensor_across == pytest.approx(0.0235)
    # A full-frame camera in its crop mode says so by the equivalent.
    cropped = held(make="SONY", model="ILCE-7M3", focal_length_35mm=0.075)
    lens = read_lens(cropped, {}, SIZE)
    assert lens.sensor_across == pytest.approx(0.024)
    assert lens.sensor_from == "the 35 mm equivalent"
    # Some write the true focal length there, as if the sensor were larger: the table counts.
    wrong = read_lens(held(**known, focal_length_35mm=0.05), {}, SIZE)
    assert wrong.sensor_across == pytest.approx(0.0235)
    unknown = held(focal_plane=(0.0223, 0.0149))
    assert read_lens(unknown, {}, SIZE).sensor_across == pytest.approx(0.0223)
    assert read_lens(unknown, {"sensor_width_mm": 30}, SIZE).sensor_across == pytest.approx(0.030)
    assert read_lens(held(**known, digital_zoom=2.0), {}, SIZE).sensor_across == pytest.approx(0.0235 / 2)


def test_shape_of_the_picture_and_of_the_sensor() -> None:
    """36 x 24 mm: upright it is 24 mm across, square 24 mm, 16:9 36 mm."""
    camera = held(make="Canon", model="Canon EOS 6D")
    for size, across in (((6000, 4000), 36), ((4000, 6000), 24), ((4000, 4000), 24), ((6400, 3600), 36)):
        assert read_lens(camera, {}, size).sensor_across == pytest.approx(across / 1000)
    # Four thirds from a 3:2 sensor by its whole height.
    assert read_lens(camera, {}, (4000, 3000)).sensor_across == pytest.approx(0.032)


def test_data_beside_the_picture_have_the_last_word() -> None:
    given = {"f_number": "f/1.8", "focal_length": "85.0 mm", "exposure_time": "1/50"}
    given |= {"make": "NIKON", "model": "NIKON D750"}
    lens = read_lens(held(focal_length_35mm=0.08), given, SIZE)
    assert lens.f_number == 1.8
    assert lens.focal_length == pytest.approx(0.085)
    assert lens.sensor_across == pytest.approx(0.036)
    assert lens.exposure_time == pytest.approx(0.02)
    # the authors' fields, without a camera
    lens = read_lens(
        CameraExif(*SIZE), {"f_number": 4.0, "focal_length": 50.0, "focal_length_35": 75.0}, SIZE
    )
    assert lens.sensor_across == pytest.approx(0.024)
    assert lens.known


@pytest.mark.parametrize("value", [None, 0, 0.0, float("nan"), "", "0", " ", False])
def test_numbers_that_are_not_there(value: Any) -> None:
    assert given_number({"f_number": value}, "f_number") is None


@pytest.mark.parametrize("value", [-2.0, 1e9, float("inf"), "fast", [2.8], True, {"a": 1}])
def test_numbers_that_cannot_be_true(value: Any) -> None:
    with pytest.raises(Rejected) as caught:
        given_number({"f_number": value}, "f_number")
    assert caught.value.reason == "bad_fields"


@pytest.mark.parametrize(
    "value",
    [
        [{"tag": "Make", "raw": {"_content": "SONY"}}, {"tag": "Model", "raw": {"_content": "ILCE-6000"}}],
        [{"label": "Make", "raw": "SONY"}, {"label": "Model", "raw": "ILCE-6000"}, None, 5],
        {
            "photo": {
                "exif": [{"tag": "Make", "raw": {"_content": "SONY"}}, {"tag": "Model", "raw": "ILCE-6000"}]
            }
        },
        {"Make": "SONY", "Model": "ILCE-6000"},
    ],
)
def test_camera_by_what_flickr_says(value: Any) -> None:
    for held_as in (value, json.dumps(value)):
        lens = read_lens(held(), {"flickr_exif": held_as}, SIZE)
        assert (lens.make, lens.model) == ("SONY", "ILCE-6000")
        assert lens.sensor_across == pytest.approx(0.0235)


@pytest.mark.parametrize("value", ["{", "[" * 50_000, "null", 5, None, "[1, 2]", '{"photo": 3}'])
def test_what_flickr_says_may_be_nonsense(value: Any) -> None:
    assert read_lens(held(), {"flickr_exif": value}, SIZE).make is None


@pytest.mark.parametrize(
    ("fields", "settings", "reason", "detail"),
    [
        ({"custom_rendered": 8}, {}, "rendered_blur", "portrait mode"),
        ({"make": "Apple", "model": "iPhone 8"}, {}, "smartphone", "Apple iPhone 8"),
        ({"f_number": None, "reasons": {"f_number": "FNumber is 0"}}, {}, "no_lens_data", "FNumber is 0"),
        ({"make": "Acme", "model": "Box"}, {}, "no_lens_data", "Acme Box is not in the table"),
        (
            {"make": "Canon", "model": "Canon EOS 6D", "recorded_size": (5472, 5472)},
            {},
            "cropped",
            "recorded as 5472",
        ),
    ],
)
def test_photographs_refused_for_their_lens(
    fields: dict[str, Any], settings: dict[str, Any], reason: str, detail: str
) -> None:
    exif = held(**fields)
    with pytest.raises(Rejected) as caught:
        check_lens(read_lens(exif, {}, SIZE), exif, Settings(**settings), SIZE)
    assert caught.value.reason == reason
    assert detail in caught.value.detail


def test_photographs_not_refused() -> None:
    phone = held(make="Apple", model="iPhone 8", focal_length=0.004, focal_length_35mm=0.028)
    check_lens(read_lens(phone, {}, SIZE), phone, Settings(smartphones=True), SIZE)
    # a reduced copy keeps its shape; an upright one was recorded lying
    for recorded, size in (
        ((6000, 4000), (1500, 1000)),
        ((6000, 4000), (1000, 1500)),
        ((6016, 4016), (6000, 4000)),
    ):
        camera = held(make="Canon", model="Canon EOS 6D", recorded_size=recorded)
        check_lens(read_lens(camera, {}, size), camera, Settings(), size)
