"""Sampling one scene at several K."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ..bokeh_ops.adapter.conditions import K
from ..bokeh_ops.host.notices import say
from ..bokeh_ops.host.sampling.grounded import BRANCHES, Sweep, grounded_sample
from ..bokeh_ops.host.sampling.sweep import sample_sweep
from ..bokeh_ops.numbers import parse_values
from .adapter import k_slider
from .invert import TRAJECTORY

CATEGORY = "Bokeh"

_SCENE = (
    "Pivot and targets start from the same noise; during the first grounding_steps every target looks where the "
    "pivot looks (grounded self-attention), so the scene stays and only the blur changes."
)


def _sweep_inputs() -> list[Any]:
    return [
        k_slider(
            "pivot_bokeh",
            "pivot K",
            14.0,
            "K of the pivot, the picture that fixes the scene. 10 to 20 is recommended.",
        ),
        io.String.Input(
            "target_bokeh",
            display_name="target K",
            default="0, 8, 20, 28",
            tooltip="K of every target: '0, 8, 20, 28', or start:stop:step as in '0:28:4'. 0 is sharp, 30 strongest. "
            "f-numbers such as 'f/2.8, f/8' where Bokeh K From Camera gives the pivot's K.",
        ),
        io.Int.Input(
            "grounding_steps",
            default=-1,
            min=-1,
            max=10000,
            tooltip=(
                "How many of the first steps tie the targets to the pivot. -1: 60 % of the steps. 0: not at all. "
                "More keeps the scene closer, fewer lets the blur change more."
            ),
        ),
        io.Combo.Input(
            "grounded_branches",
            options=list(BRANCHES),
            default=BRANCHES[0],
            tooltip="Which branches of classifier-free guidance are grounded. The released code: positive only.",
        ),
        io.Int.Input(
            "rows_per_batch",
            default=0,
            min=0,
            max=4096,
            tooltip=(
                "Most pictures sampled at once, pivot included. 0: all, and fewer by itself when memory runs out. "
                "Every group samples the pivot again, so the result is the same, but for extensions that measure the "
                "batch as a whole, such as Perp-Neg and LazyCache."
            ),
        ),
        io.Mask.Input(
            "subject",
            optional=True,
            tooltip=(
                "A mask inside which every target keeps the pivot's K, such as the subject's: K then acts on the rest "
                "alone. Sample once, make the mask from the pivot's picture, and sample again with the same seed. "
                "With a trajectory the photograph stays there, exactly."
            ),
        ),
    ]


def _k_guidance() -> Any:
    return io.Float.Input(
        "bokeh_guidance",
        display_name="K guidance",
        default=0.0,
        min=0.0,
        max=10.0,
        step=0.1,
        round=0.01,
        optional=True,
        tooltip=(
            "A guidance scale of K alone. 0, as in the paper: cfg guides prompt and K together. More than cfg makes "
            "the blur differ more between the targets, such as 2 for FLUX at cfg 1. Takes half as long again, or for "
            "FLUX at cfg 1 twice as long. With a trajectory it counts from the photograph's K, and 0 gives each K what "
            "was found best, 1 to 2."
        ),
    )


def _trajectory() -> Any:
    return TRAJECTORY.Input(
        "trajectory",
        optional=True,
        tooltip=(
            "From Bokeh Invert: the pivot is then the photograph itself, in place of the noise, and pivot K is the "
            "photograph's. A mask on the latent (Set Latent Noise Mask) keeps the rest as it is."
        ),
    )


def _outputs() -> list[Any]:
    return [
        io.Latent.Output(display_name="pivot", tooltip="The pivot, one per picture of the latent batch."),
        io.Latent.Output(
            display_name="targets",
            tooltip="The targets, in the order of target_bokeh; with several pictures all of the first K come first.",
        ),
    ]


def _sweep(
    node_id: str | None,
    pivot_bokeh: float,
    target_bokeh: Any,
    grounding_steps: int,
    grounded_branches: str,
    rows_per_batch: int,
    subject: Any = None,
) -> Sweep:
    targets = parse_values(target_bokeh, camera=pivot_bokeh)
    warning = K.outside([pivot_bokeh, *targets])
    if warning:
        say(warning, node_id)
    return Sweep(pivot_bokeh, targets, grounding_steps, grounded_branches, rows_per_batch, subject=subject)


class GroundedSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GroundedSampler",
            display_name="Grounded Sampler (Bokeh)",
            category=CATEGORY,
            description="Samples one scene at several strengths of background blur. " + _SCENE,
            inputs=[
                io.Model.Input("model", tooltip="The model, normally from Load Bokeh Adapter."),
                io.Conditioning.Input(
                    "positive", tooltip="The prompt. K is set here; Bokeh Condition is not needed."
                ),
                io.Conditioning.Input(
                    "negative",
                    tooltip="The negative prompt. Without Bokeh Condition before it, it gets the released K of -30.",
                ),
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent, or pictures to start from (denoise < 1)."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The random seed of the noise that pivot and targets share.",
                ),
                io.Int.Input("steps", default=30, min=1, max=10000, tooltip="Sampling steps."),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance scale. 1 for FLUX.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.SAMPLER_NAMES,
                    default="dpmpp_2m" if "dpmpp_2m" in comfy.samplers.SAMPLER_NAMES else None,
                    tooltip="Ancestral and SDE samplers share their noise over pivot and targets.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    tooltip="How the noise falls over the steps.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="1 makes a new picture; less keeps some of the latent that comes in. With a trajectory: "
                    "the strength of the edit, the share of its steps that are sampled.",
                ),
                *_sweep_inputs(),
                _k_guidance(),
                _trajectory(),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, pivot_bokeh: float | None = None) -> bool | str:
        # Named here so that the host does not refuse a K outside the slider's range: it is allowed, and said.
        # No `**kwargs`: with it the host would check none of the other inputs either.
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        bokeh_guidance: float = 0.0,
        trajectory: Any = None,
        **sweep: Any,
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        pivot, targets = sample_sweep(
            model,
            positive,
            negative,
            latent_image,
            seed,
            steps,
            cfg,
            sampler_name,
            scheduler,
            _sweep(node_id, **sweep),
            denoise,
            bokeh_guidance or None,
            node_id,
            trajectory,
        )
        return io.NodeOutput(pivot, targets)


class GroundedSamplerAdvanced(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GroundedSamplerAdvanced",
            display_name="Grounded Sampler Advanced (Bokeh)",
            category=CATEGORY,
            description="Grounded Sampler for custom sampling: noise, guider, sampler and sigmas come in. "
            + _SCENE,
            inputs=[
                io.Noise.Input(
                    "noise", tooltip="The noise that pivot and targets share, such as RandomNoise."
                ),
                io.Guider.Input(
                    "guider", tooltip="BasicGuider, CFGGuider or DualCFGGuider, on a model with adapter."
                ),
                io.Sampler.Input("sampler", tooltip="Such as KSamplerSelect."),
                io.Sigmas.Input("sigmas", tooltip="Such as BasicScheduler."),
                io.Latent.Input("latent_image", tooltip="An empty latent, or pictures to start from."),
                *_sweep_inputs(),
                _k_guidance(),
                _trajectory(),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, pivot_bokeh: float | None = None) -> bool | str:
        # Named here so that the host does not refuse a K outside the slider's range: it is allowed, and said.
        # No `**kwargs`: with it the host would check none of the other inputs either.
        return True

    @classmethod
    def execute(
        cls,
        noise: Any,
        guider: Any,
        sampler: Any,
        sigmas: Any,
        latent_image: Any,
        bokeh_guidance: float = 0.0,
        trajectory: Any = None,
        **sweep: Any,
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        pivot, targets = grounded_sample(
            guider,
            sampler,
            sigmas,
            latent_image,
            noise.generate_noise,
            noise.seed,
            _sweep(node_id, **sweep),
            node_id,
            bokeh_guidance or None,
            trajectory,
        )
        return io.NodeOutput(pivot, targets)
