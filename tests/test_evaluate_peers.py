"""The renderers that are only there to be measured against."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bokeh_ops.errors import BokehError
from trainer.measure.peers import _convolved, disc_blur, find_peer, gaussian_blur
from trainer.measure.search import best_value

pytest.importorskip("cv2")
Blur = Callable[[torch.Tensor, float], torch.Tensor]


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5))


def spot(size: int = 61) -> torch.Tensor:
    picture = torch.zeros(1, size, size)
    picture[0, size // 2, size // 2] = 1
    return picture


def moments(picture: torch.Tensor) -> tuple[float, float]:
    """Sum, and mean squared distance from the middle."""
    size = picture.shape[-1]
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    squared = offsets[:, None] ** 2 + offsets[None] ** 2
    light = picture[0].double()
    return float(light.sum()), float((light * squared).sum() / light.sum())


def test_a_point_becomes_a_gaussian() -> None:
    total, spread = moments(gaussian_blur(spot(), 5.0))
    assert total == pytest.approx(1, abs=1e-5)
    assert spread == pytest.approx(2 * 25, rel=0.03)  # cut off at three deviations


def test_a_point_becomes_a_disc() -> None:
    total, spread = moments(disc_blur(spot(), 12.0))
    assert total == pytest.approx(1, abs=1e-5)
    assert spread == pytest.approx(12**2 / 2, rel=0.01)


@pytest.mark.parametrize(("blur", "size"), [(gaussian_blur, 4.3), (disc_blur, 7.6), (gaussian_blur, 30.0)])
def test_a_blur_is_a_convolution_with_mirrored_borders(blur: Blur, size: float) -> None:
    picture = noise(3, 40, 52)
    height, width = 40, 52
    if blur is gaussian_blur:
        reach = round(3 * size)
        line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1.0) / size) ** 2)
        kernel = line[:, None] * line[None]
    else:
        reach = int(size + 0.5)
        offsets = torch.arange(-reach, reach + 1.0)
        kernel = (size + 0.5 - torch.hypot(offsets[:, None], offsets[None])).clamp(0, 1)
    kernel = kernel / kernel.sum()
    # Mirrored again and again the picture has a period of twice its size, so that a Fourier transform does it.
    tile = torch.cat((picture, picture.flip(2)), 2)
    tile = torch.cat((tile, tile.flip(1)), 1)
    wrapped = torch.zeros(2 * height, 2 * width)
    places = torch.arange(-reach, reach + 1)
    wrapped.index_put_((places[:, None] % (2 * height), places[None] % (2 * width)), kernel, accumulate=True)
    whole = torch.fft.irfft2(torch.fft.rfft2(tile) * torch.fft.rfft2(wrapped), s=tile.shape[1:])
    expected = whole[:, :height, :width]
    assert torch.allclose(blur(picture, size), expected, atol=2e-5)
    assert torch.allclose(_convolved(picture, kernel), expected, atol=2e-5)  # as it is done on a GPU


def test_a_blur_on_another_device() -> None:
    picture = noise(3, 40, 52)
    for blur, size in ((gaussian_blur, 3.0), (disc_blur, 5.5)):
        if torch.cuda.is_available():
            assert torch.allclose(blur(picture.cuda(), size).cpu(), blur(picture, size), atol=1e-5)
        assert blur(picture.to("meta"), size).shape == picture.shape


@pytest.mark.parametrize("name", ["gaussian-mix", "gaussian-stack-5", "disc-stack-4"])
def test_sharp_in_focus_and_a_plane_out_of_focus_is_a_blur(name: str) -> None:
    peer, picture = find_peer("peer:" + name), noise(3, 30, 40)
    assert torch.equal(peer(picture, torch.zeros(30, 40), 0.5), picture)
    blur = gaussian_blur if name.startswith("gaussian") else disc_blur
    assert torch.allclose(peer(picture, torch.full((30, 40), -6.0), 0.5), blur(picture, 3.0), atol=1e-6)


def test_a_pixel_mixes_the_two_nearest_copies() -> None:
    picture = noise(3, 30, 40)
    defocus = torch.full((30, 40), 8.0)
    defocus[:, 20:] = -3  # three eighths of four steps: between the copies 1 and 2
    found = find_peer("peer:gaussian-stack-5")(picture, defocus, 0.5)
    mixed = (gaussian_blur(picture, 1.0) + gaussian_blur(picture, 2.0)) / 2
    assert torch.allclose(found[..., 20:], mixed[..., 20:], atol=1e-6)
    assert torch.allclose(found[..., :20], gaussian_blur(picture, 4.0)[..., :20], atol=1e-6)
    found = find_peer("gaussian-mix")(picture, defocus, 0.5)
    mixed = torch.lerp(picture, gaussian_blur(picture, 4.0), 3 / 8)
    assert torch.allclose(found[..., 20:], mixed[..., 20:], atol=1e-6)


@pytest.mark.parametrize(
    "name", ["peer:", "peer:gaussian-stack-1", "peer:gaussian-stack-", "peer:box-stack-5"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(BokehError, match="There is no peer named"):
        find_peer(name)


@pytest.mark.parametrize("best", [0.08, 0.35, 1.2])
def test_the_best_strength_is_found(best: float) -> None:
    tried: list[float] = []

    def score(strength: float) -> float:
        tried.append(strength)
        return -abs(math.log(strength / best))

    assert best_value(score, 0.05, 1.5, 9) == pytest.approx(best, rel=0.1)
    assert len(tried) == 9
    for trials in range(2, 9):
        tried.clear()
        assert best_value(score, 0.05, 1.5, trials) == min(
            tried, key=lambda value: abs(math.log(value / best))
        )


def test_a_peer_in_the_evaluation(tmp_path: Path) -> None:
    from tests.test_evaluate_renderer import evaluate, make_scene, write_exr
    from trainer.measure.blb import find_scenes

    scene = make_scene(tmp_path / "scene")
    picture, disparity = find_scenes([scene])[0].load()
    peer = find_peer("gaussian-stack-6")
    for i, k in enumerate((4.0, 9.0)):
        truth = peer(picture, k * (disparity - 0.5), 0.4)
        write_exr(scene / f"bokeh_{i:02d}_00.exr", truth.permute(1, 2, 0).numpy())
    file = tmp_path / "out.json"
    assert (
        evaluate(scene, "--model", "peer:gaussian-stack-6,unchanged", "--input", "hdr", "--json", file) == 0
    )
    found, unchanged = json.loads(file.read_text())["runs"]
    assert [case["strength"] for case in found["cases"]] == pytest.approx([0.4, 0.4], rel=0.1)
    assert found["mean"]["psnr"] > unchanged["mean"]["psnr"] + 10
    assert evaluate(scene, "--model", "peer:nothing") == 2
