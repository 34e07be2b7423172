"""The losses, against what they mean: the network's own output compared with its target."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bokeh_ops.errors import BokehError
from bokeh_ops.host.architectures import named
from tests import models
from tests.models import one_thread  # noqa: F401
from trainer.config import Noise
from trainer.recipes.bokeh import objective
from trainer.recipes.bokeh.localise import bokeh_share, foreground_less_background, mask_at

SIGMA = torch.tensor([0.2, 0.9, 2.5])


def sampling_of(kind: str) -> Any:
    from bokeh_ops.host.loading import models as loading
    from bokeh_ops.host.training import denoise

    model = models.host_model("flux" if kind == "flow" else "sd15")
    if kind == "v":
        model = loading.use_v_prediction(model, False)
    assert denoise.prediction(model) == kind
    return model, model.get_model_object("model_sampling")


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_losses_are_those_of_the_networks_output(pack: ModuleType, kind: str, gamma: float) -> None:
    """Whatever the network puts out: the weighted error of x0 is the mean square error of noise, v or flow."""
    from bokeh_ops.host.training import denoise

    model, sampling = sampling_of(kind)
    sigma = SIGMA / 3 if kind == "flow" else SIGMA
    x0, noise, output = (models.randn(3, 4, 6, 6, seed=s).double() for s in range(3))
    column = sigma.view(-1, 1, 1, 1).double()
    x = denoise.add_noise(model, x0, noise, sigma.double())
    estimate = sampling.calculate_denoised(column, output, x)
    alpha, beta = 1 / (1 + column**2) ** 0.5, column / (1 + column**2) ** 0.5  # variance preserving
    target = {"epsilon": noise, "v": alpha * noise - beta * x0, "flow": noise - x0}[kind]
    expected = (output - target).square().flatten(1).mean(1)
    snr = (1 / sigma**2).double()
    if gamma and kind != "flow":
        expected = expected * snr.clamp(max=gamma) / (snr + 1 if kind == "v" else snr)
    found = objective.row_losses(estimate, x0, objective.weights(kind, sigma, gamma))
    assert torch.allclose(found.double(), expected, rtol=2e-5)


def test_flux_shift_is_the_hosts(pack: ModuleType) -> None:
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    model, shift = models.host_model("flux"), named("flux").timestep_shift
    for width, height in ((512, 512), (1024, 1024), (768, 512)):
        mu = shift(height // 8, width // 8)
        node = ModelSamplingFlux()
        theirs = getattr(node, getattr(node, "FUNCTION", "execute"))(model, 1.15, 0.5, width, height)[0]
        sampling = theirs.get_model_object("model_sampling")
        assert sampling.shift == pytest.approx(mu)
        t = torch.tensor([0.01, 0.3, 0.5, 0.99, 1.0], dtype=torch.float64)
        assert torch.allclose(objective.shifted(t, mu), sampling.sigma(t), rtol=1e-6)
    assert shift(32, 32) == pytest.approx(0.5)
    assert shift(128, 128) == pytest.approx(1.15)


def test_flow_levels_follow_their_density() -> None:
    mu = 0.63
    drawn = np.array([objective.flow_level(Noise(), mu, 1, step, 0) for step in range(4000)])
    assert drawn.min() >= objective.LEAST_FLOW_SIGMA
    assert drawn.max() <= 1
    # The logit of a shifted logit-normal number is normal around mu.
    logits = np.log(drawn / (1 - drawn))
    assert abs(logits.mean() - mu) < 0.07
    assert abs(logits.std() - 1) < 0.05
    flat = np.array([objective.flow_level(Noise(density="uniform"), 0.0, 1, step, 0) for step in range(4000)])
    assert np.abs(np.sort(flat) - np.linspace(0, 1, 4000)).max() < 0.03  # Kolmogorov and Smirnov


def test_discrete_levels_are_all_alike() -> None:
    sigmas = torch.arange(10).float()
    drawn = np.array([objective.discrete_level(sigmas, 1, step, 0) for step in range(5000)])
    counts = np.bincount(drawn.astype(int), minlength=10)
    assert np.all(np.abs(counts - 500) < 5 * 500**0.5)


def test_noise_offset() -> None:
    shape = (3, 16, 16)
    noise = torch.stack([objective.scene_noise(shape, 0.3, 1, step, 0) for step in range(600)])
    plain = torch.stack([objective.scene_noise(shape, 0.0, 1, step, 0) for step in range(600)])
    assert abs(float(plain.std()) - 1) < 0.01
    # The mean of a channel has the variance of the offset on top of that of a mean of 256 numbers.
    assert float(noise.mean((2, 3)).var()) == pytest.approx(0.3**2 + 1 / 256, rel=0.12)
    assert float(plain.mean((2, 3)).var()) == pytest.approx(1 / 256, rel=0.12)
    assert torch.allclose((noise - plain).std((2, 3)), torch.zeros(600, 3), atol=1e-6)


def test_bokeh_share_is_the_joint_softmax() -> None:
    q, text, bokeh = (
        models.randn(2, 5, 8, seed=1),
        models.randn(2, 7, 8, seed=2),
        models.randn(2, 3, 8, seed=3),
    )
    heads = 2
    expected = torch.zeros(2, 5)
    for row in range(2):
        for head in range(heads):
            part = slice(4 * head, 4 * head + 4)
            keys = torch.cat((text[row][:, part], bokeh[row][:, part]))
            attention = torch.softmax(q[row][:, part] @ keys.T / 2, -1)
            expected[row] += attention[:, 7:].sum(-1) / heads
    assert torch.allclose(bokeh_share(q, text, bokeh, heads), expected, atol=1e-6)


def test_foreground_less_background_by_hand() -> None:
    share = torch.tensor([[0.1, 0.2, 0.3, 0.8], [0.1, 0.2, 0.3, 0.8], [0.5, 0.5, 0.5, 0.5]])
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.5, 0.0, 0.0, 1.0]])
    found = foreground_less_background(share, mask)
    assert torch.allclose(found, torch.tensor([0.15 - 0.55, 0.0, 0.0]), atol=1e-6)


def test_masks_are_averaged_to_the_grid_of_the_layer() -> None:
    mask = torch.zeros(1, 8, 12)
    mask[0, :2, :3] = 1
    small = mask_at(mask, 6).view(2, 3)
    assert small[0, 0] == pytest.approx(6 / 16)
    assert float(small.sum()) == pytest.approx(6 / 16)
    assert mask_at(mask, 96).view(8, 12).equal(mask[0])
    with pytest.raises(BokehError, match="7 places"):
        mask_at(mask, 7)


def test_the_single_token_softmaxed_alone_is_degenerate() -> None:
    """Why the share is measured jointly: alone, one key gets all the attention everywhere, and no gradient."""
    q, key = models.randn(1, 6, 4, seed=1), models.randn(1, 1, 4, seed=2).requires_grad_(True)
    alone = torch.softmax(q @ key.transpose(1, 2), -1)[..., 0]
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    (gradient,) = torch.autograd.grad(foreground_less_background(alone, mask).sum(), key)
    assert float(foreground_less_background(alone, mask).detach()) == 0
    assert math.isclose(float(gradient.abs().max()), 0, abs_tol=1e-7)
    text = models.randn(1, 3, 4, seed=3)
    joint = foreground_less_background(bokeh_share(q, text, key, 1), mask)
    (gradient,) = torch.autograd.grad(joint.sum(), key)
    assert float(gradient.abs().max()) > 1e-3
