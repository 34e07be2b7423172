"""Sampling a pivot and its targets together in the host: the pivot-grounded sweep of sec. 3.4.

Source: Fortes et al., "Bokeh Diffusion" (SIGGRAPH Asia 2025), eqs. 11, 12 and 15, alg. 1.
"""

from __future__ import annotations

import copy
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from torch.nn import functional

from ...adapter.conditions import Conditions
from ...adapter.rows import SweepRows, grounding_level, resolve_grounding_steps, target_groups
from ...errors import BokehError
from ..adapter.patch import KEY, BokehPatch, patch_of, set_patch
from ..architectures import recognise
from ..differences import out_of_memory
from ..notices import say
from .conditioning import TOLD_KEY, ToldCondition, released_negative
from .preview import Progress
from .rows import Rows, sampler_is_unknown, share_noise
from .trajectory import Trajectory, follow, k_guidance

BRANCHES = ("positive only", "positive and negative")
"""Which branches of classifier-free guidance are grounded; the released code grounds the positive one."""

# While their attention runs, the targets' keys and values are held a second time, twice as long. Beside the host's
# own estimate of one row that is 10.5 of 82 MB (SD1.5, fp16, 512 x 512) and 113 of 917 MB (FLUX, bf16, 1024 x 1024);
# both grow with the number of pixels alike.
_EXTRA_MEMORY = 0.15


@dataclass(frozen=True)
class Sweep:
    """What to sample.

    Attributes:
        pivot_k: K of the pivot, which anchors the scene (10 to 20 is recommended).
        target_k: K of every target, in the order of the results.
        grounding_steps: first steps that are grounded; negative means 60 % of the steps.
        branches: one of :data:`BRANCHES`.
        rows_per_batch: most rows (pivots included) in one batch; 0 puts all into one.
        subject: MASK ``[1 or P, H, W]``, 0..1, of any size: inside it the bokeh attention of every target is the
            pivot's, so that K acts on the rest alone (ours; with one bokeh token eq. 10 adds the same to every
            place). None: K acts everywhere.
    """

    pivot_k: float
    target_k: Sequence[float]
    grounding_steps: int = -1
    branches: str = BRANCHES[0]
    rows_per_batch: int = 0
    subject: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not len(self.target_k):
            raise BokehError("target_bokeh is empty; give at least one K, such as '0, 8, 16, 28'.")
        if self.branches not in BRANCHES:
            raise BokehError(
                f"The grounded branches are {self.branches!r}; expected one of {', '.join(BRANCHES)}."
            )


def make_guider(model: Any, positive: Any, negative: Any, cfg: float) -> Any:
    """The host's classifier-free guidance.

    Args:
        model: a MODEL.
        positive, negative: CONDITIONING.
        cfg: its scale.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


Scales = Callable[[float], Sequence[float]]
"""Guidance scales of the rows of a batch, where the noise is so many times stronger than the picture."""


class _GuidedK(comfy.samplers.CFGGuider):
    """``e(negative) + cfg (e(middle) - e(negative)) + scale (e(positive) - e(middle))``, a scale for every row."""

    scales: Scales

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: Any = None
    ) -> Tensor:
        options = model_options or {}
        scales = self.scales(_noise_over_picture(self.inner_model, float(timestep.flatten()[0])))
        if self.cfg == 1 and all(scale == 1 for scale in scales):
            return super().predict_noise(x, timestep, options, seed)  # the same in half the time
        negative, middle, positive = (self.conds[name] for name in ("negative", "middle", "positive"))
        # As the host leaves out what a scale of 1 makes nothing of.
        needed = not math.isclose(self.cfg, 1.0) or options.get("disable_cfg1_optimization", False)
        of_negative, of_middle, of_positive = comfy.samplers.calc_cond_batch(
            self.inner_model, [negative if needed else None, middle, positive], x, timestep, options
        )
        guided = comfy.samplers.cfg_function(
            self.inner_model,
            of_middle,
            of_negative,
            self.cfg,
            x,
            timestep,
            model_options=options,
            cond=middle,
            uncond=negative,
        )
        return guided + (of_positive - of_middle) * x.new_tensor(scales).reshape(-1, *[1] * (x.ndim - 1))


def _noise_over_picture(model: Any, level: float) -> float:
    """What a host's noise level says, in one scale for all models."""
    straight = isinstance(model.model_sampling, comfy.model_sampling.CONST)
    return level / max(1 - level, 1e-6) if straight else level


def can_guide_k(guider: Any) -> bool:
    """Whether :func:`guide_k` knows what a guider computes."""
    # By what it computes and not by its class, which is another one where the server has loaded that file by itself.
    return getattr(type(guider), "predict_noise", None) is comfy.samplers.CFGGuider.predict_noise


def guide_k(guider: Any, scales: Scales, base_k: float | None = None) -> Any:
    """A guider like ``guider`` that has a scale of its own for K (ours; the paper guides K and prompt together).

    ``e(negative) + cfg (e(prompt, -30) - e(negative)) + scale (e(prompt, K) - e(prompt, -30))``

    Args:
        guider: the host's BasicGuider or CFGGuider.
        scales: of K alone.
        base_k: in place of -30 there, such as the K of a photograph, of which only the difference is wanted.

    Raises:
        BokehError: another guider.
    """
    if not can_guide_k(guider):
        raise BokehError(
            f"bokeh_guidance is {max(scales(1.0)):g}, but the guider is a {type(guider).__name__}; expected "
            "BasicGuider or CFGGuider. Set it to 0, or build K's guidance with DualCFGGuider."
        )
    positive = guider.original_conds["positive"]
    told = released_negative() if base_k is None else ToldCondition(Conditions.of_k([base_k]), follows=False)
    # The positive prompt told that nothing is blurred, or as blurred as it is, takes the place of a negative one.
    middle = [
        {
            **cond,
            "model_conds": {**cond["model_conds"], TOLD_KEY: told},
            "prompt_type": "negative",
            "uuid": uuid.uuid4(),
        }
        for cond in positive
    ]
    made = _GuidedK(guider.model_patcher)
    negative = guider.original_conds.get("negative", positive)
    made.original_conds = {"positive": positive, "middle": middle, "negative": negative}
    made.set_cfg(guider.cfg)
    made.scales = scales
    return made


def make_sigmas(model: Any, sampler_name: str, scheduler: str, steps: int, denoise: float) -> Tensor:
    """The noise levels the host's KSampler would use."""
    return comfy.samplers.KSampler(
        model,
        steps=steps,
        device=model.load_device,
        sampler=sampler_name,
        scheduler=scheduler,
        denoise=denoise,
        model_options=model.model_options,
    ).sigmas


def grounded_sample(
    guider: Any,
    sampler: Any,
    sigmas: Tensor,
    latent: dict[str, Any],
    noise: Callable[[dict[str, Any]], Tensor],
    seed: int,
    sweep: Sweep,
    node_id: str | None = None,
    bokeh_guidance: float | None = None,
    trajectory: Trajectory | None = None,
    residual: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sample every picture of ``latent`` once as pivot and once per target K, all from the same noise.

    Args:
        guider: a host guider with its conditions set; it is copied, not changed.
        sampler: a host sampler. It may call the model several times a step: grounding goes by noise level,
            so every evaluation above the level at which step ``grounding_steps`` begins is grounded.
        sigmas: noise levels ``[steps + 1]``.
        latent: LATENT of ``P`` pictures (``noise_mask`` and ``batch_index`` are carried).
        noise: makes the initial noise for a LATENT.
        seed: for the noise that samplers add on the way.
        sweep: what to sample.
        node_id: the node to speak through.
        bokeh_guidance: a guidance scale of K alone (:func:`guide_k`). None: K and prompt are guided together, as in
            the paper; with a trajectory every K has the scale of :func:`.trajectory.k_guidance`.
        trajectory: the way the pivots are on, in place of noise; its K is theirs.
        residual: as for :func:`.trajectory.follow`.

    Returns:
        The pivots' LATENT ``[P, ...]`` and the targets' ``[N * P, ...]``, all pictures of the first K first.

    Raises:
        BokehError: an empty latent, more grounding steps than steps, a scale that is not finite, a model or sampler
            that cannot be grounded.
    """
    patcher = guider.model_patcher
    samples = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"])
    if samples.is_nested:
        raise BokehError("The latent holds several tensors of different kinds; give a plain picture latent.")
    pictures = samples.shape[0]
    if pictures == 0:
        raise BokehError("The latent batch is empty; give at least one picture.")
    steps = max(sigmas.shape[-1] - 1, 0)
    grounded_steps = resolve_grounding_steps(sweep.grounding_steps, steps)
    if bokeh_guidance is not None and not math.isfinite(bokeh_guidance):
        raise BokehError(
            f"bokeh_guidance is {bokeh_guidance}; give a finite scale, such as 2, or 0 for none of its own."
        )
    if grounded_steps and float(sigmas[0]) <= float(sigmas[-1]):
        raise BokehError(
            f"The sigmas rise from {float(sigmas[0]):.4g} to {float(sigmas[-1]):.4g}, which adds noise; only "
            "denoising can be grounded. Connect sigmas that fall, or set grounding_steps to 0."
        )
    _say_what_does_nothing(patcher, sweep, grounded_steps, node_id)
    scale = getattr(guider, "cfg2", getattr(guider, "cfg", 1.0))
    architecture = recognise(patcher).architecture
    if architecture.most_cfg is not None and scale > architecture.most_cfg:
        say(
            f"cfg is {scale:g}, but {architecture.title} has its guidance built in: so much more burns the picture and "
            "takes twice the time. Set cfg to 1, and the guidance by FluxGuidance.",
            node_id,
        )
    if sweep.subject is not None:
        sweep = replace(sweep, subject=_subject_over(sweep.subject, samples, node_id))
    latent = {**latent, "samples": samples}
    mask = latent.get("noise_mask")
    if mask is not None and mask.ndim > 2 and mask.shape[0] not in (1, pictures):
        # As the host fits it to these pictures; to more rows it would fit it otherwise.
        latent["noise_mask"] = comfy.utils.repeat_to_batch_size(mask, pictures)
    if steps == 0:
        targets = SweepRows(pictures, len(sweep.target_k) - 1).tile(samples)
        return latent, _result(latent, targets, sweep)

    if sampler_is_unknown(sampler):
        say(
            "nothing is known of the noise that this sampler adds while it samples. If it adds any, pivot and targets "
            "get different noise and drift apart; the ancestral and SDE samplers of KSamplerSelect share it.",
            node_id,
        )
    if trajectory is not None and bokeh_guidance is None and not can_guide_k(guider):
        say(
            f"K has no guidance scale of its own with a {type(guider).__name__}, so that the edit may be weak; connect "
            "BasicGuider or CFGGuider.",
            node_id,
        )
    way = None
    if trajectory is None:
        initial = noise(latent)
    else:
        way, initial = trajectory.way(guider, samples, sigmas), torch.zeros_like(samples)
        sweep = replace(sweep, pivot_k=trajectory.k)
    run = _Run(
        guider=guider,
        sampler=sampler,
        sigmas=sigmas,
        latent=latent,
        initial=initial,
        seed=seed,
        sweep=sweep,
        grounded_steps=grounded_steps,
        node_id=node_id,
        bokeh_guidance=bokeh_guidance,
        trajectory=trajectory,
        way=way,
        residual=residual,
    )
    rows_per_batch = sweep.rows_per_batch
    pivot: Tensor | None = None
    done: list[Tensor] = []
    waiting = list(sweep.target_k)
    progress = Progress(patcher, steps, len(waiting), node_id)
    while waiting:
        group = next(target_groups(waiting, pictures, rows_per_batch))
        callback = progress.of_group(len(sweep.target_k) - len(waiting), len(group))
        short: str | None = None
        out: Tensor | None = None
        try:
            out = run.sample(group, callback)
        except Exception as error:
            if not out_of_memory(error) or len(group) == 1:
                raise
            short = str(error)
        if out is None:  # only here, as inside the handler the error still holds what the failed run held
            comfy.model_management.soft_empty_cache()
            rows_per_batch = pictures * (1 + len(group) // 2)
            say(f"{len(group)} targets at once do not fit in memory ({short}); going on with fewer.", node_id)
            continue
        pivot = out[:pictures] if pivot is None else pivot
        done.append(out[pictures:])
        waiting = waiting[len(group) :]
    assert pivot is not None
    return {**latent, "samples": pivot}, _result(latent, torch.cat(done), sweep)


def _subject_over(subject: Tensor, samples: Tensor, node_id: str | None) -> Tensor:
    """The subject's mask at the places of a latent, ``[1 or P, h, w]``."""
    mask = subject[None] if subject.ndim == 2 else subject
    if mask.ndim != 3 or mask.shape[0] not in (1, samples.shape[0]):
        raise BokehError(
            f"The subject's mask has the shape {tuple(subject.shape)} for {samples.shape[0]} pictures; connect one "
            "mask, or one per picture."
        )
    if not torch.isfinite(mask).all():
        raise BokehError("The subject's mask has NaN or infinite values; connect one of 0 to 1.")
    size = tuple(samples.shape[-2:])
    stretch = mask.shape[-1] / mask.shape[-2] / (size[1] / size[0])
    if not 0.95 < stretch < 1.05:
        say(
            f"the subject's mask is {mask.shape[-1]} x {mask.shape[-2]}, another shape than the picture, and is "
            "stretched over it; make it from the pivot's picture.",
            node_id,
        )
    return functional.interpolate(mask[:, None].float(), size, mode="area")[:, 0].clamp(0, 1)


def _say_what_does_nothing(patcher: Any, sweep: Sweep, grounded_steps: int, node_id: str | None) -> None:
    patch = patch_of(patcher)
    if patch is None or not patch.obeys_k:
        say(
            "the model carries no bokeh adapter, so K changes nothing: every target comes out like the pivot. "
            "Put LoadBokehAdapter before this node, unless grounding alone is what you want.",
            node_id,
        )
    if grounded_steps == 0:
        say("grounding_steps is 0: the targets are not tied to the pivot's scene.", node_id)


def _result(latent: dict[str, Any], samples: Tensor, sweep: Sweep) -> dict[str, Any]:
    result = {**latent, "samples": samples}
    mask = result.get("noise_mask")
    if mask is not None and mask.ndim > 2 and mask.shape[0] > 1:
        result["noise_mask"] = mask.repeat(len(sweep.target_k), *[1] * (mask.ndim - 1))
    if "batch_index" in result:
        result["batch_index"] = list(result["batch_index"]) * len(sweep.target_k)
    return result


@dataclass(frozen=True)
class _Run:
    """What all groups of targets of one run share, as :func:`grounded_sample` takes it."""

    guider: Any
    sampler: Any
    sigmas: Tensor
    latent: dict[str, Any]
    initial: Tensor
    seed: int
    sweep: Sweep
    grounded_steps: int
    node_id: str | None
    bokeh_guidance: float | None
    trajectory: Trajectory | None
    way: Tensor | None
    residual: bool

    def sample(self, group: Sequence[float], callback: Callable[..., None]) -> Tensor:
        """The pivots and the targets of some K."""
        samples, pivot_k = self.latent["samples"], self.sweep.pivot_k
        rows = SweepRows(samples.shape[0], len(group))
        k = rows.per_row(pivot_k, group)
        sampler = share_noise(self.sampler, rows)
        if self.way is not None:
            same = [each == pivot_k for each in k]
            sampler = follow(sampler, rows, self.way, same, self.residual, self.sweep.subject)
        guider = prepare_guider(
            self._guided(k), rows, k, self.sigmas, self.grounded_steps, self.sweep, self.node_id
        )
        out = guider.sample(
            rows.tile(self.initial),
            rows.tile(samples),
            sampler,
            self.sigmas,
            denoise_mask=self.latent.get("noise_mask"),
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=self.seed,
        )
        return out.to(comfy.model_management.intermediate_device())

    def _guided(self, k: Sequence[float]) -> Any:
        """The guider, with a scale for the K of every row where there is one."""
        photo_k = None if self.trajectory is None else self.trajectory.k
        fixed = self.bokeh_guidance
        if fixed is not None:
            return guide_k(self.guider, lambda noise: [fixed] * len(k), photo_k)
        if photo_k is None or not can_guide_k(self.guider):
            return self.guider
        return guide_k(self.guider, lambda noise: [k_guidance(photo_k, each, noise) for each in k], photo_k)


def prepare_guider(
    guider: Any,
    rows: SweepRows,
    k: Sequence[float],
    sigmas: Tensor,
    grounded_steps: int,
    sweep: Sweep,
    node_id: str | None = None,
) -> Any:
    """A copy of ``guider`` whose model is grounded and whose conditions carry K and pivots for ``rows``.

    Raises:
        BokehError: the guider keeps its conditions where no host guider does, or the model is of another kind.
    """
    if not getattr(guider, "original_conds", None):
        raise BokehError(
            f"The guider {type(guider).__name__} holds no conditions; connect BasicGuider, CFGGuider or "
            "DualCFGGuider with its prompts."
        )
    guider = copy.copy(guider)
    guider.model_patcher = ground_model(guider.model_patcher, rows, sigmas, grounded_steps, node_id)
    made = Rows(rows, list(k), sweep.subject)
    guider.original_conds = {
        name: [
            made.condition(cond, name, "negative" not in name or sweep.branches == BRANCHES[1])
            for cond in conds
        ]
        for name, conds in guider.original_conds.items()
    }
    return guider


def ground_model(
    patcher: Any,
    rows: SweepRows,
    sigmas: Tensor,
    grounded_steps: int,
    node_id: str | None = None,
) -> Any:
    """A clone of ``patcher`` that grounds its targets while the noise is above level ``sigmas[grounded_steps]``.

    Args:
        patcher: the host's MODEL.
        rows: of the batch.
        sigmas: noise levels of the run.
        grounded_steps: 0 grounds nothing.
        node_id: the node to speak through.
    """
    clone = patcher.clone()
    patch = patch_of(clone) or BokehPatch(recognise(clone))
    above = grounding_level(sigmas.tolist(), grounded_steps) if grounded_steps > 0 else None
    set_patch(clone, patch.with_grounding(above, node_id))
    if above is not None:
        clone.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _announce_memory(rows))
    return clone


def _announce_memory(rows: SweepRows) -> Callable[..., Any]:
    """The host's estimator does not know of the longer keys: tell it of a larger batch instead."""

    def prepare(executor: Any, model: Any, noise_shape: Sequence[int], *args: Any, **kwargs: Any) -> Any:
        extra = -int(-rows.pictures * rows.targets * _EXTRA_MEMORY // 1)
        return executor(model, [noise_shape[0] + extra, *noise_shape[1:]], *args, **kwargs)

    return prepare
