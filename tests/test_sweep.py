"""The order of the rows of a sweep, its groups and its preview."""

from __future__ import annotations

import pytest
import torch

from bokeh_ops.adapter.attention import Grounding
from bokeh_ops.adapter.rows import (
    SweepRows,
    default_grounding_steps,
    grounding_level,
    mosaic,
    resolve_grounding_steps,
    target_groups,
)
from bokeh_ops.errors import BokehError


def test_the_papers_default_number_of_grounded_steps() -> None:
    assert default_grounding_steps(50) == 30  # alg. 1, SD1.5
    assert default_grounding_steps(30) == 18  # FLUX
    assert [default_grounding_steps(n) for n in (0, 1, 2, 3, 4, 20)] == [0, 1, 1, 2, 2, 12]


@pytest.mark.parametrize(
    ("asked", "steps", "expected"),
    [(-1, 30, 18), (-7, 30, 18), (0, 30, 0), (30, 30, 30), (5, 30, 5), (-1, 0, 0)],
)
def test_grounding_steps(asked: int, steps: int, expected: int) -> None:
    assert resolve_grounding_steps(asked, steps) == expected


def test_more_grounded_steps_than_steps() -> None:
    with pytest.raises(BokehError, match=r"grounding_steps is 31 but only 30 steps.*-1 for 60 %"):
        resolve_grounding_steps(31, 30)


SIGMAS = [8.0, 6.0, 4.0, 2.0, 1.0, 0.0]


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_the_level_at_which_grounding_ends(steps: int) -> None:
    level = grounding_level(SIGMAS, steps)
    assert [sigma > level for sigma in SIGMAS[:-1]] == [place < steps for place in range(5)]
    # As computed by a sampler that means the level at which grounding ends.
    assert not SIGMAS[steps] * (1 + 1e-5) > level


def test_rows_are_tiled_role_by_role() -> None:
    rows = SweepRows(pictures=2, targets=3)
    assert (rows.roles, rows.total) == (4, 8)
    assert rows.pivots() == [-1, -1, 0, 1, 0, 1, 0, 1]
    assert rows.per_row(14.0, [0.0, 8.0, 28.0]) == [14, 14, 0, 0, 8, 8, 28, 28]
    picture = torch.tensor([[10.0], [20.0]])
    tiled = rows.tile(picture)
    assert tiled.tolist() == [[10], [20]] * 4
    # Every row is grounded on the pivot of its own picture.
    for row, pivot in enumerate(rows.pivots()):
        assert pivot == -1 or tiled[pivot] == tiled[row]
    assert Grounding.from_pivots(rows.pivots()).plain == (0, 1)


def test_one_picture_one_target() -> None:
    rows = SweepRows(1, 1)
    assert rows.pivots() == [-1, 0]
    assert rows.tile(torch.zeros(1, 4, 3, 2)).shape == (2, 4, 3, 2)


@pytest.mark.parametrize(
    ("pictures", "rows_per_batch", "expected"),
    [
        (1, 0, [5]),
        (1, 6, [5]),
        (1, 100, [5]),
        (1, 4, [3, 2]),
        (1, 3, [2, 2, 1]),
        (1, 2, [1] * 5),
        (1, 1, [1] * 5),  # a pivot and one target are the least there is
        (2, 6, [2, 2, 1]),
        (2, 7, [2, 2, 1]),
        (3, 4, [1] * 5),
    ],
)
def test_groups(pictures: int, rows_per_batch: int, expected: list[int]) -> None:
    targets = [0.0, 4.0, 8.0, 12.0, 16.0]
    groups = list(target_groups(targets, pictures, rows_per_batch))
    assert [len(group) for group in groups] == expected
    assert [k for group in groups for k in group] == targets
    if rows_per_batch >= 2 * pictures:
        assert all(SweepRows(pictures, len(g)).total <= rows_per_batch for g in groups)


def test_mosaic_in_reading_order() -> None:
    x = torch.arange(1.0, 6)[:, None, None, None].expand(5, 1, 6, 9)
    board = mosaic(x)
    assert board.shape == (1, 1, 6, 6)  # three lines of two pictures: the nearest to square
    assert board[0, 0, ::2, ::3].tolist() == [[1, 2], [3, 4], [5, 0]]
    assert board[0, 0, 2:4, 3:].eq(4).all()


@pytest.mark.parametrize(
    ("rows", "shape"),
    [(2, (11, 22)), (3, (16, 16)), (4, (16, 16)), (6, (12, 18)), (9, (15, 15)), (21, (15, 15))],
)
def test_mosaic_is_about_square_and_no_larger_than_one_picture(rows: int, shape: tuple[int, int]) -> None:
    assert mosaic(torch.zeros(rows, 4, 16, 16)).shape == (1, 4, *shape)


def test_mosaic_of_a_wide_or_tall_picture() -> None:
    assert mosaic(torch.zeros(4, 4, 4, 32)).shape[-2:] == (8, 16)
    assert mosaic(torch.zeros(4, 4, 32, 4)).shape[-2:] == (16, 8)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 3), (13, 13), (64, 64), (65, 43), (96, 160)])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 21, 22, 64])
def test_mosaic_costs_as_much_as_one_picture(rows: int, size: tuple[int, int]) -> None:
    board = mosaic(torch.ones(rows, 16, *size, dtype=torch.bfloat16))
    assert board.dtype == torch.bfloat16
    assert board.shape[:2] == (1, 16)
    assert board[0, 0].numel() <= max(size[0] * size[1], 2 * rows)  # every row has one place at least
    assert board[0, 0].sum() >= rows


def test_mosaic_takes_places_as_they_are() -> None:
    """The numbers of one place belong together: a decoder makes another thing of the mean of two."""
    x = torch.randn(4, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mosaic(x)[0, :, 4:, :6], x[2, :, 1::2, 1::2])
    assert torch.equal(mosaic(x)[0, :, :4, 6:], x[1, :, 1::2, 1::2])


def test_mosaic_of_what_is_no_picture_is_its_first_row() -> None:
    assert mosaic(torch.zeros(3, 4, 2, 8, 8)).shape == (1, 4, 2, 8, 8)
    one = torch.ones(1, 4, 2, 2)
    assert torch.equal(mosaic(one), one)
