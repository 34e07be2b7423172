"""A small model that is a diffusion lens: what ``python -m trainer lens`` makes of one."""

from __future__ import annotations

from pathlib import Path

from ...errors import BokehError
from ..diffusion_lens.lens import DiffusionLens
from .model import read_small, small_description, small_vae

LENS = "lens"
"""Entry of the description: ``timestep``, ``layers`` with PISA, ``occlusion``, ``told``, ``prompt`` and ``side`` in
pixels."""


def is_lens(path: Path) -> bool:
    """Whether a file is a small model that is a lens."""
    return LENS in (small_description(path) or {})


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
        said["told"],
    )
