"""What is minimised: noise levels, and the weight of the error at each.

The network's estimate of ``x0`` comes through the host's own preconditioning, so the losses are written on it. With
``delta = x0 - estimate``, noise level ``sigma`` and ``SNR = 1 / sigma^2``:

* epsilon prediction: ``|eps - eps*|^2 = SNR |delta|^2``;
* v prediction: ``|v - v*|^2 = (SNR + 1) |delta|^2``;
* flow matching: ``|u - u*|^2 = |delta|^2 / sigma^2``, where ``x = (1 - sigma) x0 + sigma noise``.

Min-SNR weighting (Hang et al. 2023) multiplies the first by ``min(SNR, gamma) / SNR`` and the second by
``min(SNR, gamma) / (SNR + 1)``: both become ``min(SNR, gamma) |delta|^2``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bokeh_ops.host.architectures import named
from trainer.seeded import generator as draws
from trainer.seeded import normal

if TYPE_CHECKING:
    from trainer.config import Fit, Noise  # needs pydantic, which training the small world does without

LEAST_FLOW_SIGMA = 1e-3
"""Smallest noise level of flow matching that is trained: below, its error drowns in rounding."""


def shifted(t: Tensor, mu: float) -> Tensor:
    """FLUX's timestep shift, ``e^mu / (e^mu + 1/t - 1)``, of times 0 < t <= 1."""
    return math.exp(mu) / (math.exp(mu) + 1 / t - 1)


def discrete_level(sigmas: Tensor, seed: int, step: int, scene: int) -> float:
    """One of the levels of a discrete schedule, each as likely as any other."""
    return float(sigmas[int(draws(seed, "noise level", step, scene).integers(len(sigmas)))])


def flow_level(noise: Noise, mu: float, seed: int, step: int, scene: int) -> float:
    """A noise level of flow matching: logit-normal (Esser et al. 2024) or uniform, then shifted."""
    source = draws(seed, "noise level", step, scene)
    if noise.density == "uniform":
        t = 1 - float(source.random())
    else:
        t = 1 / (1 + math.exp(-(noise.logit_mean + noise.logit_std * float(source.standard_normal()))))
    return max(float(shifted(torch.tensor(t, dtype=torch.float64), mu)), LEAST_FLOW_SIGMA)


def scene_noise(shape: tuple[int, ...], offset: float, seed: int, step: int, scene: int) -> Tensor:
    """Noise of one scene, ``[C, H, W]``: normal, plus ``offset`` times one number per channel (Guttenberg 2023)."""
    noise = normal(shape, seed, "noise", step, scene)
    if offset:
        noise = noise + offset * normal((shape[0], 1, 1), seed, "noise offset", step, scene)
    return noise


def weights(prediction: str, sigma: Tensor, gamma: float) -> Tensor:
    """Weight of ``|x0 - estimate|^2`` per row.

    Args:
        prediction: ``epsilon``, ``v`` or ``flow``.
        sigma: noise levels ``[R]``.
        gamma: of min-SNR; 0 is off; flow matching has none.
    """
    snr = 1 / sigma**2
    if prediction == "flow":
        return snr
    if gamma:
        return snr.clamp(max=gamma)
    return snr + 1 if prediction == "v" else snr


def row_losses(estimate: Tensor, x0: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean square error per row, fp32 ``[R]``."""
    return weight * (estimate.float() - x0.float()).square().flatten(1).mean(1)


def noise_level(
    settings: Fit, sigmas: Tensor | None, latent: tuple[int, ...], step: int, scene: int
) -> float:
    """The noise level of one scene of a step.

    Args:
        settings: resolved.
        sigmas: the discrete schedule, or None for flow matching.
        latent: shape ``[C, H, W]``.
        step, scene: which.
    """
    if sigmas is not None:
        return discrete_level(sigmas, settings.seed, step, scene)
    mu = settings.noise.shift
    if mu is None:
        mu = named(settings.base.architecture).timestep_shift(latent[1], latent[2])
    assert mu is not None  # a flow has one
    return flow_level(settings.noise, mu, settings.seed, step, scene)
