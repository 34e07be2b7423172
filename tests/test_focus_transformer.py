"""The focus transformer: sizes, gradients, its file, and what the shipped one finds in scenes it has not seen."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bokeh_ops.depth.focus import focus_by_weight
from bokeh_ops.depth.focus_transformer import (
    FILE,
    SHIPPED,
    UNKNOWN,
    FocusTransformer,
    Sizes,
    normalised,
    read_focus_transformer,
    write_focus_transformer,
)
from bokeh_ops.depth.main_thing import find_main_thing
from bokeh_ops.errors import BokehError
from tests.models import one_thread, randn  # noqa: F401

TINY = Sizes(side=8, patch=4, width=8, heads=2, layers=1)


def tiny(dtype: torch.dtype = torch.float32, sizes: Sizes = TINY) -> FocusTransformer:
    """A network of random weights; its scale is that of a fresh one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FocusTransformer(sizes).to(dtype)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (30, 17), (1, 40), (64, 200)])
def test_any_size_and_aspect_ratio(height: int, width: int, device: str) -> None:
    network = tiny().to(device)
    pictures = torch.rand(3, 3, height, width, device=device)
    depth = torch.rand(3, 1, 20, 12, device=device)  # of a size of its own
    found = network(pictures, depth)
    assert found.logits.shape == found.saliency.shape == (3, height, width)
    least, most = found.saliency.detach().aminmax()
    assert 0 < float(least) < float(most) < 1
    alone = network(pictures[1:2], depth[1:2])
    torch.testing.assert_close(found.logits[1:2], alone.logits, rtol=1e-4, atol=1e-5)
    assert network(pictures, depth[:1]).logits.shape == (3, height, width)
    assert network(pictures).logits.shape == (3, height, width)


def test_a_fresh_network_says_the_scale_1_exactly() -> None:
    for sizes in (TINY, Sizes()):
        found = tiny(sizes=sizes)(randn(4, 3, 16, 16).sigmoid(), randn(4, 1, 16, 16).sigmoid())
        assert found.scale.tolist() == [1.0] * 4
    network = tiny()
    torch.nn.init.constant_(network.scale.weight, -3.0)
    torch.nn.init.constant_(network.scale.bias, -3.0)
    assert bool((network(randn(4, 3, 16, 16)).scale > 0).all())


def test_it_sees_picture_and_depth_and_their_places() -> None:
    network = tiny().requires_grad_(False)
    picture, depth = randn(1, 3, 8, 8).sigmoid(), randn(1, 1, 8, 8, seed=1).sigmoid()
    first = network(picture, depth).logits
    for other in (network(1 - picture, depth), network(picture, 1 - depth), network(picture)):
        assert float((other.logits - first).abs().max()) > 1e-2
    mirrored = network(picture.flip(3), depth.flip(3)).logits.flip(2)
    assert float((mirrored - first).abs().max()) > 1e-3


def test_gradients_of_picture_depth_and_weights() -> None:
    network = tiny(torch.float64, Sizes(side=4, patch=2, width=4, heads=2, layers=1))
    torch.nn.init.ones_(network.scale.weight)
    picture = randn(1, 3, 5, 3).double().sigmoid().requires_grad_()
    depth = randn(1, 1, 3, 4, seed=1).double().sigmoid().requires_grad_()

    def of(picture: Tensor, depth: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        found = network(picture, depth)
        return focus_by_weight(depth, found.saliency), found.scale

    assert torch.autograd.gradcheck(of, (picture, depth, network.token, network.first.qkv.bias))
    (focus, scale) = of(picture, depth)
    (focus + scale).sum().backward()
    assert not [name for name, weight in network.named_parameters() if weight.grad is None]


def test_shapes_that_are_refused() -> None:
    network = tiny()
    for pictures, depth, message in (
        (torch.rand(3, 8, 8), None, r"Expected pictures \[B, 3, H, W\]; got \(3, 8, 8\)"),
        (torch.rand(1, 4, 8, 8), None, r"got \(1, 4, 8, 8\)"),
        (torch.rand(2, 3, 8, 8), torch.rand(3, 1, 8, 8), r"one for each of 2 pictures; got \(3, 1, 8, 8\)"),
        (torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8), r"got \(2, 8, 8\)"),
    ):
        with pytest.raises(BokehError, match=message):
            network(pictures, depth)
    for sizes in ({"side": 10}, {"patch": 3, "side": 9}, {"heads": 3}, {"layers": 0}, {"width": 8.0}):
        with pytest.raises(BokehError, match=r"sizes of a focus transformer are .*heads divides width"):
            Sizes(**sizes)


def test_depth_is_normalised_map_by_map() -> None:
    maps = torch.stack([torch.linspace(2, 4, 12).view(1, 3, 4), torch.full((1, 3, 4), 7.0)])
    found = normalised(maps)
    assert found[0].flatten().tolist() == pytest.approx(torch.linspace(0, 1, 12).tolist(), abs=1e-6)
    assert found[1].unique().tolist() == [UNKNOWN]
    torch.testing.assert_close(normalised(maps * 3 + 1), found)  # it has no unit
    wild = torch.linspace(0, 1, 5000).view(1, 1, 50, 100).clone()
    wild[..., 0, 0] = 1000.0
    assert float(normalised(wild)[..., 25, 50]) > 0.3


def test_pictures_one_after_another(device: str) -> None:
    network, told = tiny().to(device), []
    pictures = randn(3, 4, 12, 9).sigmoid()  # with alpha
    depth = randn(1, 1, 5, 5) * 9 + 100  # in any unit
    saliency, scale = find_main_thing(network, pictures, depth, lambda *done: told.append(done))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert saliency.device.type == scale.device.type == "cpu"
    with torch.no_grad():
        expected = network(pictures[:, :3].to(device), normalised(depth).to(device)).saliency.cpu()
    torch.testing.assert_close(saliency, expected, rtol=1e-4, atol=1e-5)
    grey = find_main_thing(network, pictures[:, :1])[0]
    torch.testing.assert_close(grey, find_main_thing(network, pictures[:, :1].expand(-1, 3, -1, -1))[0])
    broken = pictures.clone()
    broken[0, 0, 0, 0] = math.nan
    assert bool(torch.isfinite(find_main_thing(network, broken)[0]).all())
    with pytest.raises(BokehError, match="There are 2 depth maps for 3 images"):
        find_main_thing(network, pictures, depth.expand(2, -1, -1, -1))
    with pytest.raises(BokehError, match="values that are NaN or infinite; expected disparity"):
        find_main_thing(network, pictures, depth / 0)
    with pytest.raises(BokehError, match=r"1, 3 or 4 channels; got \(3, 2, 12, 9\)"):
        find_main_thing(network, pictures[:, :2])


# ---- the file ----


def test_a_file_holds_the_network(tmp_path: Path) -> None:
    path, network = (
        tmp_path / "a.safetensors",
        tiny(sizes=Sizes(side=16, patch=4, width=8, heads=4, layers=2)),
    )
    write_focus_transformer(path, network, torch.float32)
    found = read_focus_transformer(path)
    assert found.sizes == network.sizes
    assert not found.training
    for name, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    assert not any(weight.requires_grad for weight in found.parameters())
    write_focus_transformer(path, network)
    halves = read_focus_transformer(path)
    pictures = randn(2, 3, 16, 16).sigmoid()
    torch.testing.assert_close(halves(pictures).logits, network(pictures).logits, rtol=2e-2, atol=2e-2)
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}


def test_files_that_are_refused(tmp_path: Path) -> None:
    path, network = tmp_path / "a.safetensors", tiny()
    with pytest.raises(BokehError, match=r"There is no file .*; expected a focus transformer"):
        read_focus_transformer(path)
    write_focus_transformer(path, network)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(BokehError, match=r"\(\d+ bytes\) cannot be read as safetensors .* download it again"):
        read_focus_transformer(path)
    path.write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(BokehError, match="cannot be read as safetensors"):
        read_focus_transformer(path)
    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def said(**more: object) -> None:
        sizes = {"side": 8, "patch": 4, "width": 8, "heads": 2, "layers": 1}
        save_file(weights, path, {FILE.key: json.dumps({"version": 1, "sizes": sizes, **more})})

    def refused(message: str) -> None:
        with pytest.raises(BokehError, match=message):
            read_focus_transformer(path)

    said()
    read_focus_transformer(path)
    save_file(weights, path, {"format": "pt"})
    refused(
        r"is not a focus transformer: it has \d+ tensors such as .* `python -m trainer focus` has written"
    )
    save_file(weights, path, {FILE.key: "half a senten"})
    refused("says 'half a senten' of itself; expected JSON")
    said(version=2)
    refused(r"of version 2; this extension reads version 1\. Update")
    said(sizes={"side": 8, "depth": 3})
    refused("says the sizes .*side.*depth.*; expected values of heads, layers, patch, side, width")
    said(sizes={"side": 8, "patch": 3, "width": 8, "heads": 2, "layers": 1})
    refused("sizes of a focus transformer are")
    said(sizes={"side": 8, "patch": 4, "width": 16, "heads": 2, "layers": 1})
    refused(r"a FocusTransformer has \(")
    said(sizes={"side": 8, "patch": 4, "width": 8, "heads": 2, "layers": 2})
    refused("does not hold a FocusTransformer: of its .* are missing")
    weights["token"][0] = math.nan
    said()
    refused("token holds numbers that are NaN")


# ---- the shipped one ----


def test_the_shipped_network_is_small() -> None:
    assert SHIPPED.stat().st_size < 1e6
    assert float(find_main_thing(read_focus_transformer(), torch.rand(1, 3, 40, 60))[1]) == 1.0


def test_the_shipped_network_finds_the_main_thing_of_scenes_it_has_not_seen() -> None:
    pytest.importorskip("skimage")
    from trainer.world.data import scene_sample
    from trainer.world.focus import figures
    from trainer.world.scene import HELD_OUT, draw_scene

    network = read_focus_transformer()
    for seed in range(HELD_OUT + 500, HELD_OUT + 508):
        scene = draw_scene(seed, sharp=True)
        sample = scene_sample(scene)
        picture = torch.from_numpy(sample.image).movedim(-1, 0)[None].float() / 255
        disparity = torch.from_numpy(sample.disparity)[None, None]
        for given, most in ((disparity, 0.04), (None, 0.2)):
            saliency, _ = find_main_thing(network, picture, given)
            found = figures(scene, float(focus_by_weight(disparity, saliency)))
            assert found["right"], seed
            assert found["error"] < most, seed
            one, other = saliency[0] > 0.5, torch.from_numpy(sample.mask) > 0.5
            assert int((one & other).sum()) > 0.5 * int((one | other).sum())
