"""Evening out K: real photographs have far more of little blur than of much (Fortes et al., sec. 3.2.1)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from trainer.data.prepare.settings import Balance

SHARP = "all in focus"
UNKNOWN = "K unknown"


def bin_names(balance: Balance, max_k: float) -> list[str]:
    """The bins' names, in order."""
    edges = [max_k * i / balance.bins for i in range(balance.bins + 1)]
    return [SHARP, *(f"K {low:g} to {high:g}" for low, high in pairwise(edges)), UNKNOWN]


def bin_of(k: float | None, all_in_focus: bool, balance: Balance, max_k: float) -> int:
    """The number of a photograph's bin in :func:`bin_names`."""
    if all_in_focus:
        return 0
    if k is None:
        return balance.bins + 1
    return 1 + min(int(k / max_k * balance.bins), balance.bins - 1)


def choose(keys: Sequence[str], bins: Sequence[int], balance: Balance) -> tuple[list[bool], list[int | None]]:
    """Which photographs to keep. Those with the least hashes are kept, so that the choice is the same everywhere.

    Args:
        keys: of the photographs.
        bins: of each, its bin.
        balance: how.

    Returns:
        For each photograph whether it is kept; for each bin the most that it may have, None for any number.
    """
    numbers = np.asarray(bins, dtype=np.int64)
    counts = np.bincount(numbers, minlength=balance.bins + 2)
    most: list[int | None] = [_most(counts, balance)] * len(counts)
    if balance.sharp_share is not None:
        blurred = sum(
            count if top is None else min(count, top) for count, top in zip(counts[1:], most[1:], strict=True)
        )
        share = balance.sharp_share
        most[0] = None if share >= 1 else math.ceil(share / (1 - share) * blurred) if blurred else None
    kept = np.ones(len(keys), dtype=bool)
    for number, top in enumerate(most):
        members = np.flatnonzero(numbers == number).tolist()
        if top is None or len(members) <= top:
            continue
        order = sorted(members, key=lambda index: hash_of(str(keys[index])))
        kept[order[top:]] = False
    return kept.tolist(), most


def hash_of(key: str) -> str:
    """By what photographs are put in order: as good as chance, and the same on every machine."""
    return hashlib.sha256(key.encode()).hexdigest()


def _most(counts: np.ndarray, balance: Balance) -> int | None:
    if balance.per_bin is not None:
        return balance.per_bin or None
    filled = counts[counts > 0]
    return max(balance.at_least, 2 * int(np.median(filled))) if len(filled) else None
