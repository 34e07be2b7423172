"""The host's memory while pictures are rendered: asked for before, and done with less of where it runs out."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
from torch import Tensor

from ..render import Lens, LensModel, Progress, Rendered, memory_needed, render
from .differences import out_of_memory

LEAST_TILE = 128
"""Pixels along the smallest tiles that are tried before the CPU is."""


def within_memory(model: str | LensModel, notice: Callable[[str], None]) -> LensModel:
    """A lens model that asks the host for memory, and goes on with smaller tiles where there is none.

    Other models of the host are unloaded for it as for a model that samples. If memory runs out all the same, the
    picture is begun again in tiles half as large, down to :data:`LEAST_TILE` pixels, and at last on the CPU: slow, but
    no work is lost. Later pictures begin with what did for those before.

    Args:
        model: as :func:`bokeh_ops.render.render` takes it.
        notice: told when there was too little memory.
    """
    fits: int | None = None
    asked: set[tuple] = set()
    said: set[str] = set()

    def tell(text: str) -> None:
        if text not in said:
            said.add(text)
            notice(text)

    def rendered(
        image: Tensor,
        disparity: Tensor,
        lens: Lens,
        progress: Progress | None = None,
        tile: int | None = None,
    ) -> Rendered:
        nonlocal fits
        while True:
            side = min((given for given in (tile, fits) if given is not None), default=None)
            make_room(memory_needed(model, image.shape, side), image, asked)
            try:
                return render(image, disparity, lens, model, progress, side)
            except Exception as error:
                least = side is not None and side <= LEAST_TILE
                if not out_of_memory(error) or (least and image.device.type == "cpu"):
                    raise
                short = (str(error).splitlines() or [type(error).__name__])[0]
            # Here, as inside the handler the error still holds what the failed run held.
            comfy.model_management.soft_empty_cache()
            if least:
                tell(
                    f"not even tiles of {side} pixels fit in the device's memory ({short}), so pictures are rendered "
                    "on the CPU, which takes longer. Close what else uses the device, or use smaller pictures."
                )
                image, disparity = image.cpu(), disparity.cpu()
            else:
                fits = max(LEAST_TILE, (side or max(image.shape[2:])) // 2)
                tell(
                    f"a picture does not fit in memory at once ({short}); going on in tiles of {fits} pixels."
                )

    return rendered


def make_room(needed: int, like: Tensor, asked: set[tuple]) -> None:
    """Have the host unload models until so many bytes are free on a tensor's device; once for each size."""
    if (like.device, needed) not in asked:
        asked.add((like.device, needed))
        management = comfy.model_management
        management.free_memory(needed + management.extra_reserved_memory(), like.device)
