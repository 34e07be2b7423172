"""Edges of disparity moved to those of the picture: scenes whose right answer is known exactly, and ray-traced ones."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.depth.edges import align_to_image, edge_reach
from bokeh_ops.errors import BokehError

NEAR, FAR = 0.9, 0.3


def two_planes(size: tuple[int, int] = (48, 64)) -> tuple[Tensor, Tensor]:
    """A slanted red thing before a blue wall, both mottled, and the disparity of the two."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    near = x + y / 3 < width / 2
    colours = torch.where(
        near, torch.tensor([0.8, 0.2, 0.1]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.7]).view(3, 1, 1)
    )
    mottled = torch.rand(3, height, width, generator=torch.Generator().manual_seed(2)) * 0.06
    return (colours + mottled)[None], torch.where(near, NEAR, FAR)[None, None]


def grown(disparity: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(disparity, 2 * pixels + 1, 1, pixels)


def enlarged(disparity: Tensor, factor: int) -> Tensor:
    height, width = disparity.shape[2:]
    small = F.interpolate(disparity, size=(height // factor, width // factor), mode="area")
    return F.interpolate(small, size=(height, width), mode="bilinear")


SPOILT = {
    "enlarged 4 x": lambda d: enlarged(d, 4),
    "enlarged 8 x": lambda d: enlarged(d, 8),
    "blurred": lambda d: F.avg_pool2d(F.pad(d, [3] * 4, mode="replicate"), 7, 1),
    "a pixel too large": lambda d: grown(d, 1),
    "two pixels too large": lambda d: grown(d, 2),
    "two pixels too small": lambda d: -grown(-d, 2),
}


@pytest.mark.parametrize("what", SPOILT)
def test_the_edge_comes_back_to_where_the_colours_change(what: str, device: str) -> None:
    image, truth = (plane.to(device) for plane in two_planes())
    spoilt = SPOILT[what](truth)
    inside = slice(None), slice(None), slice(4, -4), slice(4, -4)
    wrong = ((spoilt - truth).abs() > 0.05)[inside].float().mean()
    assert wrong > 0.015  # spoilt it is
    aligned = align_to_image(spoilt, image, reach=8)
    left = (aligned - truth).abs()[inside]
    assert float((left > 0.05).float().mean()) < 0.1 * wrong
    assert float(left.median()) < 1e-3


def test_where_the_picture_says_nothing_an_edge_stays() -> None:
    """A grey picture: only nearness counts, so a straight edge stays where it is."""
    truth = torch.full((1, 1, 40, 60), FAR)
    truth[..., :30] = NEAR
    aligned = align_to_image(truth, torch.full((1, 3, 40, 60), 0.5), reach=8)
    assert torch.allclose(aligned, truth, atol=1e-6)


def test_flat_maps_and_slopes_keep_their_bits(device: str) -> None:
    image = two_planes()[0].to(device)
    for disparity in (
        torch.full((1, 1, 48, 64), 0.4),
        torch.linspace(0.1, 0.9, 64).expand(1, 1, 48, 64),
        torch.linspace(0.1, 0.9, 48).view(1, 1, -1, 1).expand(1, 1, 48, 64),
    ):
        disparity = disparity.to(device)
        assert torch.equal(align_to_image(disparity, image), disparity)


def test_far_from_edges_nothing_changes() -> None:
    image, truth = two_planes((96, 128))
    noisy = enlarged(truth, 4) + 1e-3 * torch.rand(1, 1, 96, 128)
    aligned = align_to_image(noisy, image, reach=8)
    y, x = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
    far = (x + y / 3 - 64).abs() > 8 + 6
    assert torch.equal(aligned[0, 0][far], noisy[0, 0][far])
    assert not torch.equal(aligned, noisy)


def test_batches_types_one_map_for_all_and_mirrors() -> None:
    image, truth = two_planes()
    spoilt = enlarged(truth, 4)
    images = torch.cat([image, image.flip(3)])
    both = align_to_image(torch.cat([spoilt, spoilt.flip(3)]), images)
    one = align_to_image(spoilt, image)
    assert torch.equal(both[:1], one)
    assert torch.allclose(both[1:].flip(3), one, atol=1e-5)
    assert torch.allclose(align_to_image(spoilt.mT, image.mT).mT, one, atol=1e-5)
    single = align_to_image(spoilt, torch.cat([image, image]))
    assert torch.equal(single, torch.cat([one, one]))
    assert align_to_image(spoilt.half(), image.half()).dtype == torch.float16
    exact = align_to_image(spoilt.double(), image.double())
    assert exact.dtype == torch.float64
    assert float((exact - one).abs().max()) < 1e-4
    alpha = torch.cat([image, torch.rand(1, 1, 48, 64)], 1)
    assert torch.equal(align_to_image(spoilt, alpha), one)
    grey = align_to_image(spoilt, image[:, :1])  # one channel is weighed as three equal ones
    assert torch.equal(grey, align_to_image(spoilt, image[:, :1].expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (3, 2)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    disparity = torch.rand(1, 1, *size)
    aligned = align_to_image(disparity, torch.rand(1, 3, *size))
    assert aligned.shape == disparity.shape
    assert disparity.min() - 1e-6 <= aligned.min() <= aligned.max() <= disparity.max() + 1e-6


def test_reach_grows_with_the_picture_and_with_the_enlargement() -> None:
    assert edge_reach(384, 512) == 8
    assert edge_reach(1536, 2048) == 32
    assert edge_reach(100, 100) == 4
    assert edge_reach(384, 512, enlarged=16.0) == 16


def test_progress_and_stopping() -> None:
    image, truth = two_planes()
    seen: list[tuple[int, int]] = []
    align_to_image(
        truth, image.expand(3, -1, -1, -1), progress=lambda done, total: seen.append((done, total))
    )
    assert {total for _, total in seen} == {300}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {0, 50, 100, 150, 300} <= {done for done, _ in seen}
    assert seen[-1] == (300, 300)

    class Stop(Exception):
        pass

    def stop(*_: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        align_to_image(truth, image, progress=stop)


def test_what_does_not_belong_together_is_refused() -> None:
    image, truth = two_planes()
    with pytest.raises(BokehError, match="size and batch must agree"):
        align_to_image(truth[..., :-1], image)
    with pytest.raises(BokehError, match="size and batch must agree"):
        align_to_image(truth.expand(2, -1, -1, -1), image.expand(3, -1, -1, -1))
    with pytest.raises(BokehError, match="reach is 0"):
        align_to_image(truth, image, reach=0)


def test_ray_traced_scenes(shared: Path) -> None:
    """Of the pixels within 8 of an edge over 0.15 dioptres, the share whose disparity is wrong by over 0.1."""
    exr = pytest.importorskip("OpenEXR")
    for folder in sorted((shared / "scenes").glob("scene_*")):
        parts = [exr.File(str(folder / name)).channels() for name in ("image.exr", "depth.exr")]
        colour = np.asarray(parts[0]["RGB"].pixels, np.float32)
        depth = np.asarray(next(iter(parts[1].values())).pixels, np.float32)
        image = torch.from_numpy(colour).movedim(-1, 0)[None].clamp(0, 1) ** (1 / 2.2)
        truth = 1 / torch.from_numpy(depth)[None, None]
        edge = grown((grown(truth, 1) + grown(-truth, 1) > 0.15).float(), 8) > 0

        def wrong(disparity: Tensor, truth: Tensor = truth, edge: Tensor = edge) -> float:
            return float(((disparity - truth).abs() > 0.1)[edge].float().mean())

        soft = enlarged(truth, 4)
        assert wrong(align_to_image(soft, image)) < 0.55 * wrong(soft)
        assert wrong(align_to_image(truth, image)) < 0.03


def thing(shape: str, height: int, width: int) -> Tensor:
    """Where a thing is in the middle of a picture, of ``[H, W]``."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x, y = x - width / 2, y - height / 2
    angle, length = torch.atan2(y, x), torch.hypot(x, y)
    return {
        "bar": x.abs() < width / 16,
        "slanted bar": (x + 0.37 * y).abs() < width / 12,
        "disc": length < 0.3 * height,
        "leaves": length < height * (0.25 + 0.12 * torch.sin(7 * angle) + 0.05 * torch.sin(17 * angle + 1)),
        "wire": (x + 0.2 * y + 4 * torch.sin(y / 12)).abs() < 1.2,
        "hair": (length < 0.15 * height) | ((torch.sin(12 * angle + length / 20) * length).abs() < 12),
    }[shape]


PATTERNS = ("stripes", "fine stripes", "upright stripes", "chessboard", "salt and pepper", "noise")


def pattern(kind: str, height: int, width: int, shared: Tensor, other: Tensor) -> Tensor:
    """Two colours ``[3]``, or noise that holds them among others, ``[3, H, W]``."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(3))
    first = {
        "stripes": y // 12 % 2 == 0,
        "upright stripes": x // 11 % 2 == 0,
        "fine stripes": y // 2 % 2 == 0,
        "chessboard": (y // 12 + x // 12) % 2 == 0,
        "salt and pepper": noise[0] < 0.5,
        "noise": None,
    }[kind]
    return noise if first is None else torch.where(first, shared.view(3, 1, 1), other.view(3, 1, 1))


def before(
    shape: str, kind: str, inverse: bool = False, size: tuple[int, int] = (192, 256)
) -> tuple[Tensor, Tensor]:
    """A plain thing before a pattern that shares its colour, or a patterned one before plain ground; what is near."""
    shared, other, near = torch.tensor([0.8, 0.7, 0.55]), torch.tensor([0.2, 0.25, 0.4]), thing(shape, *size)
    plain, patterned = shared.view(3, 1, 1).expand(3, *size), pattern(kind, *size, shared, other)
    image = torch.where(near != inverse, plain, patterned)
    image = image + 0.02 * torch.randn(image.shape, generator=torch.Generator().manual_seed(4))
    return image.clamp(0, 1)[None], near


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", ["bar", "slanted bar", "disc", "leaves", "wire", "hair"])
def test_an_exact_map_is_left_alone(shape: str, inverse: bool) -> None:
    """Its things stand on sloping ground, and it is as exact as its file allows."""
    for number, kind in enumerate(PATTERNS):
        image, near = before(shape, kind, inverse, (144, 192))
        truth = torch.where(near, NEAR, FAR + torch.linspace(0, 0.05, len(near))[:, None])[None, None]
        levels = (255, 65535)[number % 2]
        given = (truth * levels).round() / levels
        assert int((align_to_image(given, image) != given).sum()) == 0, kind


@pytest.mark.parametrize("shape", ["slanted bar", "disc", "leaves"])
def test_an_antialiased_exact_map_is_left_alone(shape: str) -> None:
    image, _ = before(shape, "chessboard")
    given = FAR + (NEAR - FAR) * F.avg_pool2d(thing(shape, 4 * 192, 4 * 256).float()[None, None], 4)
    assert int(((given > FAR + 0.01) & (given < NEAR - 0.01)).sum()) > 200  # mixed it is
    assert torch.equal(align_to_image(given, image), given)


@pytest.mark.parametrize("kind", ["stripes", "noise"])
def test_a_bar_before_a_pattern_of_its_colour_has_no_whiskers(kind: str) -> None:
    """At the width at which they were up to ten pixels long."""
    image, near = before("slanted bar", kind, size=(240, 1280))
    truth = torch.where(near, NEAR, FAR)[None, None]
    assert torch.equal(align_to_image(truth, image), truth)


@pytest.mark.parametrize("kind", ["fine stripes", "salt and pepper", "chessboard"])
def test_what_moves_is_connected_to_its_thing(kind: str) -> None:
    """In a soft map: from every pixel that came near a way within what is near leads to what was near before."""
    image, near = before("leaves", kind)
    given = enlarged(torch.where(near, NEAR, FAR)[None, None], 4)
    middle = (NEAR + FAR) / 2
    aligned = align_to_image(given, image) > middle
    assert int((aligned & (given < middle)).sum()) > 50  # it does move
    reached = aligned & (given > middle)
    for _ in range(40):
        reached = (grown(reached.float(), 1) > 0) & aligned
    assert int((aligned & ~reached).sum()) == 0


@pytest.mark.host
def test_at_default_settings_an_exact_map_gives_the_picture_that_as_is_gives(pack: ModuleType) -> None:
    image, near = before("disc", "salt and pepper", size=(96, 128))
    settings = [each.default for each in pack.nodes.render.BokehMeRender.define_schema().inputs[2:13]]
    made = []
    for edges in ("aligned to the image", "as is"):
        settings[3] = edges
        picture = image.movedim(1, -1)
        made.append(pack.nodes.render.BokehMeRender.execute(picture, near[None].float(), *settings).result[0])
    assert torch.equal(*made)
    assert not torch.equal(made[0], image.movedim(1, -1))
