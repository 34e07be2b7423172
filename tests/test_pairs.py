"""`pairs`: contrastive sets on disk, and training from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bokeh_ops.errors import BokehError
from bokeh_ops.render import Lens, render
from tests.fit import losses, run, workshop  # noqa: F401
from tests.models import one_thread  # noqa: F401
from trainer import toy as demo
from trainer.cli import main
from trainer.data import open_dataset
from trainer.data.pairs import focus_of, render_levels, render_set
from trainer.data.pairs.command import set_keys
from trainer.data.sample import Sample

# ruff: noqa: F811 (the fixture `workshop` is imported)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.write_dataset(tmp_path_factory.mktemp("data"), photographs=3, sharp=4)


def pairs(data: Path, out: Path, *words: str) -> int:
    return main(["pairs", str(data), "--out", str(out), "--samples-per-shard", "8", *words])


def test_a_set_is_rendered_by_the_lens_model(data: Path) -> None:
    photograph = open_dataset(data).sample(5)
    pictures = render_set(photograph, [0.0, 0.3, 0.8])
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures[0], photograph.image)
    image = torch.from_numpy(photograph.image).movedim(-1, 0)[None] / 255
    disparity = torch.from_numpy(photograph.disparity)[None, None]
    for picture, k in zip(pictures[1:], (0.3, 0.8), strict=True):
        lens = Lens(k=k, focus_disparity=float(1 / photograph.info["s1_m"]))
        expected = (render(image, disparity, lens).image[0].clamp(0, 1) * 255).round()
        assert np.array_equal(picture, expected.movedim(0, -1).numpy().astype(np.uint8))
    # The subject stays, the rest fades with K.
    inside = photograph.mask > 0.5
    inside[:-1] &= inside[1:]
    contrast = [float(picture[photograph.mask < 0.5].std()) for picture in pictures]
    assert contrast[0] > contrast[1] > contrast[2]


def test_a_set_is_rendered_where_it_is_wanted(data: Path, device: str) -> None:
    """On the device that its pictures are encoded on, and left there."""
    photograph = open_dataset(data).sample(5)
    wanted = torch.device(device)
    image, disparity = (torch.tensor(each).to(wanted) for each in (photograph.image, photograph.disparity))
    made = render_levels(image, disparity, focus_of(photograph), [0.0, 0.8])
    assert made.device.type == wanted.type
    assert made.dtype == torch.uint8
    expected = render_set(photograph, [0.0, 0.8]).astype(int)
    assert abs(made.cpu().numpy() - expected).max() <= 1
    assert abs(render_set(photograph, [0.0, 0.8], device=device) - expected).max() <= 1


def test_the_focus_is_the_subject(data: Path) -> None:
    sample = open_dataset(data).sample(0)
    assert focus_of(sample) == pytest.approx(demo.NEAR)
    unknown = Sample(**{**vars(sample), "info": {"s1_m": None}})
    assert focus_of(unknown) == pytest.approx(demo.NEAR, rel=1e-3)  # by the mask
    nothing = Sample(**{**vars(unknown), "mask": np.zeros_like(sample.mask)})
    with pytest.raises(BokehError, match="nothing to focus on"):
        focus_of(nothing)


def test_the_command_writes_a_data_set_of_sets(data: Path, tmp_path: Path) -> None:
    assert pairs(data, tmp_path / "out", "--levels", "3", "--variants", "2", "--k-most", "24") == 0
    made = open_dataset(tmp_path / "out")
    assert len(made) == 4 * 2 * 3
    k = made.facts()[0].reshape(8, 3) * 512 / demo.SIDE  # in the file at the pictures' own resolution
    assert np.all(np.diff(k) > 0)
    assert len(np.unique(k[k > 0])) == (k > 0).sum()  # drawn continuously
    assert np.all((k[k > 0] < 24) & (k.max() > 16))
    original = open_dataset(data)
    for number in range(8):
        samples = [made.sample(3 * number + level) for level in range(3)]
        (scene,) = {sample.info["scene"] for sample in samples}
        source = original.sample(next(i for i in range(7) if original.key(i) == scene))
        assert source.all_in_focus
        expected = render_set(source, [float(sample.k or 0) for sample in samples])
        for sample, picture in zip(samples, expected, strict=True):
            assert np.array_equal(sample.image, picture)
            assert sample.captions == source.captions
    assert not (tmp_path / "out" / "begun.json").exists()


def test_a_killed_run_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pairs(data, tmp_path / "whole") == 0
    from trainer.data.pairs import command

    original, calls = command._render, []

    def killed(*arguments: Any) -> Any:
        calls.append(arguments[-1])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(command, "_render", killed)
    assert pairs(data, tmp_path / "again") == 130
    assert not (tmp_path / "again" / "dataset.json").exists()
    assert pairs(data, tmp_path / "again") == 0
    assert len(calls) == 4 + 2  # the first two sets filled a shard and were kept, the third was not
    for file in sorted((tmp_path / "whole").rglob("*.*")):
        other = tmp_path / "again" / file.relative_to(tmp_path / "whole")
        assert other.read_bytes() == file.read_bytes()


def test_going_on_with_other_settings_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.data.pairs import command

    def stopped(*_arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "_render", stopped)
        assert pairs(data, tmp_path / "out") == 130
    assert pairs(data, tmp_path / "out", "--seed", "1") == 1
    assert "begun with other settings (seed)" in capsys.readouterr().err


def test_several_workers_write_the_same(data: Path, tmp_path: Path) -> None:
    assert pairs(data, tmp_path / "one") == 0
    assert pairs(data, tmp_path / "two", "--workers", "2") == 0
    one = json.loads((tmp_path / "one" / "dataset.json").read_text())
    assert one["shards"] == json.loads((tmp_path / "two" / "dataset.json").read_text())["shards"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--levels", "1"], 2, "--levels must be at least 2"),
        (["--k-least", "9", "--k-most", "8"], 2, "least first"),
        (["--k-most", "nan"], 2, "K is to lie between"),
        (["--sharp", "2"], 2, "--sharp is 2"),
        (["--seed", "-1"], 2, "--seed is -1"),
        (["--lens", "pinhole"], 2, "no lens model 'pinhole'"),
        (["--device", "cuda:99"], 2, "The device 'cuda:99' cannot be used"),
    ],
)
def test_bad_words(
    data: Path, tmp_path: Path, words: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pairs(data, tmp_path / "out", *words) == status
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_sharp_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = demo.write_dataset(tmp_path / "data", photographs=2, sharp=0)
    assert pairs(data, tmp_path / "out") == 1
    assert "None of the 2 photographs" in capsys.readouterr().err
    assert pairs(tmp_path / "nowhere", tmp_path / "out") == 1


def test_long_keys_stay_usable() -> None:
    keys = set_keys("p" * 80, 3, 4) + set_keys("p" * 79 + "q", 3, 4)
    assert len(set(keys)) == 8
    assert max(map(len, keys)) <= 80


def test_fit_trains_from_them(pack: Any, workshop: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    assert pairs(workshop / "data", out, "--levels", "3") == 0
    run("flux", tmp_path / "run", workshop, f"data.pairs={out}", "contrastive.share=1", "steps=3")
    assert len(losses(tmp_path / "run")) == 3
    with pytest.raises(BokehError, match="holds no contrastive sets"):
        run("flux", tmp_path / "x", workshop, f"data.pairs={workshop / 'data'}")
    with pytest.raises(BokehError, match="have 3 pictures"):
        run("flux", tmp_path / "x", workshop, f"data.pairs={out}", "contrastive.levels=4")
