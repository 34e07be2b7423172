"""A whole grounded sweep in one call: what the Grounded Sampler node does, from a script."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
from torch import Tensor

from ...errors import BokehError
from .grounded import Sweep, grounded_sample, make_guider, make_sigmas


def check_sampler(sampler: str, scheduler: str) -> None:
    """Raise unless the host has a sampler and a scheduler of these names.

    Raises:
        BokehError: it has not; the nearest name is given.
    """
    for what, name, known in (
        ("sampler", sampler, comfy.samplers.SAMPLER_NAMES),
        ("scheduler", scheduler, comfy.samplers.SCHEDULER_NAMES),
    ):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(known)}."
            raise BokehError(f"ComfyUI has no {what} {name!r}. {hint}")


def noise_of(seed: int) -> Callable[[dict[str, Any]], Tensor]:
    """Makes the noise of a LATENT, as the host's KSampler does for a seed."""
    return lambda latent: comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))


def sample_sweep(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    sweep: Sweep,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sample every picture of ``latent`` as pivot and at every target K, all from the same noise.

    Args:
        model: a MODEL, normally with an adapter on it.
        positive, negative: CONDITIONING; K is set here.
        latent: LATENT.
        seed: of the noise.
        steps, cfg, sampler_name, scheduler: as for the host's KSampler.
        sweep: the K, and how it is grounded.

    Returns:
        The pivots' and the targets' LATENT (:func:`.grounded.grounded_sample`).
    """
    return grounded_sample(
        make_guider(model, positive, negative, cfg),
        comfy.samplers.sampler_object(sampler_name),
        make_sigmas(model, sampler_name, scheduler, steps, 1.0),
        latent,
        noise_of(seed),
        seed,
        sweep,
    )
