"""A small diffusion lens of SDXL's kind: dimensions and first weights; ``python -m trainer lens`` trains it.

A picture of 128 x 128 is 32 x 32 places of the latents, and PISA is at these: as many tokens as a tile of 512 x 512 has
in the paper.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.world.base import first_weights

LAYERS = ["input_blocks.1.1.transformer_blocks.0.attn1"]
"""Where PISA is."""
TIMESTEP = 20
"""Where little is taken for noise: a network that says nothing yet leaves a picture nearly as it is."""
_WIDTH = 16
_SIZES = 6 * 256

DESCRIPTION: dict[str, Any] = {
    "architecture": "sdxl",
    "config": {
        "image_size": 32,
        "in_channels": 48,
        "out_channels": 48,
        "model_channels": 64,
        "num_res_blocks": [2, 1],
        "channel_mult": [1, 2],
        "num_head_channels": 16,
        "use_spatial_transformer": True,
        "transformer_depth": [1, 0, 1],
        "transformer_depth_output": [0, 0, 0, 1, 1],
        "transformer_depth_middle": 1,
        "context_dim": _WIDTH,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": _WIDTH + _SIZES,
        "legacy": False,
    },
    "prediction": "v",
    "shift": None,
    "pictures": "pixels",
    "tokens": 4,
    "vocabulary": None,
}


def write_lens_base(path: Path, seed: int) -> None:
    """Write one that has learnt nothing."""
    from bokeh_ops.host.small.model import SmallModel

    model = SmallModel(DESCRIPTION)
    first_weights(model.network, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
