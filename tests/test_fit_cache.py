"""Latents and embeddings on disk: made once, found by content, made again when lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bokeh_ops.digest import content_key
from bokeh_ops.host.architectures import named
from tests import models
from tests.fit import losses, run, settings, workshop  # noqa: F401
from tests.models import one_thread  # noqa: F401
from trainer.frozen.cache import Store, Texts, stack
from trainer.frozen.model import Embedding

# ruff: noqa: F811 (the fixture `workshop` is imported)


@pytest.fixture(autouse=True)
def unloaded(pack: Any) -> Iterator[None]:
    yield
    models.unload()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what the encoders are asked for."""
    from trainer.frozen.small import SmallBase

    counts: Counter[str] = Counter()
    texts, images = SmallBase.encode_text, SmallBase.encode_images

    def encode_text(self: Any, wanted: Any) -> Any:
        counts["texts"] += len(wanted)
        return texts(self, wanted)

    def encode_images(self: Any, wanted: Any) -> Any:
        counts["images"] += len(wanted)
        return images(self, wanted)

    monkeypatch.setattr(SmallBase, "encode_text", encode_text)
    monkeypatch.setattr(SmallBase, "encode_images", encode_images)
    return counts


def test_the_second_run_encodes_nothing(workshop: Path, tmp_path: Path, encoded: Counter[str]) -> None:
    cache = f"cache.folder={tmp_path / 'cache'}"
    run("sd15", tmp_path / "first", workshop, cache)
    assert encoded["texts"] == 3  # two captions and the empty one
    assert encoded["images"] >= 16  # all photographs, and the rendered sets that came up
    encoded.clear()
    run("sd15", tmp_path / "second", workshop, cache)
    assert not encoded
    assert losses(tmp_path / "second") == losses(tmp_path / "first")


def test_without_a_cache_the_losses_are_the_same(
    workshop: Path, tmp_path: Path, encoded: Counter[str]
) -> None:
    run("flux", tmp_path / "kept", workshop, f"cache.folder={tmp_path / 'cache'}")
    encoded.clear()
    run("flux", tmp_path / "none", workshop, "cache.text=false", "cache.latents=false")
    assert encoded["images"] == 6 * 8
    assert losses(tmp_path / "none") == losses(tmp_path / "kept")


def test_sets_that_are_new_each_time_are_not_kept(workshop: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run("sd15", tmp_path, workshop, f"cache.folder={cache}", "contrastive.variants=0", "contrastive.share=1")
    assert len(list((cache / "latents").rglob("*.safetensors"))) == 16  # the photographs


def test_damaged_and_lost_entries_are_made_again(
    workshop: Path, tmp_path: Path, encoded: Counter[str]
) -> None:
    cache = tmp_path / "cache"
    run("sd15", tmp_path / "first", workshop, f"cache.folder={cache}")
    entries = sorted(cache.rglob("*.safetensors"))
    for number, entry in enumerate(entries):
        if number % 2:
            entry.write_bytes(b"cut off")
        else:
            entry.unlink()
    encoded.clear()
    run("sd15", tmp_path / "second", workshop, f"cache.folder={cache}")
    assert encoded["images"] > 0
    assert losses(tmp_path / "second") == losses(tmp_path / "first")


def test_names_tell_contents_apart() -> None:
    keys = {
        content_key("a", "b"), content_key("ab"), content_key("a", b"b"), content_key("a", 1.0), content_key("a", 1),
        content_key("", "ab"), content_key("b", "a"),
    }  # fmt: skip
    assert len(keys) == 7
    assert content_key("a", "b") in keys


def test_embeddings_of_several_lengths_attend_as_each_alone() -> None:
    """Repeating keys and values changes nothing in attention."""
    short, long = models.randn(4, 6, seed=1), models.randn(6, 6, seed=2)
    together, pooled = stack([Embedding(short, None), Embedding(long, None)])
    assert together.shape == (2, 12, 6)
    assert pooled is None
    q = models.randn(3, 6, seed=3)
    for row, alone in zip(together, (short, long), strict=True):
        attended = torch.softmax(q @ row.T, -1) @ row
        assert torch.allclose(attended, torch.softmax(q @ alone.T, -1) @ alone, atol=1e-6)


def test_texts_are_kept_in_the_type_of_the_network(tmp_path: Path) -> None:
    class Encoder:
        text_fingerprint, architecture = "x", named("flux")

        def encode_text(self, texts: list[str]) -> list[Embedding]:
            return [Embedding(models.randn(3, 4, seed=len(text)), models.randn(5, seed=1)) for text in texts]

    store = Store(tmp_path)
    texts = Texts(Encoder(), store, torch.bfloat16)  # type: ignore[arg-type]
    first = texts(["one", "three", "one"])
    assert [e.context.dtype for e in first] == [torch.bfloat16] * 3
    assert first[0].context.equal(first[2].context)
    assert not texts.missing(["one", "three"])
    assert texts.missing(["two", "one", "two"]) == ["two"]
    again = Texts(None, store, torch.bfloat16)  # type: ignore[arg-type]
    again.base = Encoder()  # type: ignore[assignment]
    kept = again(["three"])[0]
    assert kept.context.equal(first[1].context)
    assert kept.pooled is not None
    other = Encoder()
    other.text_fingerprint = "y"
    assert Texts(other, store, torch.bfloat16).missing(["one"]) == ["one"]  # type: ignore[arg-type]
    assert Texts(Encoder(), store, torch.float32).missing(["one"]) == ["one"]  # type: ignore[arg-type]


def test_workers_feed_the_same(workshop: Path, tmp_path: Path) -> None:
    assert settings("flux", tmp_path, workshop, "data.workers=1").data.workers == 1
    run("flux", tmp_path / "none", workshop, "contrastive.variants=0")
    run("flux", tmp_path / "one", workshop, "contrastive.variants=0", "data.workers=1")
    assert losses(tmp_path / "one") == losses(tmp_path / "none")


def test_kept_rows_decode_no_picture_and_the_model_stays_loaded(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bokeh_ops.host.loading import models as loading
    from trainer.data import Dataset

    cache = f"cache.folder={tmp_path / 'cache'}"
    run("flux", tmp_path / "first", workshop, cache, "steps=3", "contrastive.variants=1")
    calls: Counter[str] = Counter()
    decode, load = Dataset.sample, loading.on_device
    monkeypatch.setattr(Dataset, "sample", lambda self, n: (calls.update(["decoded"]), decode(self, n))[1])
    monkeypatch.setattr(loading, "on_device", lambda model: (calls.update(["loaded"]), load(model))[1])
    run("flux", tmp_path / "second", workshop, cache, "steps=3", "contrastive.variants=1")
    assert calls == {"loaded": 1}
    assert losses(tmp_path / "second") == losses(tmp_path / "first")


def test_captions_go_to_the_encoder_together(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.frozen.small import SmallBase

    sizes: list[int] = []
    encode = SmallBase.encode_text
    monkeypatch.setattr(
        SmallBase, "encode_text", lambda self, texts: (sizes.append(len(texts)), encode(self, texts))[1]
    )
    run("flux", tmp_path, workshop, f"cache.folder={tmp_path / 'cache'}", "steps=1")
    assert sizes == [1, 2]  # the empty one; all captions of the data set
