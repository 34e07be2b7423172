"""What can be linked to the renderer: the shape of the lens opening, and what is in focus."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..bokeh_ops.depth.focus import Focus, FocusMode
from ..bokeh_ops.errors import BokehError
from ..bokeh_ops.host.notices import say
from ..bokeh_ops.numbers import parse_values
from ..bokeh_ops.render import Aperture

ApertureType = io.Custom("BOKEH_APERTURE")
DepthType = io.Custom("BOKEH_DEPTH")
FocusType = io.Custom("BOKEH_FOCUS")
LensType = io.Custom("BOKEH_LENS")
CameraType = io.Custom("BOKEH_CAMERA")
"""A tuple of :class:`~bokeh_ops.camera.optics.Camera` or None, one for each f-number or each picture."""

_SHOWN = 96.0  # blur radius in pixels at which the shape is drawn


class BokehAperture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehAperture",
            display_name="Bokeh Aperture (shape of the highlights)",
            category="Bokeh",
            description=(
                "The shape of the lens opening, which every out-of-focus point of light takes: round, a polygon, any "
                "picture; squeezed as in anamorphic lenses, cut towards the corners, with soft or hard rims."
            ),
            inputs=[
                io.Int.Input(
                    "blades",
                    default=0,
                    min=0,
                    max=16,
                    tooltip="Aperture blades: 0 is round, 3 to 16 make polygons. Without effect with a picture.",
                ),
                io.Float.Input(
                    "rotation",
                    default=0.0,
                    min=-360.0,
                    max=360.0,
                    step=1.0,
                    round=False,
                    tooltip="Turns the opening counter-clockwise, in degrees.",
                ),
                io.Float.Input(
                    "curvature",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=False,
                    tooltip="Of the blades: 0 straight edges, 1 a circle. Lenses stopped down a little have some 0.5.",
                ),
                io.Float.Input(
                    "squeeze",
                    default=1.0,
                    min=0.1,
                    max=10.0,
                    step=0.05,
                    round=False,
                    tooltip="Height over width. Above 1: the tall ovals of anamorphic lenses (1.33 to 2). The longer "
                    "half axis keeps K's radius.",
                ),
                io.Float.Input(
                    "cats_eye",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=False,
                    tooltip="Optical vignetting: towards the corners the barrel cuts the opening to a lemon. 0 none, "
                    "1 strong.",
                ),
                io.Float.Input(
                    "spherical",
                    default=0.0,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    round=False,
                    tooltip="Spherical aberration, for what lies behind the focus: -1 bright rims (soap bubbles), 0 "
                    "even, 1 bright centres (creamy). In front of the focus it is the other way round.",
                ),
                io.MultiType.Input(
                    "picture",
                    [io.Image, io.Mask],
                    optional=True,
                    tooltip="Any shape, white on black, in place of blades: a heart, a star. Upright behind the focus "
                    "and upside down in front of it, as in a lens. Its longer side is the opening's diameter.",
                ),
            ],
            outputs=[
                ApertureType.Output("aperture", display_name="aperture", tooltip="For Lens Blur from Depth."),
                io.Image.Output(
                    "shape",
                    display_name="shape",
                    tooltip="What a point of light behind the focus becomes in the middle of the picture and, with "
                    "cats_eye, in its upper left corner.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        blades: int,
        rotation: float,
        curvature: float,
        squeeze: float,
        cats_eye: float,
        spherical: float,
        picture: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        if picture is not None and blades:
            say(
                f"The picture takes the place of the {blades} blades; set them to 0 to silence this.",
                getattr(cls.hidden, "unique_id", None),
            )
        aperture = Aperture(
            0 if picture is not None else blades,
            rotation,
            curvature,
            None if picture is None else _plane(picture),
            squeeze,
            cats_eye,
            spherical,
        )
        places = [(0.0, 0.0), (-0.8, -0.6)] if cats_eye > 0 else [(0.0, 0.0)]
        shapes = [aperture.kernel(_SHOWN, at=place) for place in places]
        side = max(shape.shape[0] for shape in shapes)
        shown = torch.cat(
            [F.pad(shape / shape.max(), [(side - shape.shape[0]) // 2] * 4) for shape in shapes], 1
        )
        return io.NodeOutput(aperture, shown[None, ..., None].expand(-1, -1, -1, 3).contiguous())


class BokehFocus(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehFocus",
            display_name="Bokeh Focus (what stays sharp)",
            category="Bokeh",
            description=(
                "Chooses what stays sharp: a point, a masked thing, the whole of it as portrait modes do, the nearest "
                "of what stands out, a disparity or a distance; several values make a focus pull."
            ),
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=[mode.value for mode in FocusMode],
                    default=FocusMode.POINT.value,
                    tooltip="point: what lies at x, y. mask: the median depth of the mask. whole mask sharp: "
                    "all of the mask, whatever its depth. weighted by the mask: the mean depth, weighted by a soft "
                    "mask. automatic: the nearest region of a saliency mask. disparity value and distance in metres: "
                    "value or values.",
                ),
                io.Float.Input(
                    "x",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Mode point: from 0 (left edge) to 1 (right edge).",
                ),
                io.Float.Input(
                    "y",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Mode point: from 0 (top edge) to 1 (bottom edge).",
                ),
                io.Float.Input(
                    "value",
                    default=1.0,
                    min=-1000000.0,
                    max=1000000.0,
                    step=0.01,
                    round=False,
                    tooltip="Mode disparity value: in the units of the disparity after depth_range (normalised: 0 "
                    "farthest, 1 nearest; else dioptres). Mode distance: metres, for maps with units only.",
                ),
                io.Float.Input(
                    "band",
                    default=0.0,
                    min=0.0,
                    max=1000000.0,
                    step=0.01,
                    round=False,
                    tooltip="Width of the band of disparity about the focus that is perfectly sharp, in the map's "
                    "units (normalised: 1 is the whole depth). 0 is what a lens does.",
                ),
                io.String.Input(
                    "values",
                    default="",
                    optional=True,
                    tooltip="Several values at once for the modes with a value, as '0, 0.5, 1' or '0:1:0.1': a focus "
                    "pull. Takes the place of value.",
                ),
                io.Boolean.Input(
                    "one_each",
                    default=False,
                    optional=True,
                    tooltip="What several values are for. Off: all pictures at the first value, then all at the "
                    "second. On: one value for each picture, such as the frames of a video.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="For the modes mask, whole mask sharp, weighted by the mask and automatic: white is the "
                    "subject. The last two take any saliency map or background remover's mask.",
                ),
            ],
            outputs=[FocusType.Output("focus", display_name="focus", tooltip="For Lens Blur from Depth.")],
        )

    @classmethod
    def execute(
        cls,
        mode: str,
        x: float,
        y: float,
        value: float,
        band: float,
        values: str = "",
        one_each: bool = False,
        mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        several = parse_values(values, "Focus") if values.strip() else [value]
        return io.NodeOutput(Focus(FocusMode(mode), x, y, tuple(several), one_each, band, mask))


def _plane(picture: torch.Tensor) -> torch.Tensor:
    """``[h, w]`` from one picture or mask: how light it is, and black where it is transparent."""
    if picture.ndim not in (3, 4) or 0 in picture.shape:
        raise BokehError(
            f"The aperture's picture is {tuple(picture.shape)}; expected one picture [1, H, W, C] or mask [1, H, W], "
            "not empty."
        )
    if picture.shape[0] != 1:
        raise BokehError(f"There are {picture.shape[0]} pictures for one aperture; give a single one.")
    plane = picture[0].float()
    if plane.ndim == 2:
        return plane
    alpha = plane[..., 3] if plane.shape[2] == 4 else 1.0
    return plane[..., :3].mean(2) * alpha
