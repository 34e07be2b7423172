"""Defocus as something to look at, and as masks."""

from __future__ import annotations

import comfy.model_management
import torch
from comfy_api.latest import io

from ..bokeh_ops.errors import BokehError
from ..bokeh_ops.render import blur_amount, colour_defocus, in_focus, overlay
from ..bokeh_ops.render.transfer import TRANSFERS, from_light


class BokehDefocusViews(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehDefocusViews",
            display_name="Bokeh Defocus Views (defocus map, masks, overlay)",
            category="Bokeh",
            description=(
                "Shows what Lens Blur from Depth blurred, and how much: a map in colours, how blurred each pixel is, a "
                "mask of what looks sharp, and the picture tinted by its focus."
            ),
            inputs=[
                io.Mask.Input("defocus", tooltip="The signed defocus of Lens Blur from Depth."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="For the overlay: the pictures that were rendered, sharp or blurred; one, one each, or as "
                    "many as went in where a series came out. Without it the overlay is tinted grey.",
                ),
                io.Combo.Input(
                    "transfer",
                    options=list(TRANSFERS),
                    default=next(iter(TRANSFERS)),
                    optional=True,
                    tooltip="The transfer of Lens Blur from Depth: linear pictures are shown as displays would.",
                ),
                io.Float.Input(
                    "largest",
                    default=0.0,
                    min=0.0,
                    max=1000000.0,
                    step=1.0,
                    round=False,
                    optional=True,
                    tooltip="The blur radius in pixels at which colours and blur amount end, so that several runs can "
                    "be compared. 0: the largest of all these pictures together.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "defocus_map",
                    display_name="defocus map",
                    tooltip="White in focus, orange to dark red in front of it, blue behind it.",
                ),
                io.Mask.Output(
                    "blur_amount",
                    display_name="blur amount",
                    tooltip="How blurred each pixel is: 0 in focus, 1 at the largest blur radius.",
                ),
                io.Mask.Output(
                    "in_focus",
                    display_name="in focus",
                    tooltip="What looks sharp: 1 up to a blur radius of 1/3000 of the diagonal (at least half a "
                    "pixel), fading to 0 at twice that.",
                ),
                io.Image.Output(
                    "overlay",
                    display_name="overlay",
                    tooltip="The picture in grey, green where it is in focus, orange in front of that, blue behind.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        defocus: torch.Tensor,
        image: torch.Tensor | None = None,
        transfer: str = next(iter(TRANSFERS)),
        largest: float = 0.0,
    ) -> io.NodeOutput:
        rows, height, width = _checked(defocus, image)
        low, high = defocus.aminmax()
        limit = largest or float(max(-low, high))
        # Frame by frame, so that nothing but what is made takes memory.
        colours, tinted = (torch.empty(rows, height, width, 3) for _ in range(2))
        blurs, sharp = (torch.empty(rows, height, width) for _ in range(2))
        grey = torch.full((1, 1, height, width), 0.5)
        for row in range(rows):
            comfy.model_management.throw_exception_if_processing_interrupted()
            here = defocus[row][None, None].cpu().float()
            seen = grey
            if image is not None:
                seen = image[row % len(image)].movedim(-1, 0)[None].cpu()
                seen = from_light(seen, "srgb") if TRANSFERS[transfer] == 1 else seen
            colours[row] = colour_defocus(here, limit)[0].movedim(0, -1)
            tinted[row] = overlay(seen, here, limit)[0].movedim(0, -1)
            blurs[row], sharp[row] = blur_amount(here, limit)[0], in_focus(here)[0]
        return io.NodeOutput(colours, blurs, sharp, tinted)


def _checked(defocus: torch.Tensor, image: torch.Tensor | None) -> tuple[int, int, int]:
    """Pictures, height and width of defocus that the pictures belong to."""
    if defocus.ndim != 3 or 0 in defocus.shape:
        raise BokehError(
            f"Expected the signed defocus of Lens Blur from Depth, a mask [B, H, W]; got {tuple(defocus.shape)}."
        )
    if not all(bool(torch.isfinite(one).all()) for one in defocus):
        raise BokehError("The defocus has values that are NaN or infinite; all must be finite.")
    rows, height, width = defocus.shape
    if image is not None and (
        image.ndim != 4
        or image.shape[1:3] != defocus.shape[1:]
        or image.shape[-1] not in (1, 3, 4)
        or len(image) == 0
        or rows % len(image)
    ):
        raise BokehError(
            f"The pictures are {tuple(image.shape)} but the defocus is {tuple(defocus.shape)}: size must agree, and "
            "there must be one picture, one for each mask, or as many as went into the series. Link the pictures that "
            "Lens Blur from Depth got, or gave."
        )
    return rows, height, width
