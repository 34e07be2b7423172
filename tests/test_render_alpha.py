"""Colour where nothing is: every lens model gives the neighbours' colour or 0 there, and alpha 0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bokeh_ops.render import MODELS, Lens, render
from bokeh_ops.render.alpha import straight
from tests.test_render_bokehme import small_model

COLOUR = torch.tensor([0.2, 0.5, 0.8]).view(1, 3, 1, 1)
EVERY = [*MODELS, "bokehme"]


def holed(hole: slice, alpha: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """A sheet of one colour, 64 x 64, with a transparent square in which the file has noise."""
    image = torch.cat([COLOUR.expand(1, 3, 64, 64), torch.full((1, 1, 64, 64), alpha)], 1)
    image[..., hole, hole] = torch.rand(1, 4, 1, 1, generator=torch.Generator().manual_seed(0)) * 9
    image[:, 3, hole, hole] = 0
    return image.to(dtype)


def seen(image: Tensor, model: str, lens: Lens) -> tuple[Tensor, Tensor]:
    flat = torch.ones(1, 1, *image.shape[2:])
    # Without an error map BokehMe's networks change nothing: how they mend is not what is tested here.
    made = render(image, flat, lens, small_model(-200.0) if model == "bokehme" else model).image
    assert made.dtype == image.dtype
    return made[:, :3].float(), made[:, 3:].float()


@pytest.mark.parametrize("model", EVERY)
@pytest.mark.parametrize(
    ("hole", "k", "gamma", "alpha", "dtype"),
    [
        (slice(16, 48), 4.0, 2.2, 1.0, torch.float32),
        (slice(16, 48), 4.0, 1.0, 1.0, torch.float32),
        (slice(0, 32), 4.0, 2.2, 1.0, torch.float16),
        (slice(16, 48), 4.0, 2.2, 1 / 255, torch.float32),
        (slice(16, 48), 200.0, 2.2, 1.0, torch.float32),
        (slice(12, 52), 9.0, 2.2, 1.0, torch.float64),
    ],
    ids=["hole", "linear", "frame, half", "faint", "large K", "double"],
)
def test_a_hole_has_its_rims_colour(
    model: str, hole: slice, k: float, gamma: float, alpha: float, dtype: torch.dtype
) -> None:
    image = holed(hole, alpha, dtype)
    colour, cover = seen(image, model, Lens(k, 0.0, gamma))
    assert float((colour - COLOUR).abs().max()) < 1e-3
    assert float(cover.min()) >= 0
    assert float(cover.max()) <= alpha * 1.001
    if k < 100:
        nothing = torch.ones_like(cover[0, 0], dtype=torch.bool)
        inside = slice(hole.start and hole.start + round(k) + 2, hole.stop - round(k) - 2)
        nothing[inside, inside] = False
        assert int((~nothing).sum()) > 100
        assert float(cover[0, 0][~nothing].max()) == 0  # not what a Fourier transform leaves


@pytest.mark.parametrize("model", EVERY)
def test_an_empty_picture_stays_empty(model: str) -> None:
    """Nothing is spread and nothing is known: not a bit is changed."""
    image = holed(slice(0, 64))
    made = torch.cat(seen(image, model, Lens(4.0, 0.0)), 1)
    assert torch.equal(made, image)


@pytest.mark.parametrize("model", EVERY)
def test_what_is_hardly_there_keeps_its_own_colour(model: str) -> None:
    """One step of 8-bit alpha between opaque neighbours of another colour; and the same beside an HDR lamp."""
    image = holed(slice(20, 44))
    image[..., 20:44, 20:44] = torch.tensor([0.9, 0.1, 0.1, 1 / 255]).view(1, 4, 1, 1)
    colour, cover = seen(image, model, Lens(2.0, 0.0))
    assert torch.allclose(colour[0, :, 32, 32], torch.tensor([0.9, 0.1, 0.1]), atol=1e-3)
    assert float(cover[0, 0, 32, 32]) == pytest.approx(1 / 255, rel=1e-3)
    image[:, :3, 2:6, 2:6] = 1000.0
    colour, _ = seen(image, model, Lens(2.0, 0.0, 1.0))
    assert torch.allclose(colour[0, :, 32, 32], torch.tensor([0.9, 0.1, 0.1]), atol=0.02)


def test_beside_a_lamp_nothing_is_darker_or_brighter_than_its_neighbours() -> None:
    image = holed(slice(16, 48))
    image[:, :3, 30:34, 2:6] = 1000.0
    colour, cover = seen(image, "layered", Lens(4.0, 0.0, 1.0))
    far = torch.zeros(64, 64, dtype=torch.bool)
    far[:, 34:] = True
    assert float((colour - COLOUR)[..., far].abs().max()) < 2e-3
    assert int((cover == 0).sum()) > 400


def test_the_colour_of_what_is_faint_comes_in_smoothly() -> None:
    """From alpha that is only rounding to alpha that is light: no step, and gradients that are finite."""
    alpha = torch.logspace(-8, 0, 128).expand(1, 128, -1)
    light = torch.cat([torch.linspace(0.2, 0.8, 128).expand(3, 128, -1) * alpha, alpha])
    light.requires_grad_(True)
    out = straight(light)
    colour = out[0].detach()
    assert float(colour.diff(dim=-1).abs().max()) < 0.05
    assert float(colour.max()) <= 0.8 + 1e-6
    assert float(colour.min()) >= 0.2 - 1e-6
    out.sum().backward()
    assert light.grad is not None
    assert bool(light.grad.isfinite().all())
