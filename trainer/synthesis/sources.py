"""What is painted on the planes: drawn, or taken from a user's pictures."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bokeh_ops.camera.photograph import BROKEN
from bokeh_ops.depth.fill import pull_push
from bokeh_ops.errors import BokehError
from bokeh_ops.render.transfer import SRGB, to_light
from trainer.data.manifest import MANIFEST
from trainer.data.pairs.identity import identity
from trainer.data.prepare.picture import decode, opened
from trainer.data.prepare.rejection import Rejected
from trainer.data.read import Dataset, open_dataset
from trainer.synthesis import backgrounds, foregrounds
from trainer.synthesis.canvas import Sheet, lit
from trainer.synthesis.settings import PROCEDURAL, WORLD

_CUT_OUTS = (".png", ".webp", ".tif", ".tiff", ".avif")
_PHOTOGRAPHS = (*_CUT_OUTS, ".jpg", ".jpeg")
_MEGAPIXELS = 100.0
_LARGEST, _LEAST = 1.1, 0.55  # of a cut-out's longer side, in shorter sides of the picture
_OPAQUE = 0.95  # from here on a mask's pixels show the foreground alone


class Painted(NamedTuple):
    """What is on a plane.

    Attributes:
        name: for the caption.
        paint: linear light times alpha, and alpha, ``[4, h, w]``.
    """

    name: str
    paint: Tensor


def foreground(chance: np.random.Generator, source: str, sheet: Sheet) -> Painted:
    """Something to stand in front: drawn, a picture with transparency, or cut out of a photograph by its mask.

    Args:
        chance: to draw from.
        source: as in :class:`~trainer.synthesis.Settings`.
        sheet: to paint on.

    Raises:
        BokehError: a source or a picture that cannot be used.
    """
    if source == PROCEDURAL:
        name = str(chance.choice(list(foregrounds.PROCEDURAL)))
        return Painted(name, _in_a_light(chance, foregrounds.PROCEDURAL[name](chance, sheet)))
    held = _held(source, True)
    if isinstance(held, Dataset):
        sample = held.sample(int(chance.integers(len(held))))
        light = to_light(torch.tensor(sample.image).movedim(-1, 0).float() / 255, SRGB)
        mask = torch.from_numpy(sample.mask)[None]
        # Pixels at the rim show the old background as well: they take the colour of the foreground next to them.
        sure = (mask > _OPAQUE).float()
        light = torch.where(sure > 0, light, pull_push(light * sure, sure, 12))
        cut = torch.cat([light * mask, mask])
    else:
        cut = _cut_out(held[int(chance.integers(len(held)))], sheet)
    return Painted("a cut-out", _in_a_light(chance, _placed(chance, cut, sheet)))


def background(chance: np.random.Generator, source: str, sheet: Sheet) -> Painted:
    """Something to stand behind, opaque, with the arguments and errors of :func:`foreground`."""
    if source == PROCEDURAL:
        name = str(chance.choice(list(backgrounds.PROCEDURAL)))
        return Painted(name, backgrounds.PROCEDURAL[name](chance, sheet))
    height, width = sheet.whole
    name = "a photograph"
    if source == WORLD:
        from trainer.world.paint import paint
        from trainer.world.scene import HELD_OUT, caption, draw_scene

        drawn = draw_scene(int(chance.integers(HELD_OUT)), sharp=True)
        name, picture = caption(drawn), Image.fromarray(paint(drawn, max(height, width)).image)
    else:
        held = _held(source, False)
        if not isinstance(held, Dataset):
            return Painted(name, _opaque(_photograph(chance, held[int(chance.integers(len(held)))], sheet)))
        chosen = np.flatnonzero(held.facts()[1])
        picture = Image.fromarray(held.sample(int(chosen[chance.integers(len(chosen))])).image)
    by = max(width / picture.width, height / picture.height)
    size = max(width, round(picture.width * by)), max(height, round(picture.height * by))
    return Painted(name, _opaque(_somewhere(chance, picture.resize(size, Image.Resampling.LANCZOS), sheet)))


def source_identity(source: str, front: bool) -> str:
    """The source in a few words that change when its pictures do.

    Args:
        source: as in :class:`~trainer.synthesis.Settings`.
        front: whether foregrounds are to come from it, or backgrounds.

    Raises:
        BokehError: there is nothing in it that can be used.
    """
    if source == PROCEDURAL or (source == WORLD and not front):
        return source
    held = _held(source, front)
    if isinstance(held, Dataset):
        return identity(held)
    digest = hashlib.sha256()
    for path in held:
        digest.update(f"{path.relative_to(source).as_posix()}\0{path.stat().st_size}\0".encode())
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=64)
def _held(source: str, front: bool) -> list[Path] | Dataset:
    """The pictures of a folder, in the order of their names, or a data set."""
    folder = Path(source)
    if (folder / MANIFEST).is_file():
        dataset = open_dataset(folder)
        if not (len(dataset) if front else dataset.facts()[1].any()):
            raise BokehError(
                f"None of the {len(dataset)} photographs of {folder} is all in focus, so there is nothing to render "
                "blur onto. Give other backgrounds."
            )
        return dataset
    if not folder.is_dir():
        known = PROCEDURAL if front else f"{PROCEDURAL}, {WORLD}"
        raise BokehError(f"{source} is neither a folder nor one of the words {known}.")
    endings = _CUT_OUTS if front else _PHOTOGRAPHS
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    if not found:
        raise BokehError(f"{folder} holds no pictures; expected {', '.join(endings)}.")
    return found


def _photograph(chance: np.random.Generator, path: Path, sheet: Sheet) -> Image.Image:
    """A piece of a photograph, no finer than its pixels unless it is smaller than the sheet."""
    height, width = sheet.whole
    try:
        with opened(path, _MEGAPIXELS) as (image, header):
            by = max(width / header.upright[0], height / header.upright[1])
            by = max(by, min(1.0, by * chance.uniform(1, 1.5)))
            size = max(width, round(header.upright[0] * by)), max(height, round(header.upright[1] * by))
            picture = decode(image, header, size)
    except Rejected as error:
        raise _unusable(path, error.detail) from error
    return _somewhere(chance, picture, sheet)


def _somewhere(chance: np.random.Generator, picture: Image.Image, sheet: Sheet) -> Image.Image:
    """A piece of the sheet's size out of a picture that is no smaller."""
    height, width = sheet.whole
    left = int(chance.integers(picture.width - width + 1))
    top = int(chance.integers(picture.height - height + 1))
    return picture.crop((left, top, left + width, top + height))


def _opaque(picture: Image.Image) -> Tensor:
    light = to_light(torch.from_numpy(np.array(picture)).movedim(-1, 0).float() / 255, SRGB)
    return torch.cat([light, torch.ones_like(light[:1])])


def _cut_out(path: Path, sheet: Sheet) -> Tensor:
    """A picture with transparency, as light times alpha, and alpha; reduced where it is far too large."""
    try:
        with opened(path, _MEGAPIXELS) as (image, _):
            image.load()
            whole = image.convert("RGBA")
    except (Rejected, *BROKEN) as error:
        raise _unusable(path, error.detail if isinstance(error, Rejected) else str(error)) from error
    box = whole.getchannel("A").getbbox()
    if box is None or whole.getchannel("A").getextrema()[0] == 255:
        state = "transparent everywhere" if box is None else "opaque everywhere"
        raise _unusable(path, f"it is {state}; foregrounds are cut out, with the rest transparent")
    whole = whole.crop((*box[:3], whole.height))  # whether it was cut by the lower edge is still of interest
    twice = max(whole.size) // max(1, int(2 * _LARGEST * sheet.unit))
    values = (
        torch.from_numpy(np.array(whole.reduce(twice) if twice > 1 else whole)).movedim(-1, 0).float() / 255
    )
    return torch.cat([to_light(values[:3], SRGB) * values[3:], values[3:]])


def _unusable(path: Path, why: str) -> BokehError:
    return BokehError(f"The picture {path} cannot be used: {why}. Remove it from the folder, or mend it.")


def _placed(chance: np.random.Generator, cut: Tensor, sheet: Sheet) -> Tensor:
    """A cut-out at some size and place, either way round. One that was cut by the lower edge stays on it."""
    rows, columns = (torch.nonzero(cut[3].amax(axis) > 0.02)[:, 0] for axis in (1, 0))
    height, width = sheet.whole
    empty = torch.zeros(4, height, width)
    if not len(rows):
        return empty
    stands = int(rows[-1]) == cut.shape[1] - 1 and float(cut[3, -1].mean()) > 0.1
    cut = cut[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if chance.random() < 0.5:
        cut = cut.flip(-1)
    by = sheet.unit * chance.uniform(_LEAST, _LARGEST) / max(cut.shape[1:])
    high, wide = (max(1, round(side * by)) for side in cut.shape[1:])
    cut = F.interpolate(cut[None], (high, wide), mode="bilinear", antialias=True)[0]
    middle = (
        sheet.margin + sheet.width * chance.uniform(0.15, 0.85),
        sheet.margin + sheet.height * chance.uniform(0.2, 0.8),
    )
    left = round(middle[0] - wide / 2)
    top = height - high if stands else round(middle[1] - high / 2)
    from_x, from_y = max(0, -left), max(0, -top)
    piece = cut[:, from_y : height - top, from_x : width - left]
    left, top = max(0, left), max(0, top)
    empty[:, top : top + piece.shape[1], left : left + piece.shape[2]] = piece
    return empty


def _in_a_light(chance: np.random.Generator, paint: Tensor) -> Tensor:
    """The same in another light: darker, warmer or cooler."""
    tint = chance.uniform(0.6, 1.0) * (1 + 0.05 * torch.from_numpy(chance.standard_normal(3)).float())
    return lit(paint, tint[:, None, None])
