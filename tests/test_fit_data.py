"""From a planned micro-batch to pictures, masks and captions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models import one_thread  # noqa: F401
from trainer import toy as demo
from trainer.config import Fit
from trainer.data import open_dataset
from trainer.data.pairs import render_set
from trainer.frozen.cache import Store
from trainer.recipes.bokeh.feed import Feeder, choose_caption, stock
from trainer.recipes.bokeh.plan import MicroBatch, Plan
from trainer.settings import parse_settings

AT_512 = 512 / demo.SIDE


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.write_dataset(tmp_path_factory.mktemp("data"), photographs=6, sharp=3)


def micro(data: Path, share: int) -> tuple[Feeder, MicroBatch]:
    photographs = open_dataset(data)
    text = "out: o\nbase: {architecture: sd15, checkpoint: m}\ndata: {dataset: d}"
    overrides = [f"contrastive.share={share}", "batch.total=8", "batch.micro=8", "contrastive.sharp=1"]
    settings = parse_settings(text, Fit, "c", [*overrides, "dropout.condition=0", "dropout.both=0"])
    (made,) = Plan(settings.resolved(), stock(photographs)).micro_batches(0)
    return Feeder(photographs, None, Store(None), "autoencoder"), made


def test_k_is_told_at_512_pixels_whatever_the_size_of_the_photographs(data: Path) -> None:
    photographs = open_dataset(data)
    in_the_files = np.array([photographs.sample(index).k for index in range(9)])
    assert np.allclose(stock(photographs).k, in_the_files * AT_512)
    assert stock(photographs).k.max() > 10  # of 30; in the files less than 1
    feeder, planned = micro(data, 0)
    for row in planned.pictures:
        assert row.told == pytest.approx(in_the_files[row.index] * AT_512)
    fed = feeder.feed(planned)
    for place, row in enumerate(planned.pictures):
        sample = photographs.sample(row.index)
        assert np.array_equal(fed.images()[place].numpy(), sample.image)
        assert fed.keys[place] == sample.key
        assert np.array_equal(fed.masks[place].numpy(), sample.mask)
        assert fed.captions[place] in (*sample.captions, "")


def test_sets_are_rendered_at_the_photographs_own_size(data: Path) -> None:
    feeder, planned = micro(data, 1)
    fed = feeder.feed(planned)
    assert fed.latents == [None] * 8
    assert len(set(fed.names)) == len({(row.index, row.k) for row in planned.pictures})
    photographs = open_dataset(data)
    for place, row in enumerate(planned.pictures):
        (expected,) = render_set(photographs.sample(row.index), [row.k / AT_512])
        assert np.array_equal(fed.images()[place].numpy(), expected)
    assert sum(row.k == 0 for row in planned.pictures) == 2  # the photographs themselves


def test_kept_latents_are_taken_and_only_the_rest_is_rendered(data: Path, tmp_path: Path) -> None:
    feeder, planned = micro(data, 1)
    names = feeder.feed(planned).names
    feeder.latents = Store(tmp_path)
    for place in (0, 3, 6):
        feeder.latents.put(names[place], {"latent": torch.full((1,), float(place))})
    fed = feeder.feed(planned)
    missing = [place for place in range(8) if fed.latents[place] is None]
    assert [float(latent) for latent in fed.latents if latent is not None][:1] == [0.0]
    assert missing == [place for place in range(8) if names[place] not in {names[0], names[3], names[6]}]
    assert len(fed.images()) == len(missing)
    whole = replace(planned)
    plain = Feeder(feeder.photographs, None, Store(None), "autoencoder").feed(whole)
    assert np.array_equal(fed.images().numpy(), plain.images()[missing].numpy())


def test_names_tell_lens_models_and_autoencoders_apart(data: Path) -> None:
    feeder, planned = micro(data, 1)
    names = feeder.feed(planned).names
    other = Feeder(feeder.photographs, None, Store(None), "another").feed(planned).names
    classical = Feeder(feeder.photographs, None, Store(None), "autoencoder", "classical").feed(planned).names
    assert not set(names) & set(other)
    rendered = [place for place, row in enumerate(planned.pictures) if row.k]
    assert all(names[place] != classical[place] for place in rendered)
    assert all(names[place] == classical[place] for place in range(8) if place not in rendered)


def test_captions() -> None:
    assert choose_caption(["a", "b", "c"], 0.0) == "a"
    assert choose_caption(["a", "b", "c"], 0.5) == "b"
    assert choose_caption(["a", "b", "c"], 1.0) == "c"
    assert choose_caption(["a"], None) == ""
    assert choose_caption([], 0.5) == ""
