"""Inversion: from a photograph back to the noise it could have been made from (sec. 4.1.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ...adapter.rows import SweepRows
from ...errors import BokehError
from ..differences import out_of_memory
from .grounded import Sweep, prepare_guider
from .preview import Progress
from .trajectory import Identity, Trajectory

CORRECTIONS = 1
"""How often every step of an inversion is solved again, by default."""

_KNOWN = (comfy.model_sampling.EPS, comfy.model_sampling.CONST)
"""What a model may predict (noise, v, EDM; velocity of a straight flow): there (x - x0) / sigma is the way's slope."""


def invert(
    guider: Any,
    sigmas: Tensor,
    latent: dict[str, Any],
    k: float,
    corrections: int = CORRECTIONS,
    node_id: str | None = None,
) -> Trajectory:
    """Find the way from noise to photographs.

    Every step is the Euler step of the sampler, solved for where it came from: ``x_high = x_low + (s_high - s_low)
    d(x_high, s_high)`` with ``d(x, s) = (x - D(x, s)) / s``. The first guess goes on with the slope of the step before;
    ``corrections`` fixed-point iterations follow. Noise (DDIM), v and straight flows are one case, as their samplers
    are in the host.

    Args:
        guider: a host guider with its conditions set; it is copied, not changed.
        sigmas: noise levels ``[steps + 1]``, falling to 0.
        latent: LATENT of ``P`` photographs.
        k: of the photographs.
        corrections: how often a step is solved again; each is one evaluation of the model.
        node_id: the node to speak through.

    Raises:
        BokehError: an empty latent or one of another model, levels that do not fall to 0, fewer than 0 corrections, a
            model that predicts what is not known, several photographs that do not fit in memory together.
    """
    patcher = guider.model_patcher
    samples = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"])
    _check_invertible(patcher, samples, sigmas)
    if corrections < 0:
        raise BokehError(f"corrections is {corrections}; give 0 (each step is solved once) or more.")
    pictures, steps = samples.shape[0], len(sigmas) - 1
    rows = SweepRows(pictures, 0)
    identity = Identity.of(guider)
    guider = prepare_guider(guider, rows, [k] * pictures, sigmas, 0, Sweep(k, [k]), node_id)
    progress = Progress(patcher, steps * (1 + corrections), 1, node_id).of_group(0, 1)
    sampler = _Inversion(corrections)
    try:
        guider.sample(
            torch.zeros_like(samples),
            samples,
            sampler,
            sigmas,
            callback=progress,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=0,
        )
    except Exception as error:
        if not out_of_memory(error) or pictures == 1:
            raise
        raise BokehError(
            f"{pictures} photographs at once do not fit in memory ({error}). Invert fewer at a time: Latent From Batch "
            "takes some of them."
        ) from None
    return Trajectory(
        torch.stack(sampler.latents[::-1]), sigmas.detach().cpu().float(), k, identity, sampler.missed
    )


def _check_invertible(patcher: Any, samples: Tensor, sigmas: Tensor) -> None:
    if samples.is_nested or samples.shape[0] == 0:
        raise BokehError("There is no plain picture latent to invert; encode one or several pictures.")
    channels = patcher.get_model_object("latent_format").latent_channels
    if samples.ndim < 4 or samples.shape[1] != channels:
        raise BokehError(
            f"The latent is {list(samples.shape)} but the model takes [pictures, {channels}, height, width]. Encode "
            "the photograph with the VAE of this model."
        )
    if not torch.isfinite(samples).all():
        raise BokehError(
            "The latent has NaN or infinite values; encode the photograph again, with a VAE in fp32."
        )
    if len(sigmas) < 2 or float(sigmas[-1]) != 0 or (sigmas[1:] >= sigmas[:-1]).any():
        raise BokehError(
            f"The sigmas have {len(sigmas)} levels and go from {float(sigmas[0]) if len(sigmas) else 0:.4g} to "
            f"{float(sigmas[-1]) if len(sigmas) else 0:.4g}; expected at least two that fall to 0, as BasicScheduler "
            "makes them."
        )
    kind = patcher.get_model_object("model_sampling")
    if not isinstance(kind, _KNOWN) or isinstance(kind, comfy.model_sampling.X0):
        raise BokehError(
            f"The model predicts what {type(kind).__name__} says, which cannot be inverted; expected a model that "
            "predicts noise, v or the velocity of a flow."
        )


class _Inversion(comfy.samplers.Sampler):
    """The host's interface of a sampler, from the picture up to the noise.

    Attributes:
        latents: found so far, the picture first.
        missed: see :class:`Trajectory`.
    """

    def __init__(self, corrections: int) -> None:
        self.corrections = corrections
        self.latents: list[Tensor] = []
        self.missed = 0.0

    @torch.no_grad()
    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        assert latent_image is not None
        x = latent_image.float()
        rows = x.new_ones([x.shape[0]])
        self.latents = [x.cpu()]
        slope = None
        total, done = (len(sigmas) - 1) * (1 + self.corrections), 0
        for index in reversed(range(len(sigmas) - 1)):
            high, step = sigmas[index], sigmas[index] - sigmas[index + 1]
            y = before = x if slope is None else x + step * slope
            for _ in range(1 + self.corrections):
                before = y
                denoised = model_wrap(y, high * rows, **extra_args)
                slope = (y - denoised) / high
                y = x + step * slope
                if callback is not None:
                    callback(done, denoised, y, total)
                done += 1
            self.missed = max(self.missed, float((y - before).norm() / y.norm()))
            x = y
            self.latents.append(x.cpu())
        return x
