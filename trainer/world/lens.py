"""A small diffusion lens of SDXL's kind: dimensions and first weights; ``python -m trainer lens`` trains it.

A picture of 128 x 128 is 32 x 32 places of the latents, and PISA is at these: as many tokens as a tile of 512 x 512 has
in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bokeh_ops.diffusion_lens.told import told_channels
from bokeh_ops.host.architectures import architectures
from trainer.world.base import first_weights

_WIDTH = 16
_CHANNELS, _PIXELS = 48, 4  # of the codec that moves pixels into channels


def description(told: Sequence[str] = ()) -> dict[str, Any]:
    """What the file of such a model says of itself: the architecture that lenses are made of, in other dimensions.

    Args:
        told: names of :data:`~bokeh_ops.diffusion_lens.told.TOLD`.
    """
    architecture = next(each for each in architectures().values() if each.lens)
    toy = architecture.toy
    return {
        "architecture": architecture.name,
        "config": {
            **toy,
            "in_channels": _CHANNELS + told_channels(told, _PIXELS),
            "out_channels": _CHANNELS,
            "model_channels": 64,
            "num_res_blocks": [2, 1],
            "num_head_channels": 16,
            "num_heads": -1,
            "transformer_depth": [1, 0, 1],
            "transformer_depth_output": [0, 0, 0, 1, 1],
            "transformer_depth_middle": 1,
            "context_dim": _WIDTH,
            # Beside the pooled text the network is told sizes, of which the toy has as many.
            "adm_in_channels": toy["adm_in_channels"] - (architecture.pooled_width(toy) or 0) + _WIDTH,
        },
        "prediction": "v",
        "shift": None,
        "pictures": "pixels",
        "tokens": 4,
        "vocabulary": None,
    }


def write_lens_base(path: Path, seed: int, told: Sequence[str] = ()) -> None:
    """Write one that has learnt nothing."""
    from bokeh_ops.host.small.model import SmallModel

    model = SmallModel(description(told))
    first_weights(model.network, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
