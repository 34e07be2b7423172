"""The rows of a sweep: what they share, and what some of them have of their own.

* Inputs: a row is given those of its picture. The host deals inputs out over the rows of a batch: prompts, masks, hints
  and references are repeated or cut to it, pictures to inpaint are stretched to it. The rows of a sweep are several of
  one picture. So each input is first fitted to the pictures, by the host's own rule, and then given to all rows of a
  picture alike (:class:`Rows`).
* Noise that samplers add as they go: the host draws it for the whole batch, a different one per row, and the rows of a
  sweep would drift apart. Here it is drawn for the pivots alone, exactly as if those ran alone, and every row gets its
  picture's (:func:`share_noise`).
* Of their own: K and pivots, by their conditions; and the pivots may be on a recorded way, at every noise level
  (:func:`.trajectory.follow`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import comfy.samplers
import comfy.utils
import torch
from comfy.conds import CONDConstant
from comfy.k_diffusion.sampling import BrownianTreeNoiseSampler, default_noise_sampler
from torch import Tensor

from ...adapter.conditions import Conditions
from ...adapter.rows import SweepRows
from ...errors import BokehError
from .conditioning import (
    PER_ROW_KEY,
    PIVOT_KEY,
    SUBJECT_KEY,
    SUBJECT_TOLD_KEY,
    TOLD_KEY,
    PivotCondition,
    RowCondition,
    SubjectCondition,
    ToldCondition,
    released_negative,
)

Fit = Callable[[Tensor, int], Tensor]
"""One of the host's rules: a batch of inputs, and how many are wanted."""

# What a condition holds per picture, and how the host fits it to a batch.
_INPUTS: dict[str, Fit] = {
    "cross_attn": comfy.utils.repeat_to_batch_size,
    "cross_attn_controlnet": comfy.utils.repeat_to_batch_size,
    "pooled_output": comfy.utils.repeat_to_batch_size,
    "attention_mask": comfy.utils.repeat_to_batch_size,
    "reference_latents": comfy.utils.repeat_to_batch_size,
    "concat_latent_image": comfy.utils.resize_to_batch_size,
    "concat_mask": comfy.utils.resize_to_batch_size,
}


class Rows:
    """Makes the conditions of a sweep from those of its pictures.

    Args:
        rows: of the batch.
        k: per row.
        subject: mask over the latent, ``[1 or P, h, w]``, inside which K is the pivot's; None for nowhere.
    """

    def __init__(self, rows: SweepRows, k: list[float], subject: Tensor | None = None) -> None:
        self.rows, self.k, self.subject = rows, k, subject
        self._controls: dict[int, Any] = {}

    def condition(self, cond: dict[str, Any], name: str, grounded: bool) -> dict[str, Any]:
        """A copy of a condition with one K and one pivot per row, and with every picture's inputs for its rows.

        A branch that is not the positive keeps the K it was given where that does not follow the positive's; a negative
        one gets the released K where it was given none.

        Args:
            cond: as guiders hold it.
            name: of its branch.
            grounded: whether that branch is.
        """
        made = dict(cond)
        per_row = made.pop(PER_ROW_KEY, False)
        for key, fit in _INPUTS.items():
            if key in made and not per_row:
                made[key] = self._spread(made[key], fit)
        if isinstance(made.get("mask"), Tensor):
            made["mask"] = self._mask(made["mask"])
        if made.get("control") is not None:
            made["control"] = self._control(made["control"])
        conds = {key: self._other(value) for key, value in cond.get("model_conds", {}).items()}
        conds.update(self._bokeh(conds.get(TOLD_KEY), name, grounded))
        return {**made, "model_conds": conds}

    def _bokeh(self, given: Any, name: str, grounded: bool) -> dict[str, RowCondition]:
        rows = self.rows
        if given is None and "negative" in name:
            told = released_negative(rows.total)
        elif given is None or name == "positive" or given.follows:
            told = ToldCondition(Conditions.of_k(self.k))
        else:
            told = given.repeated(rows.total)
        pivots = rows.pivots() if grounded else [-1] * rows.total
        made: dict[str, RowCondition] = {
            TOLD_KEY: told,
            PIVOT_KEY: PivotCondition(torch.tensor(pivots, dtype=torch.float32)),
        }
        if self.subject is not None:
            made[SUBJECT_TOLD_KEY] = ToldCondition(rows.tile(told.cond[: rows.pictures]))
            made[SUBJECT_KEY] = SubjectCondition(rows.tile(self.subject.expand(rows.pictures, -1, -1)))
        return made

    def _spread(self, value: Any, fit: Fit) -> Any:
        """Inputs for all rows, where there are several; a list holds several kinds of them."""
        if isinstance(value, (list, tuple)):
            return [self._spread(part, fit) for part in value]
        if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] <= 1:
            return value
        return self.rows.tile(fit(value, self.rows.pictures))

    def _mask(self, mask: Tensor) -> Tensor:
        """Masks for all rows; behind them those that no picture gets, as the host bounds an area by all of them."""
        if mask.ndim < 3 or mask.shape[0] == 1:
            return mask
        return torch.cat([self._spread(mask, comfy.utils.repeat_to_batch_size), mask[self.rows.pictures :]])

    def _control(self, control: Any) -> Any:
        """A ControlNet's like whose hints are per row. One for all branches, or the host would not batch them."""
        if id(control) in self._controls:
            return self._controls[id(control)]
        previous = getattr(control, "previous_controlnet", None)
        before = None if previous is None else self._control(previous)
        hint = getattr(control, "cond_hint_original", None)
        made = control
        uneven = isinstance(hint, Tensor) and hint.shape[0] not in (1, self.rows.pictures)
        if uneven or before is not previous:
            made = control.copy()
            made.set_previous_controlnet(before)
        if isinstance(hint, Tensor) and uneven:
            made.cond_hint_original = self._spread(hint, comfy.utils.repeat_to_batch_size)
            made.extra_concat_orig = [
                self._spread(
                    comfy.utils.repeat_to_batch_size(extra, len(hint)), comfy.utils.repeat_to_batch_size
                )
                for extra in getattr(control, "extra_concat_orig", ())
            ]
        self._controls[id(control)] = made
        return made

    def _other(self, value: Any) -> Any:
        """Another extension's condition for the model, per row."""
        inner = getattr(value, "cond", None)
        if isinstance(value, (RowCondition, CONDConstant)) or not hasattr(value, "_copy_with"):
            return value
        spread = self._spread(inner, comfy.utils.repeat_to_batch_size)
        return value if spread is inner else value._copy_with(spread)


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
