"""Scenes of tilted planes: the tracer against closed forms and a path tracer, what is drawn, and the command."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bokeh_ops.errors import BokehError
from tests import planes
from trainer import toy
from trainer.cli import main
from trainer.data import DatasetWriter, encode_sample, open_dataset
from trainer.measure.metrics import psnr
from trainer.synthesis import Settings, foregrounds, rendered, scene
from trainer.synthesis.canvas import Sheet
from trainer.synthesis.sources import background, foreground
from trainer.synthesis.trace import Layer, Plane, apart, inside, over, trace

SMALL = Settings(width=32, height=24, rays=8)


def textured(side: int, seed: int = 0) -> Tensor:
    """Noise on an opaque plane."""
    light = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))
    return torch.cat([light, torch.ones_like(light[:1])])


def covered(distance: Tensor) -> Tensor:
    """Share of the unit disc on the side ``x < distance`` of a straight line."""
    d = distance.clamp(-1, 1)
    return 0.5 + (d * (1 - d * d).sqrt() + d.asin()) / math.pi


def disc(radius: float, half: int) -> Tensor:
    """Weights of the texels about a point, for a disc of so many pixels and bilinear look-up: ``[2 half + 1] * 2``."""
    steps = (torch.arange(400) + 0.5) / 200 - 1
    inside_disc = steps[:, None] ** 2 + steps**2 <= 1
    texels = torch.arange(-half, half + 1)
    tent = (1 - (texels[:, None] - radius * steps).abs()).clamp_min(0)
    return torch.einsum("iy,jx,yx->ij", tent, tent, inside_disc.float()) / inside_disc.sum()


# ---- the tracer ----


def test_a_plane_at_one_depth_is_convolved_with_the_disc(device: str) -> None:
    paint, radius = textured(64), 5.3
    made = trace([Layer(paint.to(device), Plane(1.4), 10)], radius, 0.4, rays=1024).cpu()
    expected = torch.nn.functional.conv2d(paint[:3, None], disc(radius, 7)[None, None], padding=7)[:, 0]
    assert float((made - expected[:, 10:-10, 10:-10]).abs().max()) < 0.012


def test_the_blur_of_a_tilted_plane_follows_its_disparity() -> None:
    """A point of light becomes a disc about its own place, of radius K (d - focus), and none of it is lost.

    Where the plane comes nearer the disc is fainter, by 1 - K b.u, which moves its middle by K b radius / 4.
    """
    slope, k, focus = torch.tensor([0.024, -0.012]), 12.0, 0.9
    for place in torch.tensor([[-29.5, 10.5], [20.5, 20.5], [27.5, -25.5]]):
        paint = torch.zeros(4, 176, 176)
        paint[3] = 1
        paint[:3, int(87.5 + place[1]), int(87.5 + place[0])] = 1
        made = trace([Layer(paint, Plane(1.0, (0.024, -0.012)), 40)], k, focus, rays=1024)[0].flatten()
        across = torch.arange(96) - 47.5
        away = torch.stack(torch.meshgrid(across, across, indexing="xy"), -1).reshape(-1, 2) - place
        radius = k * float(1.0 + slope @ place - focus)
        assert float(made.sum()) == pytest.approx(1, abs=0.01)
        assert float(made @ away.square().sum(1)) == pytest.approx(radius**2 / 2 + 1 / 3, rel=0.015)
        assert torch.allclose(made @ away, k * slope * radius / 4, atol=0.05)
        assert float(away[made > 1e-6].norm(dim=1).max()) < abs(radius) + 1.8


def test_what_is_in_focus_has_no_halo() -> None:
    """A bright plane in focus before a blurred one: no light crosses its edge either way, and nothing of it moves."""
    near = textured(72, 1) * 0.5 + 0.5
    near[:, :, 36:] = 0
    near[3, :, :36] = 1
    far = textured(72)
    far[:3] = 0.1
    made = trace([Layer(far, Plane(0.2), 12), Layer(near, Plane(1.0), 12)], 12.0, 1.0, rays=32)
    assert torch.allclose(made[:, :, :24], near[:3, 12:-12, 12:36], atol=1e-4)
    assert torch.allclose(made[:, :, 24:], torch.tensor(0.1), atol=1e-4)


def test_a_blurred_edge_is_half_transparent_and_shows_what_is_hidden() -> None:
    far, radius = textured(88), 9.0
    near = torch.zeros(4, 88, 88)
    near[0, :, :44], near[3, :, :44] = 0.8, 1
    made = trace([Layer(far, Plane(0.5), 12), Layer(near, Plane(1.5), 12)], radius, 0.5, rays=512)
    opacity = covered((44 - 12 - torch.arange(64) - 0.5) / radius)
    colour = torch.tensor([0.8, 0, 0])[:, None, None]
    expected = opacity * colour + (1 - opacity) * far[:3, 12:-12, 12:-12]
    assert float((made - expected).abs().max()) < 0.015
    assert 0.1 < float(opacity[28]) < 0.9  # there the plane is opaque as painted, and what it hides is seen
    assert float(made[:, :, 28].std()) > 0.02


def test_the_border_sees_what_lies_outside() -> None:
    paint, plane = textured(96), Plane(1.0, (0.004, 0.002))
    whole = trace([Layer(paint, plane, 16)], 6.0, 0.2, rays=512)
    piece = trace([Layer(paint, plane, 28)], 6.0, 0.2, rays=512)
    assert float((whole[:, 12:-12, 12:-12] - piece).abs().max()) < 0.02


def test_at_k_0_layers_are_laid_over_one_another(device: str) -> None:
    paints = [textured(40).to(device), *(textured(40, seed).to(device) * 0.4 for seed in (1, 2))]
    layers = [Layer(paint, Plane(number + 0.5, (0.001, 0)), 4) for number, paint in enumerate(paints)]
    far, middle, near = (inside(layer) for layer in layers)
    composite = near[:3] + (1 - near[3]) * (middle[:3] + (1 - middle[3]) * far[:3])
    assert torch.allclose(trace(layers, 0.0, 0.7), composite, atol=1e-6)
    _, alpha = over([middle, near])
    assert torch.allclose(alpha, torch.full_like(alpha, 1 - 0.6**2))


def test_against_a_path_tracer(device: str) -> None:
    """Two tilted planes, one with alpha, rendered by Mitsuba's thin lens (`tests/planes.py`)."""
    truth = torch.from_numpy(np.load(planes.FILE)["light"].astype(np.float32))
    layers = [
        Layer(torch.from_numpy(paint).to(device), Plane(middle, slope), planes.MARGIN)
        for paint, (middle, slope) in zip(planes.paintings(), planes.PLANES, strict=True)
    ]
    for expected, (k, focus) in zip(truth, planes.CASES, strict=True):
        assert psnr(trace(layers, k, focus, rays=512).cpu().clamp(0, 1), expected.clamp(0, 1)) > 49
        flat = [Layer(layer.paint, Plane(layer.plane.middle), planes.MARGIN) for layer in layers]
        assert (
            psnr(trace(flat, k, focus, rays=512).cpu().clamp(0, 1), expected.clamp(0, 1)) < 42
        )  # it can tell


def test_planes_that_cannot_be_traced() -> None:
    flat = Layer(textured(40), Plane(1.0), 4)
    with pytest.raises(BokehError, match="cuts through a lens"):
        trace([Layer(textured(40), Plane(1.0, (0.3, 0.0)), 4)], 4.0, 1.0)
    with pytest.raises(BokehError, match=r"rays go 10\.5 pixels beyond"):
        trace([flat], 10.0, 0.0)
    with pytest.raises(BokehError, match="another order than from far to near"):
        trace([flat, Layer(textured(40), Plane(0.9), 4)], 1.0, 1.0)
    with pytest.raises(BokehError, match="cut one another"):
        trace([flat, Layer(textured(40), Plane(1.1, (0.02, 0.0)), 4)], 1.0, 1.0)
    with pytest.raises(BokehError, match="expected at least one layer"):
        trace([flat, Layer(textured(42), Plane(2.0), 4)], 1.0, 1.0)


# ---- scenes ----


def test_a_scene_depends_on_its_number_alone() -> None:
    first = [scene(3, index, SMALL) for index in range(3)]
    for index in (2, 0):
        before, again = first[index], scene(3, index, SMALL)
        assert (again.ks, again.focus, again.caption) == (before.ks, before.focus, before.caption)
        for one, other in zip(rendered(before, rays=8), rendered(again, rays=8), strict=True):
            assert torch.equal(one, other)
    assert len({made.focus for made in [*first, scene(4, 0, SMALL)]}) == 4


def test_scenes_are_as_the_settings_say() -> None:
    settings = Settings(48, 32, (1, 2), disparity=(0.2, 2.0), tilt=2.0, k=(4.0, 20.0), levels=3)
    focused, tilts = set(), []
    for index in range(8):
        made = scene(0, index, settings)
        focused.add(made.focused)
        planes_of = [layer.plane for layer in made.layers]
        assert len(planes_of) in (2, 3)
        assert apart(planes_of, (32, 48), made.layers[0].margin)
        assert all(0.2 < plane.middle < 2.0 for plane in planes_of)
        tilts += [math.hypot(*plane.slope) * 48 / plane.middle for plane in planes_of]
        none, less, more = made.ks
        assert none == 0 < 4 * 48 / 512 <= less <= 12 * 48 / 512 <= more <= 20 * 48 / 512
        shown = inside(made.layers[made.focused])[3]
        x, y = torch.arange(48) - 23.5, torch.arange(32) - 15.5
        plane = made.layers[made.focused].plane
        there = plane.middle + plane.slope[0] * x + plane.slope[1] * y[:, None]
        assert made.focus == pytest.approx(float((there * shown).sum() / shown.sum()), rel=1e-4)
        assert float(made.layers[0].paint[3].min()) == 1
        assert float(made.layers[-1].paint.amax()) <= 1 + 1e-6
        assert bool((made.layers[-1].paint[:3] <= made.layers[-1].paint[3:] + 1e-6).all())
    assert focused == {0, 1, 2}
    assert 0.8 < max(tilts) <= 2.0


def test_what_is_known_of_a_scene_is_exact() -> None:
    made = next(found for index in range(9) if len((found := scene(1, index, SMALL)).layers) == 4)
    pictures = rendered(made, [0.0, 1.0], rays=8)
    assert torch.equal(pictures.blurred[0], pictures.sharp)
    assert not torch.equal(pictures.blurred[1], pictures.sharp)
    clear = torch.stack([1 - inside(layer)[3] for layer in made.layers[1:]]).prod(0)
    assert torch.allclose(pictures.alpha, 1 - clear, atol=1e-6)
    for row, column in np.ndindex(24, 32):
        nearest = [layer for layer in made.layers if float(inside(layer)[3, row, column]) >= 0.5][-1].plane
        expected = nearest.middle + nearest.slope[0] * (column - 15.5) + nearest.slope[1] * (row - 11.5)
        assert float(pictures.disparity[row, column]) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(BokehError, match="Paint more, or give a smaller K"):
        rendered(made, [9.0])


@pytest.mark.parametrize("name", foregrounds.PROCEDURAL)
def test_foregrounds_have_fine_edges(name: str) -> None:
    paint = foregrounds.PROCEDURAL[name](np.random.default_rng(0), Sheet(96, 96, 16))
    alpha = inside(Layer(paint, Plane(1.0), 16))[3]
    assert 0.02 < float(alpha.mean()) < 0.9
    assert float(((alpha > 0.05) & (alpha < 0.95)).float().mean()) > 0.03
    assert float(paint[:3].amax()) > 0.05


# ---- pictures of one's own ----


def test_foregrounds_and_backgrounds_of_ones_own(tmp_path: Path) -> None:
    (front := tmp_path / "front").mkdir()
    (back := tmp_path / "back").mkdir()
    cut = np.zeros((40, 30, 4), np.uint8)
    cut[8:30, 5:25] = (188, 0, 0, 128)  # half of white's light, half transparent
    Image.fromarray(cut).save(front / "cut.png")
    Image.new("RGB", (90, 60), (0, 0, 255)).save(back / "photo.jpg")
    picture, mask = np.full((32, 32, 3), (0, 255, 0), np.uint8), np.zeros((32, 32))
    mask[6:26, 6:26] = 0.5  # a rim that shows what is behind
    picture[8:24, 8:24], mask[8:24, 8:24] = (255, 0, 0), 1
    writer, info = (
        DatasetWriter(tmp_path / "data", (32, 32), {}),
        {"captions": [], "k": 0.0, "all_in_focus": True},
    )
    writer.add("one", encode_sample(picture, np.ones((32, 32)), mask, info, "png"))
    writer.finish()
    data, sheet, chance = str(tmp_path / "data"), Sheet(32, 32, 8), np.random.default_rng(0)
    paint = foreground(chance, str(front), sheet).paint
    assert float(paint[3].max()) == pytest.approx(0.5, abs=0.01)
    assert 0.25 < float(paint[0].max() / paint[3].max()) < 0.59
    paint = foreground(chance, data, sheet).paint
    assert float(paint[0].max()) > 0.5
    assert float(paint[1].max()) < 0.02
    assert 0.3 < float(paint[3][(paint[3] > 0.1) & (paint[3] < 0.9)].median()) < 0.7
    assert background(chance, str(back), sheet).paint[2].min() > 0.9
    for source in (data, "world"):
        paint = background(chance, source, sheet).paint
        assert paint.shape == (4, 48, 48)
        assert float(paint[:3].std()) > 0.05


def test_pictures_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGBA", (20, 20), (9, 9, 9, 255)).save(tmp_path / "opaque.png")
    sheet, chance = Sheet(32, 32, 8), np.random.default_rng(0)
    with pytest.raises(BokehError, match=r"opaque\.png cannot be used: it is opaque everywhere"):
        foreground(chance, str(tmp_path), sheet)
    (tmp_path / "photo.jpg").write_bytes(b"no picture")
    (tmp_path / "opaque.png").unlink()
    with pytest.raises(BokehError, match=r"photo\.jpg cannot be used"):
        background(chance, str(tmp_path), sheet)
    (tmp_path / "empty").mkdir()
    assert synthesize(tmp_path / "out", "--foregrounds", str(tmp_path / "empty")) == 1
    assert "holds no pictures; expected .png" in capsys.readouterr().err
    assert synthesize(tmp_path / "out", "--foregrounds", "world") == 1
    assert "neither a folder nor one of the words procedural." in capsys.readouterr().err
    blurred = toy.write_dataset(tmp_path / "data", photographs=1, sharp=0)
    assert synthesize(tmp_path / "out", "--backgrounds", str(blurred)) == 1
    assert "None of the 1 photographs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- the command ----


def synthesize(out: Path, *words: str) -> int:
    size = ["--size", "32", "24", "--samples-per-shard", "6"]
    return main(["synthesize", str(out), *size, "--scenes", "3", "--rays", "4", "--levels", "3", *words])


def test_the_command_writes_a_data_set(tmp_path: Path) -> None:
    assert synthesize(tmp_path / "out", "--seed", "5", "--k-least", "3") == 0
    made = open_dataset(tmp_path / "out")
    assert (len(made), made.resolution) == (9, (32, 24))
    settings = Settings(width=32, height=24, levels=3, k=(3.0, 30.0), rays=4)
    for index in range(3):
        samples = [made.sample(3 * index + level) for level in range(3)]
        assert [sample.key for sample in samples] == [f"scene-{index:06d}-{level}" for level in range(3)]
        drawn = scene(5, index, settings)
        expected = rendered(drawn, rays=4)
        for level, sample in enumerate(samples):
            assert np.array_equal(sample.image, expected.blurred[level].numpy())
            assert np.allclose(sample.disparity, expected.disparity.numpy(), atol=1e-4)
            assert np.allclose(sample.mask, expected.alpha.numpy(), atol=0.003)
            assert (sample.k, sample.all_in_focus) == (drawn.ks[level], level == 0)
            assert 1 / sample.info["s1_m"] == pytest.approx(drawn.focus)
            assert sample.captions == (drawn.caption,)
            assert sample.info["scene"] == f"scene-{index:06d}"
    assert not (tmp_path / "out" / "begun.json").exists()


def test_killed_resumed_and_in_several_processes_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.synthesis import command

    assert synthesize(tmp_path / "whole") == 0
    original, calls = command._synthesized, []

    def killed(*arguments: Any) -> Any:
        calls.append(arguments[-1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(command, "_synthesized", killed)
    assert synthesize(tmp_path / "again") == 130
    assert synthesize(tmp_path / "again", "--seed", "1") == 1
    assert "begun with other settings (seed)" in capsys.readouterr().err
    assert synthesize(tmp_path / "again") == 0
    assert calls == [0, 1, 2, 2]  # two scenes filled a shard and were kept, the third was not
    monkeypatch.undo()
    assert synthesize(tmp_path / "two", "--workers", "2") == 0
    for file in sorted((tmp_path / "whole").rglob("*.*")):
        for other in ("again", "two"):
            assert (tmp_path / other / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()
    assert synthesize(tmp_path / "whole") == 1
    assert "is a finished data set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scenes", "0"], "--scenes is 0; it must be at least 1"),
        (["--workers", "0"], "--workers is 0; it must be at least 1"),
        (["--seed", "-1"], "--seed is -1"),
        (["--size", "1", "2", "3"], "--size has 3 numbers"),
        (["--size", "8"], "too small"),
        (["--planes", "2", "1"], "the least first"),
        (["--disparity", "0", "1"], "numbers above 0"),
        (["--disparity", "1", "20"], "too near to the lens"),
        (["--k-most", "nan"], "K is to lie between"),
        (["--levels", "1"], "at least 2 and 1"),
        (["--tilt", "-1"], "The tilt is -1"),
        (["--device", "cuda:99"], "The device 'cuda:99' cannot be used"),
    ],
)
def test_bad_words(tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert synthesize(tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
