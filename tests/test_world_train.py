"""Training a base of the small world: it goes on where it stopped, and `fit` takes what it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bokeh_ops.errors import BokehError
from tests import models
from tests.host.setup import host_folder
from tests.models import one_thread  # noqa: F401
from trainer.log import LOSSES, read_lines
from trainer.recipes.world import WEIGHTS, Pictures, Plan, base_loop, new_model
from trainer.world.base import VOCABULARY, blur_words
from trainer.world.data import write_dataset
from trainer.world.scene import HELD_OUT, caption, draw_scene

pytest.importorskip("skimage")
PLAN = Plan(steps=6, batch=4, warmup=2, sample_every=0, save_every=100)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("world") / "data", photographs=10, sharp=2)


@pytest.fixture(autouse=True)
def unloaded(pack: Any) -> Iterator[None]:
    yield
    models.unload()


def train(kind: str, pictures: Pictures, plan: Plan, out: Path, until: int | None = None) -> list[float]:
    """Train, and all losses so far."""
    base_loop(new_model(kind, pictures, plan.seed), pictures, plan, out, until).run()
    return [line["loss"] for line in read_lines(out / LOSSES)]


@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(kind: Any, data: Path, tmp_path: Path) -> None:
    pictures = Pictures([data])
    whole = train(kind, pictures, PLAN, tmp_path / "whole")
    assert len(train(kind, pictures, PLAN, tmp_path / "parts", until=3)) == 3
    assert train(kind, pictures, PLAN, tmp_path / "parts") == whole
    one, other = (
        {
            file.name: load_file(file)
            for file in (tmp_path / each / "checkpoints" / "step-00000006").glob("*.safetensors")
        }
        for each in ("whole", "parts")
    )
    assert set(one) == set(other) == {"network.safetensors", "average.safetensors"}
    assert all(models.same_bits(one[name], other[name]) for name in one)
    assert (tmp_path / "whole" / WEIGHTS).read_bytes() == (tmp_path / "parts" / WEIGHTS).read_bytes()
    network, average = one["network.safetensors"], one["average.safetensors"]
    assert any(not torch.equal(network[name], average[name]) for name in network)


def test_the_same_few_pictures_are_learnt(data: Path, tmp_path: Path) -> None:
    plan = replace(PLAN, steps=24, warmup=5, fall=0.0, batch=8)
    losses = train("flux", Pictures([data]), plan, tmp_path)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_folder_of_the_other_kind_is_refused(data: Path, tmp_path: Path) -> None:
    pictures = Pictures([data])
    train("flux", pictures, PLAN, tmp_path, until=1)
    with pytest.raises(BokehError, match="architecture: flux -> sd15"):
        train("sd15", pictures, PLAN, tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "state.safetensors").touch()
    with pytest.raises(BokehError, match="of an older version"):
        train("flux", pictures, PLAN, tmp_path / "old")


def test_held_out_scenes_are_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", photographs=1, sharp=1, first=HELD_OUT)
    with pytest.raises(BokehError, match="kept for measuring"):
        Pictures([folder])


def test_captions_are_in_the_vocabulary_and_k_is_told_in_words_at_most(data: Path) -> None:
    from bokeh_ops.host.small.parts import Words
    from trainer.world.base import TOKENS, WIDTH

    words = Words(WIDTH, WIDTH, TOKENS, VOCABULARY)
    for seed in range(200):
        for k in (0.0, 30.0):
            words.encode(f"{caption(draw_scene(seed))} {blur_words(k)}")
    pictures = Pictures([data])
    told = [text for step in range(100) for text in pictures.draw(PLAN, step)[1]]
    assert 0.04 < sum("background" in text for text in told) / len(told) < 0.12
    assert 0.05 < sum(not text for text in told) / len(told) < 0.16
    silent = replace(PLAN, mention=0.0)
    assert not any("background" in text for step in range(20) for text in pictures.draw(silent, step)[1])


@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_fit_trains_on_the_base_and_its_world(kind: Any, data: Path, tmp_path: Path) -> None:
    from trainer.config import Fit
    from trainer.recipes.bokeh.recipe import fit
    from trainer.settings import parse_settings

    train(kind, Pictures([data]), PLAN, tmp_path / "base", until=1)
    text = f"""
out: {tmp_path / "run"}
base: {{architecture: {kind}, checkpoint: {tmp_path / "base" / WEIGHTS}}}
data: {{dataset: {data}, workers: 0}}
comfyui: {host_folder()}
steps: 2
precision: fp32
device: cpu
checkpointing: false
tensorboard: false
adapter: {{rank: 4, query_key_rank: 0, context: 16, hidden: 8}}
batch: {{total: 4, micro: 4}}
contrastive: {{levels: 2}}
samples: {{every: 2, steps: 2, prompts: ["a red ball on grass by a wall, day"], k: [0, 30]}}
"""
    assert fit(parse_settings(text, Fit, "test").resolved(), tmp_path)
    assert (tmp_path / "run" / "adapter.safetensors").is_file()
    assert list((tmp_path / "run" / "samples").glob("*.png"))
