"""A generator learns through depth, focus and lens: what is computed, and that gradients come back through it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bokeh_ops.depth.focus import focus_by_weight
from bokeh_ops.depth.focus_transformer import FocusTransformer, Sizes
from bokeh_ops.render.thin_lens import circle_of_confusion, render_thin_lens_camera
from tests.fit import workshop  # noqa: F401
from tests.models import one_thread  # noqa: F401
from tests.test_distil import only, recipe, train, unloaded  # noqa: F401
from trainer.data.sample import Taken
from trainer.recipes.dmd.lens import LARGEST_BLUR, LensChain, Seen

TAKEN = [Taken(2.8, 0.085, 0.018), Taken(4.0, 0.05, 0.006)]


def depth(pictures: Tensor) -> Tensor:
    """Smooth in the picture, so that differences can be told: what is bright is near, what is low in it too."""
    rows = torch.linspace(0, 1, pictures.shape[2]).to(pictures).view(1, 1, -1, 1)
    return 0.4 + 0.8 * pictures.mean(1, keepdim=True) + 0.7 * rows


def transformer(seed: int = 0) -> FocusTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FocusTransformer(Sizes(side=16, patch=4, width=8, heads=2, layers=1))
        torch.nn.init.normal_(network.scale.weight, std=0.02)
    return network


def pictures(rows: int = 2, side: int = 16, seed: int = 0) -> Tensor:
    """Well inside 0..1."""
    return 0.2 + 0.6 * torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_the_lens_is_that_of_the_paper() -> None:
    """K and focus of eqs. 4 to 6 against the circle of confusion as it is printed, and the renderer that takes it."""
    chain, given = LensChain(depth, transformer()), pictures()
    with torch.no_grad():
        seen = chain.see(given)
        formed = chain.through(given, seen, TAKEN)
        assert torch.equal(seen.focus, focus_by_weight(depth(given), seen.saliency))
        assert float((seen.scale - 1).abs().min()) > 0.01
        f_number, focal, sensor = torch.tensor(TAKEN).T
        metres, distance = 1 / seen.disparity, 1 / seen.focus
        wide = [each.view(-1, 1, 1, 1) for each in (distance, focal, f_number, seen.scale)]
        coc = circle_of_confusion(metres, *wide) / sensor.view(-1, 1, 1, 1) * 16
        k = chain.strength(seen, TAKEN, 16).view(-1, 1, 1, 1)
        assert torch.allclose(coc / 2, (k * (seen.disparity - seen.focus.view(-1, 1, 1, 1))).abs(), atol=1e-5)
        other = render_thin_lens_camera(given, metres, distance, seen.scale, f_number, focal, sensor).image
    assert float((other - given).abs().max()) > 0.05
    assert torch.allclose(formed, other, atol=1e-5)


def test_gradients_through_depth_focus_and_lens_against_differences() -> None:
    """To the picture, whose depth and focus move with it, and to every weight of the transformer at once."""
    network = transformer().double()
    chain, given = LensChain(depth, network), pictures().double().requires_grad_(True)
    weight = torch.randn(given.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def value() -> Tensor:
        return (chain.through(given, chain.see(given), TAKEN) * weight).sum()

    inputs = [given, *network.parameters()]
    gradients = torch.autograd.grad(value(), inputs, allow_unused=True)
    for part in (inputs[:1], inputs[1:]):
        found, steps = 0.0, []
        for each, gradient in zip(inputs, gradients, strict=True):
            if any(each is one for one in part) and gradient is not None:
                step = torch.randn(
                    each.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
                )
                steps.append((each, step))
                found += float((gradient * step).sum())
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                for each, step in steps:
                    each += sign * 1e-6 * step
                ends.append(float(value()))
                for each, step in steps:
                    each -= sign * 1e-6 * step
        assert found == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4)
    assert all(float(gradients[number].abs().max()) > 0 for number in (0, -1))  # type: ignore[union-attr]


def test_depth_focus_and_lens_each_carry_a_part_of_the_gradient() -> None:
    given = pictures().requires_grad_(True)
    chain = LensChain(depth, transformer())
    blind = LensChain(lambda shown: depth(shown).detach(), transformer())
    whole, part = (
        torch.autograd.grad(each.through(given, each.see(given), TAKEN).square().sum(), given)[0]
        for each in (chain, blind)
    )
    assert float((whole - part).norm() / whole.norm()) > 0.01
    seen = chain.see(given)
    held = Seen(*(value.detach() for value in seen))
    assert float(torch.autograd.grad(chain.through(given, seen, TAKEN).sum(), given)[0].norm()) != float(
        torch.autograd.grad(chain.through(given, held, TAKEN).sum(), given)[0].norm()
    )


def test_values_outside_are_kept_and_have_a_gradient() -> None:
    """A generator's pictures run over 0 and 1, and black has no slope in light."""
    given = torch.where(pictures() > 0.6, 1.3, -0.2).requires_grad_(True)
    chain = LensChain(lambda shown: depth(shown).detach(), transformer())
    formed = chain.through(given, chain.see(given), TAKEN)
    (gradient,) = torch.autograd.grad(formed.sum(), given)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().min()) > 0
    black = torch.zeros(1, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(chain.through(black, chain.see(black), TAKEN[:1]).sum(), black)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("metres", [1e-3, 1e6])
def test_wrong_depth_stops_nothing(metres: float) -> None:
    """Nearer than the focal length, or endlessly far with something close by."""

    def wrong(shown: Tensor) -> Tensor:
        map = torch.full_like(shown[:, :1], 1 / metres)
        map[..., :4, :] = 2 * map[..., :4, :] if metres < 1 else 500.0
        return map

    given = pictures().requires_grad_(True)
    chain = LensChain(wrong, transformer())
    seen = chain.see(given)
    formed = chain.through(given, seen, TAKEN)
    away = (seen.disparity - seen.focus.view(-1, 1, 1, 1)).abs().flatten(1).amax(1)
    radius = chain.strength(seen, TAKEN, 16) * away
    assert float(radius.detach().max()) <= 16 * LARGEST_BLUR * 1.001
    assert bool(torch.isfinite(torch.autograd.grad(formed.square().sum(), given)[0]).all())


def test_flat_depth_changes_nothing() -> None:
    chain, given = LensChain(lambda shown: torch.ones_like(shown[:, :1]), transformer()), pictures()
    assert torch.equal(chain.through(given, chain.see(given), TAKEN), given)


def test_the_tie_is_to_the_frozen_one_and_trains_the_transformer_alone() -> None:
    given = pictures().requires_grad_(True)
    moved = transformer()
    chain = LensChain(depth, moved, transformer())
    assert float(chain.tie(given, chain.see(given)).detach().abs().max()) == 0
    with torch.no_grad():
        moved.pixels.weight += 0.5 * torch.randn(moved.pixels.weight.shape)
    loss = chain.tie(given, chain.see(given))
    near = chain.see(given).near
    wanted, found = (focus_by_weight(near, net(given, near).saliency) for net in (transformer(), moved))
    assert torch.allclose(loss, 0.5 * (found - wanted).square(), atol=1e-7)
    to_picture, to_weight = torch.autograd.grad(loss.sum(), [given, moved.pixels.weight], allow_unused=True)
    assert to_picture is None
    assert float(to_weight.abs().max()) > 0
