"""Sample sweeps during training, through the very path of the Grounded Sampler node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bokeh_ops.adapter.network import BokehAdapter
from bokeh_ops.adapter.rows import resolve_grounding_steps
from bokeh_ops.numbers import format_value
from bokeh_ops.picture.sheet import contact_sheet
from trainer.frozen.model import Base, Embedding

if TYPE_CHECKING:
    from trainer.config import Fit  # needs pydantic, which training the small world does without

LEAST_SIDE = 128
"""Pixels that a picture on a sheet is wide at least."""


Encode = Callable[[Sequence[str]], list[Embedding]]
"""What makes embeddings of texts, such as :class:`trainer.frozen.cache.Texts`."""


@dataclass(frozen=True)
class Laid:
    """How an adapter is laid on, where it is not as LoadBokehAdapter and GroundedSampler do by default.

    Attributes:
        strength: lambda of eq. 10.
        query_key_strength: factor on the query/key adapters.
        ground_negative: whether the negative branch is grounded too.
    """

    strength: float = 1.0
    query_key_strength: float = 1.0
    ground_negative: bool = False


def check(settings: Fit) -> None:
    """Find out before the training whether samples can be made after it, as far as names and numbers go.

    Raises:
        BokehError: ComfyUI has no such sampler or scheduler, or more steps are grounded than there are.
    """
    from bokeh_ops.host.sampling.sweep import check_sampler

    wanted = settings.samples
    assert wanted.sampler is not None  # resolved
    check_sampler(wanted.sampler, wanted.scheduler)
    resolve_grounding_steps(wanted.grounding_steps, wanted.steps)


def sweep(
    base: Base,
    adapter: BokehAdapter,
    settings: Fit,
    texts: Encode,
    size: tuple[int, int],
    laid: Laid = Laid(),
) -> Tensor:
    """Every prompt at the pivot's K and at every target K.

    Args:
        base: not in training (:meth:`trainer.recipes.bokeh.trainee.Trainee.paused`).
        adapter: laid on as LoadBokehAdapter does.
        settings: resolved.
        texts: encodes the prompts.
        size: width and height in pixels.
        laid: how strongly, and what is grounded.

    Returns:
        Pictures ``[prompts, 1 + targets, H, W, 3]``, 0..1, the pivot first.
    """
    wanted = settings.samples
    rows = [_sample(base, adapter, settings, texts, prompt, size, laid) for prompt in wanted.prompts]
    return torch.stack([base.decode(latents) for latents in rows])


@torch.no_grad()
def _sample(
    base: Base,
    adapter: BokehAdapter,
    settings: Fit,
    texts: Encode,
    prompt: str,
    size: tuple[int, int],
    laid: Laid,
) -> Tensor:
    from bokeh_ops.host.adapter.apply import apply_adapter
    from bokeh_ops.host.loading import models as loading
    from bokeh_ops.host.sampling.grounded import BRANCHES, Sweep
    from bokeh_ops.host.sampling.sweep import sample_sweep

    wanted = settings.samples
    # How large a latent is, by encoding a black picture.
    blank = base.encode_images(torch.zeros(1, size[1], size[0], 3, dtype=torch.uint8))
    patcher = base.patcher
    shift = base.architecture.timestep_shift(blank.shape[2], blank.shape[3])
    if shift is not None:
        patcher = loading.use_flux_shift(patcher, shift)
    model = apply_adapter(patcher, adapter, laid.strength, laid.query_key_strength)
    positive, negative = (
        [[e.context[None].float(), _settings(base, e, settings, size)]]
        for e in texts([prompt, wanted.negative])
    )
    assert wanted.cfg is not None  # resolved
    assert wanted.sampler is not None
    pivot, targets = sample_sweep(
        model,
        positive,
        negative,
        {"samples": torch.zeros_like(blank)},
        wanted.seed,
        wanted.steps,
        wanted.cfg,
        wanted.sampler,
        wanted.scheduler,
        Sweep(wanted.pivot, wanted.k, wanted.grounding_steps, BRANCHES[laid.ground_negative]),
    )
    loading.unload()  # the weight patches of the query/key adapters are undone
    return torch.cat((pivot["samples"], targets["samples"])).cpu()


def _settings(base: Base, embedding: Embedding, settings: Fit, size: tuple[int, int]) -> dict[str, Any]:
    found = base.architecture.picture_conditions(*size)
    if embedding.pooled is not None:
        found["pooled_output"] = embedding.pooled[None].float()
    if base.architecture.guided:
        found["guidance"] = settings.samples.guidance
    return found


def sheet(pictures: Tensor, settings: Fit) -> Tensor:
    """The pictures of :func:`sweep` on one sheet ``[H, W, 3]``, K at each, a row or more per prompt."""
    labels = [f"pivot K = {format_value(settings.samples.pivot)}"]
    labels += [f"K = {format_value(k)}" for k in settings.samples.k]
    pictures = large_enough(pictures)
    by_label = pictures.transpose(0, 1).flatten(0, 1)  # all prompts of the first K first
    return contact_sheet(by_label, labels, columns=len(labels), cell_size=384)[0]


def large_enough(pictures: Tensor) -> Tensor:
    """Pictures ``[..., H, W, 3]`` of a toy, each pixel so often that they can be seen; others as they are."""
    times = max(1, LEAST_SIDE // pictures.shape[-2])
    return pictures.repeat_interleave(times, -3).repeat_interleave(times, -2)


def write_png(path: Path, picture: Tensor) -> None:
    """Write a picture ``[H, W, 3]``, 0..1."""
    from PIL import Image

    from trainer.files import replace_file

    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    replace_file(path, lambda temporary: Image.fromarray(pixels).save(temporary, "PNG"))
