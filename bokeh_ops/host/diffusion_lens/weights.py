"""Weights of a diffusion lens on the host's MODEL and VAE, through the host's own patches."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import comfy.diffusers_convert
import comfy.lora
import comfy.utils
import torch
from torch import Tensor, nn

from ...errors import BokehError


def add_lora(patcher: Any, lora: Mapping[str, Tensor], strength: float = 1.0, name: str = "The LoRA") -> Any:
    """A clone of a MODEL with a LoRA on it.

    Args:
        patcher: a MODEL of a UNet.
        lora: as :func:`bokeh_ops.diffusion_lens.files.read_lora` reads it.
        strength: factor on it.
        name: what to call it in a message.

    Raises:
        BokehError: it is of other layers, or of layers of other sizes.
    """
    model = patcher.model
    known = {
        theirs.removesuffix(".weight"): f"diffusion_model.{ours}"
        for theirs, ours in comfy.utils.unet_to_diffusers(model.model_config.unet_config).items()
        if theirs.endswith(".weight")
    }
    layers = {key.rpartition(".lora_")[0] for key in lora if ".lora_" in key}
    absent = sorted(layers - set(known))
    if absent:
        raise BokehError(
            f"{name} has weights for {len(absent)} of {len(layers)} layers that the model does not have, such as "
            f"{absent[0]}. It was trained on another model."
        )
    own = model.state_dict()
    for layer in layers:
        down, up = lora[f"{layer}.lora_A.weight"], lora[f"{layer}.lora_B.weight"]
        shape = tuple(own[known[layer]].shape)
        # A quantised weight (GGUF) is kept in another shape than it has; the host tells by its own attribute.
        shape = tuple(getattr(own[known[layer]], "tensor_shape", shape))
        if (up.shape[0], *down.shape[1:]) != shape:  # the host would leave such a layer out, and only log it
            raise BokehError(
                f"{name}: {layer} is {(up.shape[0], *down.shape[1:])}, but that layer of the model is {shape}. It was "
                "trained on another model."
            )
    clone = patcher.clone()
    patches = comfy.lora.load_lora(dict(lora), {layer: known[layer] for layer in sorted(layers)})
    taken = set(clone.add_patches(patches, strength))
    missed = sorted({known[layer] for layer in layers} - taken)
    if missed:
        raise BokehError(f"{name}: ComfyUI did not take {len(missed)} of its layers, such as {missed[0]}.")
    return clone


def with_encoder(vae: Any, weights: Mapping[str, Tensor], name: str = "The encoder") -> Any:
    """A VAE with other weights in some layers of its encoder; ``vae`` itself is not touched.

    Args:
        vae: the host's VAE, of SDXL.
        weights: as :func:`bokeh_ops.diffusion_lens.files.read_encoder` reads them.
        name: what to call them in a message.

    Raises:
        BokehError: they are of other layers, or of other sizes.
    """
    own = vae.first_stage_model.state_dict()
    found = comfy.diffusers_convert.convert_vae_state_dict(dict(weights))
    for key, tensor in found.items():
        if key not in own or own[key].shape != tensor.shape:
            has = tuple(own[key].shape) if key in own else "no such layer"
            raise BokehError(
                f"{name}: {key} is {tuple(tensor.shape)}; the VAE has {has}. Connect the VAE of SDXL."
            )
    other = copy.copy(vae)
    other.patcher = vae.patcher.clone()
    other.patcher.add_patches({key: ("set", (tensor,)) for key, tensor in found.items()})
    return other


TRAINED = ("conv_in", "mid", "conv_out")
"""Of the encoder, what BokehDiff trains."""
_RELEASED = (
    ("mid.block_1.", "mid_block.resnets.0."),
    ("mid.block_2.", "mid_block.resnets.1."),
    ("mid.attn_1.norm.", "mid_block.attentions.0.group_norm."),
    ("mid.attn_1.proj_out.", "mid_block.attentions.0.to_out.0."),
    ("mid.attn_1.", "mid_block.attentions.0.to_"),
)


def encoder_layers(vae: Any) -> dict[str, nn.Parameter]:
    """What of a VAE's encoder trains with a lens, by the host's names; single precision from here on.

    Args:
        vae: the host's VAE, of SDXL.
    """
    vae.first_stage_model.float()
    vae.vae_dtype = torch.float32
    own = vae.first_stage_model.encoder.named_parameters()
    return {name: value for name, value in own if name.startswith(tuple(f"{part}." for part in TRAINED))}


def released_encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Such layers by diffusers' names, as :func:`bokeh_ops.diffusion_lens.files.read_encoder` reads them."""
    found = {}
    for name, value in weights.items():
        value = value.detach().float().cpu()
        if name.startswith("mid.attn_1.") and value.ndim == 4:
            value = value[:, :, 0, 0]
        for ours, theirs in _RELEASED:
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        found[f"encoder.{name}"] = value.contiguous()
    return found
