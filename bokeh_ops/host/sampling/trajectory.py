"""Real photographs as pivots: the trajectory that leads to a photograph, and sampling beside it.

A photograph has no noise that it was made from. It is found by walking the sampler's way backwards, from the picture up
to the first noise level (inversion, sec. 4.1.2), and kept with every latent on it. In a sweep the pivot then *is* that
recorded way; what the model adds to it at a new K is added to the way, and not to what the model would make of the
picture by itself. So nothing happens where nothing is asked: K of the photograph returns the photograph, exactly, under
every guidance, sampler and number of evaluations.

Sources: Fortes et al., "Bokeh Diffusion" (SIGGRAPH Asia 2025), sec. 4.1.2; Ju et al., "PnP Inversion" (ICLR 2024), for
adding back what the inversion misses.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
from torch import Tensor

from ...adapter.rows import SweepRows
from ...digest import content_key
from ...errors import BokehError
from ..adapter.patch import patch_of

_CLOSE = 1e-4
"""Noise levels that differ by this share are the same."""


_VISIBLE = 7.0
"""K from which on blur is plain to see; changes of K count relative to what is there."""


_SETTLED, _INVENTED = 0.4, 1.5
"""Noise over picture: below the first, what blur takes away is settled; below the second, detail comes."""


def k_guidance(photo_k: float, k: float, noise: float) -> float:
    """The guidance scale of K by which a photograph is edited: from 1 for no change to 2 for a large one.

    Without any, edits are too weak, and the more so the farther they go. Blur is guided until its forms are settled,
    detail from where it comes: guided before, it comes out too hard. Found on scenes of the small world
    (docs/world.md); guidance in an interval is Kynkaanniemi et al.'s (NeurIPS 2024).

    Args:
        photo_k: K of the photograph.
        k: to give it.
        noise: how many times stronger than the picture.
    """
    apart = math.log((max(k, 0.0) + _VISIBLE) / (max(photo_k, 0.0) + _VISIBLE))
    acts = noise >= _SETTLED if apart > 0 else noise <= _INVENTED
    return 1 + min(abs(apart), 1.0) if acts else 1.0


@dataclass(frozen=True)
class Identity:
    """Which model, adapters and prompts a trajectory was made with."""

    architecture: str
    model: Any
    """Weak, as the host may let the model go and load it again: then only the architecture can be compared."""
    weights: Any
    """The host's own mark of the patches on it, such as LoRAs."""
    adapters: tuple[tuple[int, float], ...]
    prompts: str

    @classmethod
    def of(cls, guider: Any) -> Identity:
        """That of a guider with its conditions set."""
        patcher = guider.model_patcher
        patch = patch_of(patcher)
        adapters = () if patch is None else patch.adapters
        conds = guider.original_conds
        return cls(
            type(patcher.model).__name__,
            weakref.ref(patcher.model),
            patcher.patches_uuid,
            tuple((id(applied.adapter), applied.strength) for applied in adapters),
            content_key(
                *(
                    part
                    for name in sorted(conds)
                    for cond in conds[name]
                    for part in (name, cond.get("cross_attn"), cond.get("pooled_output"))
                    if part is None or isinstance(part, (str, Tensor))
                )
            ),
        )

    def difference(self, other: Identity) -> str | None:
        """What differs between two, so that the trajectory of one is no good for the other; None for nothing."""
        if self.architecture != other.architecture:
            return f"a {self.architecture}, and this model is a {other.architecture}"
        mine = self.model()
        if mine is None:
            return None
        if mine is not other.model():
            return "another model"
        if self.adapters != other.adapters:
            return "another bokeh adapter, or another strength of it"
        if self.weights != other.weights:
            return "other weights: a LoRA or another patch was put on the model, or taken off it"
        return None


@dataclass(frozen=True)
class Trajectory:
    """The way from noise to one or several photographs.

    Attributes:
        latents: at every noise level, in the model's own scale, fp32 on the CPU, ``[L, P, ...]``; the last are the
            photographs.
        sigmas: the noise levels ``[L]``, falling to 0.
        k: of the photographs.
        identity: what it was made with.
        missed: how much the last correction still changed, as a share of the latent; the largest of all steps.
    """

    latents: Tensor
    sigmas: Tensor
    k: float
    identity: Identity
    missed: float = 0.0

    @property
    def pictures(self) -> int:
        return self.latents.shape[1]

    def describe(self) -> str:
        """Its size in words."""
        size = " x ".join(str(side) for side in reversed(self.latents.shape[-2:]))
        bytes_ = self.latents.numel() * self.latents.element_size()
        return (
            f"{self.pictures} picture{'s' * (self.pictures > 1)}, {size} latents, {len(self.sigmas) - 1} steps from "
            f"noise level {float(self.sigmas[0]):.4g}, K {self.k:g}: {bytes_ / 1e6:.1f} MB of memory. The last "
            f"correction changed {self.missed:.2%} of a latent at most."
        )

    def part(self, strength: float) -> Tensor:
        """The last noise levels: the share ``strength`` of all steps, at least one.

        Raises:
            BokehError: a strength outside 0..1.
        """
        if not 0 <= strength <= 1:
            raise BokehError(f"The strength of the edit is {strength:g}; give 0 (no edit) to 1 (all steps).")
        steps = len(self.sigmas) - 1
        kept = round(strength * steps) if strength < 1 else steps
        return self.sigmas[steps - kept :] if kept else self.sigmas[:0]

    def levels(self, sigmas: Tensor) -> Tensor:
        """Which of the recorded noise levels these are, ``[len(sigmas)]``.

        Raises:
            BokehError: some were not recorded.
        """
        asked = sigmas.detach().cpu().float()
        apart, nearest = (self.sigmas[None] - asked[:, None]).abs().min(1)
        unknown = asked[apart > _CLOSE * asked.clamp(min=1e-3)]
        if len(unknown):
            raise BokehError(
                f"{len(unknown)} of the {len(asked)} noise levels of this run, such as {float(unknown[0]):.4g}, are "
                f"not among the {len(self.sigmas)} that the trajectory was recorded at. Use the same steps and "
                "scheduler for both, or connect the same sigmas."
            )
        return nearest

    def way(self, guider: Any, samples: Tensor, sigmas: Tensor) -> Tensor:
        """The latents at the noise levels of a run, ``[len(sigmas), P, ...]``.

        Args:
            guider: of the run.
            samples: the run's latents ``[P, ...]``.
            sigmas: its noise levels.

        Raises:
            BokehError: made with another model or adapter, for other pictures, or at other noise levels.
        """
        differs = self.identity.difference(Identity.of(guider))
        if differs is not None:
            raise BokehError(f"The trajectory was made with {differs}. Run Bokeh Invert with this model.")
        if samples.shape != self.latents.shape[1:]:
            raise BokehError(
                f"The trajectory is of latents {list(self.latents.shape[1:])} and the latent here is "
                f"{list(samples.shape)} (pictures, channels, height, width). Connect the same latent to both."
            )
        given = guider.model_patcher.model.process_latent_in(samples).cpu().float()
        if float((given - self.latents[-1]).norm()) > 0.01 * float(self.latents[-1].norm()):
            raise BokehError(
                "The latent here holds other pictures than the trajectory was made from. Connect the same latent to "
                "both."
            )
        return self.latents[self.levels(sigmas)]


def follow(
    sampler: Any,
    rows: SweepRows,
    way: Tensor,
    same: Sequence[bool],
    residual: bool = True,
    subject: Tensor | None = None,
) -> Any:
    """``sampler`` with the pivots on a recorded way, and the targets beside them.

    What the sampler holds counts as the difference of each row from its pivot: the model sees it added to the recorded
    latents, and the picture at the end is the recorded one with the difference added. So it does not matter what the
    sampler makes of the pivot: of higher order, with noise (which the rows share), with evaluations between the levels.

    Args:
        sampler: of the host; its noise is shared (:func:`.rows.share_noise`).
        rows: of the batch.
        way: the pivots' latents at the noise levels of the run (:meth:`Trajectory.way`).
        same: of each row, whether it is told what its pivot is told. With ``residual`` such a row differs in nothing,
            but for rounding, which half precision and many steps would make large; so it is left out of that.
        residual: whether the targets are given what the recorded step differs by from the pivot's own; else they are
            what the model makes of them.
        subject: ``[1 or P, h, w]``, 0..1: what stays as it was recorded.

    Raises:
        BokehError: a sampler that is not one of the host's functions.
    """
    if not isinstance(sampler, comfy.samplers.KSAMPLER):
        raise BokehError(
            f"The sampler {type(sampler).__name__} cannot follow a trajectory; choose one of KSamplerSelect."
        )
    function = sampler.sampler_function

    def sample(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **options: Any) -> Tensor:
        extra = dict(extra_args or {})
        # Outside the mask nothing differs, which is all that the host's own way with masks would do there.
        mask = extra.pop("denoise_mask", None)
        if residual and any(same):
            moving = x.new_tensor([not each for each in same]).reshape(-1, *[1] * (x.ndim - 1))
            mask = moving if mask is None else mask * moving
        if subject is not None:
            free = (1 - subject.to(x))[:, None].expand(rows.pictures, -1, -1, -1)
            mask = rows.tile(free) if mask is None else mask * rows.tile(free)
        following = _Following(model, rows, way, sigmas, mask, residual)
        start = rows.tile(way[0].to(x))
        # A copy of the levels, as uni_pc changes the last in place.
        out = function(
            following, start, sigmas.clone(), extra_args={**extra, "denoise_mask": None}, **options
        )
        return following.picture(out)

    return comfy.samplers.KSAMPLER(sample, dict(sampler.extra_options), dict(sampler.inpaint_options))


class _Following:
    """A model as samplers call it, whose rows are differences from the recorded way."""

    def __init__(
        self, model: Any, rows: SweepRows, way: Tensor, sigmas: Tensor, mask: Tensor | None, residual: bool
    ) -> None:
        self.model, self.rows, self.way, self.mask, self.residual = model, rows, way, mask, residual
        self.levels = [float(sigma) for sigma in sigmas]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)  # samplers ask it for the model's sampling, and more

    def __call__(self, x: Tensor, sigma: Tensor, **options: Any) -> Tensor:
        level = float(sigma.flatten()[0])
        recorded, slope = self._recorded(level, x)
        pivots = x[: self.rows.pictures]
        denoised = self.model(self.rows.tile(recorded) + self._difference(x, pivots), sigma, **options)
        ideal = recorded - level * slope
        own = denoised[: self.rows.pictures] if self.residual else ideal
        found = self.rows.tile(ideal) + self._difference(denoised, own)
        found[: self.rows.pictures] = ideal
        return found - self.rows.tile(recorded - pivots)  # as the sampler's rows lie

    def picture(self, out: Tensor) -> Tensor:
        """The rows at the last level."""
        difference = self._difference(out, out[: self.rows.pictures])
        return self.rows.tile(self.way[-1].to(out)) + difference

    def _difference(self, x: Tensor, pivots: Tensor) -> Tensor:
        difference = x - self.rows.tile(pivots)
        return difference if self.mask is None else difference * self.mask

    def _recorded(self, level: float, like: Tensor) -> tuple[Tensor, Tensor]:
        """The recorded latents at a noise level, and the slope of the way below; between two levels it is straight."""
        # The last of the levels at or above it, and never the last of all, from which no step is made.
        above = sum(each >= level * (1 - _CLOSE) for each in self.levels)
        index = min(max(above - 1, 0), len(self.levels) - 2)
        high, low = self.way[index].to(like), self.way[index + 1].to(like)
        slope = (high - low) / (self.levels[index] - self.levels[index + 1])
        return high + (level - self.levels[index]) * slope, slope
