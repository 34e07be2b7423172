"""Weights of a diffusion lens: a LoRA of the UNet, and layers of the autoencoder's encoder.

Both are told by what is in them. The LoRA is a safetensors file with diffusers' names of the layers, as PEFT writes it
and as BokehDiff was released (``pytorch_lora_weights.safetensors``); ``config.json`` beside it may say ``lora_alpha``
and ``lora_rank``. The encoder's layers are a state dict of tensors (``vae.ckpt``).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BokehError
from ..low_rank import low_rank_pairs, some, whose
from ..render.checkpoint import load_weights

_LAYER = re.compile(
    r"^(?:base_model\.model\.|unet\.)*"
    r"((?:conv_in|conv_out|time_embedding|add_embedding|down_blocks|mid_block|up_blocks)\b.*)$"
)
_ENCODER = re.compile(
    r"(?:^|.*\.)((?:conv_in|conv_out|conv_norm_out|mid_block)(?:\.[a-z0-9_]+)*\.(?:weight|bias))$"
)


def read_lora(path: str | Path) -> dict[str, Tensor]:
    """A LoRA: ``LAYER.lora_A.weight``, ``LAYER.lora_B.weight`` and ``LAYER.alpha``, by diffusers' names of layers.

    Args:
        path: of the file.

    Raises:
        BokehError: no such file, something else, halves of a pair missing or of other ranks, or numbers that are NaN.
    """
    path = Path(path)
    weights = load_weights(path)
    pairs, strange = low_rank_pairs(path, weights, lambda name: m[1] if (m := _LAYER.match(name)) else None)
    if not pairs:
        raise BokehError(
            f"{path} is not the LoRA of a diffusion lens: it has {len(weights)} tensors such as {some(weights)}; "
            "expected 'down_blocks.1.attentions.0....lora_A.weight', diffusers' names of SDXL's layers. "
            f"{whose(weights, 'the lens')}"
        )
    if strange:
        raise BokehError(
            f"{path} is a LoRA of SDXL's UNet, but {len(strange)} of its tensors are something else, such as "
            f"{some(strange)}. A diffusion lens has LoRA pairs of the UNet alone."
        )
    scale = _scale(path.parent / "config.json")
    found: dict[str, Tensor] = {}
    for layer, pair in pairs.items():
        found[f"{layer}.lora_A.weight"], found[f"{layer}.lora_B.weight"] = pair
        found[f"{layer}.alpha"] = torch.tensor(scale * pair.rank)
    return found


def read_encoder(path: str | Path) -> dict[str, Tensor]:
    """Layers of an SDXL autoencoder's encoder, by diffusers' names: ``encoder.conv_in.weight`` and so on.

    Args:
        path: of a ``.safetensors`` file, or of a ``.ckpt`` or ``.pth`` of tensors alone.

    Raises:
        BokehError: no such file, one that holds more than tensors, something else, or numbers that are NaN.
    """
    path = Path(path)
    weights = load_weights(path)
    if any("decoder." in name for name in weights):
        raise BokehError(
            f"{path} is a whole autoencoder. Load it with ComfyUI's Load VAE and connect it as the VAE; here go layers "
            "of an encoder alone."
        )
    found = {}
    for name, tensor in weights.items():
        match = _ENCODER.match(name)
        if match is None or "down_blocks" in name or "lora" in name:
            raise BokehError(
                f"{path} is not the encoder of a diffusion lens: it has {name!r}; expected conv_in, mid_block and "
                f"conv_out alone, such as 'encoder.conv_in.weight'. {whose(weights, 'the lens')}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise BokehError(f"{path}: {name} holds numbers that are NaN or infinite; the file is damaged.")
        found[f"encoder.{match[1]}"] = tensor
    return found


def _scale(config: Path) -> float:
    """``lora_alpha / lora_rank`` of the file beside the LoRA; 1 where there is none."""
    if not config.is_file():
        return 1.0
    try:
        said = json.loads(config.read_text(encoding="utf-8"))
        return float(said["lora_alpha"]) / float(said["lora_rank"])
    except (ValueError, TypeError, KeyError, ZeroDivisionError, RecursionError) as error:
        raise BokehError(
            f"{config} does not say 'lora_alpha' and 'lora_rank' as numbers ({error!r}); the LoRA beside it needs "
            "both. Remove the file where alpha is the rank."
        ) from error
