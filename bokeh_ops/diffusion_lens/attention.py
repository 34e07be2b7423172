"""Physics-inspired self-attention (PISA): attention in which light is spread over circles of confusion.

Source: Zhu et al., "BokehDiff: Neural Lens Blur with One-Step Diffusion" (ICCV 2025), eqs. 3 to 9. A key is a source of
light and a query a place on the sensor. Each key's weights are normalised over the queries, so that its light is
conserved; queries outside its circle of confusion get none; and what stands in the way takes light out.

Where the paper leaves a choice it is made as the released weights were trained: the soft edge of the circle (eq. 6; the
sign of eq. S1 is opposite to it), and the disparity that a ray's places are counted from (:func:`visibility`).

Shapes: ``R`` rows, ``H`` heads, ``N = h * w`` tokens, row by row, ``D`` features a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import BokehError
from .windows import Grid, Windows

SPAN = 51.2
"""Units of distance between the first and the last token of the longer side."""
HARDEST = 1e7
"""Hardness of a circle's edge when it is not trained."""
SEGMENTS = 7
"""Places looked at along a ray."""
NEAREST = 1e-3
"""Disparities are kept this far from 0 and 1, where a ray has no direction."""

_FINER = 3
"""Blockers are looked up in a disparity map so many times finer than the tokens."""
_AT_ONCE = 1 << 24
"""Numbers of one piece of the attention matrix: 64 MB in single precision."""
_NOTHING = 20.0
"""Less than exp(-20) of a key's light is nothing."""
_FAR = 1e6


def units(pixels: Tensor, side: int) -> Tensor:
    """Pixels of blur radius, or of distance, in PISA's unit: 10 pixels where the longer side has 512.

    Args:
        pixels: any shape.
        side: the longer side of what the network sees at once, in pixels.
    """
    return pixels * (SPAN / side)


def nearness(disparity: Tensor) -> Tensor:
    """Disparity ``[R, 1, H, W]`` of any unit, from 0 at the farthest place of each picture to 1 at the nearest."""
    low, high = (edge(disparity, (2, 3), keepdim=True) for edge in (torch.amin, torch.amax))
    return ((disparity - low) / (high - low).clamp_min(torch.finfo(disparity.dtype).tiny)).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Light:
    """What the attention is told of a scene.

    Attributes:
        disparity: ``[R, 1, H, W]``, 0 farthest to 1 nearest.
        radius: of the circle of confusion, ``[R, 1, H, W]``, in :func:`units`, at least 0.
        occlusion: whether what stands in the way takes light out (eqs. 7 to 9).
        hardness: of the circle's edge, above 1; training raises it.
        segments: places looked at along a ray.

    Raises:
        BokehError: maps of other shapes, or values out of range.
    """

    disparity: Tensor
    radius: Tensor
    occlusion: bool = True
    hardness: float = HARDEST
    segments: int = SEGMENTS
    _known: dict[tuple[Windows, torch.device], Tensor | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        shape = tuple(self.disparity.shape)
        if len(shape) != 4 or shape[1] != 1 or tuple(self.radius.shape) != shape:
            raise BokehError(
                f"The disparity is {shape} and the blur radius {tuple(self.radius.shape)}; expected both [R, 1, H, W]."
            )
        low, high = self.disparity.aminmax()
        if not (float(low) >= 0 and float(high) <= 1):  # NaN is neither
            raise BokehError(
                f"The disparity runs from {float(low):g} to {float(high):g}; expected 0 (farthest) to 1 (nearest)."
            )
        if not (bool(torch.isfinite(self.radius).all()) and float(self.radius.min()) >= 0):
            raise BokehError("The blur radius has values that are below 0, infinite or NaN.")
        if not self.hardness > 1 or self.segments < 1:
            raise BokehError(
                f"The hardness is {self.hardness} and a ray has {self.segments} places; expected above 1, and at "
                "least 1."
            )

    def seen(self, windows: Windows, device: torch.device) -> Tensor | None:
        """Who sees whom, ``[R, B, Q, K]``; None: everybody."""
        at = windows, device
        if at not in self._known:
            self._known[at] = (
                visibility(self.disparity.to(device), windows, self.segments) if self.occlusion else None
            )
        return self._known[at]


def resized(maps: Tensor, grid: Grid) -> Tensor:
    """Maps ``[R, 1, H, W]`` at another size, in single precision or better."""
    work = torch.promote_types(maps.dtype, torch.float32)
    return F.interpolate(maps.to(work), grid, mode="bilinear", align_corners=False)


def distances(windows: Windows, like: Tensor) -> Tensor:
    """Of queries and keys, ``[B, Q, K]``, in :func:`units`; far more than any radius for what is beyond the grid.

    The longer side's first and last token are :data:`SPAN` apart, and the shorter side has the same step, whatever the
    picture's shape.

    Args:
        windows: of the grid of tokens.
        like: whose type and device they get.
    """
    step = SPAN / max(max(windows.grid) - 1, 1)
    rows, columns = (torch.arange(n, device=like.device, dtype=like.dtype) * step for n in windows.grid)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).view(-1, 2)
    queries, keys = windows.queries(places, beyond=_FAR), windows.keys(places, beyond=_FAR)
    return torch.cdist(queries, keys, compute_mode="donot_use_mm_for_euclid_dist")


@torch.no_grad()
def visibility(disparity: Tensor, windows: Windows, segments: int = SEGMENTS) -> Tensor:
    """Which query sees which key's light (eqs. 7 and 8).

    A ray runs from the key, at its disparity ``d``, to the query, at 1, and is blocked where the scene is nearer than
    it. At ``t`` of its way it is at ``d t + 1 - t``. Its place there follows from the disparity by eq. 7; as the
    released weights were trained, from that of a ray which ends at the query's disparity. Both agree for keys and
    queries that are equally far, such as a background's behind a foreground.

    Args:
        disparity: ``[R, 1, H, W]``, 0 to 1.
        windows: of the grid of tokens.
        segments: places looked at.

    Returns:
        Boolean ``[R, B, Q, K]``.
    """
    height, width = windows.grid
    own = resized(disparity, windows.grid).flatten(1).clamp(NEAREST, 1 - NEAREST)[..., None]
    scene = resized(disparity, (_FINER * height, _FINER * width))
    # Centres of the tokens, as grid_sample counts: x first.
    y, x = (torch.linspace(1 / n - 1, 1 - 1 / n, n, device=own.device, dtype=own.dtype) for n in windows.grid)
    places = torch.stack([each.flatten() for each in torch.meshgrid(x, y, indexing="xy")], -1)
    ends, lights = windows.queries(own, beyond=0.5), windows.keys(own, beyond=0.5).mT
    starts, sources = windows.queries(places)[:, :, None], windows.keys(places)[:, None]
    rows, blocks, count, _ = ends.shape
    free = torch.ones(rows, blocks, count, sources.shape[2], dtype=torch.bool, device=own.device)
    for at_once, keys in _pieces(blocks, sources.shape[2], 4 * rows * count):
        towards = sources[at_once, :, keys] - starts[at_once]
        end, light = ends[:, at_once], lights[:, at_once, :, keys]
        for t in torch.linspace(0.1, 0.9, segments).tolist():
            there = end * t + (1 - t)
            way = (1 - there) * light / ((1 - light) * there)
            at = starts[at_once] + way[..., None] * towards
            met = F.grid_sample(
                scene, at.flatten(1, 2), mode="bilinear", padding_mode="zeros", align_corners=False
            )
            free[:, at_once, :, keys] &= met.view_as(way) <= light * t + (1 - t)
    return free


def pisa(q: Tensor, k: Tensor, v: Tensor, light: Light, grid: Grid) -> Tensor:
    """Attention over circles of confusion (eqs. 5 and 9).

    ``out_q = sum_k M_qk v_k exp(a_qk) C_qk / sum_s exp(a_sk) C_sk``, in single precision or better. Queries that a
    key's light cannot get to are left out. Keys are taken some at a time, on the way back once more, so memory beside
    the inputs is some 64 MB a piece, and a byte for each pair for who sees whom.

    Args:
        q, k, v: ``[R, H, N, D]``; the light's rows serve the rows of a batch in turn.
        light: the scene.
        grid: rows and columns, of which the product is N.

    Returns:
        ``[R, H, N, D]``, in the type of ``v``.

    Raises:
        BokehError: rows that the light's do not divide, or tokens that do not make up the grid.
    """
    rows, heads, count, features = q.shape
    radius = resized(light.radius.to(q.device), grid).flatten(1)
    if rows % radius.shape[0] or count != radius.shape[1]:
        raise BokehError(
            f"The attention has {rows} rows of {count} tokens; the lens was told of {radius.shape[0]} pictures of "
            f"{grid[0]} x {grid[1]} tokens. Another extension merges or splits them; remove it from this model."
        )
    turns = rows // radius.shape[0]
    work = torch.promote_types(q.dtype, torch.float32)
    sharpness = math.log(light.hardness)
    windows = Windows.of(grid, _reach(q, k, radius, sharpness, grid))
    free = light.seen(windows, q.device)
    radius = radius.to(work).repeat(turns, 1)
    apart = distances(windows, radius)
    radius = windows.keys(radius[..., None]).mT

    def piece(q: Tensor, k: Tensor, v: Tensor, blocks: slice, keys: slice) -> Tensor:
        logits = (q[:, :, blocks] @ k[:, :, blocks, keys].mT).to(work) * features**-0.5
        inside = F.logsigmoid(sharpness * (radius[:, blocks, :, keys] - apart[blocks, :, keys]))
        weights = (logits + inside[:, None]).softmax(-2)
        if free is not None:
            weights = weights * free[:, blocks, :, keys].repeat(turns, 1, 1, 1)[:, None]
        return weights @ v[:, :, blocks, keys].to(work)

    given = windows.queries(q), windows.keys(k), windows.keys(v)
    _, _, blocks, size, _ = given[0].shape
    pieces = _pieces(blocks, given[1].shape[3], rows * heads * size)
    parts: dict[int, Tensor] = {}
    for at_once, keys in pieces:
        again = torch.is_grad_enabled() and len(pieces) > 1
        part = _again(piece, *given, at_once, keys) if again else piece(*given, at_once, keys)
        parts[at_once.start] = parts[at_once.start] + part if at_once.start in parts else part
    return windows.together(torch.cat(list(parts.values()), 2)).to(v.dtype)


@torch.no_grad()
def _reach(q: Tensor, k: Tensor, radius: Tensor, sharpness: float, grid: Grid) -> int:
    """Tokens beyond which no key has light to speak of, however much its logits (Cauchy and Schwarz) favour it."""
    work = torch.promote_types(q.dtype, torch.float32)
    most = 2 * float(q.to(work).norm(dim=-1).max() * k.to(work).norm(dim=-1).max()) * q.shape[-1] ** -0.5
    far = float(radius.max()) + (_NOTHING + most) / sharpness
    return math.ceil(
        min(max(grid), far * max(max(grid) - 1, 1) / SPAN)
    )  # in this order NaN is the whole grid


def _again(piece: Callable[..., Tensor], *given: object) -> Tensor:
    made = checkpoint(piece, *given, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(made, Tensor)
    return made


def _pieces(blocks: int, keys: int, each: int) -> list[tuple[slice, slice]]:
    """Parts of ``blocks`` blocks of ``keys`` keys, each of which needs ``each`` numbers; whole blocks if they fit."""
    many = max(1, min(blocks, _AT_ONCE // max(each * keys, 1)))
    some = max(1, min(keys, _AT_ONCE // max(each * many, 1)))
    return [
        (slice(block, min(blocks, block + many)), slice(key, min(keys, key + some)))
        for block in range(0, blocks, many)
        for key in range(0, keys, some)
    ]
