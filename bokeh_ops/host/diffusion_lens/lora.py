"""A LoRA of SDXL's UNet in training, in the layout of BokehDiff's release."""

from __future__ import annotations

from typing import Any, Literal

import comfy.utils
from torch import nn

from ...errors import BokehError
from ..training.lora import Lora

RANK = 8
"""Of the released weights; alpha is the same."""


def lens_lora(patcher: Any, rank: int = RANK, layers: Literal["down", "all"] = "down") -> Lora:
    """Low-rank changes of the layers of a diffusion lens, by their names in diffusers.

    Args:
        patcher: a MODEL of SDXL.
        rank: of all of them.
        layers: ``down``: those of the downsampling half, as the paper has it; ``all``: of the whole UNet, as the
            released weights were trained.

    Raises:
        BokehError: the model has no such layers.
    """
    network = patcher.model.diffusion_model
    modules = dict(network.named_modules())
    places: dict[str, str] = {}
    for theirs, ours in comfy.utils.unet_to_diffusers(patcher.model.model_config.unet_config).items():
        path, name = ours.removesuffix(".weight"), theirs.removesuffix(".weight")
        chosen = name.startswith("down_blocks.") if layers == "down" else "_blocks" in name or "mid" in name
        if theirs.endswith(".weight") and chosen and isinstance(modules.get(path), (nn.Linear, nn.Conv2d)):
            places[path] = name
    if not places:
        raise BokehError("The model has no layers that a LoRA of a diffusion lens could go on; use SDXL.")
    return Lora(network, places, rank)
