"""A small model that is a diffusion lens: what ``python -m trainer lens`` makes of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...diffusion_lens.told import TOLD, told_channels
from ...errors import BokehError
from ..diffusion_lens.lens import DiffusionLens
from .model import SmallModel, read_small, small_description, small_vae

LENS = "lens"
"""Entry of the description: ``timestep``, ``layers`` with PISA, ``occlusion``, ``told``, ``prompt`` and ``side`` in
pixels."""


def is_lens(path: Path) -> bool:
    """Whether a file is a small model that is a lens."""
    return LENS in (small_description(path) or {})


def check_told(small: SmallModel, told: Sequence[str]) -> None:
    """Raise unless a small model's network takes what it is to be told.

    Raises:
        BokehError: it takes other channels, or one of the names is not known.
    """
    if strange := sorted(set(told) - set(TOLD)):
        raise BokehError(
            f"The lens is told {', '.join(strange)}; known are {', '.join(TOLD)}. If a later version of this extension "
            "made it, update this one."
        )
    takes, wanted = (
        small.description["config"]["in_channels"],
        small.codec.channels + told_channels(told, small.codec.patch),
    )
    if takes != wanted:
        raise BokehError(
            f"The network takes {takes} channels; with lens.told: {list(told)} it is given {wanted}. "
            "`python -m trainer world lens FILE --told ...` makes one that takes them."
        )


def read_lens(path: Path) -> DiffusionLens:
    """A lens model from the file of a small one.

    Args:
        path: written by ``python -m trainer lens``.

    Raises:
        BokehError: another kind of file.
    """
    if not is_lens(path):
        raise BokehError(
            f"{path} is no small diffusion lens; `python -m trainer lens` makes one of a small model."
        )
    small = read_small(path)
    said = small.description[LENS]
    told = said.get("told", [])
    check_told(small, told)
    context, pooled = small.words.encode(said["prompt"])
    positive = [[context[None], {} if pooled is None else {"pooled_output": pooled[None]}]]
    return DiffusionLens(
        small.patcher,
        small_vae(small),
        positive,
        said["occlusion"],
        said["layers"],
        small.codec.patch,
        said["side"],
        said["timestep"],
        told,
    )
