"""The thin lens against worked values, geometry, and the units of the systems that speak of K."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bokeh_ops.camera import optics
from bokeh_ops.camera.optics import (
    Camera,
    blur_radius,
    bokehdiff_gain,
    bokehme_k,
    coc_diameter,
    genfocus_k,
    k_at_width,
    k_from_bokehdiff,
    k_from_bokehme,
    k_from_camera,
    k_from_genfocus,
    pixel_ratio,
    sensor_width,
    sensor_width_from_35mm,
    sharp_circle,
)
from bokeh_ops.errors import BokehError


def test_the_worked_value_of_equation_9() -> None:
    assert k_from_camera(0.050, 1.8, 2.0, 0.036, 512) == pytest.approx(10.13, abs=0.005)
    assert k_from_camera(0.050, 1.8, 2.0) == pytest.approx(0.0025 * 2 / (2 * 1.8 * 1.95) * 512 / 0.036)
    # twice the aperture's diameter, twice the blur; so with twice the pixels
    assert k_from_camera(0.050, 0.9, 2.0) == pytest.approx(2 * k_from_camera(0.050, 1.8, 2.0))
    assert k_from_camera(0.050, 1.8, 2.0, image_width=1024) == pytest.approx(
        2 * k_from_camera(0.050, 1.8, 2.0)
    )


@pytest.mark.parametrize("subject", [0.3, 1.0, 1.9, 2.0, 5.0, 1000.0])
def test_the_circle_of_confusion_is_that_of_traced_rays(subject: float) -> None:
    """Image distances by ``1/f = 1/S + 1/v``, then similar triangles behind the aperture."""
    focal, f_number, focus = 0.085, 1.4, 2.0
    sensor_plane = 1 / (1 / focal - 1 / focus)
    image_plane = 1 / (1 / focal - 1 / subject)
    traced = focal / f_number * abs(image_plane - sensor_plane) / image_plane
    assert coc_diameter(focal, f_number, focus, subject) == pytest.approx(traced, rel=1e-12, abs=1e-18)
    radius = traced / 2 * pixel_ratio(512, 0.036)
    k = k_from_camera(focal, f_number, focus)
    assert blur_radius(k, focus, subject) == pytest.approx(radius, rel=1e-12, abs=1e-12)


def test_infinity_is_a_distance() -> None:
    # a subject at infinity is blurred by f^2 / (N (S1 - f)); a focus at infinity blurs S2 by f^2 / (N S2)
    assert coc_diameter(0.05, 2.0, 2.0, math.inf) == pytest.approx(0.0025 / (2 * 1.95))
    assert coc_diameter(0.05, 2.0, math.inf, 4.0) == pytest.approx(0.0025 / (2 * 4))
    assert coc_diameter(0.05, 2.0, math.inf, math.inf) == 0
    assert k_from_camera(0.05, 2.0, math.inf, 0.036, 512) == pytest.approx(0.0025 / 4 * 512 / 0.036)
    assert blur_radius(10, math.inf, 5.0) == pytest.approx(2.0)


def test_tensors_give_what_numbers_give() -> None:
    distances = torch.tensor([[0.5, 1.0], [4.0, torch.inf]], dtype=torch.float64)
    f_numbers = torch.tensor([[1.4], [8.0]], dtype=torch.float64)
    result = coc_diameter(0.05, f_numbers, 2.0, distances)
    assert isinstance(result, torch.Tensor)
    for row in range(2):
        for column in range(2):
            alone = coc_diameter(0.05, float(f_numbers[row, 0]), 2.0, float(distances[row, column]))
            assert float(result[row, column]) == pytest.approx(alone, rel=1e-12)
    f_numbers.requires_grad_(True)
    k = k_from_camera(0.05, f_numbers, 2.0)
    assert isinstance(k, torch.Tensor)
    k.sum().backward()
    assert f_numbers.grad is not None
    assert f_numbers.grad == pytest.approx((-k / f_numbers).detach())


def test_known_sensors() -> None:
    assert sensor_width("Full frame") == 0.036
    assert sensor_width("Micro Four Thirds") == 0.0173
    for name, (width, height) in optics.SENSORS.items():
        assert 5 < width < 60, name
        assert 1.3 < width / height < 1.55, name
    with pytest.raises(BokehError, match="'Fullframe'; known are Full frame, "):
        sensor_width("Fullframe")


@pytest.mark.parametrize(
    ("name", "focal", "equivalent"),
    # lens and its equivalent as the makers give them
    [
        ("Full frame", 50, 50),
        ("Micro Four Thirds", 25, 50),
        ("iPhone 13 Pro, 14, main", 5.7, 26),
        ("iPhone 14 Pro to 16 Pro, main", 6.86, 24),
        ("1 inch", 8.8, 24),
        ("APS-C", 23, 35),
    ],
)
def test_sensors_agree_with_35_mm_equivalents(name: str, focal: float, equivalent: float) -> None:
    width, height = optics.SENSORS[name]
    estimate = sensor_width_from_35mm(focal / 1000, equivalent / 1000, width / height)
    assert estimate == pytest.approx(width / 1000, rel=0.035)


def test_conventions_of_the_35_mm_equivalent() -> None:
    # 4:3 and 26 mm for 5.7 mm: the diagonal 43.267 / (26 / 5.7) = 9.4854 mm is 5/4 of the width
    assert sensor_width_from_35mm(0.0057, 0.026, 4 / 3) == pytest.approx(9.4854e-3 * 0.8, rel=1e-4)
    assert sensor_width_from_35mm(0.0057, 0.026, 4 / 3, "width") == pytest.approx(0.036 * 5.7 / 26)
    by_width, by_diagonal = (sensor_width_from_35mm(0.02, 0.03, 1.5, by) for by in ("width", "diagonal"))
    assert by_width == pytest.approx(by_diagonal) == pytest.approx(0.024)


def test_units_of_the_other_systems() -> None:
    # K = 12 px per dioptre at 512; a picture 2048 wide whose disparities span 3 dioptres: something 3 dioptres
    # from the focus is blurred by 36 px at 512, 144 px at 2048
    assert k_at_width(12, 2048) == 48
    assert k_at_width(48, 512, 2048) == 12
    assert genfocus_k(12, 2048) == 48  # 48 px per dioptre x 3 dioptres
    assert bokehme_k(12, 3.0, 2048) == 144  # x a normalised disparity of 1
    assert bokehdiff_gain(12, 3.0, 2048) == pytest.approx(14.4)  # in units of 10 px
    assert bokehdiff_gain(12, 1.0, 512) == pytest.approx(1.2)
    for there, back in ((bokehme_k, k_from_bokehme), (bokehdiff_gain, k_from_bokehdiff)):
        assert back(there(17.5, 0.8, 768), 0.8, 768) == pytest.approx(17.5)
    assert k_from_genfocus(genfocus_k(17.5, 768), 768) == pytest.approx(17.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: k_from_camera(0.05, 0, 2), "f-number is 0;"),
        (lambda: k_from_camera(0.05, -1.8, 2), "f-number is -1.8"),
        (lambda: k_from_camera(0.05, math.nan, 2), "f-number is nan"),
        (lambda: k_from_camera(0.05, math.inf, 2), "f-number is inf"),
        (lambda: k_from_camera(0, 1.8, 2), "focal length is 0 metres"),
        (lambda: k_from_camera(50, 1.8, 2), "50 mm is 0.05"),
        (lambda: k_from_camera(0.05, 1.8, 0.05), "farther than the focal length"),
        (lambda: k_from_camera(0.05, 1.8, 0), "focus distance is 0"),
        (lambda: k_from_camera(0.05, 1.8, 2, 0), "sensor width is 0"),
        (lambda: k_from_camera(0.05, 1.8, 2, 0.036, 0), "image width is 0 pixels"),
        (lambda: k_from_camera(0.05, torch.tensor([1.8, 0.0]), 2), "f-number is tensor"),
        (lambda: k_from_camera(0.05, 1.8, torch.tensor([2.0, 0.04])), "farther than"),
        (lambda: coc_diameter(0.05, 1.8, 2, -1), "subject distance is -1"),
        (lambda: coc_diameter(0.05, 1.8, 2, torch.tensor([1.0, torch.nan])), "subject distance"),
        (lambda: blur_radius(-1, 2, 3), "K is -1"),
        (lambda: blur_radius(1, 0, 3), "focus distance is 0"),
        (lambda: k_at_width(1, 0), "image width is 0"),
        (lambda: bokehme_k(1, 0, 512), "disparity range is 0"),
        (lambda: k_from_bokehme(1, -1, 512), "disparity range is -1"),
        (lambda: sensor_width_from_35mm(0.0057, 0), "35 mm equivalent focal length is 0"),
        (lambda: sensor_width_from_35mm(0.0057, 0.026, 0.75), "aspect is 0.75"),
        (lambda: sensor_width_from_35mm(0.0057, 0.026, convention="height"), "'height'"),
    ],
)
def test_impossible_cameras_are_refused(call, message: str) -> None:
    with pytest.raises(BokehError) as raised:
        call()
    assert message in str(raised.value)


CAMERAS = [
    Camera(0.050, 1.8, 2.0, 0.036),
    Camera(0.085, 1.4, 2.5, 0.036),
    Camera(0.024, 8.0, 3.0, 0.036),  # beyond its hyperfocal distance
    Camera(0.0057, 1.5, 0.6, 0.00766),
    Camera(0.100, 2.8, 0.25, 0.0235),  # macro
    Camera(0.035, 4.0, math.inf, 0.036),
]


@pytest.mark.parametrize("camera", CAMERAS, ids=str)
def test_limits_of_what_looks_sharp_are_where_the_circle_of_confusion_says(camera: Camera) -> None:
    """By bisection of the traced circle of confusion, which knows nothing of the closed forms."""
    circle = sharp_circle(camera.sensor_width)

    def traced(distance: float, focus: float = camera.focus_distance) -> float:
        image = 1 / (1 / camera.focal_length - 1 / distance)
        sensor = 1 / (1 / camera.focal_length - 1 / focus)
        return camera.focal_length / camera.f_number * abs(image - sensor) / image

    def root(low: float, high: float, blurred: Callable[[float], float]) -> float:
        """Where between two distances a blur passes the circle, in disparity."""
        one, other = 1 / low, 1 / high
        larger = blurred(low) > circle
        for _ in range(200):
            middle = (one + other) / 2
            one, other = (middle, other) if (blurred(1 / middle) > circle) == larger else (one, middle)
        return 2 / (one + other)

    near, far = camera.sharp_range(circle)
    focus = min(camera.focus_distance, 1e9)
    assert near == pytest.approx(root(camera.focal_length * 1.0001, focus, traced), rel=1e-6)
    if math.isinf(far):
        assert traced(1e12) <= circle
    else:
        assert far == pytest.approx(root(focus, 1e9, traced), rel=1e-6)
    hyperfocal = root(camera.focal_length * 1.01, 1e7, lambda distance: traced(1e15, distance))
    assert camera.hyperfocal(circle) == pytest.approx(hyperfocal, rel=1e-6)
    at = replace(camera, focus_distance=camera.hyperfocal(circle))
    assert at.sharp_range(circle)[1] == math.inf
    assert at.sharp_range(circle)[0] == pytest.approx(camera.hyperfocal(circle) / 2, rel=1e-9)


def test_depth_of_field_in_words() -> None:
    """50 mm f/1.8 at 2 m: near and far 2 S f^2 / (f^2 +- N c (S - f)) as tables have it, hyperfocal f^2 / (N c) + f."""
    circle = sharp_circle(0.036)
    assert circle == pytest.approx(28.84e-6, rel=1e-3)
    assert sharp_circle(0.00766, 4 / 3) == pytest.approx(math.hypot(7.66e-3, 5.745e-3) / 1500)
    near, far = CAMERAS[0].sharp_range(circle)
    assert near == pytest.approx(2 * 0.0025 / (0.0025 + 1.8 * circle * 1.95))
    assert far == pytest.approx(2 * 0.0025 / (0.0025 - 1.8 * circle * 1.95))
    assert CAMERAS[0].describe_sharp(circle) == (
        "Sharp from 1.922 m to 2.084 m (16.2 cm deep), at a circle of confusion of 28.8 µm.\n"
        "Hyperfocal distance 48.2 m.\n"
        "Infinity is blurred to discs of 712 µm, 1.98 % of the picture's longer side."
    )
    assert "to infinity (without end)" in CAMERAS[2].describe_sharp(circle)
    for bad in (0.0, -1e-5, math.nan):
        for call in (CAMERAS[0].sharp_range, CAMERAS[0].hyperfocal):
            with pytest.raises(BokehError, match="circle of confusion is"):
                call(bad)
    with pytest.raises(BokehError, match="farther than the focal length"):
        Camera(0.05, 1.8, 0.04, 0.036).sharp_range(circle)
