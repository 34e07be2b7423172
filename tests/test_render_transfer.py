"""Pixel values to light and back: against closed forms and tabled values of IEC 61966-2-1."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bokeh_ops.errors import BokehError
from bokeh_ops.render import MODELS, Aperture, Lens, render
from bokeh_ops.render.transfer import from_light, to_light

KINDS = [1.0, 2.2, 4.0, "srgb"]


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2, 4.0])
def test_a_power_is_that_power_and_negative_values_are_black(gamma: float) -> None:
    values = torch.tensor([-0.5, 0.0, 0.1, 1.0, 7.0], dtype=torch.float64)
    assert np.allclose(to_light(values, gamma), values.numpy().clip(0) ** gamma, rtol=1e-12)
    assert np.allclose(from_light(values, gamma), values.numpy().clip(0) ** (1 / gamma), rtol=1e-12)


def test_the_srgb_curve() -> None:
    """Light of the 8-bit levels 1, 10, 11, 128, 188 and 255, as the standard gives it, and HDR beyond white."""
    levels = torch.tensor([1, 10, 11, 128, 188, 255], dtype=torch.float64) / 255
    light = [0.000303527, 0.003035270, 0.003346536, 0.215860501, 0.502886458, 1.0]
    assert to_light(levels, "srgb").tolist() == pytest.approx(light, abs=1e-9)
    assert from_light(to_light(levels, "srgb"), "srgb").tolist() == pytest.approx(levels.tolist(), abs=1e-7)
    assert float(to_light(torch.tensor(4.0), "srgb")) == pytest.approx((4.055 / 1.055) ** 2.4, rel=1e-6)
    assert float(to_light(torch.tensor(-1.0), "srgb")) == 0


@pytest.mark.parametrize("gamma", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_there_and_back(gamma: float, dtype: torch.dtype) -> None:
    values = torch.linspace(0, 12, 500).to(dtype)
    back = from_light(to_light(values, gamma), gamma)
    assert back.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float((back - values).abs().max()) < (1e-6 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("gamma", KINDS)
def test_gradients_are_right_and_finite_at_black(gamma: float) -> None:
    values = torch.tensor([0.01, 0.2, 0.9, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: to_light(x, gamma), (values,))
    assert torch.autograd.gradcheck(lambda x: from_light(x, gamma), (values,))
    black = torch.zeros(3, requires_grad=True)
    (to_light(black, gamma).sum() + from_light(black, gamma).sum()).backward()
    assert black.grad is not None
    assert bool(torch.isfinite(black.grad).all())


@pytest.mark.parametrize("model", MODELS)
def test_every_model_adds_light_along_the_curve(model: str) -> None:
    """A picture encoded along the sRGB curve gives what its light gives, encoded afterwards."""
    torch.manual_seed(0)
    light = torch.rand(1, 3, 24, 30) * 4
    disparity = torch.linspace(0, 1, 30).expand(1, 1, 24, 30)
    linear = render(light, disparity, Lens(6.0, 0.2, 1.0), model=model).image
    encoded = render(
        from_light(light, "srgb"), disparity, Lens(6.0, 0.2, "srgb", highlight_recovery=0.0), model=model
    ).image
    assert float(linear.max()) > 1.5  # brighter than white stays so
    assert float((to_light(encoded, "srgb") - linear).abs().max()) < 2e-4


def test_the_lens_gives_its_own_curve_and_refuses_others() -> None:
    values = torch.rand(5)
    lens = Lens(1.0, gamma="srgb", aperture=Aperture(6))
    assert torch.equal(lens.to_light(values), to_light(values, "srgb"))
    assert torch.equal(lens.from_light(values), from_light(values, "srgb"))
    for bad in ("linear", 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(BokehError, match=f"Gamma is {bad}"):
            Lens(1.0, gamma=bad)  # type: ignore[arg-type]
