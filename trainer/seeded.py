"""Randomness by name: what is drawn depends on a seed and on what it is drawn for, on nothing else.

No generator is carried from step to step. So a run that is killed and resumed draws what it would have drawn, and
several processes that share the work out draw what one would have.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator for one purpose, such as ``generator(seed, "noise level", step, slot)``.

    Args:
        seed: 0 or more.
        purpose: names and numbers (0 or more) that say what is drawn.
    """
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in purpose]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words])))


def normal(shape: tuple[int, ...], seed: int, *purpose: str | int) -> Tensor:
    """Normal numbers, fp32 on the CPU, the same whatever device goes on with them."""
    state = int(generator(seed, *purpose).integers(2**63))
    return torch.randn(shape, generator=torch.Generator().manual_seed(state))
