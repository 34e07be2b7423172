"""Toy bases: networks of the host's classes, so small that they train and sample in seconds on a CPU.

A toy is one safetensors file, recognised by its metadata. Its "autoencoder" moves pixels into channels and its
"text encoder" gives every word random numbers of its own, so that nothing but the network is learnt. Tests and
the ``tiny`` profile stand on it; everything else of `fit` (attention, losses, checkpoints, sampling) is the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bokeh_ops.errors import BokehError
from trainer.draws import normal
from trainer.fit.base import Architecture, Base, Embedding
from trainer.fit.files import replace_file

METADATA = "bokeh_toy"
TOKENS = 8
"""Tokens of every prompt."""

UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "num_heads": 2,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 16,
    "use_linear_in_transformer": False,
    "legacy": False,
}
FLUX: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 16,
    "context_in_dim": 16,
    "hidden_size": 96,
    "mlp_ratio": 4.0,
    "num_heads": 3,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
}


def make_toy(architecture: Architecture, seed: int = 0) -> Any:
    """The host's network with random weights that a training of the base can start from (as a MODEL)."""
    from bokeh_ops.host.loading import small_model

    patcher = small_model(architecture, UNET if architecture == "sd15" else FLUX, torch.float32)
    with torch.no_grad():
        for name, weight in patcher.model.diffusion_model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(normal(tuple(weight.shape), seed, name) / weight[0].numel() ** 0.5)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return patcher


def write_toy(path: Path, patcher: Any, architecture: Architecture) -> None:
    """Write a MODEL made by :func:`make_toy` as a toy base."""
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in patcher.model.diffusion_model.state_dict().items()
    }
    config = UNET if architecture == "sd15" else FLUX
    metadata = {METADATA: json.dumps({"architecture": architecture, "config": config})}
    replace_file(path, lambda temporary: save_file(state, temporary, metadata=metadata))


def toy_description(path: Path) -> dict[str, Any] | None:
    """What the metadata of a toy base says; None for any other file."""
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA)
    return None if text is None else json.loads(text)


class ToyBase(Base):
    """A toy base read from its file.

    Args:
        path: written by :func:`write_toy`.
        dtype: of the weights.
        wanted: the architecture of the configuration.

    Raises:
        BokehError: the file is of the other architecture.
    """

    def __init__(self, path: Path, dtype: torch.dtype, wanted: str, fingerprint: str) -> None:
        from bokeh_ops.host.loading import small_model

        described = toy_description(path)
        assert described is not None
        if described["architecture"] != wanted:
            raise BokehError(
                f"{path} is a toy of {described['architecture']}, but base.architecture is {wanted}."
            )
        config = described["config"]
        patcher = small_model(described["architecture"], config, dtype)
        network = patcher.model.diffusion_model
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key).to(dtype) for key in file.keys()}  # noqa: SIM118
        network.load_state_dict(state)
        super().__init__(described["architecture"], patcher, fingerprint)
        self.text_fingerprint = self.image_fingerprint = f"toy {described['architecture']}"
        self.width = config.get("context_dim", config.get("context_in_dim"))
        self.pooled_width = config.get("vec_in_dim")
        self.channels = config["in_channels"]

    def encode_text(self, texts: Sequence[str]) -> list[Embedding]:
        return [self._embed(text.split()[: TOKENS - 1]) for text in texts]

    def _embed(self, words: list[str]) -> Embedding:
        rows = [normal((self.width,), 0, "word", word) for word in ("<begin>", *words)]
        rows += [torch.zeros(self.width)] * (TOKENS - len(rows))
        pooled = None
        if self.pooled_width:
            pooled = torch.stack(
                [normal((self.pooled_width,), 1, "word", word) for word in ("", *words)]
            ).mean(0)
        return Embedding(torch.stack(rows), pooled)

    def encode_images(self, images: Tensor) -> Tensor:
        # Grey, 2 x 2 pixels at each place of the latent, as often as its channels allow.
        grey = (images.float() / 127.5 - 1).mean(-1)[:, None]
        latent = F.pixel_unshuffle(grey, 2).repeat(1, self.channels // 4, 1, 1)
        return self.patcher.model.process_latent_out(latent)

    def decode(self, latents: Tensor) -> Tensor:
        copies = self.patcher.model.process_latent_in(latents).unflatten(1, (-1, 4))
        pixels = F.pixel_shuffle(copies.mean(1), 2)
        return ((pixels.expand(-1, 3, -1, -1) + 1) / 2).clamp(0, 1).movedim(1, -1)
