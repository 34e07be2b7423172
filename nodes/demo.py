"""A model small enough to come with the extension, to try everything with."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bokeh_ops.errors import BokehError
from ..bokeh_ops.host import shipped

CATEGORY = "Bokeh/demo"


class LoadBokehDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadBokehDemoModel",
            display_name="Load Bokeh Demo Model",
            category=CATEGORY,
            description=(
                "A tiny text-to-image model that comes with the extension, for trying the nodes and for tests. It "
                "makes pictures of 64 x 64 pixels of one small world: coloured balls, boxes, cones, posts and signs. "
                "It knows few words."
            ),
            inputs=[
                io.Combo.Input(
                    "demo_model",
                    options=shipped.demo_names(),
                    tooltip="Which one: of SD1.5's kind (a UNet) or of FLUX's (a transformer).",
                ),
                io.Boolean.Input(
                    "with_adapter",
                    default=True,
                    tooltip="Lay its bokeh adapter on, as Load Bokeh Adapter does for other models.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Model.Output(tooltip="For Grounded Sampler, Bokeh Condition and KSampler."),
                io.Clip.Output(
                    tooltip=(
                        "For CLIP Text Encode. Captions are like 'a red ball and a blue box on grass by a wall, "
                        "evening'."
                    )
                ),
                io.Vae.Output(
                    tooltip=(
                        "For VAE Decode and VAE Encode. It has 4 pixels per latent where Empty Latent Image counts 8: "
                        "an empty latent of 128 x 128 gives a picture of 64 x 64."
                    )
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, demo_model: str | None = None) -> bool | str:
        # Instead of the host's "value not in list": where was searched, and what to do. None: it comes by a link.
        if demo_model is not None:
            try:
                shipped.demo_path(demo_model)
            except BokehError as error:
                return str(error)
        return True

    @classmethod
    def execute(cls, demo_model: str, with_adapter: bool) -> io.NodeOutput:
        model: Any
        model, clip, vae = shipped.load_demo(demo_model, with_adapter, getattr(cls.hidden, "unique_id", None))
        return io.NodeOutput(model, clip, vae)
