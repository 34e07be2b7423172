"""Depth of a photograph that has none: by a network, or from the geometry of the host's own nodes."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..bokeh_ops.depth.conventions import DepthMap
from ..bokeh_ops.depth.geometry import GeometryUnit, from_geometry
from ..bokeh_ops.depth.view import as_grey, describe
from ..bokeh_ops.host.folders import depth_models
from ..bokeh_ops.host.folders.files import check_names
from ..bokeh_ops.host.notices import say
from .lens import DepthType

CATEGORY = "Bokeh"


def _outputs() -> list[io.Output]:
    return [
        DepthType.Output(
            "depth", display_name="depth", tooltip="Depth that knows its unit, for Lens Blur from Depth."
        ),
        io.Image.Output("grey", display_name="grey picture", tooltip="The depth to look at: near is bright."),
        io.Float.Output(
            "focal_length",
            display_name="focal length (pixels)",
            tooltip="Of the lens, in pixels of the picture; 0 where it is not known.",
        ),
        io.String.Output("text", display_name="text", tooltip="What the depth is: unit, size and range."),
    ]


def _given_out(found: DepthMap, source: str, width: int) -> io.NodeOutput:
    focal = (found.focal_pixels or 0.0) * width / found.disparity.shape[3]
    grey = as_grey(found)
    return io.NodeOutput(found, grey, focal, describe(found, source), ui=ui.PreviewImage(grey[:1]))


class BokehEstimateDepth(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehEstimateDepth",
            display_name="Estimate Depth (from one picture)",
            category=CATEGORY,
            description=(
                "Depth of a picture alone, by a network from models/depth: Depth Anything, Depth Pro, ZoeDepth, DPT, "
                "GLPN. It knows whether the network measures metres, and the focal length where the network tells it. "
                "The network that comes with it is for pictures of the demo models alone."
            ),
            inputs=[
                io.Image.Input(
                    "image", tooltip="The picture. A batch or the frames of a video go one after another."
                ),
                io.Combo.Input(
                    "model",
                    options=depth_models.depth_models(),
                    tooltip="A folder in models/depth with all files of a model's repository. Depth Pro and the metric "
                    "Depth Anything measure metres; others know near and far. The small world's, which comes with it, "
                    "is for pictures of the demo models: of a photograph it makes nonsense.",
                ),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None) -> bool | str:
        return check_names(depth_models.model_folder, model)

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, **_: Any) -> str | float:
        return depth_models.model_stamp(model)

    @classmethod
    def execute(cls, image: torch.Tensor, model: str) -> io.NodeOutput:
        node_id = getattr(cls.hidden, "unique_id", None)
        found = depth_models.estimate_depth(model, image, lambda text: say(text, node_id))
        return _given_out(found, model, image.shape[2])


class BokehDepthFromGeometry(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehDepthFromGeometry",
            display_name="Depth From Geometry",
            category=CATEGORY,
            description=(
                "Depth for the nodes here from ComfyUI's own Run Depth Anything 3 and Run MoGe Inference, with sky, "
                "confidence, focal length and unit understood."
            ),
            inputs=[
                io.MultiType.Input(
                    "geometry",
                    [io.Custom("DA3_GEOMETRY"), io.Custom("MOGE_GEOMETRY")],
                    tooltip="From Run Depth Anything 3 or Run MoGe Inference.",
                ),
                io.Combo.Input(
                    "unit",
                    options=[unit.value for unit in GeometryUnit],
                    default=GeometryUnit.AUTOMATIC.value,
                    tooltip="Of the depth. The geometry tells only that MoGe 2's is metres, by its normals. Choose "
                    "Depth Anything 3 Metric for that model, metres for MoGe 2 without normals.",
                ),
                io.Float.Input(
                    "focal_pixels",
                    default=0.0,
                    min=0.0,
                    max=1000000.0,
                    step=1.0,
                    round=False,
                    tooltip="Focal length of the picture in pixels; 0 takes that of the geometry. Depth Anything 3 "
                    "Metric needs it: 26 mm on full frame is 0.72 of the picture's width, 50 mm is 1.39.",
                ),
                io.Int.Input(
                    "resolution",
                    default=504,
                    min=14,
                    max=100000,
                    tooltip="Only for Depth Anything 3 Metric: the longest side of what it saw, as set there.",
                ),
                io.Float.Input(
                    "confidence",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="What is less confident is filled in from around it: 0 none, 1 all but the most confident. "
                    "For Depth Anything 3 Small and Base, which tell it.",
                ),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, geometry: Any, unit: str, focal_pixels: float, resolution: int, confidence: float
    ) -> io.NodeOutput:
        node_id = getattr(cls.hidden, "unique_id", None)
        found = from_geometry(
            geometry, unit, focal_pixels, resolution, confidence, lambda text: say(text, node_id)
        )
        source = "Depth Anything 3" if "mode" in geometry else "MoGe"
        return _given_out(found, source, found.disparity.shape[3])
