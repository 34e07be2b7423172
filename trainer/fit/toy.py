"""Toy bases: networks of the host's classes, so small that they train and sample in seconds on a CPU.

A toy is a small model (:mod:`bokeh_ops.host.small`) of grey pictures that knows every word. Tests and the ``tiny``
profile stand on it; everything else of `fit` (attention, losses, checkpoints, sampling) is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.files import replace_file
from trainer.fit.base import Architecture
from trainer.seeded import normal

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
    """A :class:`.SmallModel` with random weights that a training of the base can start from."""
    from bokeh_ops.host.small.model import SmallModel

    toy = SmallModel(
        {
            "architecture": architecture,
            "config": UNET if architecture == "sd15" else FLUX,
            "prediction": "epsilon" if architecture == "sd15" else "flow",
            "shift": None,
            "pictures": "grey",
            "tokens": TOKENS,
            "vocabulary": None,
        }
    )
    with torch.no_grad():
        for name, weight in toy.network.named_parameters():
            if weight.ndim > 1:
                weight.copy_(normal(tuple(weight.shape), seed, name) / weight[0].numel() ** 0.5)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return toy


def write_toy(path: Path, toy: Any) -> None:
    """Write what :func:`make_toy` made."""
    replace_file(path, toy.save)
