# ruff: noqa: F811 (fixtures)
"""Grounded sampling while it runs: refusals, interrupts, memory, progress, precision."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import models
from tests.models import one_thread, relative  # noqa: F401
from tests.sampling import Sampling, adapter, base, cfg_guider, kind, model, s, said, unloaded  # noqa: F401


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grounding_steps": 5}, "grounding_steps is 5 but only 4 steps"),
        ({"target_bokeh": " "}, "no value was given"),
        ({"target_bokeh": []}, "no value was given"),
        ({"target_bokeh": "0, many"}, "'many' is not a number"),
        ({"latent": {"samples": torch.zeros(0, 4, 8, 8)}}, "latent batch is empty"),
        ({"grounded_branches": "some"}, "grounded branches are 'some'; expected one of positive only"),
    ],
)
def test_what_cannot_be_sampled(
    pack: ModuleType, s: Sampling, settings: dict[str, Any], message: str
) -> None:
    before = models.snapshot(s.model)
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=message):
        s.grounded(**settings)
    assert models.same_bits(models.snapshot(s.model), before)


def test_rising_sigmas(pack: ModuleType, s: Sampling) -> None:
    guider = cfg_guider(s.model, s.positive, s.negative)
    sigmas = s.custom("euler", None, None, 7)[2].flip(0)[1:-1]  # not up to 1, where the host divides by 0
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match="sigmas rise from"):
        s.advanced(guider, sigmas=sigmas)
    assert torch.isfinite(s.advanced(guider, sigmas=sigmas, grounding_steps=0)[1]["samples"]).all()


def test_a_model_of_another_kind(pack: ModuleType) -> None:
    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)))
    with pytest.raises(
        pack.bokeh_ops.errors.BokehError, match=r"SimpleNamespace \(Linear\).*know FLUX, SD1.5 and SDXL"
    ):
        pack.bokeh_ops.host.architectures.recognise(other)


def test_a_network_that_another_extension_runs(
    pack: ModuleType, node_classes: dict[str, Any], kind: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrapper in the place of the host's network, as quantising extensions put it there."""

    class TheirWrapper(torch.nn.Module):
        pass

    wrapped = models.host_model(kind)
    wrapped.model.diffusion_model = TheirWrapper()
    monkeypatch.setattr(
        pack.bokeh_ops.host.folders.adapters, "adapter_path", lambda _name: tmp_path / "a.safetensors"
    )
    with pytest.raises(pack.bokeh_ops.errors.BokehError) as caught:
        node_classes["LoadBokehAdapter"].execute(wrapped, "a.safetensors", 1.0, 1.0)
    text = str(caught.value)
    assert (
        f"The model is {'FLUX' if kind == 'flux' else 'SD1.5'}, but the network inside is TheirWrapper"
        in text
    )
    assert "Load the model with ComfyUI's own loaders" in text
    assert "Connect one of those" not in text


def test_sigmas_may_be_split_where_grounding_ends(s: Sampling, pack: ModuleType) -> None:
    """And nowhere inside: a second sweep makes a pivot of its own of every target."""
    from comfy_extras.nodes_custom_sampler import DisableNoise, SamplerCustomAdvanced, SplitSigmas

    sigmas = pack.bokeh_ops.host.sampling.grounded.make_sigmas(s.model, "euler", "simple", 6, 1.0)
    guider = cfg_guider(s.model, s.positive, s.negative)

    def split(at: int) -> Tensor:
        """Grounded as far as ``at``, and from there the usual sampler with a K for each picture."""
        first = models.call(SplitSigmas, sigmas, at)
        targets = s.advanced(guider, sigmas=first, target_bokeh="0, 28", grounding_steps=at)[1]
        k = s.carry.with_k(s.positive, [0.0, 28.0]), s.carry.with_k(s.negative, [-30.0])
        rest = cfg_guider(s.model, *k), s.custom("euler", sigmas, None, 7)[1], sigmas[at:], targets
        return models.call(SamplerCustomAdvanced, models.call(DisableNoise), *rest)["samples"]

    whole = s.advanced(guider, sigmas=sigmas, target_bokeh="0, 28", grounding_steps=4)[1]["samples"]
    assert relative(split(4), whole) < 1e-5
    assert relative(split(3), whole) > 1e-5


@pytest.mark.parametrize("k", [-4.0, 31.0])
def test_k_outside_the_trained_range_is_used_and_said(s: Sampling, said: Any, k: float) -> None:
    pivot, targets = s.grounded(pivot_bokeh=k, target_bokeh=f"{k}")
    assert relative(pivot["samples"], s.alone(k)) < 1e-5
    assert relative(targets["samples"], s.alone(k)) < 1e-5
    assert ["outside 0 to 30" in text for text in said()] == [True]


def test_an_interrupt_leaves_everything_clean(
    s: Sampling, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management
    import latent_preview

    models.unload()
    before = models.snapshot(base)
    whole = s.grounded(sampler="dpmpp_2m_sde", steps=6)
    prepare = latent_preview.prepare_callback

    def prepare_and_interrupt(*args: Any) -> Callable[..., None]:
        show = prepare(*args)

        def callback(step: int, *more: Any) -> None:
            show(step, *more)
            if step >= 5:
                comfy.model_management.interrupt_current_processing()
                # The server's progress bar asks after every step; newer hosts ask in every layer too.
                comfy.model_management.throw_exception_if_processing_interrupted()

        return callback

    with monkeypatch.context() as patched:
        patched.setattr(latent_preview, "prepare_callback", prepare_and_interrupt)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            s.grounded(sampler="dpmpp_2m_sde", steps=6)
    again = s.grounded(sampler="dpmpp_2m_sde", steps=6)
    assert all(torch.equal(a["samples"], b["samples"]) for a, b in zip(whole, again, strict=True))
    models.unload()
    assert models.same_bits(models.snapshot(base), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.model.diffusion_model.modules())


@pytest.mark.parametrize(("fits", "batches"), [(3, [6, 3, 3, 2]), (2, [6, 3, 2, 2, 2, 2, 2])])
def test_out_of_memory_falls_back_to_smaller_groups(
    s: Sampling, base: Any, said: Any, fits: int, batches: list[int]
) -> None:
    import comfy.model_management

    settings = {"target_bokeh": "0, 4, 14, 20, 28", "cfg": 1.0, "sampler": "euler_ancestral"}
    whole = s.grounded(**settings)
    seen: list[int] = []

    def short_of_memory(_module: Any, args: tuple[Any, ...]) -> None:
        seen.append(args[0].shape[0])
        if seen[-1] > fits:
            raise comfy.model_management.OOM_EXCEPTION("not enough memory")

    handle = base.model.diffusion_model.register_forward_pre_hook(short_of_memory)
    try:
        parts = s.grounded(**settings)
    finally:
        handle.remove()
    calls = [rows for rows in batches for _ in range(1 if rows > fits else 4)]  # four steps, or none
    assert seen == calls
    for one, other in zip(whole, parts, strict=True):
        assert relative(one["samples"], other["samples"]) < 1e-5
    assert sum("do not fit in memory" in text for text in said()) == sum(rows > fits for rows in batches)


def test_out_of_memory_with_one_target_is_the_hosts_to_report(s: Sampling, base: Any) -> None:
    import comfy.model_management

    def short_of_memory(_module: Any, _args: Any) -> None:
        raise comfy.model_management.OOM_EXCEPTION("not enough memory")

    handle = base.model.diffusion_model.register_forward_pre_hook(short_of_memory)
    try:
        with pytest.raises(comfy.model_management.OOM_EXCEPTION):
            s.grounded(target_bokeh="0, 8")
    finally:
        handle.remove()
    assert torch.isfinite(s.grounded()[0]["samples"]).all()


def test_memory_for_the_longer_keys_is_asked_for(s: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.sampler_helpers

    asked: list[int] = []
    estimate = comfy.sampler_helpers.estimate_memory

    def spy(model: Any, shape: Any, conds: Any) -> Any:
        asked.append(shape[0])
        return estimate(model, shape, conds)

    monkeypatch.setattr(comfy.sampler_helpers, "estimate_memory", spy)
    s.grounded(target_bokeh="0, 4, 8, 12, 16, 20, 24, 28")
    s.grounded(target_bokeh="0, 4, 8, 12, 16, 20, 24, 28", grounding_steps=0)
    s.alone()
    assert asked[0] > 9  # 9 rows, and room for the keys and values of 8 targets
    assert asked[1:] == [9, 1]


@pytest.mark.parametrize("rows_per_batch", [0, 2, 3])
def test_progress_and_preview(s: Sampling, monkeypatch: pytest.MonkeyPatch, rows_per_batch: int) -> None:
    import latent_preview

    steps: list[tuple[int, int]] = []
    shapes: list[tuple[int, ...]] = []

    def prepare(model: Any, total: int, *_more: Any) -> Callable[..., None]:
        def callback(step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
            assert total == total_steps
            steps.append((step + 1, total_steps))
            shapes.append(tuple(x0.shape))

        return callback

    monkeypatch.setattr(latent_preview, "prepare_callback", prepare)
    s.grounded(target_bokeh="0, 8, 28", rows_per_batch=rows_per_batch)
    done = [step for step, _ in steps]
    assert {total for _, total in steps} == {12}  # every target counts its steps
    assert done == sorted(set(done))
    assert done[-1] == 12
    channels = models.LATENT_CHANNELS[s.kind]
    board = {0: (1, channels, 8, 8), 2: (1, channels, 5, 10), 3: (1, channels, 8, 8)}[rows_per_batch]
    assert shapes[0] == board


def test_weights_are_bit_identical_after_sampling(s: Sampling, base: Any) -> None:
    models.unload()
    before = models.snapshot(base)
    s.grounded()
    models.unload()
    assert models.same_bits(models.snapshot(base), before)
    assert not base.wrappers
    assert not base.patches


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(pack: ModuleType, kind: str, adapter: Any, dtype: torch.dtype) -> None:
    half = pack.bokeh_ops.host.adapter.apply.apply_adapter(models.host_model(kind, dtype), adapter)
    s = Sampling(pack, kind, half)
    pivot, targets = s.grounded(steps=3)
    alone = s.alone(steps=3)
    bound = {torch.float16: 0.01, torch.bfloat16: 0.05}[dtype]
    assert torch.isfinite(targets["samples"]).all()
    assert relative(pivot["samples"], alone) < bound
    assert relative(targets["samples"][:1], alone) < bound


def test_inference_mode(s: Sampling) -> None:
    """The host runs nodes in it."""
    usual = s.grounded(sampler="dpmpp_2m_sde", target_bokeh="0, 28")
    with torch.inference_mode():
        inside = s.grounded(sampler="dpmpp_2m_sde", target_bokeh="0, 28")
    assert all(torch.equal(a["samples"], b["samples"]) for a, b in zip(usual, inside, strict=True))
