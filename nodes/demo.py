"""What comes with the extension, to try everything with: small models, and photographs with their depth."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..bokeh_ops.host.folders.files import check_names
from ..bokeh_ops.host.small import shipped
from .lens import DepthType

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
                    tooltip="Which one: of SD1.5's kind (a UNet) or of FLUX's (a transformer). Those named few_steps "
                    "make pictures that are all in focus in four steps: KSampler with lcm, simple, cfg 1.",
                ),
                io.Boolean.Input(
                    "with_adapter",
                    default=True,
                    tooltip="Lay its bokeh adapter on, as Load Bokeh Adapter does for other models. Those named "
                    "few_steps have none.",
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
        return check_names(shipped.demo_path, demo_model)

    @classmethod
    def execute(cls, demo_model: str, with_adapter: bool) -> io.NodeOutput:
        model: Any
        model, clip, vae = shipped.load_demo(demo_model, with_adapter, getattr(cls.hidden, "unique_id", None))
        return io.NodeOutput(model, clip, vae)


class LoadBokehDemoPhotograph(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadBokehDemoPhotograph",
            display_name="Load Bokeh Demo Photograph",
            category=CATEGORY,
            description=(
                "A picture that comes with the extension, with its depth in metres and a mask of its subject: to try "
                "lens blur with no file and no model. For pictures of your own: Load Image and Estimate Depth."
            ),
            inputs=[
                io.Combo.Input(
                    "picture",
                    options=list(shipped.PICTURES),
                    tooltip="pug: a photograph by a phone, with the depth that it measured. evening: a balcony with "
                    "lamps, drawn by a program, with exact depth. post: a scene of the demo models' world, 64 x 64.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture, sharp everywhere."),
                DepthType.Output(
                    display_name="depth", tooltip="Its depth, which knows its unit, for Lens Blur from Depth."
                ),
                io.Mask.Output(
                    display_name="subject",
                    tooltip="The dog of pug and the post of post; black for evening, which has no one subject.",
                ),
            ],
        )

    @classmethod
    def execute(cls, picture: str) -> io.NodeOutput:
        image, depth, subject = shipped.load_demo_picture(picture)
        return io.NodeOutput(image, depth, subject, ui=ui.PreviewImage(image))
