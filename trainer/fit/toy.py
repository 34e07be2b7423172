"""Toy bases: networks of the host's classes, so small that they train and sample in seconds on a CPU.

A toy is a small model (:mod:`bokeh_ops.host.small`) of grey pictures that knows every word. Tests and the ``tiny``
profile stand on it; everything else of `fit` (attention, losses, checkpoints, sampling) is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bokeh_ops.host.architectures import named
from trainer.files import replace_file
from trainer.seeded import normal

TOKENS = 8
"""Tokens of every prompt."""


def make_toy(architecture: str, seed: int = 0) -> Any:
    """A :class:`.SmallModel` with random weights that a training of the base can start from."""
    from bokeh_ops.host.small.model import SmallModel

    toy = SmallModel(
        {
            "architecture": architecture,
            "config": dict(named(architecture).toy),
            "prediction": "flow" if named(architecture).flow else "epsilon",
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
