"""Photographs, and finished pictures, as pivots."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ..bokeh_ops.adapter.conditions import K
from ..bokeh_ops.host.notices import say
from ..bokeh_ops.host.sampling.grounded import make_guider, make_sigmas
from ..bokeh_ops.host.sampling.invert import CORRECTIONS, invert
from .adapter import k_slider

TRAJECTORY = io.Custom("BOKEH_TRAJECTORY")


class BokehInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehInvert",
            display_name="Bokeh Invert",
            category="Bokeh",
            description=(
                "Finds the way from noise to a photograph, for Grounded Sampler to edit its blur: connect the "
                "trajectory there. One inversion serves any number of new K; the photograph's own K returns it "
                "unchanged."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model, from Load Bokeh Adapter; the same as for the sampler."
                ),
                io.Conditioning.Input("positive", tooltip="What is in the photograph. K is set here."),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt; it counts where cfg is not 1."
                ),
                io.Latent.Input(
                    "latent_image", tooltip="The photograph, from VAE Encode; several are inverted together."
                ),
                k_slider(
                    "photo_bokeh",
                    "K of the photograph",
                    0.0,
                    "How blurred its background is now: 0 for sharp everywhere, 30 strongest.",
                ),
                io.Int.Input(
                    "steps", default=30, min=1, max=10000, tooltip="Steps; the sampler needs the same number."
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance on the way back. 1 is the most faithful, and half the time; the sampler's may "
                    "be another.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    tooltip="How the noise rises over the steps; the sampler needs the same.",
                ),
                io.Int.Input(
                    "corrections",
                    default=CORRECTIONS,
                    min=0,
                    max=100,
                    tooltip="How often every step is solved again. More finds the way more exactly and takes longer.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Noise levels in place of steps and scheduler, such as of BasicScheduler.",
                ),
            ],
            outputs=[
                TRAJECTORY.Output(
                    display_name="trajectory",
                    tooltip="The latents at every noise level, for Grounded Sampler. Kept in main memory.",
                ),
                io.String.Output(display_name="text", tooltip="Its size, and how exactly it was found."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, photo_bokeh: float | None = None) -> bool | str:
        # As for Grounded Sampler: a K outside the slider's range is allowed, and said.
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: Any,
        photo_bokeh: float,
        steps: int,
        cfg: float,
        scheduler: str,
        corrections: int,
        sigmas: Any = None,
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        warning = K.outside([photo_bokeh])
        if warning:
            say(warning, node_id)
        if sigmas is None:
            sigmas = make_sigmas(model, "euler", scheduler, steps, 1.0)
        guider = make_guider(model, positive, negative, cfg)
        trajectory = invert(guider, sigmas, latent_image, photo_bokeh, corrections, node_id)
        return io.NodeOutput(trajectory, trajectory.describe())
