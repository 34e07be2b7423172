"""The differentiable thin lens: eq. 6, the gather against its definition, and gradients against differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bokeh_ops.camera.optics import coc_diameter, k_from_camera
from bokeh_ops.errors import BokehError
from bokeh_ops.render import Aperture, Lens
from bokeh_ops.render.thin_lens import (
    circle_of_confusion,
    render_thin_lens,
    render_thin_lens_camera,
    thin_lens_blur,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal(light: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The definition, pixel by pixel: every pixel takes the mean over its own soft disc."""
    out = np.zeros_like(light)
    y, x = np.mgrid[: radius.shape[0], : radius.shape[1]]
    for v in range(radius.shape[0]):
        for u in range(radius.shape[1]):
            w = 0.5 + 0.5 * np.tanh(4 * (radius[v, u] - np.hypot(y - v, x - u)))
            out[:, v, u] = (w * light).sum((1, 2)) / w.sum()
    return out


@pytest.mark.parametrize("largest", [0.5, 4.0, 40.0])
def test_equals_the_definition(largest: float) -> None:
    image, radius = noise(2, 3, 13, 17), noise(2, 1, 13, 17, seed=1) * largest
    out = thin_lens_blur(image, radius)
    for row in range(2):
        expected = literal(image[row].numpy(), radius[row, 0].numpy())
        assert np.abs(out[row].numpy() - expected).max() < 1e-9
    single = thin_lens_blur(image.float(), radius.float())
    assert single.dtype == torch.float32
    assert float((single - out).abs().max()) < 2e-6


def test_the_circle_of_confusion_of_a_thin_lens() -> None:
    """f_s = 1 is the textbook's lens; 50 mm at f/1.8 focused at 2 m shows 4 m as 0.3561 mm."""
    assert float(circle_of_confusion(4.0, 2.0, 0.05, 1.8)) == pytest.approx(0.5 * 0.0025 / (1.8 * 1.95))
    depth = torch.tensor([0.4, 1.0, 2.0, 7.0, math.inf], dtype=torch.float64)
    ours = circle_of_confusion(depth, 2.0, 0.05, 1.8)
    assert torch.allclose(ours, torch.as_tensor(coc_diameter(0.05, 1.8, 2.0, depth)))
    assert float(ours[2]) == 0
    # f_s in the denominator only.
    scaled = circle_of_confusion(depth, 2.0, 0.05, 1.8, 1.5)
    assert torch.allclose(scaled * (3.0 - 0.05), ours * (2.0 - 0.05))


def test_a_camera_is_the_contract_with_its_k() -> None:
    image, depth = noise(1, 3, 20, 30), 1 + 5 * noise(1, 1, 20, 30, seed=1)
    depth[..., 3] = math.inf
    out = render_thin_lens_camera(image, depth, 2.0, 1.0, 2.8, 0.085, 0.006)
    k = float(k_from_camera(0.085, 2.8, 2.0, 0.006, 30))
    other = render_thin_lens(image, 1 / depth, Lens(k, 0.5))
    assert float(other.defocus.abs().max()) > 1
    assert torch.allclose(out.defocus, other.defocus)
    assert torch.allclose(out.image, other.image)
    assert bool((out.defocus[depth < 2] > 0).all())


def test_gradients_of_the_blur(device: str) -> None:
    image = noise(1, 2, 4, 5).to(device).requires_grad_()
    radius = (noise(1, 1, 4, 5, seed=1) * 2.5).to(device).requires_grad_()
    assert torch.autograd.gradcheck(thin_lens_blur, (image, radius))
    assert torch.autograd.gradcheck(lambda x: thin_lens_blur(x, radius.detach()), (image,))
    assert torch.autograd.gradcheck(lambda r: thin_lens_blur(image.detach(), r), (radius,))


def test_gradients_of_the_camera() -> None:
    """In image, depth, focus distance, its scale, f-number and focal length, against finite differences."""
    image, depth = noise(1, 3, 4, 4) * 0.8 + 0.1, 1 + 3 * noise(1, 1, 4, 4, seed=1)
    settings = [torch.tensor([v], dtype=torch.float64) for v in (2.0, 1.2, 1.8, 0.085)]
    given = [x.requires_grad_() for x in (image, depth, *settings)]

    def lens(*args: Tensor) -> Tensor:
        return render_thin_lens_camera(*args, sensor_width=0.004).image

    blur = render_thin_lens_camera(*given, sensor_width=0.004).defocus.detach()
    assert float(blur.abs().max()) > 0.5  # it does blur
    assert torch.autograd.gradcheck(lens, given, eps=1e-7, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_gradients_under_the_contract(channels: int) -> None:
    image, disparity = noise(1, channels, 4, 4) * 0.8 + 0.1, noise(1, 1, 4, 4, seed=1)
    k, focus = torch.tensor([4.0]).double(), torch.tensor([0.31]).double()

    def lens(image: Tensor, disparity: Tensor, k: Tensor, focus: Tensor) -> Tensor:
        return render_thin_lens(image, disparity, Lens(k, focus, highlight_boost=0.4)).image

    given = [x.requires_grad_() for x in (image, disparity, k, focus)]
    assert torch.autograd.gradcheck(lens, given, eps=1e-7, atol=1e-4, rtol=1e-3)


def test_black_and_focused_pixels_have_finite_gradients(device: str) -> None:
    image = torch.zeros(1, 3, 9, 9, device=device, requires_grad=True)
    disparity = torch.full((1, 1, 9, 9), 0.5, device=device, requires_grad=True)
    k = torch.tensor([3.0], requires_grad=True)
    render_thin_lens(image, disparity, Lens(k, 0.5)).image.sum().backward()
    for tensor in (image, disparity, k):
        assert tensor.grad is not None
        assert bool(torch.isfinite(tensor.grad).all())


def test_a_focus_can_be_learned() -> None:
    """Gradient descent on f_d and N finds the settings a picture was made with."""
    image, depth = (
        noise(1, 3, 12, 24),
        1 + 4 * noise(1, 1, 1, 1) + torch.linspace(0, 3, 24).expand(1, 1, 12, 24),
    )
    wanted = render_thin_lens_camera(image, depth, 3.0, 1.0, 2.0, 0.05, 0.002, gamma=1.0).image
    values = torch.tensor([2.2, 3.2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([values], 0.05)
    losses = []
    for _ in range(160):
        made = render_thin_lens_camera(image, depth, values[0], 1.0, values[1], 0.05, 0.002, gamma=1.0).image
        loss = (made - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.02 * losses[0]
    assert float(values[0].detach()) == pytest.approx(3.0, abs=0.15)


def test_progress_types_and_stopping() -> None:
    image, disparity = torch.rand(2, 3, 12, 12).half(), torch.rand(2, 1, 12, 12)
    seen: list[tuple[int, int]] = []
    out = render_thin_lens(image, disparity, Lens(5.0), lambda done, total: seen.append((done, total)))
    assert out.image.dtype == torch.float16
    assert seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)

    class Stop(Exception):
        pass

    def stop(*_: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        render_thin_lens(image, disparity, Lens(5.0), stop)


def test_rows_in_focus_keep_their_bits_and_camera_settings_may_differ_by_row() -> None:
    image = torch.rand(2, 3, 8, 8)
    disparity = torch.rand(2, 1, 8, 8)
    out = render_thin_lens(image, disparity, Lens(torch.tensor([0.0, 6.0])))
    assert torch.equal(out.image[0], image[0])
    assert not torch.equal(out.image[1], image[1])
    n = torch.tensor([2.0, 8.0])
    both = render_thin_lens_camera(image, disparity + 1, 1.4, 1.0, n, 0.05, 0.02)
    alone = render_thin_lens_camera(image[1:], disparity[1:] + 1, 1.4, 1.0, 8.0, 0.05, 0.02)
    assert torch.allclose(both.image[1:], alone.image, atol=1e-6)


def test_what_cannot_be_rendered_is_refused() -> None:
    image, depth = torch.rand(1, 3, 4, 4), torch.ones(1, 1, 4, 4)
    with pytest.raises(BokehError, match="blades"):
        render_thin_lens(image, depth, Lens(1.0, aperture=Aperture(6)))
    with pytest.raises(BokehError, match="focal length"):
        render_thin_lens_camera(image, depth, 0.04, 1.0, 2.0, 0.05, 0.036)
    with pytest.raises(BokehError, match=r"depth is -1 metres"):
        render_thin_lens_camera(image, -depth, 2.0, 1.0, 2.0, 0.05, 0.036)
    with pytest.raises(BokehError, match="f-number"):
        circle_of_confusion(1.0, 2.0, 0.05, 0.0)
    with pytest.raises(BokehError, match="f_s"):
        circle_of_confusion(1.0, 2.0, 0.05, 2.0, math.nan)
    with pytest.raises(BokehError, match="3 values for 1"):
        render_thin_lens_camera(image, depth, torch.ones(3), 1.0, 2.0, 0.05, 0.036)
    with pytest.raises(BokehError, match=r"\[B, 1, H, W\]"):
        thin_lens_blur(image, depth[..., :2])
    for bad in (-1.0, math.nan, 1e4):
        with pytest.raises(BokehError, match="blur radius"):
            thin_lens_blur(image, depth * bad)
