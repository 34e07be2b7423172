"""A whole grounded sweep in one call: for the node, the trainer and scripts."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
from torch import Tensor

from ...errors import BokehError
from .grounded import Sweep, grounded_sample, make_guider, make_sigmas
from .trajectory import Trajectory


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
    denoise: float = 1.0,
    bokeh_guidance: float | None = None,
    node_id: str | None = None,
    trajectory: Trajectory | None = None,
    residual: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sample every picture of ``latent`` as pivot and at every target K, all from the same noise.

    Args:
        model: a MODEL, normally with an adapter on it.
        positive, negative: CONDITIONING; K is set here.
        latent: LATENT.
        seed: of the noise.
        steps, cfg, sampler_name, scheduler: as for the host's KSampler.
        sweep: the K, and how it is grounded.
        denoise: as for the host's KSampler; with a trajectory the strength of the edit, the share of its steps.
        bokeh_guidance: a guidance scale of K alone (:func:`.grounded.grounded_sample`).
        node_id: the node to speak through.
        trajectory: of the photographs that ``latent`` holds, in place of the noise.
        residual: as for :func:`.trajectory.follow`.

    Returns:
        The pivots' and the targets' LATENT (:func:`.grounded.grounded_sample`).
    """
    if trajectory is None:
        sigmas = make_sigmas(model, sampler_name, scheduler, steps, denoise)
    else:
        # Recorded at the levels of plain steps; some samplers would have others.
        trajectory.levels(make_sigmas(model, "euler", scheduler, steps, 1.0))
        sigmas = trajectory.part(denoise)
    return grounded_sample(
        make_guider(model, positive, negative, cfg),
        comfy.samplers.sampler_object(sampler_name),
        sigmas,
        latent,
        noise_of(seed),
        seed,
        sweep,
        node_id,
        bokeh_guidance,
        trajectory,
        residual,
    )
