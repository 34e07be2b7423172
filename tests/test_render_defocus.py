"""The views of a defocus map: which colour, which mask, by hand-worked values."""

from __future__ import annotations

import math

import pytest
import torch

from bokeh_ops.render import in_focus, overlay


def test_in_focus_is_half_a_pixel_on_small_pictures() -> None:
    defocus = torch.tensor([0.0, 0.5, -0.5, 0.75, -1.0, 9.0]).view(1, 1, 2, 3)
    assert in_focus(defocus).flatten().tolist() == pytest.approx([1, 1, 1, 0.5, 0, 0])


def test_in_focus_is_the_usual_circle_of_confusion_on_large_ones() -> None:
    """3000 x 4000: a diagonal of 5000, so a radius of 5/3 pixels, a diameter of d / 1500."""
    defocus = torch.zeros(1, 1, 3000, 4000)
    defocus[0, 0, 0, :4] = torch.tensor([1.66, 2.5, -2.5, 3.34])
    mask = in_focus(defocus)
    assert mask.shape == (1, 3000, 4000)
    assert mask[0, 0, :4].tolist() == pytest.approx([1, 0.5, 0.5, 0], abs=1e-5)


def test_overlay_is_grey_with_green_orange_and_blue() -> None:
    image = torch.tensor([0.9, 0.1, 0.4]).view(1, 3, 1, 1).expand(1, 3, 1, 3)
    shown = overlay(image, torch.tensor([0.0, 8.0, -8.0]).view(1, 1, 1, 3))
    assert shown.shape == (1, 3, 1, 3)
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1
    (r0, g0, b0), (r1, g1, b1), (r2, g2, b2) = shown[0, :, 0].T.tolist()
    assert g0 > max(r0, b0)
    assert r1 > g1 > b1
    assert b2 > g2 > r2
    black, white = (overlay(torch.full((1, 1, 1, 1), v), torch.zeros(1, 1, 1, 1)) for v in (0.0, 1.0))
    assert float(black.mean()) < 0.5 * float(white.mean())  # the picture can still be made out


def test_overlay_takes_any_channels_and_the_colours_of_its_limit() -> None:
    defocus = torch.linspace(-6, 6, 12).view(1, 1, 3, 4)
    image = torch.rand(1, 3, 3, 4)
    alpha = torch.cat([image, torch.rand(1, 1, 3, 4)], 1)
    assert torch.equal(overlay(image, defocus), overlay(alpha, defocus))
    assert torch.equal(overlay(image * 1.0, defocus, 6.0), overlay(image, defocus))
    assert not torch.equal(overlay(image, defocus, 12.0), overlay(image, defocus))
    grey = image[:, :1]
    assert torch.allclose(overlay(grey, defocus), overlay(grey.expand(-1, 3, -1, -1), defocus), atol=1e-6)
    assert math.isfinite(float(overlay(image * 40, torch.zeros_like(defocus)).sum()))
