"""The contact sheet: what is on it, where, and that nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import ImageFont
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.picture import sheet as sheet_module
from bokeh_ops.picture.sheet import contact_sheet, sheet_labels


def coloured(count: int, height: int, width: int) -> Tensor:
    """Pictures of one colour each, none of them grey."""
    index = torch.arange(count, dtype=torch.float32)
    colours = torch.stack((0.2 + index / 50, torch.full_like(index, 0.9), 0.1 + index / 40), -1)
    return colours[:, None, None].repeat(1, height, width, 1)


def places(sheet: Tensor, pictures: Tensor) -> list[tuple[int, int, int, int]]:
    """``(top, left, bottom, right)`` of each of the coloured pictures; every pixel of them must be there."""
    found = []
    for picture in pictures:
        rows, columns = torch.nonzero((sheet[0] - picture[0, 0]).abs().amax(-1) < 1e-6, as_tuple=True)
        assert len(rows) > 0
        box = (int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
        assert len(rows) == (box[2] - box[0]) * (box[3] - box[1])  # whole, and once
        found.append(box)
    return found


def grid(boxes: Sequence[tuple[int, int, int, int]]) -> list[tuple[int, int]]:
    """``(row, column)`` of each picture."""
    tops, lefts = sorted({box[0] for box in boxes}), sorted({box[1] for box in boxes})
    return [(tops.index(box[0]), lefts.index(box[1])) for box in boxes]


def ink_under(sheet: Tensor, box: tuple[int, int, int, int], rows: int = 24) -> Tensor:
    """The strip right below a picture, ``rows`` high, less the paper."""
    strip = sheet[0, box[2] : box[2] + rows, box[1] : box[3], 0]
    return (strip - sheet[0, 0, 0, 0]).abs()


def test_every_picture_is_there_pixel_by_pixel_in_reading_order() -> None:
    pictures = coloured(6, 120, 160)
    sheet = contact_sheet(pictures, [f"K = {k}" for k in (0, 4, 8, 12, 18, 28)])
    boxes = places(sheet, pictures)
    assert all((box[2] - box[0], box[3] - box[1]) == (120, 160) for box in boxes)
    assert grid(boxes) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    noise = torch.rand(1, 50, 70, 3)
    sheet = contact_sheet(noise, ["noise"])
    spots = [
        (y, x)
        for y in range(20)
        for x in range(60)
        if torch.equal(sheet[0, y : y + 50, x : x + 70], noise[0])
    ]
    assert len(spots) == 1


def test_labels_stand_at_their_pictures() -> None:
    pictures = coloured(3, 120, 160)
    sheet = contact_sheet(pictures, ["K = 8", "K = 12", "K = 8"], 3)
    inks = [ink_under(sheet, box) for box in places(sheet, pictures)]
    assert all((ink > 0.5).sum() > 20 for ink in inks)
    assert torch.equal(inks[0], inks[2])
    assert not torch.equal(inks[0], inks[1])
    columns = torch.nonzero(inks[0].amax(0) > 0.3)[:, 0]
    assert abs((columns.min() + columns.max()) / 2 - 79.5) <= 2  # centred
    above = contact_sheet(pictures, ["K = 8", "K = 12", "K = 8"], 3, place="above")
    top = places(above, pictures)[0][0]
    assert (above[0, :top] - above[0, 0, 0]).abs().max() > 0.5
    assert (above[0, top + 120 :] - above[0, 0, 0]).abs().max() == 0
    assert above.shape == sheet.shape


def test_labels_are_as_large_as_the_pictures_allow() -> None:
    heights = []
    for width in (64, 256, 1024):
        pictures = coloured(1, width, width)
        sheet = contact_sheet(pictures, ["K = 8"])
        rows = torch.nonzero(ink_under(sheet, places(sheet, pictures)[0], 90).amax(1) > 0.3)[:, 0]
        heights.append(int(rows.max() - rows.min()) + 1)
    assert 6 <= heights[0] < heights[1] < heights[2]


def test_tiny_pictures_keep_labels_that_can_be_read_and_long_ones_are_cut() -> None:
    pictures = coloured(2, 16, 16)
    sheet = contact_sheet(pictures, ["K = 12.34", "K = 18"], 2)
    boxes = places(sheet, pictures)
    assert boxes[1][1] - boxes[0][1] > 40  # the columns are as wide as their labels
    long = contact_sheet(pictures, ["a very long label " * 20] * 2, 2)
    assert long.shape[2] < 400
    assert (long[0, :, 0] == long[0, 0, 0]).all()  # nothing runs over the edge
    assert (long[0, :, -1] == long[0, 0, 0]).all()


def test_large_pictures_are_reduced_to_the_cell() -> None:
    pictures = coloured(2, 200, 400)
    boxes = places(contact_sheet(pictures, ["a", "b"], cell_size=100), pictures)
    assert [(box[2] - box[0], box[3] - box[1]) for box in boxes] == [(50, 100)] * 2
    boxes = places(contact_sheet(pictures, ["a", "b"], cell_size=1000), pictures)
    assert [(box[2] - box[0], box[3] - box[1]) for box in boxes] == [(200, 400)] * 2  # never enlarged
    # a fine checkerboard becomes grey, not a pattern of its own
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    board = ((x + y) % 2).float()[None, ..., None].expand(1, 256, 256, 3)
    sheet = contact_sheet(board, ["board"], cell_size=100)
    assert (sheet[0, 20:80, 60:90] - 0.5).abs().max() < 0.05


@pytest.mark.parametrize(
    ("count", "shape", "columns"),
    [
        (1, (64, 64), 1),
        (2, (64, 64), 2),
        (4, (64, 64), 2),
        (5, (64, 64), 3),
        (6, (75, 100), 3),
        (8, (64, 64), 4),
    ],
)
def test_columns_are_found(count: int, shape: tuple[int, int], columns: int) -> None:
    pictures = coloured(count, *shape)
    cells = grid(places(contact_sheet(pictures, [str(i) for i in range(count)]), pictures))
    assert cells == [divmod(i, columns) for i in range(count)]


def test_columns_can_be_chosen() -> None:
    pictures = coloured(5, 40, 40)
    labels = [str(i) for i in range(5)]
    for columns in (1, 2, 5):
        cells = grid(places(contact_sheet(pictures, labels, columns), pictures))
        assert cells == [divmod(i, columns) for i in range(5)]
    assert torch.equal(contact_sheet(pictures, labels, 99), contact_sheet(pictures, labels, 5))


def test_several_scenes_have_rows_of_their_own() -> None:
    # in sequence: K = 0 of scenes A and B, K = 8 of A and B, K = 28 of A and B
    pictures = coloured(6, 40, 40)
    labels = ["K = 0", "K = 8", "K = 28"]
    table = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    sheet = contact_sheet(pictures, labels)
    boxes = places(sheet, pictures)
    assert grid(boxes) == table
    assert torch.equal(ink_under(sheet, boxes[2], 15), ink_under(sheet, boxes[3], 15))  # both K = 8
    wrapped = grid(places(contact_sheet(pictures, labels, 2), pictures))
    assert wrapped == [(0, 0), (2, 0), (0, 1), (2, 1), (1, 0), (3, 0)]


def test_grey_and_transparent_pictures() -> None:
    grey = torch.full((1, 30, 40, 1), 0.25)
    sheet = contact_sheet(grey, ["grey"])
    assert sheet.shape[-1] == 3
    assert ((sheet - 0.25).abs().amax(-1) < 1e-6).sum() == 1200
    colours = coloured(1, 30, 40)
    half = torch.cat((colours, torch.full((1, 30, 40, 1), 0.5)), -1)
    sheet = contact_sheet(half, ["half"], background="white")
    mixed = colours[0, 0, 0] * 0.5 + 0.5
    assert ((sheet[0] - mixed).abs().amax(-1) < 1e-6).sum() == 1200


@pytest.mark.parametrize("background", list(sheet_module.BACKGROUNDS))
def test_labels_can_be_read_on_every_background(background: str) -> None:
    pictures = coloured(1, 60, 90)
    sheet = contact_sheet(pictures, ["K = 8"], background=background)
    assert float(sheet[0, 0, 0, 0]) == pytest.approx(sheet_module.BACKGROUNDS[background])
    assert ink_under(sheet, places(sheet, pictures)[0]).max() > 0.4
    assert sheet.min() >= 0
    assert sheet.max() <= 1


def test_a_title_stands_over_the_whole() -> None:
    pictures = coloured(3, 60, 90)
    plain, titled = (
        contact_sheet(pictures, ["a", "b", "c"], 3, title=title) for title in ("", "Sweep over K")
    )
    more = titled.shape[1] - plain.shape[1]
    assert more > 8
    assert torch.equal(titled[:, more + 4 :], plain[:, 4:])
    assert (titled[0, :more] - titled[0, 0, 0]).abs().max() > 0.5


def test_out_of_range_values_are_clipped_and_dtype_is_kept() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        sheet = contact_sheet(
            torch.tensor([-1.0, 0.5, 3.0], dtype=dtype).expand(1, 40, 40, 3), ["x"], cell_size=20
        )
        assert sheet.dtype == dtype
        assert sheet.min() == 0
        assert sheet.max() == 1


def test_an_old_pillow_without_sized_fonts_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    bitmap = ImageFont.load_default_imagefont() if hasattr(ImageFont, "load_default_imagefont") else None
    if bitmap is None:
        pytest.skip("this Pillow has no bitmap font to stand in")

    def old(size: Any = None) -> Any:
        if size is not None:
            raise TypeError("load_default() takes no argument")
        return bitmap

    monkeypatch.setattr(ImageFont, "load_default", old)
    pictures = coloured(2, 60, 90)
    sheet = contact_sheet(pictures, ["K = 8", "K = 12"], 2, title="old")
    assert all((ink_under(sheet, box) > 0.5).sum() > 10 for box in places(sheet, pictures))


def test_labels_from_values() -> None:
    assert sheet_labels("0, 4.5:9:4.5", "K = ", 3) == ["K = 0", "K = 4.5", "K = 9"]
    assert sheet_labels(" ", "K = ", 3) == ["1", "2", "3"]
    assert sheet_labels("f/2.8, f/11", "K = ", 2) == ["f/2.8", "f/11"]
    with pytest.raises(BokehError, match="values of the contact sheet: 'x'"):
        sheet_labels("0, x", "K = ", 2)


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (torch.rand(3, 8, 8, 3), ["a", "b"], {}, "2 labels for 3 pictures"),
        (torch.rand(3, 8, 8, 3), ["a"] * 6, {}, "6 labels for 3 pictures"),
        (torch.rand(3, 8, 8, 3), [], {}, "0 labels for 3 pictures"),
        (torch.rand(3, 8, 8, 3), "abc", {}, "one text for 3 pictures"),
        (torch.rand(0, 8, 8, 3), ["a"], {}, "at least one"),
        (torch.rand(8, 8, 3), ["a"], {}, "(8, 8, 3)"),
        (torch.rand(1, 8, 8, 2), ["a"], {}, "1, 3 or 4 channels"),
        (torch.ones(1, 8, 8, 3).byte(), ["a"], {}, "torch.uint8"),
        (torch.rand(1, 8, 8, 3), ["a"], {"columns": -1}, "columns is -1"),
        (torch.rand(1, 8, 8, 3), ["a"], {"cell_size": -1}, "cell_size -1"),
        (torch.rand(1, 8, 8, 3), ["a"], {"background": "pink"}, "'pink'; it must be one of dark"),
        (torch.rand(1, 8, 8, 3), ["a"], {"place": "left"}, "'left'"),
        (torch.rand(1, 1, 1, 3).expand(1, 20000, 20000, 3), ["a"], {}, "choose a cell_size below 20000"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(images: Tensor, labels: Any, options: dict, message: str) -> None:
    with pytest.raises(BokehError) as raised:
        contact_sheet(images, labels, **options)
    assert message in str(raised.value)
