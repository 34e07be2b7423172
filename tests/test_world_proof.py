"""The method, seen to work: the shipped models and adapters sample held-out scenes, and are held to bounds.

    python run.py proof

Slow. Every bound is one that a broken adapter, a broken grounding or a swapped pivot fails, which is tested too. All
steps are grounded here, which sets what is broken farthest apart from what is whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import models
from tests.models import one_thread  # noqa: F401
from trainer.measure.metrics import bootstrap
from trainer.measure.sweep_measures import measure_sweep
from trainer.measure.sweeps import find_sweeps, match_reference
from trainer.world.mask import read_mask
from trainer.world.sweeps import Variant, held_out, write_reference, write_sweeps

pytest.importorskip("skimage")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SCENES = 20
STEPS = 20
WHOLE = Variant(steps=STEPS, grounding=STEPS)
KINDS = ("sd15", "flux")


@dataclass(frozen=True)
class Bounds:
    """Of means over the scenes.

    Found when they were set, whole: LVCorr 0.990 and 0.994, drift of what is in focus 2.66 and 1.13. The drift is
    3.61 and 1.60 where nothing is grounded, 3.07 and 1.55 where every target is tied to the last.
    """

    lvcorr: float
    focus_dE: float

    def hold(self, found: dict[str, float]) -> bool:
        return found["lvcorr"] >= self.lvcorr and found["focus_dE"] <= self.focus_dE


BOUNDS = {"sd15": Bounds(0.97, 2.85), "flux": Bounds(0.97, 1.3)}
WITH_SUBJECT = {"sd15": Bounds(0.97, 2.45), "flux": Bounds(0.97, 1.0)}
"""Found when they were set: 2.28 and 0.90."""


@pytest.fixture(autouse=True)
def unloaded(pack: Any) -> Iterator[None]:
    yield
    models.unload()


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    write_reference(folder, held_out(SCENES))
    return folder


def load(kind: str) -> tuple[Any, Any]:
    from bokeh_ops.adapter.files import read_adapter
    from bokeh_ops.host.small.model import read_small
    from bokeh_ops.host.small.shipped import demo_path

    return read_small(demo_path(kind)), read_adapter(demo_path(kind, adapter=True))


def measured(
    folder: Path, kind: str, references: Path, variant: Variant, adapter: Any = None
) -> dict[str, float]:
    model, own = load(kind)
    write_sweeps(folder, model, own if adapter is None else adapter, held_out(SCENES), variant, read_mask())
    known = find_sweeps(references)
    rows = [measure_sweep(sweep, match_reference(sweep, known)) for sweep in find_sweeps(folder)]
    assert len(rows) == SCENES
    found = {
        name: bootstrap([row.get(name) for row in rows]).mean for name in ("lvcorr", "focus_dE", "ordered")
    }
    print(f"{kind}: {found}")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_k_is_obeyed_and_what_is_in_focus_stays(kind: str, references: Path, tmp_path: Path) -> None:
    assert BOUNDS[kind].hold(measured(tmp_path, kind, references, WHOLE))


@pytest.mark.parametrize("kind", KINDS)
def test_a_subject_stays(kind: str, references: Path, tmp_path: Path) -> None:
    assert WITH_SUBJECT[kind].hold(measured(tmp_path, kind, references, replace(WHOLE, subject=True)))


def broken_adapter(adapter: Any) -> Any:
    """Its embedding no longer hears K."""
    broken = copy.deepcopy(adapter)
    with torch.no_grad():
        broken.embedding_layer[0].weight.zero_()
    return broken


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["adapter", "grounding", "pivot"])
def test_the_bounds_see_what_is_broken(
    kind: str, what: str, references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant, adapter = WHOLE, None
    if what == "adapter":
        adapter = broken_adapter(load(kind)[1])
    elif what == "grounding":
        variant = replace(variant, grounding=0)
    else:
        from bokeh_ops.adapter.rows import SweepRows

        # Every target is tied to the last of them, which is tied to nothing.
        def swapped(self: SweepRows) -> list[int]:
            return [-1, *[self.targets] * (self.targets - 1), -1]

        monkeypatch.setattr(SweepRows, "pivots", swapped)
    assert not BOUNDS[kind].hold(measured(tmp_path, kind, references, variant, adapter))
