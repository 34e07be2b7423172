"""A contact sheet: several pictures in one, each with its label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import BokehError
from ..numbers import all_f_numbers, format_value, parse_values

BACKGROUNDS = {"dark": 0.1, "black": 0.0, "grey": 0.46, "white": 1.0}
"""Grey level of the paper by name."""

PLACES = ("below", "above")
"""Where a label stands."""

MOST_PIXELS = 200_000_000
"""A larger sheet is refused."""

_FONT_SIZES = (11, 64)
_NARROWEST = 150  # pixels that a column may always take, so that labels of tiny pictures can be read
_GOOD_ASPECT = 1.5

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    images: Tensor,
    labels: Sequence[str],
    columns: int = 0,
    *,
    cell_size: int = 0,
    background: str = "dark",
    place: str = "below",
    title: str = "",
) -> Tensor:
    """Lay pictures out on a sheet, a label at each.

    Where there are ``n`` labels for ``n * m`` pictures, the first ``m`` pictures are those of the first label and so
    on (the order in which values are sampled and rendered: all scenes at the first K, then all at the second). Each
    of the ``m`` scenes then has rows of its own, with its pictures in the order of the labels.

    Args:
        images: ``[B, H, W, C]``, values 0..1 (clipped), C = 1, 3 or 4 (laid over the paper by alpha).
        labels: ``n`` texts, ``n`` dividing ``B``. Latin letters; what does not fit is cut off.
        columns: pictures in a row; 0 finds a number that gives a sheet of good proportions.
        cell_size: longest side of a picture on the sheet, in pixels; larger ones are reduced. 0 keeps the size.
        background: one of :data:`BACKGROUNDS`.
        place: of the labels, one of :data:`PLACES`.
        title: a line over the whole, or nothing.

    Returns:
        ``[1, H', W', 3]`` in the dtype and on the device of ``images``. A picture that is not reduced is there
        pixel by pixel.

    Raises:
        BokehError: shapes, number of labels or choices as above not met, or a sheet of over :data:`MOST_PIXELS`.
    """
    _check(images, labels, columns, cell_size, background, place)
    paper = BACKGROUNDS[background]
    height, width = _cell(images.shape[1], images.shape[2], cell_size)
    count, scenes = len(labels), len(images) // len(labels)
    plan = _plan(labels, columns, scenes, height, width, title)
    if plan.width * plan.height > MOST_PIXELS:
        raise BokehError(
            f"The contact sheet of {len(images)} pictures would be {plan.width} x {plan.height} pixels; choose a "
            f"cell_size below {max(height, width)} or use fewer pictures."
        )
    sheet = images.new_full((plan.height, plan.width, 3), paper)
    ink = Image.new("L", (plan.width, plan.height))
    draw = ImageDraw.Draw(ink)
    if title:
        _write(draw, plan.title_font, title, plan.gap, plan.width // 2, plan.width - 2 * plan.gap)
    for index, picture in enumerate(images):  # one at a time, so that the reduced ones are all that is held
        label, scene = divmod(index, scenes)
        row, column = scene * math.ceil(count / plan.columns) + label // plan.columns, label % plan.columns
        top, left = plan.top + row * plan.pitch_y, plan.gap + column * plan.pitch_x
        below = plan.place_picture if place == "above" else 0
        indent = left + (plan.slot - width) // 2
        sheet[top + below : top + below + height, indent : indent + width] = _reduced(
            picture, height, width, paper
        )
        line = top + (0 if place == "above" else height + plan.space)
        _write(draw, plan.font, labels[label], line, left + plan.slot // 2, plan.slot)
    mask = torch.from_numpy(np.asarray(ink, dtype=np.float32) / 255).to(sheet)[..., None]
    return torch.lerp(sheet, torch.full_like(sheet, 0.92 if paper < 0.45 else 0.0), mask)[None]


def sheet_labels(values: str, prefix: str, count: int) -> list[str]:
    """Labels for ``count`` pictures: each value behind the prefix, or plain numbers from 1 where there is no value.

    Where all values are f-numbers, written ``f/2.8``, ``f/`` takes the prefix's place.

    Raises:
        BokehError: values that cannot be read (:func:`bokeh_ops.numbers.parse_values`).
    """
    if not values.strip():
        return [str(number + 1) for number in range(count)]
    found = parse_values(values, "values of the contact sheet", stops=True)
    before = "f/" if all_f_numbers(values) else prefix
    return [f"{before}{format_value(value)}" for value in found]


@dataclass(frozen=True)
class _Plan:
    width: int
    height: int
    columns: int
    slot: int  # width that a column has for picture and label
    pitch_x: int
    pitch_y: int
    top: int
    gap: int  # around everything
    space: int  # between a picture and its label
    place_picture: int  # from the top of a label to its picture
    font: Font
    title_font: Font


def _check(
    images: Tensor, labels: Sequence[str], columns: int, cell_size: int, background: str, place: str
) -> None:
    if images.ndim != 4 or 0 in images.shape or images.shape[-1] not in (1, 3, 4):
        raise BokehError(
            "The contact sheet takes pictures [B, H, W, C], at least one, with 1, 3 or 4 channels; "
            f"got {tuple(images.shape)}."
        )
    if not images.is_floating_point():
        raise BokehError(f"The contact sheet takes floating point values from 0 to 1; got {images.dtype}.")
    if isinstance(labels, str) or not labels or len(images) % len(labels):
        found = "one text" if isinstance(labels, str) else f"{len(labels)} labels"
        raise BokehError(
            f"{found} for {len(images)} pictures: give one label for each, or a number of labels that divides "
            f"{len(images)} (then every label belongs to as many pictures, in sequence)."
        )
    if columns < 0 or cell_size < 0:
        raise BokehError(
            f"columns is {columns} and cell_size {cell_size}; both must be 0 (automatic) or more."
        )
    if background not in BACKGROUNDS:
        raise BokehError(f"The background is {background!r}; it must be one of {', '.join(BACKGROUNDS)}.")
    if place not in PLACES:
        raise BokehError(f"Labels are placed {place!r}; it must be one of {', '.join(PLACES)}.")


def _cell(height: int, width: int, cell_size: int) -> tuple[int, int]:
    longest = max(height, width)
    if not cell_size or longest <= cell_size:
        return height, width
    return max(1, round(height * cell_size / longest)), max(1, round(width * cell_size / longest))


def _plan(labels: Sequence[str], columns: int, scenes: int, height: int, width: int, title: str) -> _Plan:
    font = _font(width / 16)
    widest = max(_length(font, label) for label in labels)
    if widest > max(width, _NARROWEST):  # smaller letters for long labels, as far as they can be read
        font = _font(width / 16 * max(width, _NARROWEST) / widest)
        widest = max(_length(font, label) for label in labels)
    slot = max(width, min(widest + 8, _NARROWEST))  # letters of neighbours must not touch
    letters = _height(font)
    gap = max(4, round(0.02 * max(width, height)))
    space = max(3, letters // 3)
    pitch_x, pitch_y = slot + gap, height + space + letters + max(gap, letters * 2 // 3)
    columns = min(columns, len(labels)) if columns else _columns(len(labels), scenes, pitch_x, pitch_y)
    rows = scenes * math.ceil(len(labels) / columns)
    sheet_width = columns * pitch_x + gap
    title_font = _font(min(1.5 * getattr(font, "size", 11), sheet_width / 12))
    top = gap + (_height(title_font) + max(gap, _height(title_font) // 2) if title else 0)
    return _Plan(
        width=sheet_width,
        height=top + rows * pitch_y,
        columns=columns,
        slot=slot,
        pitch_x=pitch_x,
        pitch_y=pitch_y,
        top=top,
        gap=gap,
        space=space,
        place_picture=letters + space,
        font=font,
        title_font=title_font,
    )


def _columns(count: int, scenes: int, pitch_x: int, pitch_y: int) -> int:
    """The number whose sheet is nearest to 3:2, with a price on places left empty."""
    if scenes > 1 and count <= 8:
        return count  # a table: a row for each scene

    def price(columns: int) -> float:
        rows = scenes * math.ceil(count / columns)
        aspect = columns * pitch_x / (rows * pitch_y)
        return abs(math.log(aspect / _GOOD_ASPECT)) + 2 * (rows * columns / (scenes * count) - 1)

    return min(range(1, count + 1), key=price)


def _reduced(picture: Tensor, height: int, width: int, paper: float) -> Tensor:
    """``[height, width, 3]``: over the paper where it has alpha, grey in three channels, reduced without moire."""
    colour = picture[..., :3].clamp(0, 1)
    if picture.shape[-1] == 4:
        alpha = picture[..., 3:].clamp(0, 1)
        colour = colour * alpha + paper * (1 - alpha)
    colour = colour.expand(*colour.shape[:2], 3)
    if colour.shape[:2] == (height, width):
        return colour
    rows = colour.float().movedim(-1, 0)[None]
    rows = F.interpolate(rows, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return rows[0].movedim(0, -1).clamp(0, 1).to(picture.dtype)


def _font(size: float) -> Font:
    least, most = _FONT_SIZES
    try:
        return ImageFont.load_default(size=min(max(round(size), least), most))
    except (
        TypeError,
        ImportError,
        OSError,
    ):  # Pillow before 10.1, or without FreeType: one small bitmap font
        return ImageFont.load_default()


def _length(font: Font, text: str) -> int:
    left, _, right, _ = font.getbbox(text)
    return math.ceil(right - min(left, 0))


def _height(font: Font) -> int:
    _, top, _, bottom = font.getbbox("Kg")
    return math.ceil(bottom - top)


def _write(draw: ImageDraw.ImageDraw, font: Font, text: str, top: int, centre: int, room: int) -> None:
    """One line, its letters beginning at ``top``, centred and cut to the room there is."""
    whole = text
    while text and _length(font, text) > room:
        whole = whole[:-1]
        text = whole.rstrip() + "..." if whole else ""
    draw.text((centre - _length(font, text) // 2, top - font.getbbox("Kg")[1]), text, fill=255, font=font)
