"""PISA in the host's UNet, through its replacement slots of self-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.conds
from torch import Tensor

from ...adapter.attention import merge_heads, split_heads
from ...diffusion_lens.attention import Light, pisa
from ...errors import BokehError
from ..architectures import architectures, recognise
from ..attention.unet import previous_in, slots
from ..sampling.conditioning import with_conditions


def lens_layers(patcher: Any, named: Sequence[str] | None = None) -> list[str]:
    """Paths of the self-attentions that PISA takes the place of.

    Args:
        patcher: a MODEL.
        named: these, and not those of the paper.

    Raises:
        BokehError: no lens can be made of it, or it has no such layers.
    """
    model = recognise(patcher)
    if not model.architecture.lens:
        known = " or ".join(each.title for each in architectures().values() if each.lens)
        raise BokehError(f"The model is {model.title}; a diffusion lens is made of {known}. Connect that.")
    if named is not None:
        there = [path for path in model.widths if path.endswith(".attn1")]
        absent = sorted(set(named) - set(there))
        if absent:
            raise BokehError(
                f"{model.title} has no self-attention {absent[0]!r} for the lens; it has {', '.join(there)}."
            )
        return list(named)
    found = model.architecture.lens_layers(patcher.model.diffusion_model, model.widths)
    if not found:
        raise BokehError(
            f"The model is {model.title}, but has no attention at half the size of its latents, where the lens has its "
            f"place. Connect {model.architecture.title} itself."
        )
    return found


def with_light(patcher: Any, light: Light, layers: Sequence[str] | None = None) -> Any:
    """A clone of a MODEL that computes PISA under ``light``; ``patcher`` itself is not touched.

    Args:
        patcher: a MODEL of SDXL.
        light: the scene; its rows are those of the batch.
        layers: paths of self-attentions; those of :func:`lens_layers` by default.

    Raises:
        BokehError: as :func:`lens_layers`, or another extension replaces one of these attentions.
    """
    clone = patcher.clone()
    table = clone.model_options["transformer_options"].get("patches_replace", {}).get("attn1", {})
    for path, slot in slots(dict.fromkeys(lens_layers(patcher, layers), 0)).items():
        if previous_in(table, slot) is not None:
            raise BokehError(
                f"Another extension replaces the self-attention {path} (perturbed-attention guidance and IP-Adapter "
                "do), which is where the lens is. Give the lens a model without it."
            )
        block, number, index = slot
        clone.set_model_attn1_replace(_attention(light), block, number, index)
    return clone


def with_hints(positive: list[Any], channels: Tensor) -> list[Any]:
    """A copy of a CONDITIONING with further channels ``[R, C, h, w]`` of the network's input."""
    return with_conditions(positive, c_concat=comfy.conds.CONDNoiseShape(channels))


def _attention(light: Light) -> Any:
    def attend(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        heads, shape = extra["n_heads"], extra["activations_shape"]
        q, k, v = (split_heads(each, heads) for each in (q, k, v))
        return merge_heads(pisa(q, k, v, light, (shape[-2], shape[-1])))

    return attend
