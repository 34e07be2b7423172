"""What a picture is focused on, where nobody has said it."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..bokeh_ops.depth.conventions import DepthMap
from ..bokeh_ops.host.folders import focus_models as library
from ..bokeh_ops.host.folders.files import check_names
from .lens import DepthType


class BokehMainThing(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehMainThing",
            display_name="Find Main Thing (Bokeh)",
            category="Bokeh",
            description=(
                "Where the main thing of a picture is, by a network: a soft mask for Bokeh Focus. The small network "
                "that comes with it sees the picture and its depth, and knows the demo models' world alone; for "
                "photographs put a background remover or any network that segments into models/bokeh_focus, or train "
                "one."
            ),
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The picture, best all in focus. A batch or the frames of a video go one after another.",
                ),
                io.Combo.Input(
                    "network",
                    options=library.focus_models(),
                    tooltip="The one that comes with it, for pictures of the demo models. Or from models/bokeh_focus: "
                    "an .onnx file (BiRefNet, RMBG, IS-Net, U2Net), a folder of transformers for semantic "
                    "segmentation with a label for the background, or what python -m trainer focus has written.",
                ),
                DepthType.Input(
                    "depth",
                    optional=True,
                    tooltip="Of the picture, from Estimate Depth or Depth From Geometry, in any unit. Without it the "
                    "network goes by the picture alone, as .onnx files and folders always do.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "saliency",
                    display_name="saliency",
                    tooltip="0 to 1, soft: for Bokeh Focus in the mode weighted by the mask, or wherever a mask of the "
                    "subject goes.",
                ),
                io.Float.Output(
                    "scale",
                    display_name="focus scale",
                    tooltip="What the focus distance is to be multiplied by, as the network has learnt it with an "
                    "image generator; 1 where it has not. The mean of a batch.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, network: str | None = None) -> bool | str:
        return check_names(library.focus_model_path, network)

    @classmethod
    def fingerprint_inputs(cls, network: str | None = None, **_: Any) -> str | float:
        return library.focus_model_stamp(network)

    @classmethod
    def execute(cls, image: torch.Tensor, network: str, depth: DepthMap | None = None) -> io.NodeOutput:
        saliency, scale = library.main_thing(network, image, depth)
        return io.NodeOutput(saliency, float(scale.mean()), ui=ui.PreviewMask(saliency[:1]))
