"""A picture shifted by many offsets and added up: one at a time on a CPU, by fours on accelerators.

On a CPU additions of what stays in its cache are quickest. On an accelerator each addition is the launch of a kernel
that reads a picture and a sum and writes the sum. There four offsets ``(+-dy, +-dx)`` are added in one step that reads
four and writes one, as a sum over a view of the picture: fewer launches, and less memory that is read and written. The
terms are the same, all positive and none dropped; only the order in which they are added differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def in_large_steps(device: torch.device) -> bool:
    """Whether a device gains by fewer and larger steps: all but CPUs do."""
    return device.type != "cpu"


def shifted_sum(
    padded: Tensor, offsets: Sequence[tuple[int, int]], frame: tuple[int, int, int, int]
) -> Tensor:
    """The sum of what each offset sees of a picture.

    Args:
        padded: ``[..., H, W]``, contiguous.
        offsets: ``(dy, dx)``, at least one.
        frame: ``(top, left, h, w)``: rows and columns that the offset (0, 0) sees. All offsets stay inside ``padded``.

    Returns:
        ``[..., h, w]``.
    """
    top, left, height, width = frame
    total: Tensor | None = None
    if in_large_steps(padded.device):
        pitch, start = padded.shape[-1], padded.storage_offset() + top * padded.shape[-1] + left
        for first, steps in _fours(offsets, pitch):
            view = padded.as_strided(
                (*padded.shape[:-2], *(2 for _ in steps), height, width),
                (*padded.stride()[:-2], *steps, pitch, 1),
                start + first,
            )
            part = view.sum(tuple(range(-2 - len(steps), -2))) if steps else view
            total = (part if steps else part.clone()) if total is None else total.add_(part)
    else:
        for dy, dx in offsets:
            part = padded[..., top + dy : top + dy + height, left + dx : left + dx + width]
            total = part.clone() if total is None else total.add_(part)
    assert total is not None
    return total


def _fours(offsets: Sequence[tuple[int, int]], pitch: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Offsets as views: place of the first in memory, and the steps from it, each of which doubles the offsets."""
    left = dict.fromkeys(offsets)
    for dy, dx in offsets:
        four = {(v, u) for v in (dy, -dy) for u in (dx, -dx)}
        if len(four) > 1 and (dy, dx) in left and all(each in left for each in four):
            for each in four:
                del left[each]
            steps = tuple(step for step in (2 * abs(dy) * pitch, 2 * abs(dx)) if step)
            yield -abs(dy) * pitch - abs(dx), steps
    rest = sorted(dy * pitch + dx for dy, dx in left)
    for i in range(0, len(rest) - 1, 2):
        yield rest[i], (rest[i + 1] - rest[i],)
    if len(rest) % 2:
        yield rest[-1], ()
