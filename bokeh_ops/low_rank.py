"""Low-rank pairs in files of others, as PEFT and diffusers name them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import BokehError

_HALF = re.compile(r"^(.*)\.lora_(A|B|down|up)(?:\.default)?\.weight$")


class Pair(NamedTuple):
    """A change of a layer: ``up @ down``."""

    down: Tensor
    """``[rank, inputs]``, or a convolution's."""
    up: Tensor
    """``[outputs, rank]``, or a convolution's."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def low_rank_pairs(
    path: Path, weights: Mapping[str, Tensor], layer: Callable[[str], str | None]
) -> tuple[dict[str, Pair], list[str]]:
    """Pairs by layer, and the names of what is none.

    Args:
        path: of the file, for messages.
        weights: by name.
        layer: the layer that a name means, without its prefixes; None: none that may be there.

    Raises:
        BokehError: halves of a pair missing or of other ranks, or numbers that are NaN.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    strange = []
    for name, tensor in weights.items():
        match = _HALF.match(name)
        found = layer(match[1]) if match else None
        if match is None or found is None:
            strange.append(name)
        else:
            halves.setdefault(found, {})["down" if match[2] in ("A", "down") else "up"] = tensor
    for place, pair in halves.items():
        down, up = pair.get("down"), pair.get("up")
        if down is None or up is None or down.shape[0] != up.shape[1]:
            raise BokehError(
                f"{path}: of {place} it has lora_A {_shape(down)} and lora_B {_shape(up)}; expected both, with one "
                "rank. The download is probably cut short: fetch it again and compare its size."
            )
        if not bool(torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise BokehError(f"{path}: {place} holds numbers that are NaN or infinite; the file is damaged.")
    return {place: Pair(**halves[place]) for place in sorted(halves)}, strange


def whose(weights: Iterable[str], here: str) -> str:
    """A guess at what else a file of weights is than ``here``, as a sentence; empty where there is none."""
    names = " ".join(weights)
    if "to_v_bokeh" in names:
        return "It is a bokeh adapter, for Load Bokeh Adapter."
    if "transformer_blocks" in names and ("single_transformer_blocks" in names or "single_blocks" in names):
        return "It looks like a file for FLUX."
    if "lora_te" in names or "lora_unet_" in names:
        return f"It looks like an ordinary LoRA: load it with Load LoRA, before {here}."
    if "down_blocks" in names or "up_blocks" in names:
        return "It looks like a file for SDXL or SD1.5."
    if "input_blocks" in names or "first_stage_model" in names:
        return "It looks like a checkpoint or a VAE."
    return ""


def some(names: Iterable[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(repr(name) for name in list(names)[:3])


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))
