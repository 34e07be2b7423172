"""No setting makes a picture take more time or memory than its size has any use for, on whatever device."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.render import MODELS, Aperture, Lens, LensModel, contract, layered, memory_needed, render
from bokeh_ops.render import aperture as apertures
from bokeh_ops.render.bokehme import BokehMe
from bokeh_ops.render.cache import ByteCache
from bokeh_ops.render.networks import ARNet, IUNet

from .benchmark_render import scene
from .launches import operators

RING = torch.hypot(*torch.meshgrid(*[torch.linspace(-1, 1, 64)] * 2, indexing="ij"))
APERTURES = {
    "round": Aperture(),
    "triangle": Aperture(blades=3),
    "mirror": Aperture(picture=((RING < 1) & (RING > 0.6)).float()),
    "oval": Aperture(squeeze=4.0),
    "cat's eye": Aperture(cats_eye=1.0),
    "soap bubble": Aperture(spherical=-1.0),
}


def bokehme() -> BokehMe:
    torch.manual_seed(1)
    return BokehMe(ARNet(8), IUNet(8))


@pytest.mark.parametrize("k", [60_000.0, 3e38])
@pytest.mark.parametrize("model", ["layered", "classical", "bokehme"])
def test_a_radius_far_beyond_the_picture_is_drawn_as_one_that_covers_it(
    model: str, k: float, device: str
) -> None:
    image, disparity = (plane.to(device) for plane in scene(16, 16))
    which: str | LensModel = bokehme() if model == "bokehme" else model
    start = time.perf_counter()
    out = render(image, disparity, Lens(k, 0.9), which)
    assert time.perf_counter() - start < 2
    assert bool(torch.isfinite(out.image).all())
    # What is reported is what the lens says.
    assert torch.equal(out.defocus, (k * (disparity - torch.tensor(0.9))).clamp(-3.4028234e38, 3.4028234e38))


@pytest.mark.parametrize("aperture", APERTURES)
def test_every_aperture_is_bounded_and_keeps_what_is_even(aperture: str) -> None:
    image, disparity = torch.full((1, 3, 24, 32), 0.5), torch.zeros(1, 1, 24, 32)
    for k in (20.0, 60_000.0):
        start = time.perf_counter()
        out = render(image, disparity, Lens(k, 1.0, aperture=APERTURES[aperture])).image
        assert time.perf_counter() - start < 5
        assert float((out - 0.5).abs().max()) < 2e-3


@pytest.mark.parametrize("model", ["layered", "classical"])
def test_the_bound_leaves_what_fits_and_changes_little_where_a_few_pixels_do_not(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, disparity = scene(48, 32)
    diagonal = (48**2 + 32**2) ** 0.5
    fits = Lens(1.9 * diagonal, 0.9)
    outliers = disparity.clone()
    outliers[0, 0, 5, 3:13] = 1e4  # a metric map whose noise comes close to 0 metres
    near = Lens(6.0, 0.9)
    bounded = [render(image, d, lens, model).image for d, lens in ((disparity, fits), (outliers, near))]
    monkeypatch.setattr(contract, "LARGEST_BLUR", 8.0)
    further = [render(image, d, lens, model).image for d, lens in ((disparity, fits), (outliers, near))]
    assert torch.equal(bounded[0], further[0])
    off = (bounded[1] - further[1]).abs()
    assert float(off.mean()) < 2e-3
    assert float(off.max()) < 0.03


def test_kernels_are_refused_before_they_take_all_memory() -> None:
    start = time.perf_counter()
    for aperture in APERTURES.values():
        with pytest.raises(
            BokehError, match=r"radius is 60000 pixels.*120000 pixels wide.*up to a radius of 1024"
        ):
            aperture.kernel(60_000.0)
    assert time.perf_counter() - start < 1


def test_a_model_whose_work_grows_with_the_square_says_up_to_where_it_goes() -> None:
    image, disparity = torch.rand(1, 3, 1, 1200), torch.zeros(1, 1, 1, 1200)
    for which in ("classical", bokehme()):
        with pytest.raises(
            BokehError, match=r"runs to 1100 pixels; the classical lens model draws up to 1024"
        ):
            render(image, disparity, Lens(1100.0, 1.0, 2.2), which)
    everywhere = render(image, disparity, Lens(1300.0, 1.0, 1.0), "classical").image
    assert torch.allclose(everywhere, image.mean((2, 3), keepdim=True).expand_as(image), atol=1e-5)
    for k in (300.0, 3e38):
        with pytest.raises(BokehError, match=r"the thin lens takes 0 to 256"):
            render(image, disparity, Lens(k, 1.0), "thin_lens")


def test_how_many_kernels_an_accelerator_is_asked_to_launch() -> None:
    """A few for every offset of the widest disc with its soft edge, or, where layers are spread, for every layer."""
    image, disparity = scene(160, 90)
    lens = Lens(15.0, 0.9, 2.2)
    offsets = math.pi * (15 + 4) ** 2
    for model, most in (("classical", 3 * offsets), ("thin_lens", 3 * offsets), ("layered", 6000)):
        asked = operators(lambda model=model: render(image, disparity, lens, model, tile=1024))
        assert 500 < asked.total() < most


@pytest.mark.parametrize("model", ["layered", "classical", "thin_lens", "bokehme"])
def test_tiles_of_any_size_give_the_same_picture(model: str, device: str) -> None:
    image, disparity = (plane.to(device) for plane in scene(150, 100))
    which: str | LensModel = bokehme() if model == "bokehme" else model
    seen: list[tuple[int, int]] = []
    whole = render(image, disparity, Lens(8.0, 0.9, 2.2), which).image
    parts = render(
        image, disparity, Lens(8.0, 0.9, 2.2), which, lambda *share: seen.append(share), tile=64
    ).image
    assert float((whole - parts).abs().max()) < 5e-5
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_networks_in_tiles_need_less_and_give_the_same() -> None:
    net = ARNet(8).eval()
    image, defocus = torch.rand(1, 3, 90, 131), torch.rand(1, 1, 90, 131)
    with torch.no_grad():
        whole, parts = (torch.cat(net(image, defocus, 0.3, tile), 1) for tile in (1024, 32))
    assert float((whole - parts).abs().max()) < 2e-6
    largest: list[int] = []
    handle = net.conv0.register_forward_hook(lambda _net, _given, made: largest.append(made.numel()))
    with torch.no_grad():
        net(image, defocus, 0.3, 32)
    handle.remove()
    assert max(largest) == 8 * (16 + 2 * 8) ** 2  # 32 pixels are 16 folded ones, and 8 more on every side
    assert len(largest) == 3 * 5


def test_kernels_are_found_again_by_the_values_of_their_aperture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layered, "_CELLS", 2)
    cells = torch.rand(9, 9)
    assert Aperture(6, 10.0) == Aperture(6, 10.0)
    assert hash(Aperture(picture=cells)) == hash(Aperture(picture=cells.clone()))
    assert Aperture(picture=cells) != Aperture(picture=cells.flip(0))
    assert Aperture() != Aperture(cats_eye=0.1)
    image, disparity = scene(16, 12)

    def made(cats_eye: float) -> int:
        before = apertures._KERNELS.made
        render(image, disparity, Lens(6.0, 0.9, aperture=Aperture(cats_eye=cats_eye)))
        return apertures._KERNELS.made - before

    first = made(0.7321)
    assert first > 0
    assert made(0.7321) == 0
    assert made(0.7322) == first
    assert apertures._KERNELS.held <= apertures._KERNELS.limit


def test_a_round_cats_eye_is_mirrored_from_quarter_to_quarter() -> None:
    eye = Aperture(cats_eye=0.9, spherical=0.3)
    right = eye.kernel(7.3, at=(0.6, 0.5))
    before = apertures._KERNELS.made
    assert torch.equal(eye.kernel(7.3, at=(-0.6, 0.5)), right.flip(1))
    assert torch.equal(eye.kernel(7.3, at=(0.6, -0.5)), right.flip(0))
    assert apertures._KERNELS.made == before
    assert eye.reach(7.3, (-0.6, 0.5)) == right.shape[0] // 2
    assert not torch.equal(right, right.flip(1))


def test_a_cache_holds_so_many_bytes_and_no_more() -> None:
    cache: ByteCache[Tensor] = ByteCache(1000)
    for key in range(10):
        assert float(cache.get(key, lambda key=key: torch.full((50,), float(key)))[0]) == key
        assert cache.held <= 1000
    assert (cache.found, cache.made, cache.held) == (0, 10, 1000)
    cache.get(9, lambda: torch.zeros(50))
    assert cache.found == 1
    assert cache.get("large", lambda: torch.zeros(100)).numel() == 100
    assert cache.held == 1000


def test_memory_that_is_asked_for_grows_with_the_picture_and_falls_with_its_tiles() -> None:
    models: list[Any] = [*MODELS, bokehme()]
    for model in models:
        whole, half = (memory_needed(model, (1, 3, side, 2 * side)) for side in (2000, 1000))
        assert whole > half > 100e6
        assert memory_needed(model, (1, 3, 2000, 4000), 256) <= whole
    assert memory_needed("layered", (1, 3, 1080, 1920)) > 830e6  # what was measured
    with pytest.raises(BokehError, match="no lens model named 'none'"):
        memory_needed("none", (1, 3, 8, 8))
