"""Colour spaces and colour matching, against numbers of scikit-image 0.26 and OpenCV 5.0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.picture.colour import lab_to_rgb, linear_to_srgb, match_lab, rgb_to_lab, srgb_to_linear

# skimage.color.rgb2lab
PUBLISHED = [
    ((0.00, 0.00, 0.00), (0.000000, 0.000000, 0.000000)),
    ((1.00, 1.00, 1.00), (100.000000, -0.002455, 0.004653)),
    ((0.50, 0.50, 0.50), (53.388965, -0.001468, 0.002784)),
    ((1.00, 0.00, 0.00), (53.240588, 80.092308, 67.202751)),
    ((0.00, 1.00, 0.00), (87.735099, -86.183030, 83.179703)),
    ((0.00, 0.00, 1.00), (32.295673, 79.185591, -107.857300)),
    ((1.00, 1.00, 0.00), (97.139507, -21.554681, 94.478122)),
    ((0.00, 1.00, 1.00), (91.113301, -48.090596, -14.126330)),
    ((1.00, 0.00, 1.00), (60.323507, 98.233054, -60.821015)),
    ((0.20, 0.40, 0.60), (42.008001, -0.154041, -32.842897)),
    ((0.90, 0.60, 0.30), (69.509203, 21.668688, 50.803898)),
    ((0.01, 0.02, 0.03), (1.300054, -0.312350, -1.199765)),
    ((0.05, 0.001, 0.04), (1.007935, 4.707056, -2.592117)),
    ((0.99, 0.98, 1.00), (98.554752, 1.737387, -2.132112)),
]
RGB = torch.tensor([rgb for rgb, _ in PUBLISHED], dtype=torch.float64)
LAB = torch.tensor([lab for _, lab in PUBLISHED], dtype=torch.float64)


def pictures() -> tuple[Tensor, Tensor]:
    """Two small pictures, ``[1, 4, 4, 3]``, that no matching below drives out of the gamut."""
    y, x = torch.meshgrid(torch.arange(4) / 3, torch.arange(4) / 3, indexing="ij")
    first = torch.stack((0.35 + 0.2 * x, 0.4 + 0.1 * y, 0.5 - 0.2 * x * y), -1)
    second = torch.stack((0.6 - 0.1 * y, 0.45 + 0.15 * x, 0.3 + 0.1 * x * y), -1)
    return first[None], second[None]


# lab2rgb(rgb2lab(first) - mean + mean of second), first and last row, scikit-image
MEAN_ROWS = [
    [[0.468527, 0.471329, 0.382279], [0.525210, 0.472434, 0.381508],
     [0.584777, 0.473842, 0.380572], [0.646333, 0.475571, 0.379465]],
    [[0.466410, 0.574183, 0.374564], [0.511105, 0.575406, 0.301318],
     [0.563335, 0.576693, 0.221497], [0.620953, 0.578072, 0.122792]],
]  # fmt: skip
DEVIATION_ROWS = [
    [[0.462652, 0.443953, 0.291851], [0.516863, 0.452976, 0.305873],
     [0.575956, 0.463685, 0.322249], [0.639046, 0.476065, 0.340826]],
    [[0.494220, 0.581488, 0.364926], [0.525650, 0.587033, 0.343502],
     [0.570893, 0.594198, 0.325109], [0.626957, 0.602982, 0.310115]],
]  # fmt: skip
# The same in OpenCV's 8-bit L*a*b*, mean only: the whole picture, 0..255
OPENCV_MEAN = [
    [118, 120,  98, 131, 121,  98, 148, 120,  97, 163, 121,  96],
    [118, 129,  97, 131, 129,  91, 145, 130,  84, 161, 130,  77],
    [118, 138,  96, 130, 138,  84, 143, 139,  72, 158, 139,  57],
    [118, 147,  96, 127, 147,  76, 142, 148,  57, 157, 149,  30],
]  # fmt: skip


def test_lab_has_the_published_values(device: str) -> None:
    found = rgb_to_lab(RGB.to(device)).cpu()
    torch.testing.assert_close(found, LAB, atol=1e-4, rtol=0)  # it rounds 7.787
    found = rgb_to_lab(RGB.float().to(device)).cpu()
    torch.testing.assert_close(found, LAB.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_conversions_have_inverses(dtype: torch.dtype, bound: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand(5000, 3, generator=generator, dtype=dtype)
    rgb[:50] *= 0.01  # the straight parts
    rgb[50:60] = rgb[50:60] * 1.5 - 0.25  # outside the gamut
    assert (linear_to_srgb(srgb_to_linear(rgb)) - rgb).abs().max() < bound
    assert (lab_to_rgb(rgb_to_lab(rgb)) - rgb).abs().max() < bound


def test_linear_light_is_that_of_the_standard() -> None:
    # IEC 61966-2-1: 0.5 is 0.21404114; the two parts meet near 0.04045
    values = torch.tensor([0.0, 0.02, 0.04045, 0.5, 1.0], dtype=torch.float64)
    linear = torch.tensor([0.0, 0.00154799, 0.00313080, 0.21404114, 1.0], dtype=torch.float64)
    torch.testing.assert_close(srgb_to_linear(values), linear, atol=1e-7, rtol=0)


def test_channels_may_lie_along_any_dimension() -> None:
    picture = pictures()[0]
    last = rgb_to_lab(picture)
    torch.testing.assert_close(
        rgb_to_lab(picture.movedim(-1, -3), dim=-3), last.movedim(-1, -3), rtol=0, atol=0
    )
    torch.testing.assert_close(lab_to_rgb(last.movedim(-1, 1), dim=1), picture.movedim(-1, 1))
    for wrong, dim in ((torch.rand(2, 2, 4), -1), (torch.rand(3, 2), -1), (torch.rand(3), 1)):
        with pytest.raises(BokehError, match="three channels"):
            rgb_to_lab(wrong, dim)


def test_half_precision_is_computed_in_float() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        lab = rgb_to_lab(RGB.to(dtype))
        assert lab.dtype == torch.float32
        torch.testing.assert_close(lab, rgb_to_lab(RGB.to(dtype).float()), rtol=0, atol=0)


def test_gradients_are_right_and_finite_even_at_black() -> None:
    rgb = RGB.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda t: lab_to_rgb(rgb_to_lab(t) + 1), (rgb,))
    black = torch.zeros(2, 3, requires_grad=True)
    lab_to_rgb(rgb_to_lab(black)).sum().backward()
    assert black.grad is not None
    torch.testing.assert_close(black.grad, torch.ones(2, 3), atol=1e-3, rtol=0)
    for convert in (srgb_to_linear, linear_to_srgb):  # below black, where a power has no value
        below = torch.tensor([-0.2, -0.01, 0.0], requires_grad=True)
        convert(below).sum().backward()
        assert below.grad is not None
        assert torch.isfinite(below.grad).all()


@pytest.mark.parametrize(("mode", "rows"), [("mean", MEAN_ROWS), ("mean and deviation", DEVIATION_ROWS)])
def test_matching_is_equation_13(mode: str, rows: list[list[list[float]]], device: str) -> None:
    images, reference = (picture.to(device) for picture in pictures())
    result = match_lab(images, reference, mode).cpu()
    torch.testing.assert_close(result[0, ::3], torch.tensor(rows), atol=2e-5, rtol=0)


def test_matching_the_mean_is_what_the_released_code_does_but_for_its_8_bits() -> None:
    images, reference = pictures()
    released = torch.tensor(OPENCV_MEAN).reshape(4, 4, 3) / 255
    assert (match_lab(images, reference)[0] - released).abs().max() < 4 / 255


def test_statistics_become_the_references_picture_by_picture() -> None:
    generator = torch.Generator().manual_seed(1)
    images = 0.4 + 0.2 * torch.rand(6, 9, 11, 3, generator=generator)
    reference = 0.5 + 0.15 * torch.rand(2, 5, 7, 3, generator=generator)  # another size, used in turn
    for mode in ("mean", "mean and deviation"):
        lab = rgb_to_lab(match_lab(images, reference, mode)).flatten(1, 2)
        wanted = rgb_to_lab(reference).flatten(1, 2).repeat(3, 1, 1)
        assert (lab.mean(1) - wanted.mean(1)).abs().max() < 1e-3
        if mode == "mean and deviation":
            assert (lab.std(1, correction=0) - wanted.std(1, correction=0)).abs().max() < 1e-3
    alone = torch.cat([match_lab(images[i : i + 1], reference[i % 2 : i % 2 + 1]) for i in range(6)])
    torch.testing.assert_close(match_lab(images, reference), alone, rtol=0, atol=0)


def test_a_picture_matched_to_itself_stays_as_it_is() -> None:
    images, _ = pictures()
    for mode in ("mean", "mean and deviation"):
        torch.testing.assert_close(match_lab(images, images, mode), images, atol=1e-5, rtol=0)


def test_strength_goes_from_the_very_input_to_the_match() -> None:
    images, reference = pictures()
    assert torch.equal(match_lab(images, reference, strength=0), images)
    half = rgb_to_lab(match_lab(images, reference, strength=0.5))
    ends = (rgb_to_lab(images) + rgb_to_lab(match_lab(images, reference))) / 2
    torch.testing.assert_close(half, ends, atol=1e-3, rtol=0)


def test_a_flat_picture_only_takes_the_mean() -> None:
    images, reference = torch.full((1, 8, 8, 3), 0.3), pictures()[1]
    result = match_lab(images, reference, "mean and deviation")
    assert torch.isfinite(result).all()
    assert (result - result[:, :1, :1]).abs().max() < 1e-5
    assert (rgb_to_lab(result)[0, 0, 0] - rgb_to_lab(reference).mean((0, 1, 2))).abs().max() < 1e-3
    # grey in three channels has L* to scale, but a* and b* hold nothing but rounding, which must not be amplified
    ramp = torch.linspace(0.3, 0.6, 64).reshape(1, 8, 8, 1).expand(1, 8, 8, 3)
    lab = rgb_to_lab(match_lab(ramp, reference, "mean and deviation"))
    assert lab[..., 0].std() > 1
    assert lab[..., 1:].std((0, 1, 2)).max() < 0.02
    # a flat reference flattens
    flattened = match_lab(pictures()[0], images, "mean and deviation")
    assert (flattened - 0.3).abs().max() < 1e-4


def test_matching_can_be_trained_through() -> None:
    for images in (pictures()[0], torch.full((1, 4, 4, 3), 0.3)):
        images.requires_grad_(True)
        match_lab(images, pictures()[1], "mean and deviation").square().sum().backward()
        assert images.grad is not None
        assert torch.isfinite(images.grad).all()


def test_alpha_is_kept_and_what_is_transparent_does_not_count() -> None:
    images, reference = pictures()
    alpha = torch.linspace(0.1, 1, 16).reshape(1, 4, 4, 1)
    result = match_lab(torch.cat((images, alpha), -1), reference)
    assert torch.equal(result[..., 3:], alpha)
    # half of the reference is hidden, and black there: as if it were not there at all
    hidden = torch.cat((torch.cat((reference, torch.zeros_like(reference)), 1), torch.zeros(1, 8, 4, 1)), -1)
    hidden[:, :4, :, 3] = 1
    torch.testing.assert_close(match_lab(images, hidden), match_lab(images, reference), atol=1e-5, rtol=0)
    hidden[..., 3] = 0  # nothing can be seen: everything counts again
    torch.testing.assert_close(match_lab(images, hidden), match_lab(images, hidden[..., :3]), rtol=0, atol=0)


def test_grey_pictures_are_matched_in_lightness_alone() -> None:
    images, reference = pictures()
    grey = images[..., :1]
    result = match_lab(grey, reference)
    assert result.shape == grey.shape
    lightness = rgb_to_lab(result.expand(1, 4, 4, 3))[..., 0].mean()
    assert abs(lightness - rgb_to_lab(reference)[..., 0].mean()) < 1e-3
    before, after = rgb_to_lab(images), rgb_to_lab(match_lab(images, grey))
    torch.testing.assert_close(after[..., 1:], before[..., 1:], atol=1e-3, rtol=0)
    assert abs(after[..., 0].mean() - rgb_to_lab(grey.expand(1, 4, 4, 3))[..., 0].mean()) < 1e-3


def test_results_outside_the_gamut_are_clipped() -> None:
    images = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(2))
    result = match_lab(images, torch.ones(1, 2, 2, 3))
    assert result.min() >= 0
    assert result.max() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept_and_float_is_computed(dtype: torch.dtype) -> None:
    images, reference = (picture.to(dtype) for picture in pictures())
    result = match_lab(images, reference)
    assert result.dtype == dtype
    torch.testing.assert_close(result, match_lab(images.float(), reference.float()).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("images", "reference", "options", "message"),
    [
        (torch.rand(3, 4, 4, 3), torch.rand(2, 4, 4, 3), {}, "2 reference pictures for 3"),
        (torch.rand(2, 4, 4, 3), torch.rand(4, 4, 4, 3), {}, "4 reference pictures for 2"),
        (torch.rand(0, 4, 4, 3), torch.rand(1, 4, 4, 3), {}, "images: expected pictures"),
        (torch.rand(1, 4, 4, 3), torch.rand(0, 4, 4, 3), {}, "reference: expected pictures"),
        (torch.rand(4, 4, 3), torch.rand(1, 4, 4, 3), {}, "(4, 4, 3)"),
        (torch.rand(1, 4, 4, 2), torch.rand(1, 4, 4, 3), {}, "1, 3 or 4 channels"),
        (torch.ones(1, 4, 4, 3).byte(), torch.rand(1, 4, 4, 3), {}, "torch.uint8"),
        (torch.full((1, 4, 4, 3), torch.nan), torch.rand(1, 4, 4, 3), {}, "images: picture 0 holds NaN"),
        (torch.rand(1, 4, 4, 3), torch.full((1, 4, 4, 3), torch.inf), {}, "reference: picture 0 holds NaN"),
        (torch.rand(1, 4, 4, 3), torch.rand(1, 4, 4, 3), {"mode": "deviation"}, "'deviation'"),
        (torch.rand(1, 4, 4, 3), torch.rand(1, 4, 4, 3), {"strength": 1.5}, "1.5"),
        (torch.rand(1, 4, 4, 3), torch.rand(1, 4, 4, 3), {"strength": torch.nan}, "nan"),
    ],
)
def test_what_cannot_be_matched_is_refused(
    images: Tensor, reference: Tensor, options: dict, message: str
) -> None:
    with pytest.raises(BokehError) as raised:
        match_lab(images, reference, **options)
    assert message in str(raised.value)
