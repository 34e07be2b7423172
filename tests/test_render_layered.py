"""The occlusion-aware lens against closed forms at edges, ray-traced truth, and itself in tiles."""

from __future__ import annotations

import itertools
import json
import math
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from bokeh_ops.depth.fill import pull_push
from bokeh_ops.render import Aperture, Lens, layered, render
from bokeh_ops.render.highlights import recover
from bokeh_ops.render.matte import take_apart
from bokeh_ops.render.spread import radii, shares
from bokeh_ops.render.surfaces import ladder
from trainer.cli import main

TRUTH = Path(__file__).parent / "data" / "traced.npz"


def psnr(one: Tensor, other: Tensor) -> float:
    encoded = [x.clamp(0, 1) ** (1 / 2.2) for x in (one, other)]
    return -10 * math.log10(float((encoded[0] - encoded[1]).square().mean()))


def half_plane(size: int, near: float, far: float, edge: int, device: str = "cpu") -> Tensor:
    """Disparity ``[1, 1, size, size]``: near to the left of column ``edge``, far from there on."""
    disparity = torch.full((1, 1, size, size), far, device=device)
    disparity[..., :edge] = near
    return disparity


def covered(distance: Tensor) -> Tensor:
    """Share of the unit disc on the side ``x < distance`` of a straight line: its area, closed form."""
    d = distance.clamp(-1, 1)
    return 0.5 + (d * (1 - d * d).sqrt() + d.asin()) / math.pi


def test_a_sharp_edge_keeps_its_colour_and_takes_none(device: str) -> None:
    """In focus in front of a blurred background of one colour: nothing changes on either side, at any blur."""
    for k in (3.0, 12.0, 40.0):
        disparity = half_plane(96, 1.0, 0.0, 48, device)
        image = torch.where(disparity > 0.5, 0.8, 0.1).expand(-1, 3, -1, -1).contiguous()
        made = render(image, disparity, Lens(k, 1.0, 1.0), "layered").image
        assert float((made - image).abs().max()) < 1e-3
        blended = render(image, disparity, Lens(k, 1.0, 1.0), "classical").image
        assert float((blended - image).abs().max()) > 0.05  # what is avoided


def test_a_blurred_edge_covers_what_the_disc_does(device: str) -> None:
    """A near half plane out of focus over a background in focus: opacity is a segment of the disc."""
    size, edge, k = 128, 64, 16.0
    disparity = half_plane(size, 1.0, 0.0, edge, device)
    image = torch.where(disparity > 0.5, 1.0, 0.0).expand(-1, 3, -1, -1).contiguous()
    made = render(image, disparity, Lens(k, 0.0, 1.0), "layered").image[0, 0, size // 2].cpu()
    x = torch.arange(size) + 0.5
    expected = covered((edge - x) / k)
    inside = slice(20, -20)  # the frame cuts the plane off
    assert float((made - expected)[inside].abs().max()) < 0.012


def test_a_thin_bar_is_seen_through() -> None:
    """A bar much narrower than its blur hides its width's share of the lens, and what is behind it shows."""
    size, k = 128, 20.0
    disparity = torch.zeros(1, 1, size, size)
    disparity[..., 62:66] = 1.0
    image = torch.full((1, 3, size, size), 0.5)
    image[..., 62:66] = 0.0
    made = render(image, disparity, Lens(k, 0.0, 1.0), "layered").image[0, 0, size // 2]
    x = torch.arange(size) + 0.5
    expected = 0.5 * (1 - (covered((66 - x) / k) - covered((62 - x) / k)))
    assert float((made - expected).abs().max()) < 0.01


def test_the_two_sides_of_an_edge_see_different_things() -> None:
    """Subject and background both behind the focus: the background that an edge hides stays hidden.

    A sheet at defocus -8 ends at column 64; a background at -24 is bright up to column 64, all of it behind the
    sheet, and dark beyond. Past the edge, a part of the lens sees the background at ``p + 24 u`` where the sheet
    is not at ``p + 8 u``: for p at column 64 + 8 s that is ``u > -s``, beyond column 64 everywhere, all dark.
    """
    size = 160
    disparity = half_plane(size, 2.0, 0.0, 80)
    image = torch.where(disparity > 1, 0.3, 0.0).expand(-1, 3, -1, -1).contiguous()
    made = render(image, disparity, Lens(8.0, 3.0, 1.0), "layered").image[0, 0, size // 2]
    x = torch.arange(size) + 0.5
    expected = 0.3 * covered((80 - x) / 8)
    assert float((made - expected)[40:-40].abs().max()) < 0.03


@pytest.mark.parametrize("piece", [4096, 128], ids=["tiles", "pieces"])
@pytest.mark.parametrize("k", [6.0, 20.0])
def test_tiles_leave_no_seam(monkeypatch: pytest.MonkeyPatch, k: float, piece: int, device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, 300, 420, generator=generator)
    disparity = torch.linspace(0.2, 1.0, 420).expand(1, 1, 300, -1).clone()
    disparity[..., 100:180, 130:250] = 1.6
    image, disparity = image.to(device), disparity.to(device)
    lens = Lens(k, 0.6, 1.0)
    monkeypatch.setattr(layered, "_TILES", {})
    whole = render(image, disparity, lens, "layered").image
    monkeypatch.setattr(layered, "LARGEST", 1000)
    monkeypatch.setattr(layered, "_PIECE", piece)
    monkeypatch.setattr(layered, "_TILES", {device: (128, 64)})
    tiled = render(image, disparity, lens, "layered").image
    assert float((whole - image).abs().mean()) > 0.1
    assert float((whole - tiled).abs().max()) < 1e-4


def test_a_cats_eye_narrows_towards_the_corners() -> None:
    image = torch.zeros(1, 1, 240, 320)
    for y, x in ((120, 160), (34, 34)):
        image[..., y, x] = 1000.0
    disparity = torch.ones(1, 1, 240, 320)
    discs = []
    for strength in (0.0, 1.0):
        lens = Lens(14.0, 0.0, 1.0, Aperture(cats_eye=strength))
        made = render(image, disparity, lens, "layered").image[0, 0]
        discs.append(
            [int((made[y - 20 : y + 20, x - 20 : x + 20] > 0.3).sum()) for y, x in ((120, 160), (34, 34))]
        )
        # The kernels change from place to place, which keeps a constant picture but only nearly the sum.
        assert float(made.sum()) == pytest.approx(2000, rel=0.1 if strength else 1e-3)
    (middle, corner), (middle_cut, corner_cut) = discs
    assert middle_cut == pytest.approx(middle, rel=0.05)
    assert corner == pytest.approx(middle, rel=0.05)
    assert corner_cut < 0.75 * corner


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (3, 3), (65, 130)])
@pytest.mark.parametrize("k", [0.5, 30.0, 4000.0])
def test_any_size_and_any_blur(size: tuple[int, int], k: float) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, *size, generator=generator)
    disparity = torch.rand(2, 1, *size, generator=generator)
    made = render(image, disparity, Lens(k, 0.5, 1.0), "layered").image
    assert made.shape == image.shape
    assert bool(made.isfinite().all())
    assert float(made.min()) >= 0
    assert float(made.max()) <= float(image.max()) + 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    image, disparity = (torch.rand(1, c, 48, 64, generator=generator) for c in (3, 1))
    lens = Lens(9.0, 0.5)
    made = render(image.to(dtype), disparity, lens, "layered").image
    assert made.dtype == dtype
    exact = render(image.to(dtype).float(), disparity, lens, "layered").image
    assert torch.allclose(made.float(), exact, atol=1e-2 if dtype != torch.float64 else 1e-4)


def test_alpha_is_spread_and_weighs_colour() -> None:
    """A red square on nothing: its colour stays red wherever any of it is, its alpha is blurred."""
    image = torch.zeros(1, 4, 64, 64)
    image[:, 1] = 1.0  # what is transparent is green
    image[..., 24:40, 24:40] = torch.tensor([1.0, 0, 0, 1.0]).view(1, 4, 1, 1)
    made = render(image, torch.ones(1, 1, 64, 64), Lens(6.0, 0.0, 1.0), "layered").image[0]
    assert float(made[3].sum()) == pytest.approx(256, rel=1e-3)
    solid = made[3] > 1e-3
    assert int(solid.sum()) > 300
    assert float(made[0][solid].min()) > 0.99
    assert float(made[1][solid].max()) < 0.01


def test_fragments_give_their_pixel_back() -> None:
    """An edge that covers a third of a pixel column: the coverage is found, and the mixture is exact."""
    light = torch.full((3, 20, 20), 0.1)
    light[:, :, :10] = torch.tensor([0.9, 0.5, 2.0]).view(3, 1, 1)
    light[:, :, 10] = light[:, :, 0] / 3 + light[:, :, 19] * 2 / 3
    defocus = torch.zeros(20, 20)
    defocus[:, :10] = 8.0
    parts = take_apart(light, defocus)
    mixed = parts.alpha * parts.near + (1 - parts.alpha) * parts.far
    assert torch.allclose(mixed, light.flatten(1)[:, parts.pixel], atol=1e-5)
    column = parts.pixel % 20 == 10
    assert int(column.sum()) == 20
    assert parts.alpha[column].mean() == pytest.approx(1 / 3, abs=0.02)
    assert parts.near_defocus.mean() == pytest.approx(8.0)
    assert parts.far_defocus.mean() == pytest.approx(0.0)


def test_shares_keep_the_second_moment() -> None:
    defocus = torch.linspace(-40, 40, 4000).reshape(40, 100)
    for part in ladder(defocus):
        nodes = radii(part)
        radius = defocus[(defocus >= part.low) & (defocus < part.high)].abs()
        mixed = shares(radius, nodes)
        assert torch.stack(mixed).sum(0) == pytest.approx(1, abs=1e-5)
        square = sum(share * node**2 for share, node in zip(mixed, nodes, strict=True))
        assert torch.allclose(square, radius.square(), rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]


def test_what_is_unknown_is_filled_from_near_by() -> None:
    weight = torch.ones(1, 64, 64)
    weight[:, 20:44, 20:44] = 0
    ramp = torch.linspace(0, 1, 64).expand(1, 64, 64)
    filled = pull_push(ramp * weight, weight, 8)
    assert torch.equal(filled * weight, ramp * weight)
    assert float((filled - ramp).abs().max()) < 0.2
    assert float(pull_push(ramp * 0, weight * 0, 8).abs().max()) == 0


def test_a_lamp_is_raised_and_a_wall_is_not() -> None:
    y, x = torch.meshgrid(torch.arange(80), torch.arange(160), indexing="ij")
    light = torch.full((3, 80, 160), 0.05)
    light[:, (y - 40) ** 2 + (x - 40) ** 2 < 64] = 1.0  # a lamp: white to dark in a pixel
    wall = (1.15 - torch.hypot(y - 40.0, x - 120.0) / 60).clamp(
        0.05, 1
    )  # a wall: barely clipped, with a shoulder
    light = torch.maximum(light, wall * (x > 80))
    raised = recover(light, torch.full((80, 160), 10.0), 3.0)
    assert float(raised[0, 40, 40]) == pytest.approx(4.0)
    assert float(raised[0, 40, 120]) < 1.2
    dark = light.amin(0) <= 0.97
    assert torch.equal(raised[:, dark], light[:, dark])
    assert torch.equal(recover(light, torch.zeros(80, 160), 3.0), light)  # in focus nothing changes


def paper(kind: str) -> Tensor:
    """Encoded ``[3, 160, 224]`` of something white that is no lamp."""
    y, x = torch.meshgrid(torch.arange(160), torch.arange(224), indexing="ij")
    name, _, number = kind.partition(" ")
    if name == "chessboard":
        value = (y // int(number) + x // int(number)) % 2.0
    elif name == "stripes":
        value = ((0.9 * x + 0.4359 * y) % (4 * int(number)) < int(number)).float()
    elif name == "window":
        value = torch.full((160, 224), 0.2)
        for top in (30, 86):
            for left in (40, 98):
                value[top : top + 48, left : left + 50] = 1.0
    else:
        drawn = Image.new("L", (224, 160), 255)
        write = ImageDraw.Draw(drawn)
        for line in range(10):
            write.text((10, 8 + 15 * line), "No lamp is here. i, o, e and all...", fill=0, font_size=12)
        value = torch.from_numpy(np.asarray(drawn, dtype=np.float32) / 255)
        if number == "inverted":
            value = 1 - value
        elif number == "shaded":
            value = (value * torch.linspace(0.94, 1.03, 224)).clamp(0, 1)
        elif number == "compressed":
            file = BytesIO()
            drawn.save(file, "JPEG", quality=60)
            value = torch.from_numpy(np.asarray(Image.open(file), dtype=np.float32) / 255)
    return value.expand(3, -1, -1)


@pytest.mark.parametrize(
    "kind",
    [
        "chessboard 4",
        "chessboard 8",
        "chessboard 32",
        "stripes 3",
        "stripes 9",
        "window",
        "page",
        "page shaded",
        "page compressed",
        "page inverted",
    ],
)
def test_crisp_white_is_no_lamp(kind: str) -> None:
    """Out of focus by 6 pixels, with the usual recovery: as much light comes out as went in, and in no patches."""
    image, lens = paper(kind), Lens(6.0, 0.0, "srgb")
    light = lens.to_light(image)
    raised = recover(light, torch.full((160, 224), 6.0), lens.recovery)
    assert float(raised.mean() / light.mean()) < 1.01
    assert float((raised - light).max()) < 0.5
    flat = torch.ones(1, 1, 160, 224)
    plain = Lens(6.0, 0.0, "srgb", highlight_recovery=0.0)
    one, other = (render(image[None], flat, each, "layered").image for each in (lens, plain))
    assert float((one - other).abs().max()) < 0.05


def test_lamps_are_known_before_a_page_and_after() -> None:
    """Lamps of several sizes at night, one cut by a twig; brightening around them takes them back little by little."""
    y, x = torch.meshgrid(torch.arange(200), torch.arange(300), indexing="ij")
    at = [(40, 40, 3), (60, 150, 8), (140, 60, 2), (150, 170, 5), (60, 240, 11)]
    lamp = torch.stack([(y - v) ** 2 + (x - u) ** 2 <= r * r for v, u, r in at]).any(0)
    gains = []
    for ambient in (0.02, 0.3, 0.45, 0.55, 0.65):
        light = torch.full((3, 200, 300), ambient)
        light[:, lamp] = 1.0
        light[:, y + x == 210] = ambient  # through the second
        raised = recover(light, torch.full((200, 300), 9.0), 3.0)[0]
        gains.append([float(raised[v, u + 1]) for v, u, _ in at])
    assert gains[0] == pytest.approx([4.0] * 5)
    assert gains[1] == pytest.approx([4.0] * 5)
    assert gains[-1] == pytest.approx([1.0] * 5)
    assert all(1.2 < gain < 3.9 for gain in gains[2])
    for before, after in itertools.pairwise(gains):
        assert all(now <= then for then, now in zip(before, after, strict=True))


def test_progress_ends_at_the_total_and_may_stop() -> None:
    seen: list[tuple[int, int]] = []
    image, disparity = torch.rand(2, 3, 40, 40), torch.rand(2, 1, 40, 40)
    render(image, disparity, Lens(9.0, 0.5), "layered", lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 6

    class Stop(Exception): ...

    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        render(image, disparity, Lens(9.0, 0.5), "layered", stop)


@pytest.mark.parametrize("case", range(3))
def test_against_a_traced_scene(case: int) -> None:
    """A small scene of hairs, lamps and foliage, ray traced: better than a scatter, and as good as it was."""
    data = np.load(TRUTH)
    image, depth, truth = (
        torch.from_numpy(data[name].astype(np.float32)) for name in ("image", "depth", "bokeh")
    )
    k, focus = data["lens"][case]
    lens = Lens(float(k), 1 / float(focus), 1.0)
    disparity = 1 / depth[None, None]
    ours = psnr(render(image[None], disparity, lens, "layered").image, truth[case][None])
    scatter = psnr(render(image[None], disparity, lens, "classical").image, truth[case][None])
    assert ours > scatter + 0.8
    assert ours > data["floor"][case]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "floors"),
    [
        pytest.param("hdr", {"psnr": 34.0, "edge_psnr": 31.0}, id="linear"),
        pytest.param("ldr", {"psnr": 31.0, "edge_psnr": 29.0}, id="8 bit"),
    ],
)
def test_floors_on_traced_scenes(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, floors: dict[str, float]
) -> None:
    monkeypatch.setattr("trainer.measure.metrics.weights.load_lpips", lambda *_: None)  # no floor is about it
    result = tmp_path / "result.json"
    words = ["evaluate", "renderer", str(shared / "scenes"), "--model", "layered", "--input", kind]
    assert main([*words, "--json", str(result)]) == 0
    means = json.loads(result.read_text())["runs"][0]["mean"]
    for name, least in floors.items():
        assert means[name] >= least
