"""The main jobs, as `python run.py demo` does them: a photograph blurred, a generated sweep, a photograph edited."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.host import demo
from tests.host.server import ComfyServer


@pytest.fixture(scope="module")
def written(comfy_server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("workflows")
    fewer = [folder / path.name for path in demo.WORKFLOWS]
    for path, short in zip(demo.WORKFLOWS, fewer, strict=True):
        text = path.read_text(encoding="utf-8").replace("0, 4, 8, 12, 18, 28", "0, 8, 28")  # half the time
        text = text.replace("[14.0, 30, 1.0", "[14.0, 15, 1.0").replace('"fixed", 30', '"fixed", 15')
        short.write_text(text, encoding="utf-8")
    paths = demo.run(comfy_server, tmp_path_factory.mktemp("output"), fewer)
    return {path.name: path for path in paths}


def detail(pixels: np.ndarray) -> float:
    """How much neighbouring pixels of a grey picture differ."""
    return float(np.abs(np.diff(pixels, axis=1)).mean() + np.abs(np.diff(pixels, axis=0)).mean())


def part(cell: np.ndarray, across: tuple[float, float], down: tuple[float, float]) -> np.ndarray:
    """A region of a picture, given by fractions of its width and height."""
    height, width = cell.shape
    (left, right), (top, bottom) = across, down
    return cell[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]


def test_it_writes_contact_sheets_and_a_defocus_map(written: dict[str, Path]) -> None:
    sheets = ["generated_sweep.png", "photo_bokeh_sheet.png", "photo_edit.png", "photo_edit_lens.png"]
    assert sorted(written) == sorted([*sheets, "photo_bokeh_defocus.png"])
    with (
        Image.open(written["photo_bokeh_defocus.png"]) as image,
        Image.open(demo.ASSETS / "pug.jpg") as photo,
    ):
        assert image.size == photo.size


def cells_of(path: Path, across: int = 3, down: int = 1) -> list[np.ndarray]:
    sheet = np.asarray(Image.open(path).convert("L"), dtype=np.float64)
    rows = [np.array_split(row, across, axis=1) for row in np.array_split(sheet, down)]
    return [cell for row in rows for cell in row]


def test_the_wall_blurs_with_k_and_the_face_stays(written: dict[str, Path]) -> None:
    cells = cells_of(written["photo_bokeh_sheet.png"])
    walls = [detail(part(cell, (0.3, 0.8), (0.1, 0.35))) for cell in cells]
    faces = [detail(part(cell, (0.53, 0.6), (0.48, 0.58))) for cell in cells]
    assert all(sharper > softer for sharper, softer in pairwise(walls)), walls
    assert walls[-1] < 0.5 * walls[0]
    assert faces[-1] > 0.9 * faces[0]


def test_the_generated_background_blurs_with_k_and_the_ball_stays(written: dict[str, Path]) -> None:
    cells = cells_of(written["generated_sweep.png"])
    backgrounds = [detail(part(cell, (0.05, 0.95), (0.05, 0.35))) for cell in cells]
    assert backgrounds[-1] < 0.5 * backgrounds[0], backgrounds


@pytest.mark.parametrize("by", ["photo_edit.png", "photo_edit_lens.png"])
def test_the_photograph_is_edited_both_ways_and_what_is_in_focus_stays(
    written: dict[str, Path], by: str
) -> None:
    """From K 14, third of the five: trees lose detail with K and gain it without; the post keeps its own."""
    cells = cells_of(written[by], 5, 1)
    trees = [detail(part(cell, (0.05, 0.95), (0.1, 0.35))) for cell in cells]
    assert all(sharper > softer for sharper, softer in pairwise(trees)), trees
    assert trees[0] > 1.3 * trees[2] > 1.3 * 1.1 * trees[4], trees
    posts = [detail(part(cell, (0.37, 0.47), (0.38, 0.7))) for cell in cells]
    assert max(posts) < 1.35 * min(posts), posts  # their borders fall otherwise in every cell
