"""What every step trains on, by the number of the step alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from bokeh_ops.errors import BokehError
from trainer.config import Fit
from trainer.data.pairs.render import Levels, draw_levels
from trainer.recipes.bokeh.plan import MicroBatch, Plan, Stock
from trainer.seeded import generator as draws
from trainer.seeded import normal
from trainer.settings import parse_settings

BASE = "out: o\nbase: {architecture: sd15, checkpoint: m}\ndata: {dataset: d}\n"


def plan(*overrides: str, stock: Stock | None = None) -> Plan:
    settings = parse_settings(BASE, Fit, "c", ["batch.total=16", "batch.micro=8", *overrides])
    return Plan(settings.resolved(), stock or some_stock())


def some_stock(**changes: Any) -> Stock:
    k = np.linspace(1, 30, 40)
    k[30:] = np.nan
    values: dict[str, Any] = {"k": k, "all_in_focus": np.arange(40) >= 30, **changes}
    return Stock(**values)


def step_of(made: Plan, step: int, world: int = 1) -> list[MicroBatch]:
    parts = [micro for rank in range(world) for micro in made.micro_batches(step, rank, world)]
    return sorted(parts, key=lambda micro: micro.number)


def test_a_step_depends_on_nothing_but_its_number() -> None:
    walked = plan()
    in_order = [step_of(walked, step) for step in range(30)]
    for step in (29, 3, 17):
        assert step_of(plan(), step) == in_order[step]
    assert step_of(plan("seed=1"), 3) != in_order[3]


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_the_very_same_micro_batches(world: int) -> None:
    made = plan()
    for step in range(8):
        assert step_of(made, step, world) == step_of(made, step)


def test_every_row_is_there_once() -> None:
    for step in range(8):
        slots = [p.slot for micro in step_of(plan("batch.micro=6"), step) for p in micro.pictures]
        assert sorted(slots) == list(range(16))


def test_half_of_the_steps_are_contrastive() -> None:
    made = plan()
    count = sum(made.kind(step) == "contrastive" for step in range(2000))
    assert abs(count - 1000) < 4.5 * (2000 * 0.25) ** 0.5
    assert {plan("contrastive.share=0").kind(s) for s in range(9)} == {"photographs"}
    assert {plan("contrastive.share=1").kind(s) for s in range(9)} == {"contrastive"}


def test_photographs_are_all_seen_equally_often() -> None:
    made = plan("contrastive.share=0")
    seen = Counter(p.index for step in range(15) for m in step_of(made, step) for p in m.pictures)
    assert set(seen) == set(range(30))  # those whose K is known
    assert max(seen.values()) - min(seen.values()) == 0  # 15 * 16 is eight times 30
    rows = [p for m in step_of(made, 0) for p in m.pictures]
    assert all(p.pivot == -1 and p.k == pytest.approx(1 + 29 * p.index / 39) for p in rows)
    assert len({p.scene for p in rows}) == 16  # noise of its own for each


def test_contrastive_sets() -> None:
    made = plan("contrastive.share=1", "dropout.caption=0", "dropout.condition=0", "dropout.both=0")
    pivots: Counter[int] = Counter()
    for step in range(60):
        for micro in step_of(made, step):
            assert len(micro.pictures) == 8  # whole sets
            for start in (0, 4):
                rows = micro.pictures[start : start + 4]
                assert len({(p.scene, p.index, p.caption) for p in rows}) == 1
                assert rows[0].index >= 30
                # One K in each quarter of the range, or the photograph itself.
                assert [int(p.k // 7.5) for p in rows] == [0, 1, 2, 3]
                assert all(p.told == p.k for p in rows)
                (pivot,) = [p.slot for p in rows if p.pivot == -1]
                assert {p.pivot for p in rows} == {-1, pivot}
                pivots[pivot - rows[0].slot] += 1
            local = micro.pivots()
            assert all(
                q < 0 or micro.pictures[q].slot == p.pivot for p, q in zip(micro.pictures, local, strict=True)
            )
    assert set(pivots) == {0, 1, 2, 3}  # any of them
    assert min(pivots.values()) > 30  # of 240, 60 expected


def test_k_is_drawn_continuously_and_evenly() -> None:
    levels = Levels(4, 2.0, 22.0, sharp=0.25)
    drawn = np.array([draw_levels(draws(1, "t", n), levels) for n in range(2000)])
    sharp = drawn[:, 0] == 0
    assert abs(sharp.mean() - 0.25) < 0.045
    rest = drawn[~sharp]
    assert rest.min() >= 2
    assert rest.max() <= 22
    assert len(np.unique(rest)) == rest.size
    counts, _ = np.histogram(rest, bins=10, range=(2, 22))
    assert np.all(np.abs(counts - counts.mean()) < 5 * counts.mean() ** 0.5)


def test_sets_are_new_each_time_or_from_a_few() -> None:
    def drawn(*overrides: str) -> Counter[tuple[int, float]]:
        made = plan("contrastive.share=1", *overrides)
        return Counter((p.index, p.k) for s in range(30) for m in step_of(made, s) for p in m.pictures if p.k)

    assert max(drawn().values()) == 1
    few = drawn("contrastive.variants=2")
    assert len(few) <= 10 * 2 * 4
    assert max(few.values()) > 1


def test_dropout_shares() -> None:
    made = plan("contrastive.share=0", "dropout.caption=0.2", "dropout.condition=0.1", "dropout.both=0.3")
    rows = [p for s in range(120) for m in step_of(made, s) for p in m.pictures]
    caption, condition = np.array([p.caption is None for p in rows]), np.array([p.told == -30 for p in rows])
    bound = 4.5 * (0.25 / len(rows)) ** 0.5
    assert abs((caption & ~condition).mean() - 0.2) < bound
    assert abs((condition & ~caption).mean() - 0.1) < bound
    assert abs((condition & caption).mean() - 0.3) < bound
    kept = np.array([p.caption for p in rows if p.caption is not None])
    assert abs(kept.mean() - 0.5) < 0.05  # every caption alike


def test_a_scene_without_condition_is_not_grounded() -> None:
    made = plan("contrastive.share=1", "dropout.condition=1", "dropout.caption=0", "dropout.both=0")
    rows = [p for m in step_of(made, 0) for p in m.pictures]
    assert {p.told for p in rows} == {-30.0}
    assert {p.pivot for p in rows} == {-1}


def test_sets_from_disk() -> None:
    pairs = np.arange(3 * 6, dtype=np.float64).reshape(3, 6)
    made = plan("contrastive.share=1", stock=some_stock(pairs_k=pairs))
    for step in range(6):
        for micro in step_of(made, step):
            assert micro.stored
            for start in (0, 4):
                rows = micro.pictures[start : start + 4]
                assert [p.k for p in rows] == [float(p.index) for p in rows]
                assert len({p.index // 6 for p in rows}) == 1
                assert len({p.index for p in rows}) == 4


@pytest.mark.parametrize(
    ("stock", "said"),
    [
        (some_stock(k=np.full(40, np.nan)), "known K"),
        (some_stock(all_in_focus=np.zeros(40, dtype=bool)), "all in focus"),
        (some_stock(pairs_k=np.ones((3, 2))), "have 2 pictures and contrastive.levels is 4"),
    ],
)
def test_data_that_lacks_what_is_asked_for(stock: Stock, said: str) -> None:
    with pytest.raises(BokehError, match=said):
        plan(stock=stock)


def test_draws_by_purpose() -> None:
    assert draws(1, "a", 2).random() == draws(1, "a", 2).random()
    seen = {
        draws(*key).random()
        for key in [(1, "a", 2), (2, "a", 2), (1, "b", 2), (1, "a", 3), (1, "a"), (1, 2, "a")]
    }
    assert len(seen) == 6
    one = normal((3, 4), 5, "n")
    assert one.shape == (3, 4)
    assert bool((one == normal((3, 4), 5, "n")).all())
