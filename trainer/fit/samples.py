"""Sample sweeps during training, through the very path of the Grounded Sampler node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bokeh_ops.adapter import BokehAdapter
from bokeh_ops.sheet import contact_sheet
from bokeh_ops.values import format_value
from trainer.fit.base import Base, Embedding
from trainer.fit.cache import Texts
from trainer.fit.config import Fit
from trainer.fit.objective import flux_mu

LEAST_SIDE = 128
"""Pixels that a picture on a sheet is wide at least."""


def sweep(base: Base, adapter: BokehAdapter, settings: Fit, texts: Texts, size: tuple[int, int]) -> Tensor:
    """Every prompt at the pivot's K and at every target K.

    Args:
        base: not in training (:meth:`trainer.fit.model.Trainee.paused`).
        adapter: laid on as LoadBokehAdapter does.
        settings: resolved.
        texts: encodes the prompts.
        size: width and height in pixels.

    Returns:
        Pictures ``[prompts, 1 + targets, H, W, 3]``, 0..1, the pivot first.
    """
    wanted = settings.samples
    rows = [_sample(base, adapter, settings, texts, prompt, size) for prompt in wanted.prompts]
    return torch.stack([base.decode(latents) for latents in rows])


@torch.no_grad()
def _sample(
    base: Base, adapter: BokehAdapter, settings: Fit, texts: Texts, prompt: str, size: tuple[int, int]
) -> Tensor:
    from bokeh_ops.host import loading
    from bokeh_ops.host.lay import lay_adapter
    from bokeh_ops.host.sampling import Sweep
    from bokeh_ops.host.sweeps import sample_sweep

    wanted = settings.samples
    # How large a latent is, by encoding a black picture.
    blank = base.encode_images(torch.zeros(1, size[1], size[0], 3, dtype=torch.uint8))
    patcher = base.patcher
    if base.architecture == "flux":
        patcher = loading.use_flux_shift(patcher, flux_mu(blank.shape[2], blank.shape[3]))
    model = lay_adapter(patcher, adapter)
    positive, negative = (
        [[e.context[None].float(), _settings(base, e, settings)]] for e in texts([prompt, wanted.negative])
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
        Sweep(wanted.pivot, wanted.k, wanted.grounding_steps),
    )
    loading.unload()  # the weight patches of the query/key adapters are undone
    return torch.cat((pivot["samples"], targets["samples"])).cpu()


def _settings(base: Base, embedding: Embedding, settings: Fit) -> dict[str, Any]:
    if base.architecture != "flux":
        return {}
    assert embedding.pooled is not None
    return {"pooled_output": embedding.pooled[None].float(), "guidance": settings.samples.guidance}


def sheet(pictures: Tensor, settings: Fit) -> Tensor:
    """The pictures of :func:`sweep` on one sheet ``[H, W, 3]``, K at each, a row or more per prompt."""
    labels = [f"pivot K = {format_value(settings.samples.pivot)}"]
    labels += [f"K = {format_value(k)}" for k in settings.samples.k]
    times = max(1, LEAST_SIDE // pictures.shape[3])  # pictures of a toy could not be seen otherwise
    pictures = pictures.repeat_interleave(times, 2).repeat_interleave(times, 3)
    by_label = pictures.transpose(0, 1).flatten(0, 1)  # all prompts of the first K first
    return contact_sheet(by_label, labels, columns=len(labels), cell_size=384)[0]


def write_png(path: Path, picture: Tensor) -> None:
    """Write a picture ``[H, W, 3]``, 0..1."""
    from PIL import Image

    from trainer.fit.files import replace_file

    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    replace_file(path, lambda temporary: Image.fromarray(pixels).save(temporary, "PNG"))
