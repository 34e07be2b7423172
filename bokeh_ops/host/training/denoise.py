"""One call of the host's model the way its samplers make it, open to gradients, and the noise it denoises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import comfy.model_patcher
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...adapter.conditions import Conditions
from ...errors import BokehError
from ..sampling.conditioning import PIVOT_KEY, TOLD_KEY, PivotCondition, ToldCondition, with_conditions

Prediction = Literal["epsilon", "v", "flow"]


def prediction(patcher: Any) -> Prediction:
    """What a MODEL's network predicts.

    Raises:
        BokehError: something else than noise, v or a flow.
    """
    sampling = patcher.get_model_object("model_sampling")
    if isinstance(sampling, comfy.model_sampling.CONST):
        return "flow"
    if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        return "v"
    if type(sampling).calculate_denoised is comfy.model_sampling.EPS.calculate_denoised:
        return "epsilon"
    raise BokehError(
        f"The model predicts {type(sampling).__mro__[1].__name__}; training knows epsilon, v and flow matching."
    )


def discrete_sigmas(patcher: Any) -> Tensor:
    """Noise levels of a discrete schedule, rising, ``[timesteps]`` (SD1.5: 1000)."""
    return patcher.get_model_object("model_sampling").sigmas.float().cpu()


def add_noise(patcher: Any, latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """What the model is given at noise level ``sigma [R]``: ``x0 + sigma noise``, or for flows the blend of both."""
    sampling = patcher.get_model_object("model_sampling")
    return sampling.noise_scaling(sigma.view(-1, *[1] * (latent.ndim - 1)), noise, latent)


def levels(patcher: Any, steps: int) -> Tensor:
    """Noise levels of a sampler's steps with the scheduler ``simple``, falling, ``[steps]``; without the 0 at the end.

    Four steps of a discrete schedule are the timesteps 999, 749, 499 and 249; a flow's are at the same shares of it.
    """
    sampling = patcher.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(sampling, "simple", steps)[:-1].float().cpu()


def pure_noise(patcher: Any, noise: Tensor, sigma: Tensor) -> Tensor:
    """What samplers begin with at the largest noise level ``sigma [R]``: no picture yet, but all its variance."""
    sampling = patcher.get_model_object("model_sampling")
    sigma = sigma.view(-1, *[1] * (noise.ndim - 1))
    return sampling.noise_scaling(sigma, noise, torch.zeros_like(noise), max_denoise=True)


def conditioning(
    context: Tensor,
    pooled: Tensor | None,
    guidance: float | None,
    k: Sequence[float],
    pivots: Sequence[int] | None = None,
    picture: Mapping[str, Any] = MappingProxyType({}),
) -> list[Any]:
    """A CONDITIONING of one entry that holds another prompt, K and pivot for every row.

    Args:
        context: ``[R, L, C]``.
        pooled: ``[R, P]``, where the model takes one.
        guidance: distilled guidance, where the model takes one.
        k: per row.
        pivots: per row the row of its pivot or -1; None for -1 everywhere.
        picture: what the model is told of the pictures' size (:meth:`.Architecture.picture_conditions`).
    """
    settings: dict[str, Any] = dict(picture)
    if pooled is not None:
        settings["pooled_output"] = pooled
    if guidance is not None:
        settings["guidance"] = guidance
    pivots = [-1] * len(k) if pivots is None else list(pivots)
    conds = {
        TOLD_KEY: ToldCondition(Conditions.of_k(k)),
        PIVOT_KEY: PivotCondition(torch.tensor(pivots, dtype=torch.float32)),
    }
    return with_conditions([[context, settings]], **conds)


def denoise(patcher: Any, positive: list[Any], x: Tensor, sigma: Tensor) -> Tensor:
    """The model's estimate of ``x0``, through the host's own batching of conditions and its wrappers.

    Args:
        patcher: a MODEL, loaded (:func:`.loading.on_device`).
        positive: a CONDITIONING.
        x: ``[R, C, H, W]``, in the model's own scale of latents.
        sigma: noise level per row ``[R]``.

    Returns:
        ``[R, C, H, W]``, fp32.
    """
    conds = {"positive": comfy.sampler_helpers.convert_cond(positive)}
    options = comfy.model_patcher.create_model_options_clone(patcher.model_options)
    comfy.sampler_helpers.prepare_model_patcher(patcher, conds, options)
    model = patcher.model
    try:
        patcher.pre_run()
        conds = comfy.samplers.process_conds(model, x, conds, x.device, x, None, 0)
        (out,) = comfy.samplers.calc_cond_batch(model, [conds["positive"]], x, sigma, options)
    finally:
        patcher.cleanup()
    return out
