"""Weights of a diffusion lens: a LoRA of the UNet, and layers of the autoencoder's encoder.

Both are told by what is in them. The LoRA is a safetensors file with diffusers' names of the layers, as PEFT writes it
and as BokehDiff was released (``pytorch_lora_weights.safetensors``); ``config.json`` beside it may say ``lora_alpha``
and ``lora_rank``. The encoder's layers are a state dict of tensors (``vae.ckpt``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BokehError
from ..render.checkpoint import load_weights

_PAIR = re.compile(
    r"^(?:base_model\.model\.|unet\.)*"
    r"((?:conv_in|conv_out|time_embedding|add_embedding|down_blocks|mid_block|up_blocks)\b.*)"
    r"\.lora_(A|B|down|up)(?:\.default)?\.weight$"
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
    found: dict[str, Tensor] = {}
    strange = []
    for name, tensor in weights.items():
        match = _PAIR.match(name)
        if match is None:
            strange.append(name)
            continue
        found[f"{match[1]}.lora_{'A' if match[2] in ('A', 'down') else 'B'}.weight"] = tensor
    if not found:
        raise BokehError(
            f"{path} is not the LoRA of a diffusion lens: it has {len(weights)} tensors such as {_some(weights)}; "
            "expected 'down_blocks.1.attentions.0....lora_A.weight', diffusers' names of SDXL's layers. "
            f"{_guess(weights)}"
        )
    if strange:
        raise BokehError(
            f"{path} is a LoRA of SDXL's UNet, but {len(strange)} of its tensors are something else, such as "
            f"{_some(strange)}. A diffusion lens has LoRA pairs of the UNet alone."
        )
    scale = _scale(path.parent / "config.json")
    layers = sorted({name.rpartition(".lora_")[0] for name in found})
    for layer in layers:
        down, up = (found.get(f"{layer}.lora_{half}.weight") for half in "AB")
        if down is None or up is None or down.shape[0] != up.shape[1]:
            raise BokehError(
                f"{path}: of {layer} it has lora_A {_shape(down)} and lora_B {_shape(up)}; expected both, with one "
                "rank. The download is probably cut short: fetch it again and compare its size."
            )
        if not bool(torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise BokehError(f"{path}: {layer} holds numbers that are NaN or infinite; the file is damaged.")
        found[f"{layer}.alpha"] = torch.tensor(scale * down.shape[0])
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
                f"conv_out alone, such as 'encoder.conv_in.weight'. {_guess(weights)}"
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


def _guess(weights: Mapping[str, Tensor]) -> str:
    names = " ".join(weights)
    if "transformer_blocks" in names and ("single_transformer_blocks" in names or "single_blocks" in names):
        return "It looks like a file for FLUX."
    if "lora_te" in names or "lora_unet_" in names:
        return "It looks like an ordinary LoRA: load it with Load LoRA, before the lens."
    if "to_v_bokeh" in names:
        return "It is a bokeh adapter, for Load Bokeh Adapter."
    if "input_blocks" in names or "first_stage_model" in names:
        return "It looks like a checkpoint or a VAE."
    return ""


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))


def _some(names: Mapping[str, Tensor] | list[str]) -> str:
    return ", ".join(repr(name) for name in list(names)[:3])
