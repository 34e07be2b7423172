"""A few hundred steps on a toy world, and K is in control of what is sampled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import models
from tests.fit import losses
from tests.host.setup import host_folder
from tests.models import one_thread  # noqa: F401
from trainer import toy as demo
from trainer.config import Fit
from trainer.settings import read_settings

K = [0.0, 6.0, 12.0, 18.0, 24.0, 30.0]
SEEDS = 16
"""Scenes that are sampled. Of four, what K does to contrast depended on the rounding more than on anything else."""


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's, 0 where one of them does not vary beyond rounding."""
    if float(one.std()) < 1e-5 * float(one.abs().max()):
        return 0.0
    return float(torch.corrcoef(torch.stack((one, other)))[0, 1])


def contrasts(base: Any, adapter: Any, settings: Fit) -> Tensor:
    """Contrast of the stripes at every K, ``[SEEDS, 6]``, sampled as GroundedSampler samples."""
    from trainer.frozen.cache import Store, Texts
    from trainer.recipes.bokeh.samples import sweep

    texts = Texts(base, Store(None), torch.float32)
    found = []
    for seed in range(SEEDS):
        wanted = replace(settings.samples, k=K, pivot=15.0, seed=seed)
        pictures = sweep(base, adapter, replace(settings, samples=wanted), texts, (demo.SIDE, demo.SIDE))
        found.append(demo.sharpness(pictures[0, 1:]))
    return torch.stack(found)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_k_becomes_controllable(pack: Any, repo: Path, tmp_path: Path) -> None:
    from bokeh_ops.adapter.files import read_adapter
    from trainer.frozen.small import SmallBase
    from trainer.recipes.bokeh.recipe import fit, new_adapter

    # The world itself: K takes the contrast away.
    pictures, ks = demo.pictures(64)
    assert correlation(demo.sharpness(pictures / 255), torch.tensor(ks)) < -0.9

    # A base that knows the world, but not K.
    demo.write_dataset(tmp_path / "data", photographs=64, sharp=32)
    learnt = demo.train_base(demo.make_toy("flux"), 450, tmp_path / "base")
    assert sum(learnt[-50:]) < 0.4 * sum(learnt[:50])
    base = SmallBase(tmp_path / "base" / "base.safetensors", torch.float32, "flux", "")

    config = tmp_path / "tiny.yaml"
    config.write_text(
        (repo / "trainer" / "configs" / "tiny.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    overrides = ["steps=300", "samples.every=0", "checkpoint.every=300", f"comfyui={host_folder()}"]
    settings = read_settings(config, Fit, overrides).resolved()
    untrained = contrasts(base, new_adapter(base, settings), settings)
    assert fit(settings, tmp_path)
    trained = contrasts(base, read_adapter(tmp_path / "run" / "adapter.safetensors"), settings)
    models.unload()

    # Of a scene, and on average: the more K the less contrast. A new adapter gives every K the same picture.
    per_scene = [correlation(scene, torch.tensor(K)) for scene in trained]
    mean = correlation(trained.mean(0), torch.tensor(K))
    assert [correlation(scene, torch.tensor(K)) for scene in untrained] == [0.0] * SEEDS
    assert sum(per_scene) / SEEDS < -0.7, per_scene
    assert mean < -0.95, mean
    # Of 20 trainings on two versions of ComfyUI that differed in the weights' last digit alone, 1.32 to 1.59.
    assert float(trained[:, 0].mean() / trained[:, -1].mean()) > 1.2
    kinds = {line["kind"] for line in losses(tmp_path / "run")}
    assert kinds == {"photographs", "contrastive"}
