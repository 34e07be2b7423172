# ruff: noqa: F811 (fixtures)
"""Photographs as pivots: inverted, followed, and given back exactly where nothing is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import models
from tests.models import one_thread, relative  # noqa: F401
from tests.sampling import Sampling, adapter, base, kind, model, said, unloaded  # noqa: F401

K0 = 6.0
STEPS = 6
NEAR = torch.linspace(0.15, 0, 7)
"""Levels so near that a random network is solved for, too."""


@pytest.fixture
def kind_and_photograph(kind: str) -> dict[str, Any]:
    return {"samples": 0.5 * models.randn(2, models.LATENT_CHANNELS[kind], 8, 6, seed=11)}


class Edits:
    """A photograph's inversion and its edits, with the same defaults."""

    def __init__(self, pack: ModuleType, kind: str, model: Any, photograph: dict[str, Any]) -> None:
        self.s = Sampling(pack, kind, model)
        self.photograph = photograph
        self.host = pack.bokeh_ops.host.sampling

    def guider(self, cfg: float = 1.0) -> Any:
        return self.host.grounded.make_guider(self.s.model, self.s.positive, self.s.negative, cfg)

    def sigmas(self, steps: int = STEPS) -> Tensor:
        return self.host.grounded.make_sigmas(self.s.model, "euler", "simple", steps, 1.0)

    def invert(
        self,
        corrections: int = 2,
        steps: int = STEPS,
        cfg: float = 1.0,
        photograph: Any = None,
        sigmas: Any = None,
    ) -> Any:
        sigmas = self.sigmas(steps) if sigmas is None else sigmas
        return self.host.invert.invert(
            self.guider(cfg), sigmas, photograph or self.photograph, K0, corrections
        )

    def edit(
        self,
        trajectory: Any,
        *k: float,
        sampler: str = "euler",
        sigmas: Any = None,
        cfg: float = 1.0,
        grounding_steps: int = -1,
        residual: bool = True,
        latent: Any = None,
        guider: Any = None,
        subject: Any = None,
        bokeh_guidance: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        import comfy.samplers

        pivot, targets = self.host.grounded.grounded_sample(
            guider or self.guider(cfg),
            comfy.samplers.sampler_object(sampler),
            trajectory.sigmas if sigmas is None else sigmas,
            latent or self.photograph,
            self.host.sweep.noise_of(7),
            7,
            self.host.grounded.Sweep(20.0, list(k), grounding_steps, subject=subject),
            bokeh_guidance=bokeh_guidance,
            trajectory=trajectory,
            residual=residual,
        )
        return pivot["samples"], targets["samples"]


@pytest.fixture
def e(pack: ModuleType, kind: str, model: Any, kind_and_photograph: dict[str, Any]) -> Edits:
    return Edits(pack, kind, model, kind_and_photograph)


def test_the_way_back_is_the_samplers_own(e: Edits) -> None:
    """The host's Euler sampler, let loose on the last latent, walks down the way that was recorded."""
    trajectory = e.invert(corrections=20, sigmas=NEAR)
    assert trajectory.missed < 1e-6
    assert trajectory.latents.shape == (len(NEAR), *e.photograph["samples"].shape)
    process = e.s.model.model.process_latent_in
    assert relative(trajectory.latents[-1], process(e.photograph["samples"])) < 1e-6
    _, free = e.edit(trajectory, K0, residual=False, grounding_steps=0)
    assert relative(free, e.photograph["samples"]) < 1e-4
    assert relative(trajectory.latents[0], trajectory.latents[-1]) > 0.05
    # Fewer corrections, a larger miss, and said so.
    assert e.invert(corrections=0, sigmas=NEAR).missed > 1e-3


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_sde", "uni_pc"])
def test_nothing_asked_is_nothing_changed(e: Edits, sampler: str) -> None:
    """Under another guidance than the inversion's, with any sampler, grounded: K of the photograph returns it."""
    pivot, targets = e.edit(e.invert(corrections=0), K0, 28.0, sampler=sampler, cfg=3.0)
    assert relative(pivot, e.photograph["samples"]) < 1e-6
    assert relative(targets[:2], e.photograph["samples"]) < 1e-5
    assert relative(targets[2:], e.photograph["samples"]) > 1e-3
    assert torch.isfinite(targets).all()


def test_every_sampler_of_the_host_gives_it_back_or_is_refused(e: Edits) -> None:
    import comfy.samplers

    trajectory = e.invert(corrections=0, steps=2)
    refused = set()
    for sampler in comfy.samplers.SAMPLER_NAMES:
        try:
            pivot, targets = e.edit(trajectory, K0, sampler=sampler, grounding_steps=0)
        except Exception as error:  # noqa: BLE001
            assert "chooses its steps" in str(error), (sampler, error)  # noqa: PT017
            refused.add(sampler)
            continue
        assert relative(pivot, e.photograph["samples"]) < 1e-6, sampler
        assert relative(targets, e.photograph["samples"]) < 1e-5, sampler
    assert refused == {"dpm_adaptive"}


def test_an_edit_by_hand(e: Edits) -> None:
    """Without grounding and guidance, against Euler's steps with the residual written out."""
    trajectory = e.invert(corrections=1, sigmas=NEAR)
    _, targets = e.edit(trajectory, 20.0, grounding_steps=0, bokeh_guidance=1.0)
    way, sigmas = trajectory.latents, trajectory.sigmas
    x = way[0].clone()
    for step in range(len(NEAR) - 1):
        high, low = float(sigmas[step]), float(sigmas[step + 1])

        def stepped(latents: Tensor, k: float, at: float = high, to: float = low) -> Tensor:
            told = e.s.carry.with_k(e.s.positive, [k])
            denoised = models.predict(e.s.model, told, x=latents, sigma=at)[0]
            return latents + (to - at) * (latents - denoised) / at

        x = stepped(x, 20.0) + way[step + 1] - stepped(way[step], K0)
    assert relative(targets, e.s.model.model.process_latent_out(x)) < 1e-4


def test_outside_a_mask_and_inside_a_subject_nothing_changes(e: Edits) -> None:
    right = torch.zeros(1, 1, 8, 6)
    right[..., 3:] = 1
    below = torch.zeros(1, 8, 6)
    below[:, 4:] = 1
    latent = {**e.photograph, "noise_mask": right}
    _, targets = e.edit(e.invert(corrections=0), 28.0, 20.0, latent=latent, subject=below)
    given = e.photograph["samples"].repeat(2, 1, 1, 1)
    assert relative(targets[..., :3], given[..., :3]) < 1e-6
    assert relative(targets[..., 4:, :], given[..., 4:, :]) < 1e-6
    assert relative(targets[..., :4, 3:], given[..., :4, 3:]) > 1e-3


def test_fewer_steps_change_less(e: Edits) -> None:
    trajectory = e.invert(corrections=1)
    changes = [
        relative(
            e.edit(trajectory, 28.0, sigmas=trajectory.part(share), grounding_steps=0)[1],
            e.photograph["samples"],
        )
        for share in (1.0, 0.5)
    ]
    assert changes[0] > changes[1] > 0
    assert len(trajectory.part(0.5)) == STEPS // 2 + 1
    assert len(trajectory.part(0.0)) == 0
    with pytest.raises(Exception, match="strength of the edit is 2"):
        trajectory.part(2.0)


def test_a_part_of_the_levels_and_groups_of_targets(e: Edits) -> None:
    """Every other level is a run of half the steps; groups have their pivots beside them again."""
    trajectory = e.invert(corrections=1)
    pivot, _ = e.edit(trajectory, K0, sigmas=trajectory.sigmas[::2])
    assert relative(pivot, e.photograph["samples"]) < 1e-6


def test_what_does_not_belong_together_is_refused(e: Edits, pack: ModuleType, kind: str, base: Any) -> None:
    trajectory = e.invert(corrections=0)
    small = {"samples": e.photograph["samples"][:1]}
    with pytest.raises(Exception, match=r"trajectory is of latents \[2, .* and the latent here is \[1"):
        e.edit(trajectory, 20.0, latent=small)
    flipped = {"samples": e.photograph["samples"].flip(-1)}
    with pytest.raises(Exception, match="holds other pictures than the trajectory was made from"):
        e.edit(trajectory, 20.0, latent=flipped)
    with pytest.raises(Exception, match="of the 10 noise levels of this run"):
        e.edit(trajectory, 20.0, sigmas=e.sigmas(9))
    stronger = pack.bokeh_ops.host.adapter.apply.apply_adapter(base, models.adapter(kind), 0.5)
    with pytest.raises(Exception, match="made with another bokeh adapter, or another strength"):
        e.edit(
            trajectory, 20.0, guider=e.host.grounded.make_guider(stronger, e.s.positive, e.s.negative, 1.0)
        )
    other = replace(trajectory, identity=replace(trajectory.identity, architecture="Another"))
    with pytest.raises(Exception, match="made with a Another, and this model is a"):
        e.edit(other, 20.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e: e.host.invert.invert(e.guider(), e.sigmas()[:-1], e.photograph, K0),
            "expected at least two that",
        ),
        (
            lambda e: e.host.invert.invert(e.guider(), e.sigmas().flip(0), e.photograph, K0),
            "expected at least two",
        ),
        (
            lambda e: e.invert(photograph={"samples": e.photograph["samples"] * float("nan")}),
            "NaN or infinite",
        ),
        (lambda e: e.invert(photograph={"samples": e.photograph["samples"][:0]}), "no plain picture latent"),
        (
            lambda e: e.invert(photograph={"samples": torch.randn(1, 7, 8, 8)}),
            r"\[1, 7, 8, 8\] but the model takes",
        ),
        (
            lambda e: e.invert(photograph={"samples": e.photograph["samples"][0]}),
            "Encode the photograph with the VAE",
        ),
        (lambda e: e.invert(corrections=-1), "corrections is -1; give 0"),
        (lambda e: e.invert(sigmas=torch.zeros(0)), "expected at least two that fall"),
    ],
)
def test_what_cannot_be_inverted(e: Edits, change: Callable[[Edits], Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        change(e)


def test_a_model_of_unknown_prediction_is_refused(e: Edits) -> None:
    import comfy.model_sampling

    class Odd(comfy.model_sampling.ModelSamplingDiscrete):
        pass

    changed = e.s.model.clone()
    changed.add_object_patch("model_sampling", Odd(changed.model.model_config))
    guider = e.host.grounded.make_guider(changed, e.s.positive, e.s.negative, 1.0)
    with pytest.raises(Exception, match="predicts what Odd says, which cannot be inverted"):
        e.host.invert.invert(guider, e.sigmas(), e.photograph, K0)


def test_more_photographs_than_fit_in_memory(e: Edits, base: Any) -> None:
    import comfy.model_management

    def short_of_memory(_module: Any, args: tuple[Any, ...]) -> None:
        if args[0].shape[0] > 1:
            raise comfy.model_management.OOM_EXCEPTION("not enough memory")

    handle = base.model.diffusion_model.register_forward_pre_hook(short_of_memory)
    try:
        with pytest.raises(
            Exception, match=r"2 photographs at once do not fit in memory .* Latent From Batch"
        ):
            e.invert(corrections=0)
        one = {"samples": e.photograph["samples"][:1]}
        assert e.invert(corrections=0, photograph=one).pictures == 1
    finally:
        handle.remove()


def test_its_size_in_words(e: Edits) -> None:
    said = e.invert(corrections=0).describe()
    assert said.startswith("2 pictures, 6 x 8 latents, 6 steps from noise level ")
    assert "K 6: 0.0 MB of memory" in said


def test_guidance_of_k_counts_from_the_photographs(e: Edits) -> None:
    """In one step and at cfg 1 the change is as many times as large; without a number each K has its own."""
    trajectory = e.invert(corrections=0, sigmas=torch.linspace(0.5, 0, 7))
    two_levels = trajectory.sigmas[[0, -1]]

    def change(scale: float | None) -> Tensor:
        pivot, targets = e.edit(
            trajectory, 20.0, 3.0, bokeh_guidance=scale, sigmas=two_levels, grounding_steps=0
        )
        assert relative(pivot, e.photograph["samples"]) < 1e-6
        return targets - pivot.repeat(2, 1, 1, 1)

    once = change(1.0)
    assert relative(change(2.0), 2 * once) < 1e-4
    level = float(two_levels[0])
    noise = (
        level / (1 - level) if e.photograph["samples"].shape[1] == 16 else level
    )  # FLUX mixes it with the picture
    found = [e.host.trajectory.k_guidance(K0, k, noise) for k in (20.0, 3.0)]
    scales = torch.tensor(found).repeat_interleave(2)
    assert scales.min() > 1.2
    assert relative(change(None), scales.reshape(-1, 1, 1, 1) * once) < 1e-4


def test_how_much_guidance_an_edit_gets(pack: ModuleType) -> None:
    """None for no change, more for more, either way, and no more than twice; blur early, detail late."""
    scale = pack.bokeh_ops.host.sampling.trajectory.k_guidance
    for k0 in (0.0, 14.0, 28.0):
        assert scale(k0, k0, 1) == 1
        for further in (-1, 1):
            found = [scale(k0, min(max(k0 + further * step, 0.0), 30.0), 1) for step in range(0, 31, 5)]
            assert found == sorted(found)
            assert found[-1] <= 2
    assert (scale(0, 28, 1), scale(28, 0, 1)) == (2, 2)
    assert 1 < scale(28, 21, 1) < scale(7, 0, 1) < 2
    assert (scale(0, 28, 14), scale(28, 0, 14)) == (2, 1)
    assert (scale(0, 28, 0.1), scale(28, 0, 0.1)) == (1, 2)


def test_through_the_nodes(e: Edits, pack: ModuleType) -> None:
    invert = pack.nodes.invert.BokehInvert.execute
    trajectory, text = invert(
        e.s.model, e.s.positive, e.s.negative, e.photograph, K0, STEPS, 1.0, "simple", 1
    ).result
    assert text == trajectory.describe()
    settings: dict[str, Any] = {"latent": e.photograph, "trajectory": trajectory, "target_bokeh": f"{K0}, 28"}
    pivot, targets = e.s.grounded(steps=STEPS, **settings)
    assert relative(pivot["samples"], e.photograph["samples"]) < 1e-6
    assert relative(targets["samples"][:2], e.photograph["samples"]) < 1e-6
    assert relative(targets["samples"][2:], e.photograph["samples"]) > 1e-3
    nothing = e.s.grounded(steps=STEPS, denoise=0.0, **settings)[1]["samples"]
    assert relative(nothing[2:], e.photograph["samples"]) < 1e-6
    for wrong in ({"steps": STEPS + 1}, {"steps": STEPS, "scheduler": "karras"}):
        with pytest.raises(Exception, match="noise levels of this run, such as"):
            e.s.grounded(**settings, **wrong)
