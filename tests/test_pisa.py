"""PISA against closed forms: what light does on a sensor, on grids that are not square."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.diffusion_lens import attention
from bokeh_ops.diffusion_lens.attention import SPAN, Light, distances, pisa, units, visibility
from bokeh_ops.diffusion_lens.windows import Windows
from bokeh_ops.errors import BokehError

GRID = (5, 8)
COUNT = GRID[0] * GRID[1]
STEP = SPAN / 7
WHOLE = Windows(GRID, GRID, 0)


def light(radius: Tensor | float = 2.5 * STEP, disparity: Tensor | float = 0.5, **settings: object) -> Light:
    """A scene whose maps are as large as the grid."""
    made = [
        torch.as_tensor(each, dtype=torch.float64).expand(GRID)[None, None] for each in (disparity, radius)
    ]
    return Light(made[0], made[1], **settings)  # type: ignore[arg-type]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(q: Tensor, k: Tensor, scene: Light) -> Tensor:
    """Weights ``[R, H, N, N]``, queries by keys: what becomes of values that are 1 for one key each."""
    rows, heads = q.shape[:2]
    return pisa(q, k, torch.eye(COUNT, dtype=q.dtype).expand(rows, heads, -1, -1), scene, GRID)


def places() -> Tensor:
    y, x = torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij")
    return torch.stack([y.flatten(), x.flatten()], -1).double() * STEP


def test_equal_logits_scatter_every_key_evenly_over_its_disc() -> None:
    radius = STEP * (
        0.6 + 2 * torch.rand(GRID, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )
    zero = torch.zeros(1, 1, COUNT, 4, dtype=torch.float64)
    found = matrix(zero, zero, light(radius, occlusion=False, hardness=1e300))[0, 0]
    at = places()
    inside = ((at[:, None] - at[None]).norm(dim=-1) <= radius.flatten()[None]).double()
    assert torch.allclose(found, inside / inside.sum(0), atol=1e-6)


def test_the_light_of_every_key_is_conserved() -> None:
    q, k = drawn(2, 3, COUNT, 4), 3 * drawn(2, 3, COUNT, 4, seed=1)
    found = matrix(q, k, light(drawn(*GRID, seed=2).abs() * 20, occlusion=False))
    assert torch.allclose(found.sum(-2), torch.ones(()).double(), atol=1e-12)
    assert not torch.allclose(found.sum(-1), torch.ones(()).double(), atol=0.1)  # as ordinary attention would


def test_a_plane_at_one_depth_is_a_convolution() -> None:
    value = drawn(1, 1, COUNT, 1)
    zero = torch.zeros(1, 1, COUNT, 1, dtype=torch.float64)
    found = pisa(zero, zero, value, light(1.5 * STEP, hardness=1e300), GRID)
    offsets = torch.arange(-1, 2).double()
    disc = (offsets[:, None].square() + offsets.square() <= 1.5**2).double()
    expected = F.conv2d(value.view(1, 1, *GRID), (disc / disc.sum())[None, None], padding=1)
    inner = (..., slice(2, -2), slice(2, -2))
    assert torch.allclose(found.view(1, 1, *GRID)[inner], expected[inner], atol=1e-9)


def test_the_soft_edge_follows_its_equation() -> None:
    zero = torch.zeros(1, 1, COUNT, 1, dtype=torch.float64)
    found = matrix(zero, zero, light(6.0, occlusion=False, hardness=3.0))[0, 0]
    at = places()
    inside = torch.sigmoid(math.log(3.0) * (6.0 - (at[:, None] - at[None]).norm(dim=-1)))
    assert torch.allclose(found, inside / inside.sum(0), atol=1e-12)


def test_what_stands_in_the_way_takes_light_out() -> None:
    """A bar in front of an even background, which eq. 8 takes for as deep as the scene is."""
    disparity = torch.full(GRID, 0.1, dtype=torch.float64)
    disparity[:, 3:5] = 0.9
    free = visibility(disparity[None, None], WHOLE)[0, 0]
    column = torch.arange(COUNT) % GRID[1]
    left, bar, right = column < 3, (column >= 3) & (column < 5), column >= 5
    assert free[left][:, left].all()
    assert free[right][:, right].all()
    assert free[bar][:, bar].all()
    row = 2 * GRID[1]
    assert not free[row + 5, row + 2]
    assert not free[row + 2, row + 5]
    assert not free[row + 3, row + 2]
    assert not free[row + 4, row + 5]
    assert free[row + 2, row + 3]
    assert free[row + 6, row + 4]
    zero = torch.zeros(1, 1, COUNT, 1, dtype=torch.float64)
    weights = matrix(zero, zero, light(4 * STEP, disparity))[0, 0]
    assert torch.equal(weights > 0, free & (matrix(zero, zero, light(4 * STEP, occlusion=False))[0, 0] > 0))


def test_the_place_of_a_blocker_follows_equation_7() -> None:
    """Some pairs of a random scene by hand."""
    source = torch.Generator().manual_seed(5)
    disparity = torch.rand(1, 1, 20, 32, generator=source, dtype=torch.float64) * 0.8 + 0.1
    found = visibility(disparity, WHOLE, 7)[0]
    own = F.interpolate(disparity, GRID, mode="bilinear", align_corners=False).flatten()
    fine = F.interpolate(disparity, (15, 24), mode="bilinear", align_corners=False)
    for query, key in (
        (3, 20),
        (39, 0),
        (17, 17),
        (8, 15),
        (25, 26),
        (12, 33),
        *zip(range(40), range(9, 40), strict=False),
    ):
        blocked = False
        (qy, qx), (ky, kx) = divmod(query, GRID[1]), divmod(key, GRID[1])
        for t in torch.linspace(0.1, 0.9, 7).tolist():
            there = float(own[query]) * t + 1 - t
            way = (1 - there) * float(own[key]) / ((1 - float(own[key])) * there)
            y, x = qy + way * (ky - qy), qx + way * (kx - qx)
            at = torch.tensor([[[[(2 * x + 1) / GRID[1] - 1, (2 * y + 1) / GRID[0] - 1]]]]).double()
            met = float(F.grid_sample(fine, at, align_corners=False))
            blocked |= met > float(own[key]) * t + 1 - t
        assert bool(found[0, query, key]) is not blocked


SYMMETRIES: dict[str, Callable[[Tensor], Tensor]] = {
    "left and right": lambda x: x.flip(-1),
    "up and down": lambda x: x.flip(-2),
    "transposed": lambda x: x.mT.contiguous(),
}


@pytest.mark.parametrize("change", SYMMETRIES.values(), ids=SYMMETRIES)
def test_it_is_symmetric(change: Callable[[Tensor], Tensor]) -> None:
    maps = torch.rand(2, *GRID, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    disparity, radius = maps[:1, None] * 0.9, maps[1:, None] * 30
    q, k, v = (drawn(1, 2, COUNT, 3, seed=seed) for seed in range(3))

    def moved(x: Tensor) -> Tensor:
        picture = change(x.mT.unflatten(-1, GRID))
        return picture.flatten(-2).mT

    grid = tuple(change(torch.empty(GRID)).shape)
    plain = pisa(q, k, v, Light(disparity, radius), GRID)
    other = pisa(moved(q), moved(k), moved(v), Light(change(disparity), change(radius)), (grid[0], grid[1]))
    assert torch.allclose(other, moved(plain), atol=1e-9)
    assert not torch.allclose(
        pisa(q, k, v, Light(disparity, radius, occlusion=False), GRID), plain, atol=1e-3
    )


def test_gradients() -> None:
    scene = light(
        drawn(*GRID, seed=4).abs() * 15, 0.3 + 0.1 * drawn(*GRID, seed=5).clamp(-2, 2), hardness=4.0
    )
    given = [drawn(1, 1, COUNT, 2, seed=seed).requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: pisa(q, k, v, scene, GRID), given, fast_mode=True)


def test_pieces_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Light(torch.rand(1, 1, 20, 32), 20 * torch.rand(1, 1, 20, 32))
    q, k, v = given = [drawn(2, 2, COUNT, 3, seed=seed).float().requires_grad_() for seed in range(3)]
    whole = pisa(q, k, v, scene, GRID)
    gradients = torch.autograd.grad(whole.square().sum(), given)
    monkeypatch.setattr(attention, "_AT_ONCE", 7 * 2 * 2 * COUNT)
    free = scene.seen(WHOLE, whole.device)
    assert free is not None
    assert torch.equal(visibility(scene.disparity, WHOLE), free)
    pieces = pisa(q, k, v, scene, GRID)
    assert torch.allclose(pieces, whole, atol=1e-6)
    for one, other in zip(torch.autograd.grad(pieces.square().sum(), given), gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("at_once", [attention._AT_ONCE, 5000])
def test_windows_make_the_whole(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Where light does not get far, only what is near is looked at: blocks that the grid is no multiple of."""
    grid = (30, 18)
    maps = torch.rand(2, 1, 1, 40, 30, generator=torch.Generator().manual_seed(2)).double()
    scene = Light(maps[0], 3 * maps[1], hardness=400.0)  # so soft that light gets beyond its circle
    q, k, v = (drawn(2, 2, 30 * 18, 3, seed=seed) for seed in range(3))
    given = [each.requires_grad_() for each in (0.3 * q, 0.3 * k, v)]
    monkeypatch.setattr(attention, "_AT_ONCE", at_once)
    found = pisa(*given, scene, grid)
    (windows,) = {at for at, _ in scene._known}
    assert windows.blocks == (8, 5)
    assert windows.reach < 6
    gradients = torch.autograd.grad(found.square().sum(), given)
    monkeypatch.setattr(Windows, "of", lambda grid, reach: Windows(grid, grid, 0))
    whole = pisa(*given, scene, grid)
    assert torch.allclose(found, whole, rtol=0, atol=2e-9)
    for one, other in zip(torch.autograd.grad(whole.square().sum(), given), gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    q, k, v = (drawn(1, 2, COUNT, 8, seed=seed) for seed in range(3))
    made = pisa(q.to(dtype), k.to(dtype), v.to(dtype), light(), GRID)
    assert made.dtype == dtype
    assert torch.allclose(made.double(), pisa(q, k, v, light(), GRID), atol=0.03)


def test_large_logits_stay_numbers() -> None:
    q = 300 * drawn(1, 1, COUNT, 2)
    found = matrix(q, q, light(0.0))
    assert torch.allclose(found.sum(-2), torch.ones(()).double())


def test_what_is_no_number_stays_none() -> None:
    q = drawn(1, 1, COUNT, 2)
    q[0, 0, 3] = math.nan
    assert pisa(q, q, q, light(), GRID).isnan().any()


def test_the_rows_of_a_batch_take_the_scenes_in_turn() -> None:
    scene = Light(torch.rand(2, 1, *GRID), 20 * torch.rand(2, 1, *GRID))
    q, k, v = (drawn(4, 1, COUNT, 2, seed=seed).float() for seed in range(3))
    alone = Light(scene.disparity[:1], scene.radius[:1])
    assert torch.allclose(
        pisa(q, k, v, scene, GRID)[2], pisa(q[2:3], k[2:3], v[2:3], alone, GRID)[0], atol=1e-6
    )


def test_units() -> None:
    assert units(torch.tensor(156.0), 512) == pytest.approx(15.6)
    apart = distances(Windows((3, 32), (3, 32), 0), torch.empty(0))[0]
    assert float(apart[0, 31]) == pytest.approx(SPAN)
    assert float(apart[0, 32]) == pytest.approx(SPAN / 31)  # the shorter side has the same step
    assert float(distances(Windows((1, 1), (1, 1), 0), torch.empty(0))) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"disparity": torch.rand(1, 1, 4, 4)}, r"blur radius \(1, 1, 5, 8\); expected both"),
        ({"disparity": 2 * torch.ones(1, 1, *GRID)}, r"runs from 2 to 2; expected 0 \(farthest\) to 1"),
        ({"disparity": torch.full((1, 1, *GRID), math.nan)}, r"runs from nan to nan"),
        ({"radius": -torch.ones(1, 1, *GRID)}, r"below 0, infinite or NaN"),
        ({"radius": torch.full((1, 1, *GRID), math.inf)}, r"below 0, infinite or NaN"),
        ({"hardness": 1.0}, r"The hardness is 1.0 .* above 1"),
        ({"segments": 0}, r"a ray has 0 places; .* at least 1"),
    ],
)
def test_what_is_no_scene(change: dict[str, object], message: str) -> None:
    with pytest.raises(BokehError, match=message):
        Light(**{"disparity": torch.rand(1, 1, *GRID), "radius": torch.rand(1, 1, *GRID), **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "tokens"), [(3, COUNT), (2, COUNT - 1)])
def test_tokens_of_another_picture(rows: int, tokens: int) -> None:
    scene = Light(torch.rand(2, 1, *GRID), torch.rand(2, 1, *GRID))
    given = torch.zeros(rows, 1, tokens, 2)
    with pytest.raises(
        BokehError, match=rf"has {rows} rows of {tokens} tokens; the lens was told of 2 pictures"
    ):
        pisa(given, given, given, scene, GRID)
