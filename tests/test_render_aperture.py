"""Aperture kernels against closed forms: moments of discs, polygons and ovals, and which way up they are."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.render.aperture import Aperture
from bokeh_ops.render.offsets import aperture_scale


def moments(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Centre ``(x, y)`` and the matrix of second moments about it."""
    n = kernel.shape[0] // 2
    y, x = torch.meshgrid(*[torch.arange(-n, n + 1, dtype=torch.float64)] * 2, indexing="ij")
    places = torch.stack([x, y]).flatten(1)
    weight = kernel.double().flatten()
    centre = places @ weight
    away = places - centre[:, None]
    return centre, (away * weight) @ away.T


def heart(size: int = 90) -> Tensor:
    """Upright: two lobes above, the tip below. Its centre of light lies above the middle."""
    y, x = torch.meshgrid(torch.linspace(1.4, -1.2, size), torch.linspace(-1.3, 1.3, size), indexing="ij")
    return ((x**2 + y**2 - 1) ** 3 - x**2 * y**3 < 0).float()


KINDS: dict[str, dict] = {
    "disc": {},
    "triangle": {"blades": 3, "rotation": 90.0},
    "square": {"blades": 4, "rotation": 45.0},
    "rounded pentagon": {"blades": 5, "rotation": 20.0, "curvature": 0.5},
    "oval": {"squeeze": 2.0},
    "cat's eye": {"cats_eye": 1.0},
    "soap bubble": {"spherical": -1.0},
    "creamy": {"blades": 6, "spherical": 1.0},
    "heart": {"picture": heart()},
    "turned heart": {"picture": heart(), "rotation": 30.0, "squeeze": 0.7, "cats_eye": 0.5},
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@pytest.mark.parametrize("radius", [0.0, 1e-4, 0.3, 1.0, 2.7, 9.5, 60.0])
def test_energy_is_kept_and_light_is_never_negative(kind: str, radius: float) -> None:
    for in_front in (False, True):
        kernel = Aperture(**KINDS[kind]).kernel(radius, in_front=in_front, at=(-0.5, 0.4))
        assert kernel.shape[0] == kernel.shape[1]
        assert kernel.shape[0] % 2 == 1
        assert float(kernel.min()) >= 0
        assert abs(float(kernel.double().sum()) - 1) < 1e-6


@pytest.mark.parametrize("radius", [1.0, 1.5, 2.0, 2.5, 3.3, 5.0, 7.5, 12.2, 40.0])
def test_second_moment_of_a_disc(radius: float) -> None:
    """r^2 / 4 per axis."""
    centre, square = moments(Aperture().kernel(radius, dtype=torch.float64))
    assert torch.allclose(square, torch.eye(2, dtype=torch.float64) * radius**2 / 4, rtol=1e-4, atol=1e-9)
    assert float(centre.abs().max()) < 1e-9


@pytest.mark.parametrize("radius", [2.0, 3.0, 5.0, 9.0, 30.0])
@pytest.mark.parametrize("blades", [3, 4, 5, 6, 8, 16])
def test_second_moment_of_a_polygon(blades: int, radius: float) -> None:
    """R^2 (2 + cos(2 pi / n)) / 12 per axis, R to the vertices, whichever way it is turned."""
    expected = radius**2 * (2 + math.cos(2 * math.pi / blades)) / 12
    centre, square = moments(Aperture(blades, rotation=13.0).kernel(radius, dtype=torch.float64))
    assert torch.allclose(square.diagonal() / expected, torch.ones(2, dtype=torch.float64), atol=2e-3)
    assert abs(float(square[0, 1])) < 0.3 / radius**2 * expected
    assert float(centre.abs().max()) < 2e-3 * radius


def test_area_of_what_is_flat() -> None:
    """One over the plateau is the area, as exact as the correction for the pixel allows: 0.42 / r^2."""
    for radius in (4.0, 10.0, 40.0):
        plateau = float(Aperture().kernel(radius, dtype=torch.float64).max())
        assert abs(1 / plateau / (math.pi * radius**2) - 1) < 0.45 / radius**2
    for blades in (3, 5, 8):
        area = blades / 2 * math.sin(2 * math.pi / blades) * 40.0**2
        plateau = float(Aperture(blades, 10.0).kernel(40.0, dtype=torch.float64).max())
        assert abs(1 / plateau / area - 1) < 2e-3


@pytest.mark.parametrize("squeeze", [0.5, 1.0, 2.0, 4.0])
def test_the_longer_axis_of_an_oval_keeps_the_radius(squeeze: float) -> None:
    _, square = moments(Aperture(squeeze=squeeze).kernel(8.0, dtype=torch.float64))
    width, height = 2 * square.diagonal().sqrt()
    assert float(height / width) == pytest.approx(squeeze, rel=1e-3)
    assert float(max(width, height)) == pytest.approx(8.0, rel=1e-3)


@pytest.mark.parametrize("spherical", [-1.0, -0.4, 0.5, 1.0])
def test_second_moment_of_the_spherical_profiles(spherical: float) -> None:
    _, square = moments(Aperture(spherical=spherical).kernel(15.0, dtype=torch.float64))
    assert float(square[0, 0]) == pytest.approx(15.0**2 * (1 / 4 - spherical / 12), rel=1e-3)
    ahead = moments(Aperture(spherical=spherical).kernel(15.0, in_front=True, dtype=torch.float64))[1]
    assert float(ahead[0, 0]) == pytest.approx(15.0**2 * (1 / 4 + spherical / 12), rel=1e-3)
    kernel = Aperture(spherical=spherical).kernel(15.0)
    assert (kernel[16, 16] > kernel[16, 28]) == (spherical > 0)


@kinds
def test_kernels_change_smoothly_with_the_radius(kind: str) -> None:
    """A hundredth of a pixel moves a few hundredths of the light at most, also at 0 and at whole radii."""
    aperture, before = Aperture(**KINDS[kind]), None
    for radius in [*np.arange(0.0, 3.2, 0.01), *np.arange(6.9, 7.1, 0.01)]:
        kernel = aperture.kernel(float(radius), at=(0.7, 0.2), dtype=torch.float64)
        kernel = F.pad(kernel, [(25 - kernel.shape[0]) // 2] * 4)
        if before is not None and radius != 6.9:
            assert float((kernel - before).abs().sum()) < 0.08, radius
        before = kernel


@pytest.mark.parametrize("blades", [3, 5, 8])
def test_polygons_lie_as_the_classical_scatter_has_them(blades: int) -> None:
    kernel = Aperture(blades, 25.0).kernel(60.0, dtype=torch.float64).numpy()
    n = len(kernel) // 2
    y, x = np.mgrid[-n : n + 1, -n : n + 1]
    edge = 60 * aperture_scale(np.arctan2(y, x), blades, 25.0)
    distance = np.hypot(x, y)
    assert (kernel[distance < edge - 3] > 0.99 * kernel.max()).all()
    assert (kernel[distance > edge + 5] == 0).all()


def test_curved_blades_lie_between_the_polygon_and_the_circle() -> None:
    areas = [1 / float(Aperture(5, 0, curve).kernel(50.0).max()) for curve in (0.0, 1e-7, 0.3, 0.7, 1.0)]
    assert areas[0] == pytest.approx(areas[1], rel=1e-6)
    assert areas[1] < areas[2] < areas[3] < areas[4]
    assert areas[4] == pytest.approx(math.pi * 50**2, rel=1e-3)
    # An arc of radius 1 / curvature on a chord of length c: a circular segment on each side of the polygon.
    rho, half = 1 / 0.7, math.sin(math.pi / 5)
    segment = rho**2 * math.asin(half / rho) - half * math.sqrt(rho**2 - half**2)
    pentagon = 5 / 2 * math.sin(2 * math.pi / 5)
    assert areas[3] == pytest.approx((pentagon + 5 * segment) * 50**2, rel=2e-3)


def test_hearts_are_upright_behind_the_focal_plane_and_upside_down_before_it() -> None:
    aperture = Aperture(picture=heart())
    behind, ahead = aperture.kernel(20.0), aperture.kernel(20.0, in_front=True)
    assert torch.equal(ahead, behind.flip(0, 1))
    size = 2 * 20
    small = F.interpolate(heart()[None, None], size=(size, size), mode="area")[0, 0]
    assert float((behind[2:-1, 2:-1][:size, :size] / behind.max() - small).abs().mean()) < 0.06
    assert float((ahead[2:-1, 2:-1][:size, :size] / behind.max() - small).abs().mean()) > 0.1


def test_which_way_up_agrees_with_parallax() -> None:
    """Rays through points of the lens, followed to the focal plane, land where the kernel has light."""
    angles = np.radians([90.0, 210.0, 330.0])  # a triangle with a vertex below; x right, y down
    u = 0.02 * np.stack([np.cos(angles), np.sin(angles)], 1)  # metres
    aperture = Aperture(3, rotation=-90.0)
    focus, pixels = 2.0, 3000.0  # metres, and pixels per unit of tangent
    point = np.array([0.3, -0.1])
    for depth in (1.5, 4.0):
        seen = (
            u + (point - u) * focus / depth
        ) / focus  # where the lens at u sees the point, in the focal plane
        landed = (seen - point / depth) * pixels
        delta = 0.02 * pixels * (1 / depth - 1 / focus)
        kernel = aperture.kernel(abs(delta), in_front=delta > 0, dtype=torch.float64)
        n = kernel.shape[0] // 2
        for x, y in (
            0.85 * landed
        ):  # inside the vertices; opposite them lies the middle of an edge, at half of it
            assert float(kernel[n + round(y), n + round(x)]) > 0.7 * float(kernel.max())
            assert float(kernel[n - round(y), n - round(x)]) == 0


def test_a_picture_of_a_disc_is_a_disc() -> None:
    y, x = torch.meshgrid(*[(torch.arange(401) - 200) / 200.5] * 2, indexing="ij")
    disc = (1 - torch.hypot(x, y)).mul(200.5).add(0.5).clamp(0, 1)
    made, expected = Aperture(picture=disc).kernel(9.3), Aperture().kernel(9.3)
    assert float((made - expected).abs().max()) < 0.01 * float(expected.max())


def test_a_picture_is_turned_as_blades_are() -> None:
    n = 301
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, n)] * 2, indexing="ij")
    scale = torch.tensor(aperture_scale(np.arctan2(y.numpy(), x.numpy()), 3, 0.0))
    triangle = (torch.hypot(x, y) < scale).float()
    made = Aperture(picture=triangle, rotation=40.0).kernel(25.0)
    expected = Aperture(3, 40.0).kernel(25.0)
    margin = (made.shape[0] - expected.shape[0]) // 2
    expected = F.pad(expected, [margin] * 4)
    assert float((made - expected).abs().sum()) < 0.05
    assert float((made - expected.flip(0)).abs().sum()) > 0.2


def test_the_cats_eye_cuts_the_outer_side_behind_and_the_inner_side_in_front() -> None:
    """Two circles of radius 1 at distance d share 2 acos(d/2) - d/2 sqrt(4 - d^2)."""
    aperture = Aperture(cats_eye=0.8)
    kernel = aperture.kernel(40.0, at=(0.0, 1.0), dtype=torch.float64)  # below the centre
    d = 0.8
    area = (2 * math.acos(d / 2) - d / 2 * math.sqrt(4 - d * d)) * 40**2
    assert 1 / float(kernel.max()) == pytest.approx(area, rel=3e-3)
    centre, _ = moments(kernel)
    assert float(centre[1]) == pytest.approx(-d / 2 * 40, rel=1e-3)  # towards the centre of the picture
    assert abs(float(centre[0])) < 1e-6
    ahead, _ = moments(aperture.kernel(40.0, at=(0.0, 1.0), in_front=True, dtype=torch.float64))
    assert torch.allclose(ahead, -centre)
    assert torch.equal(aperture.kernel(40.0), Aperture().kernel(40.0))  # nothing in the middle
    picture = Aperture(picture=torch.ones(5, 5), cats_eye=0.8).kernel(40.0, at=(0.0, 1.0))
    assert float(moments(picture)[0][1]) < -5


def test_what_the_properties_say() -> None:
    assert Aperture().is_disc
    assert Aperture(6, curvature=1.0).is_disc
    assert Aperture(6).is_polygon
    for other in ({"curvature": 0.2}, {"squeeze": 1.2}, {"cats_eye": 0.1}, {"spherical": -0.1}):
        assert not Aperture(6, **other).is_polygon
        assert not Aperture(**{**other, "curvature": 0.0, "cats_eye": 0.2}).is_disc
    for name, kind in KINDS.items():
        aperture = Aperture(**kind)
        kernels = [
            aperture.kernel(12.0, in_front=f, at=(0.5, 0.5), dtype=torch.float64) for f in (False, True)
        ]
        same = float((kernels[0] - kernels[0].flip(0, 1)).abs().max()) < 1e-9
        assert aperture.symmetric == same, name
        assert aperture.sided == (float((kernels[0] - kernels[1]).abs().max()) > 1e-9), name


def test_types_and_that_results_are_the_callers_own() -> None:
    aperture = Aperture()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert aperture.kernel(3.0, dtype=dtype).dtype == dtype
    first = aperture.kernel(3.0)
    first.zero_()
    assert float(aperture.kernel(3.0).sum()) == pytest.approx(1)


def test_it_is_fast() -> None:
    aperture = Aperture(7, 10.0, 0.3)
    aperture.kernel(50.0)
    best = math.inf
    for radius in (59.0, 59.5, 60.0, 60.5, 61.0):
        start = time.perf_counter()
        aperture.kernel(radius)
        best = min(best, time.perf_counter() - start)
    assert best < 0.05  # some 2 ms on an idle machine


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"blades": 1}, "1 blades"),
        ({"blades": 2}, "2 blades"),
        ({"blades": 17}, "17 blades"),
        ({"blades": -3}, "-3 blades"),
        ({"rotation": math.nan}, "rotation"),
        ({"curvature": 1.5}, "curvature"),
        ({"curvature": math.nan}, "curvature"),
        ({"squeeze": 0.0}, "squeeze"),
        ({"squeeze": math.inf}, "squeeze"),
        ({"cats_eye": -0.1}, "cat's eye"),
        ({"spherical": 2.0}, "spherical"),
        ({"picture": torch.zeros(3, 3)}, "all black"),
        ({"picture": torch.ones(0, 3)}, r"\(0, 3\)"),
        ({"picture": torch.ones(1, 3, 3)}, r"\(1, 3, 3\)"),
        ({"picture": torch.tensor([[1.0, -0.1]])}, "negative"),
        ({"picture": torch.tensor([[1.0, math.nan]])}, "NaN"),
        ({"picture": torch.ones(2, 2, dtype=torch.complex64)}, "complex"),
    ],
)
def test_what_cannot_be_an_aperture_is_refused(given: dict, said: str) -> None:
    with pytest.raises(BokehError, match=said):
        Aperture(**given)


def test_what_cannot_be_a_kernel_is_refused() -> None:
    for radius in (-1.0, math.nan, math.inf):
        with pytest.raises(BokehError, match="radius"):
            Aperture().kernel(radius)
    with pytest.raises(BokehError, match="place"):
        Aperture().kernel(1.0, at=(math.nan, 0.0))
    edge = torch.zeros(9, 9)
    edge[4, 8] = 1
    with pytest.raises(BokehError, match="cat's eye"):
        Aperture(picture=edge, cats_eye=1.0).kernel(5.0, at=(1.0, 0.0))
