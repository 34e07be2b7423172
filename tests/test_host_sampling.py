# ruff: noqa: F811 (fixtures)
"""Grounded sampling with the host's own samplers: against sampling alone, and against the equations by hooks."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import models
from tests.models import one_thread, relative, watched  # noqa: F401
from tests.reference import by_hooks
from tests.sampling import (  # noqa: F401
    PIVOT,
    Sampling,
    adapter,
    base,
    cfg_guider,
    kind,
    model,
    real_latent,
    s,
    said,
    unloaded,
)

# ---- the pivot, and targets of its own K ----


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "uni_pc"])
def test_the_pivot_is_what_it_is_alone(s: Sampling, sampler: str) -> None:
    pivot, targets = s.grounded(sampler=sampler)
    alone = s.alone(sampler=sampler)
    assert relative(pivot["samples"], alone) < 1e-5
    assert relative(targets["samples"][:1], alone) < 1e-5  # a target of the pivot's K is the pivot
    assert relative(targets["samples"][1:], alone) > 1e-2  # one of another K is not
    assert relative(targets["samples"][1:], s.alone(2.0, sampler=sampler)) > 1e-3  # nor is it ungrounded


def test_every_sampler_is_right_or_refused(pack: ModuleType) -> None:
    import comfy.samplers

    made = pack.bokeh_ops.host.adapter.apply.apply_adapter(models.host_model("flux"), models.adapter("flux"))
    s = Sampling(pack, "flux", made)
    errors = {}
    for name in comfy.samplers.SAMPLER_NAMES:
        if name == "dpm_adaptive":
            continue
        pivot, targets = s.grounded(sampler=name, steps=3, cfg=1.0)
        alone = s.alone(sampler=name, steps=3, cfg=1.0)
        errors[name] = max(relative(pivot["samples"], alone), relative(targets["samples"][:1], alone))
    assert len(errors) > 30
    assert {name: error for name, error in errors.items() if not error < 1e-5} == {}


def test_adaptive_steps_are_refused(pack: ModuleType, s: Sampling) -> None:
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=r"dpm_adaptive.*Choose another sampler"):
        s.grounded(sampler="dpm_adaptive")


def test_noise_per_row_is_refused(pack: ModuleType, s: Sampling) -> None:
    import comfy.samplers

    guider = cfg_guider(s.model, s.positive, s.negative)
    sampler = comfy.samplers.ksampler("euler", {"s_churn": 2.0})
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=r"s_churn is 2\.0.*Set s_churn to 0"):
        s.advanced(guider, sampler)
    calm = comfy.samplers.ksampler("euler", {"s_churn": 0.0})
    assert torch.equal(s.advanced(guider, calm)[0]["samples"], s.advanced(guider)[0]["samples"])


def test_samplers_that_nothing_is_known_of_are_told(s: Sampling, said: Any) -> None:
    import comfy.samplers

    def theirs(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **_more: Any) -> Tensor:
        for sigma in sigmas[:-1]:
            x = model(x, sigma * x.new_ones(len(x)), **extra_args)
        return x

    guider = cfg_guider(s.model, s.positive, s.negative)
    s.advanced(guider, "euler")
    s.advanced(guider, "uni_pc")
    s.advanced(guider, "dpm_fast")
    assert said() == []
    s.advanced(guider, comfy.samplers.KSAMPLER(theirs))
    assert ["nothing is known of the noise" in text for text in said()] == [True]


# ---- against the equations, with nothing of the extension ----


@pytest.mark.parametrize(
    ("grounding_steps", "grounded"), [(-1, 3), (0, 0), (1, 1), (5, 5)], ids=["60 %", "none", "one", "all"]
)
@pytest.mark.parametrize("both", [False, True], ids=["positive only", "both branches"])
def test_a_sweep_by_hooks(
    s: Sampling, base: Any, adapter: Any, grounding_steps: int, grounded: int, both: bool
) -> None:
    """Five Euler steps at guidance 2: rows are negative pivot, target, target, then positive ones."""
    branches = "positive and negative" if both else "positive only"
    pivot, targets = s.grounded(
        steps=5, grounding_steps=grounding_steps, target_bokeh="0, 28", grounded_branches=branches
    )
    models.unload()
    plan = [-1, *([0, 0] if both else [-1, -1]), -1, 3, 3]
    none = [-1] * 6
    pivots = list(plan if grounded else none)

    def after(step: int, *_args: Any) -> None:
        if step + 1 >= grounded:
            pivots[:] = none

    rows = {**models.empty_latent(s.kind, 3), "batch_index": [0, 0, 0]}
    with by_hooks(base, [(adapter, 1.0)], [-30.0] * 3 + [PIVOT, 0.0, 28.0], pivots), watched(base) as calls:
        expected = models.sample(
            base, s.positive, s.negative, rows, cfg=2.0, steps=5, scheduler="simple", callback=after
        )
    assert [chunks for _, chunks in calls] == [[1, 0]] * 5
    assert relative(pivot["samples"], expected[:1]) < 1e-5
    assert relative(targets["samples"], expected[1:]) < 1e-5


def test_grounding_goes_by_noise_level_in_samplers_of_several_calls(
    s: Sampling, base: Any, adapter: Any
) -> None:
    """Heun, four steps, two grounded: calls 1 to 3 lie above the level of step three, calls 4 to 7 not."""
    _, targets = s.grounded(sampler="heun", grounding_steps=2, target_bokeh="0", cfg=1.0)
    models.unload()
    pivots = [-1, 0]
    calls = []

    def count(_module: Any, _args: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            pivots[:] = [-1, -1]

    rows = {**models.empty_latent(s.kind, 2), "batch_index": [0, 0]}
    handle = base.model.diffusion_model.register_forward_pre_hook(count)
    try:
        with by_hooks(base, [(adapter, 1.0)], [PIVOT, 0.0], pivots):
            expected = models.sample(base, s.positive, s.negative, rows, sampler="heun", scheduler="simple")
    finally:
        handle.remove()
    assert len(calls) == 7
    assert relative(targets["samples"], expected[1:]) < 1e-5


def test_no_grounding_is_plain_sampling(s: Sampling, said: Any) -> None:
    pivot, targets = s.grounded(grounding_steps=0, target_bokeh="0, 28")
    for out, k in zip([pivot["samples"], *targets["samples"].split(1)], [PIVOT, 0.0, 28.0], strict=True):
        assert relative(out, s.alone(k)) < 1e-5
    assert ["grounding_steps is 0" in text for text in said()] == [True]


def test_grounding_without_an_adapter(s: Sampling, base: Any, said: Any) -> None:
    pivot, targets = s.grounded(base)
    alone = models.sample(base, s.positive, s.negative, s.latent, cfg=2.0, scheduler="simple")
    assert relative(pivot["samples"], alone) < 1e-5
    assert relative(targets["samples"], alone.expand(2, -1, -1, -1)) < 1e-5  # nothing sets them apart
    assert ["no bokeh adapter" in text for text in said()] == [True]


# ---- groups, pictures ----


@pytest.mark.parametrize(
    ("rows_per_batch", "sampler"),
    [(1, "dpmpp_2m_sde"), (2, "euler"), (2, "dpmpp_2m_sde"), (3, "euler_ancestral"), (4, "euler")],
)
def test_groups_are_as_all_at_once(s: Sampling, base: Any, rows_per_batch: int, sampler: str) -> None:
    settings = {"target_bokeh": "0, 8, 28", "sampler": sampler, "cfg": 1.0}
    whole = s.grounded(**settings)
    with watched(base) as calls:
        parts = s.grounded(**settings, rows_per_batch=rows_per_batch)
    assert max(shape[0] for shape, _ in calls) == max(2, rows_per_batch)
    for one, other in zip(whole, parts, strict=True):
        assert one["samples"].shape == other["samples"].shape
        assert relative(one["samples"], other["samples"]) < 1e-5


def test_several_pictures_are_as_each_alone(s: Sampling) -> None:
    """Pictures 5 and 2 of the seed's noise; targets come K by K."""
    latent = {**models.empty_latent(s.kind, 2), "batch_index": [5, 2]}
    pivot, targets = s.grounded(latent=latent, target_bokeh="0, 14, 28")
    assert targets["samples"].shape[0] == 6
    assert targets["batch_index"] == [5, 2] * 3
    for i, index in enumerate((5, 2)):
        one = {**models.empty_latent(s.kind), "batch_index": [index]}
        alone_pivot, alone = s.grounded(latent=one, target_bokeh="0, 14, 28")
        assert relative(pivot["samples"][i : i + 1], alone_pivot["samples"]) < 1e-5
        assert relative(targets["samples"][i::2], alone["samples"]) < 1e-5
    assert relative(pivot["samples"][:1], pivot["samples"][1:]) > 0.1


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_sde"])
def test_several_pictures_with_noise_on_the_way(s: Sampling, sampler: str) -> None:
    """The pivots together are what they are together without targets."""
    latent = {**models.empty_latent(s.kind, 2)}
    pivot, targets = s.grounded(latent=latent, sampler=sampler, target_bokeh="14, 0", rows_per_batch=5)
    alone = s.alone(latent=latent, sampler=sampler)
    assert relative(pivot["samples"], alone) < 1e-5
    assert relative(targets["samples"][:2], alone) < 1e-5


def test_the_same_seed_gives_the_same_bits(s: Sampling) -> None:
    for sampler in ("dpmpp_2m", "dpmpp_sde"):
        one, other = s.grounded(sampler=sampler), s.grounded(sampler=sampler)
        assert all(torch.equal(a["samples"], b["samples"]) for a, b in zip(one, other, strict=True))
        third = s.grounded(sampler=sampler, seed=8)
        assert relative(third[0]["samples"], one[0]["samples"]) > 0.1


@pytest.mark.parametrize(("height", "width"), [(5, 9), (16, 6)])
def test_any_size(s: Sampling, height: int, width: int) -> None:
    latent = models.empty_latent(s.kind, 1, height, width)
    pivot, targets = s.grounded(latent=latent)
    assert targets["samples"].shape[-2:] == (height, width)
    assert relative(pivot["samples"], s.alone(latent=latent)) < 1e-5


def test_an_empty_latent_of_another_model_is_fitted(s: Sampling) -> None:
    """EmptyLatentImage makes 4 channels whatever the model."""
    pivot, targets = s.grounded(latent={"samples": torch.zeros(1, 4, 8, 8)})
    assert torch.equal(pivot["samples"], s.grounded()[0]["samples"])
    assert targets["samples"].shape == (2, models.LATENT_CHANNELS[s.kind], 8, 8)


# ---- starting from pictures ----


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde"])
def test_less_than_full_denoising(s: Sampling, sampler: str) -> None:
    latent = real_latent(s.kind)
    pivot, targets = s.grounded(latent=latent, denoise=0.5, sampler=sampler)
    alone = s.alone(latent=latent, denoise=0.5, sampler=sampler)
    assert relative(pivot["samples"], alone) < 1e-5
    assert relative(targets["samples"][:1], alone) < 1e-5
    assert relative(alone, s.alone(latent=latent, sampler=sampler)) > 0.05
    assert pivot["theirs"] == targets["theirs"] == "kept"
    assert set(latent) == {"samples", "theirs"}


def test_no_denoising_gives_the_latent_back(s: Sampling) -> None:
    latent = real_latent(s.kind, 2)
    pivot, targets = s.grounded(latent=latent, denoise=0.0)
    assert torch.equal(pivot["samples"], latent["samples"])
    assert torch.equal(targets["samples"], latent["samples"].repeat(2, 1, 1, 1))


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_sde"])
def test_a_noise_mask(s: Sampling, sampler: str) -> None:
    latent = real_latent(s.kind)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    latent["noise_mask"] = mask
    pivot, targets = s.grounded(latent=latent, sampler=sampler)
    alone = s.alone(latent=latent, sampler=sampler)
    assert relative(pivot["samples"], alone) < 1e-5
    assert relative(targets["samples"][:1], alone) < 1e-5
    left = latent["samples"][..., :4].expand(2, -1, -1, -1)
    assert relative(targets["samples"][..., :4], left) < 1e-5
    assert relative(targets["samples"][1:, ..., 4:], alone[..., 4:]) > 1e-3
    assert targets["noise_mask"] is mask


@pytest.mark.parametrize(
    "shape", [(3, 1, 8, 8), (3, 8, 8), (2, 1, 8, 8), (5, 1, 8, 8), (1, 1, 8, 8), (8, 8)], ids=str
)
def test_noise_masks_of_several_pictures(s: Sampling, shape: tuple[int, ...]) -> None:
    """One per picture, one for all, or another number, which the host fits to the pictures in its own way."""
    latent = real_latent(s.kind, 3)
    latent["noise_mask"] = (models.randn(*shape, seed=12) > 0).float()
    pivot, targets = s.grounded(latent=latent, cfg=1.0)
    alone = s.alone(latent=latent, cfg=1.0)
    assert relative(pivot["samples"], alone) < 1e-5
    assert relative(targets["samples"][:3], alone) < 1e-5
    kept = targets["samples"][3:]
    import comfy.utils

    full = comfy.utils.reshape_mask(latent["noise_mask"], alone.shape)
    assert relative(kept * (1 - full), latent["samples"] * (1 - full)) < 1e-5
    # What comes out masks the targets as they were masked.
    again = comfy.utils.reshape_mask(targets["noise_mask"], targets["samples"].shape)
    assert torch.equal(again, full.repeat(2, 1, 1, 1))


def test_an_inpainting_model_sees_every_pictures_own(pack: ModuleType) -> None:
    """The host stretches the pictures of InpaintModelConditioning over the batch; rows are in another order."""
    config = {**models.UNET, "in_channels": 9}
    from unittest.mock import patch

    with patch.object(models, "UNET", config):
        base = models.host_model("sd15")
    base.model.set_inpaint()
    s = Sampling(pack, "sd15", pack.bokeh_ops.host.adapter.apply.apply_adapter(base, models.adapter("sd15")))
    latent = real_latent("sd15", 2)
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, ..., 4:], mask[1, ..., :4] = 1, 1
    extra = {"concat_latent_image": models.randn(2, 4, 8, 8, seed=13), "concat_mask": mask}
    s.positive[0][1].update(extra)
    s.negative[0][1].update(extra)
    pivot, targets = s.grounded(latent=latent)
    alone = s.alone(latent=latent)
    assert relative(pivot["samples"], alone) < 1e-5
    assert relative(targets["samples"][:2], alone) < 1e-5
    assert s.positive[0][1]["concat_mask"] is mask


# ---- the form for custom sampling ----


def test_both_forms_give_the_same_bits(s: Sampling) -> None:
    for sampler in ("euler", "dpmpp_sde"):
        usual = s.grounded(sampler=sampler)
        custom = s.advanced(cfg_guider(s.model, s.positive, s.negative), sampler)
        assert all(torch.equal(a["samples"], b["samples"]) for a, b in zip(usual, custom, strict=True))


def test_the_basic_guider_is_guidance_of_one(s: Sampling) -> None:
    from comfy_extras.nodes_custom_sampler import BasicGuider

    guider = models.call(BasicGuider, s.model, s.positive)
    custom = s.advanced(guider)
    usual = s.grounded(cfg=1.0)
    assert all(torch.equal(a["samples"], b["samples"]) for a, b in zip(usual, custom, strict=True))


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_the_dual_guider(s: Sampling, base: Any, style: str) -> None:
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    middle = models.conditioning(s.kind, 2)

    def guider(positive: Any, middle: Any, negative: Any) -> Any:
        return models.call(DualCFGGuider, s.model, positive, middle, negative, 2.0, 1.5, style)

    with watched(base) as calls:
        pivot, targets = s.advanced(guider(s.positive, middle, s.negative))
    assert {tuple(chunks) for _, chunks in calls} == {(2, 1, 0)}
    k = s.carry.with_k
    alone = s.custom_alone(guider(k(s.positive, [PIVOT]), k(middle, [PIVOT]), k(s.negative, [-30.0])))
    assert relative(pivot["samples"], alone) < 1e-5
    assert relative(targets["samples"][:1], alone) < 1e-5


def test_part_of_the_sigmas(s: Sampling) -> None:
    """SplitSigmas' first half: the result is still noisy, and grounded throughout."""
    sigmas = s.custom("euler", None, None, 7)[2][:3]
    negative = s.carry.with_negative_k(s.negative, [PIVOT], s.carry.NEGATIVE_MODES[0])
    guider = cfg_guider(s.model, s.carry.with_k(s.positive, [PIVOT]), negative)
    pivot, targets = s.advanced(guider, sigmas=sigmas, grounding_steps=2)
    alone = s.custom_alone(guider, sigmas=sigmas)
    assert relative(pivot["samples"], alone) < 1e-5
    assert relative(targets["samples"][:1], alone) < 1e-5


def test_the_guider_that_came_in_is_not_changed(s: Sampling) -> None:
    guider = cfg_guider(s.model, s.positive, s.negative)
    before = dict(vars(guider))
    conds = {name: [dict(c) for c in entries] for name, entries in guider.original_conds.items()}
    options = {name: dict(value) for name, value in guider.model_options.items()}
    s.advanced(guider)
    assert vars(guider) == before
    assert {name: [dict(c) for c in entries] for name, entries in guider.original_conds.items()} == conds
    assert {name: dict(value) for name, value in guider.model_options.items()} == options
    assert "apply_model" in s.model.wrappers
    assert "prepare_sampling" not in s.model.wrappers


def test_a_guider_without_prompts(pack: ModuleType, s: Sampling) -> None:
    import comfy.samplers

    with pytest.raises(
        pack.bokeh_ops.errors.BokehError, match="CFGGuider holds no conditions; connect BasicGuider"
    ):
        s.advanced(comfy.samplers.CFGGuider(s.model))


# ---- K of the branches ----


def test_k_on_the_prompt_is_not_needed_and_does_not_matter(s: Sampling) -> None:
    usual = s.grounded()
    for k in ([3.0], [-3.0], [1.0, 2.0]):
        prompts = (
            s.carry.with_k(s.positive, k),
            s.carry.with_negative_k(s.negative, k, s.carry.NEGATIVE_MODES[0]),
        )
        other = s.grounded(prompts=prompts)
        assert all(torch.equal(a["samples"], b["samples"]) for a, b in zip(usual, other, strict=True))


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["-30", "same", "none"])
def test_the_negative_keeps_what_it_was_told(s: Sampling, mode: int) -> None:
    name = s.carry.NEGATIVE_MODES[mode]
    negative = s.carry.with_negative_k(s.negative, [9.0], name)
    pivot, targets = s.grounded(prompts=(s.positive, negative))
    told = s.carry.with_negative_k(s.negative, [PIVOT], name)
    alone = models.sample(
        s.model, s.carry.with_k(s.positive, [PIVOT]), told, s.latent, cfg=2.0,
        scheduler="simple",
    )  # fmt: skip
    assert relative(pivot["samples"], alone) < 1e-5
    assert relative(targets["samples"][:1], alone) < 1e-5
    if mode:
        assert relative(alone, s.alone()) > 1e-3


def test_regions_and_the_node(s: Sampling) -> None:
    import nodes

    left = nodes.ConditioningSetArea().append(s.positive, 64, 64, 0, 0, 1.0)[0]
    right = nodes.ConditioningSetArea().append(models.conditioning(s.kind, 5), 64, 64, 64, 0, 1.0)[0]
    latent = models.empty_latent(s.kind, 1, 8, 16)
    pivot, targets = s.grounded(prompts=(left + right, s.negative), latent=latent)
    alone = models.sample(
        s.model, s.carry.with_k(left + right, [PIVOT]), s.carry.with_k(s.negative, [-30.0]), latent, cfg=2.0,
        scheduler="simple",
    )  # fmt: skip
    assert relative(pivot["samples"], alone) < 1e-5
    assert relative(targets["samples"][:1], alone) < 1e-5
