"""``python -m trainer evaluate pairs`` on pairs rendered here with a lens that is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bokeh_ops.render import Lens, render
from trainer.cli import main
from trainer.measure.metrics import psnr
from trainer.measure.pair_files import align_mean, find_pairs, focus_of

HEIGHT, WIDTH, K, FOCUS = 72, 96, 6.0, 0.8


def evaluate(*words: object) -> int:
    return main(["evaluate", "pairs", *map(str, words)])


def save(path: Path, picture: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)


def scene(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Blotches of noise, and disparity that falls from 1 at the left to 0 at the right in steps."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, HEIGHT // 2, WIDTH // 2, generator=generator)
    picture = torch.nn.functional.interpolate(small, scale_factor=2)[0] * 0.4 + 0.3
    disparity = (1 - torch.arange(WIDTH) * 6 // WIDTH / 5).expand(HEIGHT, WIDTH)
    return picture, disparity


def blurred(picture: torch.Tensor, disparity: torch.Tensor, k: float = K) -> torch.Tensor:
    lens = Lens(k=k, focus_disparity=FOCUS, gamma=2.2)
    return render(picture[None], disparity[None, None].float(), lens, "classical").image[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(2):
        picture, disparity = scene(seed)
        save(tmp_path / "ebb" / "original" / f"{seed}.png", picture)
        save(
            tmp_path / "ebb" / "bokeh" / f"{seed}.png", blurred(picture, disparity) * 1.15
        )  # a longer exposure
        levels = (20000 + disparity * 30000).round().numpy().astype(np.uint16)
        path = tmp_path / "ebb" / "disparity" / f"{seed}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(levels).save(path)
    return tmp_path / "ebb"


def load(path: Path) -> Any:
    return json.loads(path.read_text())["runs"]


def test_the_lens_is_found(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.json"
    words = ["--model", "classical,unchanged,peer:gaussian-stack-8", "--k-range", "1,40", "--json", file]
    assert evaluate(folder, *words, "--pictures", tmp_path / "pictures") == 0
    classical, unchanged, peer = load(file)
    for row in classical["pictures"]:
        assert row["k"] == pytest.approx(K, rel=0.12)
        assert row["focus"] == pytest.approx(FOCUS)
        assert row["psnr"] > 30  # but for 8 bits, the exposure and what is left of the search, the same lens
        assert row["ssim"] > 0.98
    for pair, row in zip(find_pairs(folder), classical["pictures"], strict=True):
        original, truth, disparity = pair.load()
        shown = blurred(align_mean(original, truth), disparity, row["k"])
        assert row["psnr"] == pytest.approx(psnr(shown, truth), abs=1e-3)
    assert 0.6 * K < peer["mean"]["k"] < 1.8 * K  # on the same scale
    assert unchanged["mean"]["k"] == 0
    assert classical["mean"]["ssim"] > peer["mean"]["ssim"] > unchanged["mean"]["ssim"]
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == sorted(
        f"{seed}_{model}.png"
        for seed in range(2)
        for model in ("classical", "unchanged", "peer-gaussian-stack-8")
    )
    assert "means" in capsys.readouterr().out


def test_far_is_bright_and_focus_is_named(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "disparity").iterdir():
        levels = 65535 - np.asarray(Image.open(path)).astype(np.int64)
        Image.fromarray(levels.astype(np.uint16)).save(path)
    (tmp_path / "focus.json").write_text('{"1": 0.25}')
    file = tmp_path / "out.json"
    words = ["--model", "unchanged", "--inverted", "--focus", tmp_path / "focus.json", "--json", file]
    assert evaluate(folder, *words) == 0
    assert [row["focus"] for row in load(file)[0]["pictures"]] == [pytest.approx(FOCUS), 0.25]


def test_pictures_are_reduced(folder: Path) -> None:
    (pair, _) = find_pairs(folder)
    original, bokeh, disparity = pair.load(side=48)
    assert original.shape == bokeh.shape == (3, 36, 48)
    assert disparity.shape == (36, 48)
    assert (disparity.amin(), disparity.amax()) == (0, 1)
    assert pair.load(side=1000)[0].shape == (3, HEIGHT, WIDTH)  # never enlarged
    with Image.open(pair.original) as whole:
        expected = np.asarray(whole.resize((48, 36), Image.Resampling.BILINEAR)).astype(float)
    assert np.abs(original.permute(1, 2, 0).numpy() * 255 - expected).max() < 1.5


def test_means_are_aligned() -> None:
    picture, _ = scene()
    aligned = align_mean(picture * 0.5, picture)
    assert torch.allclose(aligned, picture, atol=1e-6)
    assert psnr(align_mean(torch.zeros(3, 4, 4), picture[:, :4, :4]), torch.zeros(3, 4, 4)) == float("inf")


def test_focus_is_where_detail_was_kept() -> None:
    picture, disparity = scene()
    assert focus_of(picture, blurred(picture, disparity), disparity) == pytest.approx(FOCUS)
    # Where there is next to no detail, the grain of a photograph looks like detail kept.
    faint = picture.clone()
    faint[:, :, :40] = 0.5 + 0.001 * picture[:, :, :40]
    shown = blurred(faint, disparity)
    shown[:, :, :32] += 0.01 * picture[:, :, :32]
    assert focus_of(faint, shown, disparity) == pytest.approx(0.6)
    flat = torch.full((3, 30, 40), 0.5)
    assert focus_of(flat, flat, torch.full((30, 40), 0.3)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--model", "nothing"], 2, "no lens model named 'nothing'"),
        (["--k-range", "5"], 2, "expected two numbers"),
        (["--k-range", "5,1"], 2, "a number above 0 and a larger one"),
        (["--trials", "1"], 2, "takes at least 2"),
        (["--focus", "nothing.json"], 1, "cannot be read as JSON"),
    ],
)
def test_options_that_make_no_sense(
    folder: Path, words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(folder, "--model", "unchanged", *words) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", '{"2": 0.5}', '{"1": 1.5}', '{"1": "near"}'])
def test_focus_that_is_none(folder: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "focus.json").write_text(content)
    assert evaluate(folder, "--model", "unchanged", "--focus", tmp_path / "focus.json") == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "bokeh" / "1.png").unlink(), "bokeh lacks 1, which"),
        (lambda f: [path.unlink() for path in (f / "original").iterdir()], "holds no pictures"),
        (lambda f: (f / "disparity").rename(f / "depth"), "There is no folder"),
        (
            lambda f: save(f / "bokeh" / "0.png", torch.zeros(3, 20, 30)),
            "the pictures of a pair must be of one size",
        ),
        (lambda f: (f / "disparity" / "0.png").write_bytes(b"x"), "0.png: "),
        (lambda f: save(f / "bokeh" / "1.bmp", torch.zeros(3, 20, 30)), "several pictures named '1'"),
    ],
    ids=["missing", "empty", "no depth", "size", "broken depth", "twice"],
)
def test_folders_that_are_not_whole(
    folder: Path, damage: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(folder)
    assert evaluate(folder, "--model", "unchanged") == 1
    assert message in capsys.readouterr().err
