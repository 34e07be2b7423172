"""The disparity of many pictures, one by one, so that a video takes the memory of its maps and no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..cache import Kept
from ..digest import content_key
from .conventions import Notice, check_fit, fit_to_image

Maps = Tensor | Sequence[Tensor]
"""Disparity ``[B, 1, H, W]``, or B maps ``[1, 1, H, W]``, which need not lie in memory together."""

Progress = Callable[[int, int], None]

_STEPS = 1000  # of the progress of one picture


def planes(maps: Maps) -> list[Tensor]:
    """Each map as ``[H, W]``, sharing its memory."""
    return [one.reshape(one.shape[-2:]) for one in maps]


def fit_frames(
    disparity: Tensor,
    batch: int,
    height: int,
    width: int,
    notice: Notice | None = None,
    guide: Callable[[int], Tensor] | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> list[Tensor]:
    """:func:`bokeh_ops.depth.conventions.fit_to_image` for every picture of a batch.

    Args:
        disparity: ``[B or 1, 1, h, w]``.
        batch: pictures.
        height, width: of the pictures, in pixels.
        notice: told when the maps were resized.
        guide: gives ``[1, C, height, width]``, picture number such and such as displayed, 0..1, to whose edges those
            of its map move; None leaves them where they are.
        device: where the edges are moved; by default where the disparity is.
        progress: called as ``progress(done, total)``; may raise to stop.
        kept: where maps whose edges were moved are kept, by map and picture, and found again.

    Returns:
        ``batch`` maps ``[1, 1, height, width]``. They may be one and the same, or share memory with the input or with
        what is kept: read them, do not write to them.

    Raises:
        BokehError: what :func:`~bokeh_ops.depth.conventions.fit_to_image` raises.
    """
    check_fit(disparity, batch, height, width, notice)
    if guide is None and len(disparity) == 1:
        return [fit_to_image(disparity, 1, height, width)] * batch
    run = None if kept is None else kept.run()
    fitted = []
    for row in range(batch):
        own = disparity[row % len(disparity)][None]
        if guide is None:
            fitted.append(fit_to_image(own, 1, height, width))
            continue
        seen = guide(row)

        def report(done: int, total: int, row: int = row) -> None:
            if progress is not None:
                progress(int(_STEPS * (row + done / total)), _STEPS * batch)

        def move(own: Tensor = own, seen: Tensor = seen, report: Progress = report) -> Tensor:
            # A copy: a map without edges may come back as it is, in memory that is another's.
            return fit_to_image(own, 1, height, width, None, seen, device, report).cpu().clone()

        report(0, 1)
        fitted.append(move() if run is None else run.of(content_key(own, seen[:, :3], str(device)), move))
        report(1, 1)
    return fitted
