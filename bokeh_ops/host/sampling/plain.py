"""Sampling as the host's KSampler does it, for what is no node."""

from __future__ import annotations

from typing import Any

import comfy.sample
import torch
from torch import Tensor


@torch.no_grad()
def sample_plain(
    patcher: Any,
    positive: list[Any],
    negative: list[Any],
    blank: Tensor,
    seed: int,
    steps: int,
    cfg: float,
    sampler: str,
    scheduler: str = "simple",
) -> Tensor:
    """Latents ``[N, C, h, w]``, as LATENT holds them, of an empty one of that shape.

    Args:
        patcher: the host's MODEL.
        positive, negative: CONDITIONING of one row or of ``N``.
        blank: zeros.
        seed: of the noise.
        steps, cfg, sampler, scheduler: as in the host's KSampler.
    """
    noise = comfy.sample.prepare_noise(blank, seed)
    return comfy.sample.sample(
        patcher,
        noise,
        steps,
        cfg,
        sampler,
        scheduler,
        positive,
        negative,
        blank,
        disable_pbar=True,
        seed=seed,
    )
