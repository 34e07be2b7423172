"""Grounded attention against eqs. 11 and 15 written out one query at a time, and the bokeh term of eq. 10."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bokeh_ops.adapter.attention import (
    Grounding,
    bokeh_attention,
    ground_queries,
    grounded_attention,
    grounded_bokeh_attention,
    merge_heads,
    sdpa,
    shared_logit_attention,
    split_heads,
)
from bokeh_ops.errors import BokehError
from tests.models import one_thread, randn, relative  # noqa: F401

PLANS = [
    [-1, 0, 0],  # one pivot first, as in a sweep
    [2, 2, -1],  # the pivot last
    [1, -1, 1, -1, 3, 1],  # targets of two pivots that do not lie in sequence
    [-1, -1, 0, 1, 0, 1],  # a sweep of two pictures
    [0, 0, -1],  # a row that names itself as its pivot is a pivot
    [-1, -1],  # nothing to ground
]


def one_query(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(D) + bias) v`` for one query, in double precision, term by term."""
    logits = [
        float(query @ key) / math.sqrt(len(query)) + float(b) for key, b in zip(keys, bias, strict=True)
    ]
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    total = sum(weights)
    return sum((w / total * v for w, v in zip(weights, values, strict=True)), torch.zeros_like(values[0]))


def written_out(q: Tensor, k: Tensor, v: Tensor, pivots: list[int], bias: Tensor | None = None) -> Tensor:
    """Eq. 11: targets ``Attention(Q_piv, [K_tgt ; K_piv], [V_tgt ; V_tgt])``, pivots their own attention."""
    q, k, v = q.double(), k.double(), v.double()
    rows, heads, length, _ = q.shape
    if bias is None:
        bias = torch.zeros(rows, heads, length, k.shape[2])
    out = torch.zeros(rows, length, heads, v.shape[3], dtype=torch.float64)
    for row, pivot in enumerate(pivots):
        for head in range(heads):
            for i in range(length):
                if pivot in (-1, row):
                    found = one_query(q[row, head, i], k[row, head], v[row, head], bias[row, head, i])
                else:
                    keys = torch.cat((k[row, head], k[pivot, head]))
                    values = torch.cat((v[row, head], v[row, head]))
                    both = torch.cat((bias[row, head, i], bias[pivot, head, i]))
                    found = one_query(q[pivot, head, i], keys, values, both)
                out[row, i, head] = found
    return out.flatten(2)


def qkv(rows: int, heads: int = 2, length: int = 5, features: int = 4, seed: int = 0) -> list[Tensor]:
    return [randn(rows, heads, length, features, seed=seed + i) for i in range(3)]


@pytest.mark.parametrize("shared", [None, True, False])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_equation_11(plan: list[int], shared: bool | None, device: str) -> None:
    q, k, v = qkv(len(plan))
    there = (t.to(device) for t in (q, k, v))
    out = grounded_attention(*there, Grounding.from_pivots(plan), shared=shared)
    assert out.shape == (len(plan), 5, 8)
    assert relative(out.cpu(), written_out(q, k, v, plan)) < 2e-6


def test_equation_11_is_not_plain_attention() -> None:
    q, k, v = qkv(3)
    grounded = grounded_attention(q, k, v, Grounding.from_pivots([-1, 0, 0]))
    assert relative(grounded[1:], sdpa(q, k, v)[1:]) > 0.1


@pytest.mark.parametrize("shared", [True, False])
def test_pivot_rows_are_what_they_are_alone(shared: bool, device: str) -> None:
    q, k, v = (t.to(device) for t in qkv(4))
    out = grounded_attention(q, k, v, Grounding.from_pivots([1, -1, 1, 1]), shared=shared)
    assert torch.equal(out[1], sdpa(q[1:2], k[1:2], v[1:2])[0])


@pytest.mark.parametrize("shared", [True, False])
def test_a_target_equal_to_its_pivot_gets_the_pivots_attention(shared: bool) -> None:
    q, k, v = (t.expand(3, -1, -1, -1) for t in qkv(1, length=9))
    out = grounded_attention(q, k, v, Grounding.from_pivots([-1, 0, 0]), shared=shared)
    assert relative(out[1:], out[:1].expand(2, -1, -1)) < 1e-6


def test_memory_layout_does_not_matter() -> None:
    q, k, v = (
        randn(3, 6, 2, 4, seed=i).transpose(1, 2) for i in range(3)
    )  # heads inside tokens, as in a UNet
    assert not q.is_contiguous()
    for shared in (True, False):
        out = grounded_attention(q, k, v, Grounding.from_pivots([2, 2, -1]), shared=shared)
        assert relative(out, written_out(q, k, v, [2, 2, -1])) < 2e-6


def test_inputs_are_not_changed() -> None:
    tensors = qkv(4)
    kept = [t.clone() for t in tensors]
    for shared in (True, False):
        grounded_attention(*tensors, Grounding.from_pivots([-1, 0, -1, 2]), shared=shared)
    assert all(torch.equal(t, k) for t, k in zip(tensors, kept, strict=True))


def test_more_tokens_than_one_block_of_logits(device: str) -> None:
    q, k, v = qkv(3, heads=1, length=2500, features=4)
    plan = Grounding.from_pivots([-1, 0, 0])
    long = grounded_attention(*(t.to(device) for t in (q, k, v)), plan, shared=True).cpu()
    logits = torch.einsum("id,rjd->rij", q[0, 0].double(), k[:, 0].double()) / 2
    both = torch.logaddexp(logits[1:], logits[:1])
    assert relative(long[1:], both.softmax(-1) @ v[1:, 0].double()) < 5e-6


@pytest.mark.parametrize("length", [1, 2, 3, 17, 33])
def test_any_number_of_tokens(length: int) -> None:
    q, k, v = qkv(3, length=length)
    plan = [-1, 0, 0]
    out = grounded_attention(q, k, v, Grounding.from_pivots(plan), shared=True)
    assert relative(out, written_out(q, k, v, plan)) < 2e-6


MASKS = {
    "[Lq, Lk]": (5, 5),
    "[R, Lq, Lk]": (4, 5, 5),
    "[R, 1, Lq, Lk]": (4, 1, 5, 5),
    "[R, H, Lq, Lk]": (4, 2, 5, 5),
    "[1, H, Lq, Lk]": (1, 2, 5, 5),
    "[R, 1, 1, Lk]": (4, 1, 1, 5),
}


@pytest.mark.parametrize("boolean", [False, True], ids=["additive", "boolean"])
@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
def test_masks(shape: tuple[int, ...], boolean: bool) -> None:
    q, k, v = qkv(4)
    plan = [2, 2, -1, 2]
    mask = randn(*shape, seed=9)
    if boolean:
        mask = mask > -0.5
        mask[..., 0] = True
    bias = torch.where(mask, 0.0, -math.inf) if boolean else mask
    bias = bias[:, None] if bias.ndim == 3 else bias
    expected = written_out(q, k, v, plan, bias.expand(4, 2, 5, 5).double())
    out = grounded_attention(q, k, v, Grounding.from_pivots(plan), mask=mask)
    assert relative(out, expected) < 2e-6
    assert relative(out, written_out(q, k, v, plan)) > 1e-2  # the mask does something


def test_a_mask_is_not_lost_by_the_shared_way() -> None:
    q, k, v = qkv(2)
    mask = torch.zeros(5, 5)
    mask[:, 3:] = -math.inf
    plan = Grounding.from_pivots([-1, 0])
    masked = grounded_attention(q, k, v, plan, mask=mask, shared=True)
    assert relative(masked, grounded_attention(q, k[:, :, :3], v[:, :, :3], plan)) < 2e-6


@pytest.mark.parametrize("plan", [[-1, 0, 0], [1, -1]], ids=str)
def test_gradients(plan: list[int]) -> None:
    q, k, v = (t.double().requires_grad_() for t in qkv(len(plan), heads=1, length=3, features=2))
    grounding = Grounding.from_pivots(plan)
    assert torch.autograd.gradcheck(lambda q, k, v: grounded_attention(q, k, v, grounding), (q, k, v))
    with torch.no_grad():
        inference = grounded_attention(q, k, v, grounding)
    assert relative(grounded_attention(q, k, v, grounding).detach(), inference) < 1e-14


def test_gradients_only_for_what_asks() -> None:
    q, k, v = qkv(2)
    v.requires_grad_()
    grounded_attention(q, k, v, Grounding.from_pivots([-1, 0])).sum().backward()
    # The weights of every query sum to 1, over the doubled values too.
    assert v.grad is not None
    assert torch.allclose(v.grad.sum(2), torch.full((2, 2, 4), 5.0), atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)], ids=str)
def test_half_precision(dtype: torch.dtype, bound: float, shared: bool) -> None:
    q, k, v = (t.to(dtype) for t in qkv(3, length=9))
    out = grounded_attention(q, k, v, Grounding.from_pivots([-1, 0, 0]), shared=shared)
    assert out.dtype == dtype
    assert relative(out, written_out(q, k, v, [-1, 0, 0])) < bound


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_large_logits(dtype: torch.dtype, shared: bool) -> None:
    q, k, v = (t.to(dtype) for t in qkv(3, features=64))
    q, k = q * 60, k * 60  # logits of thousands: their exponentials overflow any format
    logits = torch.einsum("hid,rhjd->rhij", q[0].float(), k.float()) / 8
    assert 3e3 < logits.abs().max() < 6e4
    out = grounded_attention(q, k, v, Grounding.from_pivots([-1, 0, 0]), shared=shared)
    assert torch.isfinite(out).all()
    assert relative(out, written_out(q, k, v, [-1, 0, 0])) < {torch.float32: 1e-3}.get(dtype, 1e-2)


@pytest.mark.parametrize("sign", [1, -1])
def test_one_of_the_two_logit_maps_far_above_the_other(sign: int) -> None:
    q, k, v = qkv(2, heads=1)
    k[0] = q[0] * 40 * sign  # the pivot's keys attract every query far more, or less, than the target's
    out = grounded_attention(q, k, v, Grounding.from_pivots([-1, 0]), shared=True)
    assert relative(out, written_out(q, k, v, [-1, 0])) < 1e-5


def test_the_shared_way_reads_its_values_right() -> None:
    q, k, v = qkv(3)
    out = shared_logit_attention(q[0], k[0], k[1:], v[1:])
    assert out.shape == (2, 2, 5, 4)
    assert relative(merge_heads(out), written_out(q, k, v, [-1, 0, 0])[1:]) < 2e-6


def test_the_callers_attention_is_used() -> None:
    seen: list[tuple[int, ...]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is None
        seen.append((q.shape[0], q.shape[2], k.shape[2], v.shape[2]))
        return sdpa(q, k, v) + 100

    q, k, v = qkv(4)
    plain = Grounding.from_pivots([-1] * 4)
    assert relative(grounded_attention(q, k, v, plain, attend), sdpa(q, k, v) + 100) == 0
    assert seen == [(4, 5, 5, 5)]
    seen.clear()
    out = grounded_attention(q, k, v, Grounding.from_pivots([-1, 0, -1, 0]), attend, shared=False)
    assert seen == [(2, 5, 5, 5), (2, 5, 10, 10)]
    assert relative(out - 100, written_out(q, k, v, [-1, 0, -1, 0])) < 1e-5


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_the_second_term_has_the_pivots_queries(plan: list[int]) -> None:
    q = qkv(len(plan))[0]
    grounding = Grounding.from_pivots(plan)
    k_bokeh, v_bokeh = randn(len(plan), 3, 8, seed=5), randn(len(plan), 3, 8, seed=6)
    grounded = grounded_bokeh_attention(q, k_bokeh, v_bokeh, grounding)
    assert relative(grounded, bokeh_attention(ground_queries(q, grounding), k_bokeh, v_bokeh)) < 1e-6


def test_queries_of_the_second_term() -> None:
    q = randn(4, 1, 2, 3)
    grounding = Grounding.from_pivots([-1, 0, -1, 2])
    assert torch.equal(ground_queries(q, grounding), q[[0, 0, 2, 2]])
    assert ground_queries(q, None) is q
    assert ground_queries(q, Grounding.from_pivots([-1] * 4)) is q


def test_heads() -> None:
    x = torch.arange(2 * 3 * 8.0).reshape(2, 3, 8)
    assert torch.equal(split_heads(x, 2)[1, 1, 2], x[1, 2, 4:])
    assert torch.equal(merge_heads(split_heads(x, 2)), x)


def test_one_bokeh_token_is_attention_over_one_key() -> None:
    q = randn(3, 2, 5, 4)
    k, v = randn(3, 1, 8, seed=1), randn(3, 1, 8, seed=2)
    term = bokeh_attention(q, k, v)
    assert term.shape == (3, 1, 8)
    general = sdpa(q, split_heads(k, 2), split_heads(v, 2))
    assert relative(term.expand_as(general), general) < 1e-6
    twice = bokeh_attention(q, k.repeat(1, 2, 1), v.repeat(1, 2, 1))  # the general path, two equal tokens
    assert twice.shape == (3, 5, 8)
    assert relative(twice, term.expand_as(twice)) < 1e-6


def test_several_bokeh_tokens() -> None:
    q, k, v = randn(2, 2, 5, 4), randn(2, 3, 8, seed=1), randn(2, 3, 8, seed=2)
    out = bokeh_attention(q, k, v)
    for row in range(2):
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            for i in range(5):
                expected = one_query(
                    q[row, head, i].double(),
                    k[row, :, part].double(),
                    v[row, :, part].double(),
                    torch.zeros(3),
                )
                assert relative(out[row, i, part], expected) < 1e-5


def test_several_bokeh_tokens_follow_the_precision_of_the_queries() -> None:
    q, k, v = randn(2, 2, 5, 4).half(), randn(2, 3, 8, seed=1), randn(2, 3, 8, seed=2)
    out = bokeh_attention(q, k, v)
    assert out.dtype == torch.float16
    assert relative(out, bokeh_attention(q.float(), k, v)) < 5e-3


def test_plans() -> None:
    plan = Grounding.from_pivots([-1, 0, -1, 2, 0])
    assert plan.plain == (0, 2)
    assert plan.groups == ((0, (1, 4)), (2, (3,)))
    assert plan.targets == 3
    assert Grounding.from_pivots([]).targets == 0


@pytest.mark.parametrize(
    ("pivots", "message"),
    [
        ([-1, 2], "Row 1 is to be grounded on row 2, but the batch has only 2 rows"),
        ([-1, 0, 1], "Row 1 is a pivot and is grounded itself"),
        ([1, 0], "is a pivot and is grounded itself"),
    ],
)
def test_plans_that_cannot_be(pivots: list[int], message: str) -> None:
    with pytest.raises(BokehError, match=message):
        Grounding.from_pivots(pivots)


def test_a_batch_of_another_size_is_refused() -> None:
    q, k, v = qkv(4)
    with pytest.raises(BokehError, match=r"planned for 2 rows but the model's attention has 4.*HyperTile"):
        grounded_attention(q, k, v, Grounding.from_pivots([-1, 0]))


# ---- what it costs ----


class Counted(TorchDispatchMode):
    """How often each operator of torch was called, and the numbers that all of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        if isinstance(out, Tensor) and all(
            out.untyped_storage().data_ptr() != a.untyped_storage().data_ptr()
            for a in args
            if isinstance(a, Tensor)
        ):
            self.numbers += out.numel()
        return out


def merged(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """A caller's attention over ``[R, L, C]``, two heads."""
    return sdpa(*(split_heads(t, 2) for t in (q, k, v)))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("pivots", PLANS)
def test_heads_need_not_be_split(pivots: list[int], shared: bool) -> None:
    q, k, v = (randn(len(pivots), 5, 16, seed=seed) for seed in range(3))
    plan = Grounding.from_pivots(pivots)
    expected = written_out(*(split_heads(t, 2) for t in (q, k, v)), pivots)
    out = grounded_attention(q, k, v, plan, merged, shared=shared, heads=2)
    assert relative(out, expected) < 1e-5


def test_keys_and_values_of_targets_are_copied_once() -> None:
    """Per target: keys of both and values twice, and what the attention makes; nothing else of their size."""
    rows, tokens, width = 3, 64, 16
    q, k, v = (randn(rows, tokens, width, seed=seed) for seed in range(3))
    plan = Grounding.from_pivots([-1, 0, 0])

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return q.new_zeros(q.shape)

    with Counted() as counted:
        grounded_attention(q, k, v, plan, attend, shared=False, heads=2)
    one = tokens * width
    results = rows * one + rows * one  # the whole, and of each part
    assert counted.numbers == results + 2 * (2 * one + 2 * one)


def test_rows_of_several_pictures_are_not_copied() -> None:
    """A sweep of two pictures: the targets of each lie at even distances."""
    q, k, v = (randn(8, 2, 6, 4, seed=seed) for seed in range(3))
    plan = Grounding.from_pivots([-1] * 2 + [0, 1] * 3)
    for shared in (True, False):
        with Counted() as counted:
            grounded_attention(q, k, v, plan, sdpa, shared=shared)
        assert counted.calls["index"] == 0
        assert counted.calls["index_put_"] == 0
