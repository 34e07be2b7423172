"""Making a host sampler's random noise the same for all rows of one picture.

Samplers that add noise as they go draw it for the whole batch, a different one per row, and the rows of a
grounded sweep would drift apart. Here they draw it for the pivots alone, exactly as if those ran alone, and
every row gets its picture's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from comfy.k_diffusion.sampling import BrownianTreeNoiseSampler, default_noise_sampler
from torch import Tensor

from ...adapter.rows import SweepRows
from ...errors import BokehError

# The samplers whose own noise is a Brownian tree, and where it is drawn; the others draw independent noise.
_BROWNIAN = {
    f"sample_{name}{suffix}": suffix == ""
    for name in ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
    for suffix in ("", "_gpu")
}


_HOST_MODULES = {"comfy.k_diffusion.sampling", "comfy.samplers", "comfy.extra_samplers.uni_pc"}


def share_noise(sampler: Any, rows: SweepRows) -> Any:
    """``sampler`` with the random noise of every step shared by the rows of one picture.

    Raises:
        BokehError: the sampler couples the rows in a way that cannot be undone from outside.
    """
    if not isinstance(sampler, comfy.samplers.KSAMPLER):
        return sampler  # another extension's own sampler class: nothing is known of its noise
    function = sampler.sampler_function
    options = dict(sampler.extra_options)
    name = getattr(function, "__name__", "")
    if name == "dpm_adaptive_function":
        raise BokehError(
            "dpm_adaptive chooses its steps from the error over the whole batch, so pivot and targets would change "
            "each other's steps. Choose another sampler, such as dpmpp_2m."
        )
    if options.get("s_churn", 0) > 0:
        raise BokehError(
            f"s_churn is {options['s_churn']}: this sampler would add different noise to every row, so pivot and "
            "targets would drift apart. Set s_churn to 0, or choose an ancestral or SDE sampler."
        )
    if "noise_sampler" in inspect.signature(function).parameters and options.get("noise_sampler") is None:
        function = _with_shared_noise(function, name, rows)
    if sampler.inpaint_options.get("random"):
        function = _with_shared_inpaint_noise(function, rows)
    return comfy.samplers.KSAMPLER(function, options, {})


def sampler_is_unknown(sampler: Any) -> bool:
    """Whether nothing is known of the noise a sampler adds on its way, so that it may not be shared."""
    if not isinstance(sampler, comfy.samplers.KSAMPLER):
        return True
    if sampler.extra_options.get("noise_sampler") is not None:
        return True
    function = sampler.sampler_function
    if "noise_sampler" in inspect.signature(function).parameters:
        return False
    return getattr(function, "__module__", None) not in _HOST_MODULES


def _with_shared_inpaint_noise(function: Callable[..., Tensor], rows: SweepRows) -> Callable[..., Tensor]:
    """The noise that "ddim" puts outside the mask: as the host draws it for the pictures alone."""

    def sample(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **options: Any) -> Tensor:
        source = torch.Generator().manual_seed((extra_args or {}).get("seed", 41) + 1)
        model.noise = rows.tile(torch.randn(x[: rows.pictures].shape, generator=source).to(x))
        return function(model, x, sigmas, extra_args=extra_args, **options)

    return sample


def _with_shared_noise(function: Callable[..., Tensor], name: str, rows: SweepRows) -> Callable[..., Tensor]:
    def sample(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **options: Any) -> Tensor:
        seed = (extra_args or {}).get("seed")
        pictures = x[: rows.pictures]
        if name in _BROWNIAN:
            low, high = sigmas[sigmas > 0].min(), sigmas.max()
            draw = BrownianTreeNoiseSampler(pictures, low, high, seed=seed, cpu=_BROWNIAN[name])
        else:
            draw = default_noise_sampler(pictures, seed=seed)

        def shared(sigma: Tensor, sigma_next: Tensor) -> Tensor:
            return rows.tile(draw(sigma, sigma_next))

        return function(model, x, sigmas, extra_args=extra_args, noise_sampler=shared, **options)

    return sample
