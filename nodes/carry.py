"""Edits of photographs."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..bokeh_ops.host.notices import say
from ..bokeh_ops.picture.carry import SMALLEST_CHANGE, carry_edit


class BokehCarryEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehCarryEdit",
            display_name="Carry Edit to Full Size (Bokeh)",
            category="Bokeh",
            description=(
                "Makes an edit that a model made of a reduced photograph in the photograph itself, at its full size. "
                "Where nothing changed its pixels stay, bit for bit; where the edit blurred, its fine detail goes too."
            ),
            inputs=[
                io.Image.Input(
                    "original", tooltip="The photograph at its full size, such as 6000 x 4000. Alpha is kept."
                ),
                io.Image.Input(
                    "before",
                    tooltip="The photograph at the model's size, unchanged: best as it comes from VAE Decode without "
                    "an edit, so that what the VAE does to it is not taken for a change.",
                ),
                io.Image.Input(
                    "after",
                    tooltip="The edit, of before's size. Several of one photograph, such as an aperture series, or one "
                    "each; of several photographs all at the first K, then all at the second.",
                ),
                io.Float.Input(
                    "smallest_change",
                    default=255 * SMALLEST_CHANGE,
                    min=0.0,
                    max=64.0,
                    step=0.5,
                    tooltip="Changes up to this many of 255 levels count as none. More keeps more of the photograph's "
                    "own pixels where the edit only stirred the noise; 0 takes every change over.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image", display_name="image", tooltip="The edits, at the size of the original."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        original: torch.Tensor,
        before: torch.Tensor,
        after: torch.Tensor,
        smallest_change: float = 255 * SMALLEST_CHANGE,
    ) -> io.NodeOutput:
        node_id = getattr(cls.hidden, "unique_id", None)
        bar = comfy.utils.ProgressBar(1)

        def progress(done: int, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)

        made = carry_edit(
            original, before, after, smallest_change / 255, progress, lambda text: say(text, node_id)
        )
        if made.shape[1:] == original.shape[1:] and all(
            torch.equal(edit, original[row % len(original)]) for row, edit in enumerate(made)
        ):
            say(
                "Nothing changed from before to after by more than smallest_change, so this is the original.",
                node_id,
            )
        return io.NodeOutput(made)
