# ruff: noqa: F811 (fixtures)
"""Previews of a sweep: what they cost, and that nothing that goes wrong in one costs the sweep anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import models
from tests.models import one_thread  # noqa: F401
from tests.sampling import Sampling, adapter, base, kind, model, s, said, unloaded  # noqa: F401

Decode = Callable[[Tensor], Tensor]


class Decoder:
    """In place of a TAESD: pictures 8 times as large, each place its first channel."""

    def __init__(self, fails: Callable[[int], None] = lambda _call: None) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.fails = fails

    def decode(self, latents: Tensor) -> Tensor:
        self.seen.append(tuple(latents.shape))
        self.fails(len(self.seen))
        return latents[:, :1].repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """What the server is told: step, of how many, whether there is a picture."""
    import comfy.utils

    told: list[tuple[int, int, bool]] = []
    monkeypatch.setattr(
        comfy.utils,
        "PROGRESS_BAR_HOOK",
        lambda step, total, preview, **_: told.append((step, total, preview is not None)),
    )
    for throttle in ("PROGRESS_THROTTLE_MIN_INTERVAL", "PROGRESS_THROTTLE_MIN_PERCENT"):  # of later hosts
        monkeypatch.setattr(comfy.utils, throttle, 0, raising=False)
    return told


@pytest.fixture
def previews(monkeypatch: pytest.MonkeyPatch) -> Callable[[Decoder], Decoder]:
    """Switch on the host's TAESD previews with a decoder of ours."""
    import latent_preview

    def switch_on(decoder: Decoder) -> Decoder:
        monkeypatch.setattr(
            latent_preview, "get_previewer", lambda *_: latent_preview.TAESDPreviewerImpl(decoder)
        )
        return decoder

    return switch_on


@pytest.mark.parametrize("pictures", [1, 3])
def test_a_preview_of_a_large_sweep_costs_one_picture(
    s: Sampling, previews: Any, bar: list[Any], pictures: int
) -> None:
    decoder = previews(Decoder())
    latent = models.empty_latent(s.kind, pictures, 16, 24)
    s.grounded(target_bokeh="0:30:5", latent=latent, steps=1, cfg=1.0)
    ((rows, channels, height, width),) = decoder.seen
    assert (rows, channels) == (1, models.LATENT_CHANNELS[s.kind])
    assert 0.4 * 16 * 24 <= height * width <= 16 * 24
    assert bar == [(7, 7, True)]


def errors() -> dict[str, Any]:
    import comfy.model_management

    return {
        "out of memory": comfy.model_management.OOM_EXCEPTION("CUDA out of memory"),
        "a decoder for other latents": RuntimeError("expected input to have 4 channels"),
    }


@pytest.mark.parametrize("name", ["out of memory", "a decoder for other latents"])
@pytest.mark.parametrize("rows_per_batch", [0, 2])
def test_what_goes_wrong_in_a_preview_is_said_once(
    s: Sampling, previews: Any, base: Any, bar: list[Any], said: Any, name: str, rows_per_batch: int
) -> None:
    settings = {"target_bokeh": "0, 8, 28", "rows_per_batch": rows_per_batch}
    whole = s.grounded(**settings)
    bar.clear()

    def fail(call: int) -> None:
        if call == 2:
            raise errors()[name]

    decoder = previews(Decoder(fail))
    with models.watched(base) as calls:
        again = s.grounded(**settings)
    groups = 1 if rows_per_batch == 0 else 3
    assert len(calls) == 4 * groups  # no step is sampled again
    assert all(torch.equal(one["samples"], other["samples"]) for one, other in zip(whole, again, strict=True))
    assert len(decoder.seen) == 2  # and nothing is tried again that has failed
    assert [picture for _, _, picture in bar] == [True] + [False] * (4 * groups - 1)
    assert bar[-1][:2] == (12, 12)
    assert bar == sorted(bar, key=lambda told: told[0])
    (text,) = (text for text in said() if "preview" in text)
    assert str(errors()[name]) in text
    assert "goes on without previews" in text


def test_a_previewer_that_cannot_be_made(
    s: Sampling, said: Any, bar: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import latent_preview

    def broken(*_args: Any) -> None:
        raise RuntimeError("size mismatch for taesd_decoder")

    monkeypatch.setattr(latent_preview, "get_previewer", broken)
    assert torch.isfinite(s.grounded()[1]["samples"]).all()
    assert sum("size mismatch" in text for text in said()) == 1
    assert bar[-1] == (8, 8, False)


@pytest.mark.parametrize("previewed", [True, False])
def test_an_interrupt_in_a_preview_or_in_the_bar_comes_through(
    s: Sampling, previews: Any, said: Any, base: Any, monkeypatch: pytest.MonkeyPatch, previewed: bool
) -> None:
    import comfy.model_management
    import comfy.utils

    def interrupt(*_args: Any, **_more: Any) -> None:
        raise comfy.model_management.InterruptProcessingException

    if previewed:
        previews(Decoder(interrupt))
    else:
        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", interrupt)
    with models.watched(base) as calls, pytest.raises(comfy.model_management.InterruptProcessingException):
        s.grounded(target_bokeh="0, 8, 28")
    assert len(calls) == 1
    assert not any("preview" in text for text in said())


def test_what_the_servers_bar_raises_is_not_taken_for_a_preview(
    s: Sampling, previews: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another extension may stop a run in its own way."""
    import comfy.utils

    class Stop(Exception):
        pass

    def stop(*_args: Any, **_more: Any) -> None:
        raise Stop

    previews(Decoder())
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", stop)
    with pytest.raises(Stop):
        s.grounded()
