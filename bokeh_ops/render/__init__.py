"""Lens models behind one contract: picture + disparity + :class:`Lens` -> picture + signed defocus map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..depth.frames import Maps, planes
from ..errors import BokehError
from .aperture import Aperture
from .classical import render_classical
from .contract import Lens, LensModel, Progress, Rendered, check_inputs
from .defocus import blur_amount, colour_defocus, in_focus, overlay
from .grain import add_grain
from .layered import render_layered
from .thin_lens import render_thin_lens

__all__ = [
    "DEFAULT_MODEL",
    "MODELS",
    "Aperture",
    "Lens",
    "LensModel",
    "Progress",
    "Rendered",
    "blur_amount",
    "colour_defocus",
    "in_focus",
    "memory_needed",
    "overlay",
    "render",
    "render_series",
    "render_sweep",
]

MODELS: dict[str, LensModel] = {
    "layered": render_layered,
    "classical": render_classical,
    "thin_lens": render_thin_lens,
}
"""The lens models by name. Another model is added by one entry here."""

_MEMORY: dict[LensModel, tuple[int, int, int | None]] = {
    render_layered: (250, 200, None),
    render_classical: (100, 400, 1024),
    render_thin_lens: (130, 0, None),
}
"""Bytes of memory for each pixel of the picture, and of a tile, and pixels along a tile that is not asked for."""
_MEMORY_OF_OTHERS = (120, 900, 1024)  # BokehMe's

DEFAULT_MODEL = "layered"
"""The key of :data:`MODELS` that is taken where none is named."""


def render(
    image: Tensor,
    disparity: Tensor,
    lens: Lens,
    model: str | LensModel = DEFAULT_MODEL,
    progress: Progress | None = None,
    tile: int | None = None,
) -> Rendered:
    """Give a picture that is sharp everywhere the depth of field of ``lens``.

    Args:
        image: ``[B, C, H, W]``, C = 1, 3 or 4 (RGB and straight alpha), values >= 0 (0..1, or linear HDR
            with ``lens.gamma = 1``), any floating type, any device.
        disparity: ``[B, 1, H, W]``, larger is nearer (see :mod:`bokeh_ops.depth.conventions`).
        lens: K, focus, gamma, aperture and highlights.
        model: a key of :data:`MODELS`, or a lens model itself (:func:`bokeh_ops.render.bokehme.load_bokehme`).
        progress: called as ``progress(done, total)``; an exception raised in it stops the rendering.
        tile: pixels along what is computed at once (:class:`LensModel`); None for what is quickest.

    Returns:
        :class:`Rendered`: the picture in the input's type, and the signed defocus map in pixels.

    Raises:
        BokehError: an unknown model, or inputs that do not belong together (see the message).
    """
    model = _found(model)
    check_inputs(image, disparity)
    # A lens model of someone else's need not know of tiles unless it is told of them.
    return (
        model(image, disparity, lens, progress)
        if tile is None
        else model(image, disparity, lens, progress, tile)
    )


def _found(model: str | LensModel) -> LensModel:
    if not isinstance(model, str):
        return model
    if model not in MODELS:
        raise BokehError(f"There is no lens model named {model!r}; there are: {', '.join(sorted(MODELS))}.")
    return MODELS[model]


def memory_needed(model: str | LensModel, shape: Sequence[int], tile: int | None = None) -> int:
    """About how many bytes a lens model takes on an accelerator beside the picture itself, rather too many.

    Measured on pictures of 1920 x 1080 and 3840 x 2160 at a blur radius of 1/64 of their width.

    Args:
        model: as for :func:`render`.
        shape: of the image, ``[B, C, H, W]``; one picture after the other is rendered.
        tile: as for :func:`render`.

    Raises:
        BokehError: an unknown model.
    """
    pixels = shape[-2] * shape[-1]
    of_picture, of_tile, usual = _MEMORY.get(_found(model), _MEMORY_OF_OTHERS)
    side = min(side for side in (tile, usual, max(shape[-2:])) if side is not None)
    return of_picture * pixels + of_tile * min(pixels, side * side)


def render_sweep(
    image: Tensor,
    disparity: Tensor,
    lens: Lens,
    ks: Sequence[float],
    model: str | LensModel = DEFAULT_MODEL,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Rendered:
    """Render a batch at several K: :func:`render_series` over ``lens`` with each of ``ks``."""
    if not ks:
        raise BokehError("No value of K was given; give at least one.")
    return render_series(image, disparity, [replace(lens, k=k) for k in ks], model, device, progress)


def render_series(
    image: Tensor,
    disparity: Maps,
    lenses: Sequence[Lens],
    model: str | LensModel = DEFAULT_MODEL,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    grain: float = 0.0,
) -> Rendered:
    """Render a batch through several lenses, one picture at a time, so that only one is on the device at once.

    Args:
        image: ``[B, C, H, W]``.
        disparity: ``[B, 1, H, W]``, or B maps, which are copied one by one and so never written to.
        lenses: at least one.
        model: a key of :data:`MODELS`, or a lens model itself.
        device: where to compute; by default where the image is.
        progress: called as ``progress(done, total)``; may raise to stop.
        grain: how much of the picture's own grain what is blurred is given back (:mod:`bokeh_ops.render.grain`); 1 is
            all, 0 none.

    Returns:
        :class:`Rendered` with ``len(lenses) * B`` rows on the image's device, lens by lens: all pictures through the
        first, then all through the second. The pictures' channels lie together in memory, as ``[B, H, W, C]`` has them.

    Raises:
        BokehError: no lenses, grain below 0, or what :func:`render` raises.
    """
    if not lenses:
        raise BokehError("No lens was given; give at least one.")
    if not (math.isfinite(grain) and grain >= 0):
        raise BokehError(
            f"The grain is {grain}; it must be 0 (none), 1 (the picture's own) or another number above 0."
        )
    batch, maps = image.shape[0], [plane[None, None] for plane in planes(disparity)]
    if isinstance(disparity, Tensor):
        check_inputs(image, disparity)
    elif len(maps) != batch:
        raise BokehError(f"There are {len(maps)} disparity maps for {batch} images; give one per image.")
    else:
        for row, one in enumerate(maps):
            check_inputs(image[row : row + 1], one)
    device = torch.device(device) if device is not None else image.device
    each = [_rows(lens, batch) for lens in lenses]
    jobs = len(lenses) * batch
    images = image.new_empty(jobs, *image.shape[2:], image.shape[1]).movedim(-1, 1)
    defocus = maps[0].new_empty(jobs, *maps[0].shape[1:], dtype=torch.float32, device=image.device)

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(int(1000 * (job + done / total)), 1000 * jobs)

    for job in range(jobs):
        row = job % batch
        lens = each[job // batch][row]
        own = maps[row].to(device, copy=True)
        result = render(image[row : row + 1].to(device), own, lens, model, report)
        made = result.image[0]
        if grain > 0:
            made = add_grain(made, image[row].to(device), result.defocus[0], lens, grain, row)
        images[job], defocus[job] = made.to(image.device), result.defocus[0].to(image.device)
    return Rendered(images, defocus)


def _rows(lens: Lens, batch: int) -> list[Lens]:
    """The lens of each picture."""
    named = {"k": "K", "focus_disparity": "The focus disparity", "focus_band": "The focus band"}
    values = {}
    for field, name in named.items():
        rows = torch.as_tensor(getattr(lens, field)).reshape(-1)
        if rows.numel() not in (1, batch):
            raise BokehError(
                f"{name} has {rows.numel()} values for {batch} images; give one, or one per image."
            )
        values[field] = rows.expand(batch)
    if lens.sharp is not None:
        if lens.sharp.shape[0] not in (1, batch):
            raise BokehError(
                f"What is held sharp has {lens.sharp.shape[0]} masks for {batch} images; give one, or one per image."
            )
        values["sharp"] = lens.sharp.expand(batch, -1, -1)
    return [
        replace(lens, **{field: rows[row : row + 1] for field, rows in values.items()})
        for row in range(batch)
    ]
