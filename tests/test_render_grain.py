"""The picture's own grain, given back to what was blurred."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.render import Lens, render_series
from tests.models import generator, one_thread  # noqa: F401


def wall(sigma: float = 0.02, coarse: bool = False, colour: bool = False) -> tuple[Tensor, Tensor]:
    """A slightly shaded wall, its right half far away, with grain of this standard deviation: picture, disparity."""
    size = (256, 256)
    shade = torch.linspace(0.35, 0.55, size[1]).expand(3, *size)
    white = torch.randn(3, *size, generator=generator(3))
    if not colour:
        white = white[:1].expand(3, -1, -1)
    if coarse:
        white = F.avg_pool2d(white[None], 3, 1, 1)[0] * 3
    disparity = torch.ones(1, 1, *size)
    disparity[..., 128:] = 0
    return (shade + sigma * white)[None], disparity


def rendered(image: Tensor, disparity: Tensor, grain: float, model: str = "layered") -> Tensor:
    return render_series(image, disparity, [Lens(8.0, 1.0, "srgb")], model, grain=grain).image


def deviation(image: Tensor) -> Tensor:
    """Of what is finer than a blur of 15 pixels, in the blurred half away from its edges, per channel."""
    part = image[0, :, 32:-32, 160:-24]
    return (part - F.avg_pool2d(part[None], 15, 1, 7, count_include_pad=False)[0])[:, 8:-8, 8:-8].std((1, 2))


@pytest.mark.parametrize("model", ["layered", "classical", "thin_lens"])
@pytest.mark.parametrize("settings", [{}, {"coarse": True}, {"colour": True}], ids=str)
def test_what_is_blurred_has_the_grain_it_had(settings: Any, model: str) -> None:
    image, disparity = wall(**settings)
    before, without = deviation(image), deviation(rendered(image, disparity, 0.0, model))
    after = deviation(rendered(image, disparity, 1.0, model))
    assert (without < 0.3 * before).all()
    assert ((after / before - 1).abs() < 0.1).all(), (after / before).tolist()
    own = rendered(image, disparity, 1.0, model) - rendered(image, disparity, 0.0, model)
    assert own[..., :100].abs().max() == 0  # sharp: not a bit
    assert own[..., 160:].mean().abs() < 1e-3
    if not settings.get("colour"):  # grey grain stays grey
        assert (own[0, 0] - own[0, 1]).abs().mean() < 0.1 * own[0, 0].abs().mean()


def test_half_and_double() -> None:
    image, disparity = wall()
    before = deviation(image)
    for amount in (0.5, 2.0):
        ratio = deviation(rendered(image, disparity, amount)) / before
        assert ((ratio / amount - 1).abs() < 0.12).all()


def falling(exponent: float) -> Tensor:
    """A texture whose power falls with the frequency by this exponent, grey."""
    white = torch.fft.rfft2(torch.randn(256, 256, generator=generator(5)))
    frequency = torch.hypot(torch.fft.fftfreq(256)[:, None], torch.fft.rfftfreq(256)).clamp_min(1 / 256)
    texture = torch.fft.irfft2(white * frequency ** (-exponent / 2), s=(256, 256))
    return (0.5 + 0.12 * texture / texture.std()).clamp(0.02, 0.98).expand(3, -1, -1)


@cache
def leaves(blade: bool = False) -> Tensor:
    """Discs, or blades of grass, of all sizes over one another: crisp and everywhere, as a meadow is."""
    down, across = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    image, draw = torch.full((3, 256, 256), 0.5), generator(7)
    for _ in range(3000):
        y, x, size, turn, *colour = torch.rand(7, generator=draw).tolist()
        along = (down - 256 * y) * math.cos(3 * turn) + (across - 256 * x) * math.sin(3 * turn)
        aside = (across - 256 * x) * math.cos(3 * turn) - (down - 256 * y) * math.sin(3 * turn)
        radius = 1.5 / (size + 0.05)
        cover = (radius + 0.5 - torch.hypot(along / (6 if blade else 1), aside)).clamp(0, 1)
        image = torch.lerp(image, 0.1 + 0.8 * torch.tensor(colour)[:, None, None], cover)
    return image


CLEAN = {
    "wall": lambda: wall(sigma=0.0)[0][0],
    "smooth": lambda: F.interpolate(
        torch.rand(1, 3, 33, 33, generator=generator(5)), (256, 256), mode="bicubic"
    )[0].clamp(0, 1),
    "falling by 1.8": lambda: falling(1.8),
    "falling by 2": lambda: falling(2.0),
    "leaves": leaves,
    "grass": lambda: leaves(blade=True),
}


@pytest.mark.parametrize(("name", "eight_bits"), zip(CLEAN, itertools.cycle((True, False)), strict=False))
def test_a_clean_picture_gets_none(name: str, eight_bits: bool) -> None:
    image, disparity = CLEAN[name]()[None], wall()[1]
    if eight_bits:
        image = (image * 255).round() / 255
    added = rendered(image, disparity, 1.0, "classical") - rendered(image, disparity, 0.0, "classical")
    assert added.abs().max() < 1e-3 if eight_bits else added.abs().max() == 0, added.std().item() * 255


@pytest.mark.parametrize("sigma", [0.01, 0.03])
def test_grain_beside_texture_is_the_grain(sigma: float) -> None:
    image = leaves().clone()
    image[:, :, 128:] = wall(sigma=0.0)[0][0, :, :, 128:]
    image += sigma * torch.randn(3, 256, 256, generator=generator(9))
    assert deviation(rendered(image[None], wall()[1], 1.0, "classical")).div(sigma).sub(1).abs().max() < 0.15


def test_alpha_and_other_frames() -> None:
    image, disparity = wall()
    alpha = torch.ones(1, 1, 256, 256)
    two = torch.cat([image, alpha], 1).repeat(2, 1, 1, 1)
    lenses = [Lens(8.0, 1.0, "srgb")]
    out = render_series(two, disparity.repeat(2, 1, 1, 1), lenses, grain=1.0).image
    assert torch.equal(out[:, 3], render_series(two, disparity.repeat(2, 1, 1, 1), lenses).image[:, 3])
    assert (out[0, :3] - out[1, :3]).abs().max() > 0.02  # grain that stood still would stick to the screen
    again = render_series(two, disparity.repeat(2, 1, 1, 1), lenses, grain=1.0).image
    assert torch.equal(out, again)


def test_grain_below_nothing() -> None:
    image, disparity = wall()
    with pytest.raises(BokehError, match=r"grain is -1"):
        rendered(image, disparity, -1.0)
