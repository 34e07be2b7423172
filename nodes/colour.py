"""Colours: making pictures of one scene agree in them."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..bokeh_ops.host.notices import say
from ..bokeh_ops.picture.colour import MODES, match_lab


class LabColorMatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LabColorMatch",
            display_name="Lab Color Match (Bokeh)",
            category="Bokeh",
            description=(
                "Gives pictures the colours of a reference, in CIE L*a*b*. After grounded sampling it removes "
                "the slight differences of colour between the targets and their pivot (Bokeh Diffusion, eq. 13)."
            ),
            inputs=[
                io.Image.Input(
                    "images", tooltip="The pictures to change, normally the targets. Alpha is kept."
                ),
                io.Image.Input(
                    "reference",
                    tooltip="Whose colours they take, normally the pivot; any size. One for all, or one for each, "
                    "or one per scene when images hold all scenes at the first K, then all at the second.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip="mean: shift the colours, as the released code does. mean and deviation: also scale "
                    "their spread (the paper's equation), which changes contrast and saturation.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="0 leaves the pictures as they are, 1 matches them.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The pictures with the reference's colours.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, images: torch.Tensor, reference: torch.Tensor, mode: str, strength: float
    ) -> io.NodeOutput:
        if strength == 0:
            say(
                "Lab Color Match: the strength is 0, so the pictures are unchanged.",
                getattr(cls.hidden, "unique_id", None),
            )
        return io.NodeOutput(match_lab(images, reference, mode, strength))
