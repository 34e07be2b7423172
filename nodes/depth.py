"""Depth maps from files."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bokeh_ops.depth import conventions as depths
from ..bokeh_ops.depth.files import FILES, load_depth
from ..bokeh_ops.host.folders.files import check_input_file, input_file, input_file_hash, input_pictures
from ..bokeh_ops.host.notices import say


def reading_inputs() -> list[Any]:
    """How a grey map is to be read."""
    return [
        io.Combo.Input(
            "depth_kind",
            options=[kind.value for kind in depths.DepthKind],
            default=depths.DepthKind.DISPARITY.value,
            tooltip="What bright means in a grey map. disparity: near is bright, values grow with 1/distance "
            "(MiDaS, Depth Anything, phone portraits). inverted: far is bright. metric: values are "
            "distances, as most nodes give Depth Pro's. canonical: Depth Pro's inverse depth before it knows "
            "the camera; needs focal_pixels. Never guessed.",
        ),
        io.Combo.Input(
            "depth_range",
            options=[scaling.value for scaling in depths.DepthRange],
            default=depths.DepthRange.NORMALISE.value,
            tooltip="Units of the map. as is: dioptres, or metres if metric. normalise: each map from 0 "
            "(farthest) to 1 (nearest), right for relative depth; over the batch: all maps by one measure, so "
            "that video does not flicker. multiply by scale: uses depth_scale. between two distances: uses "
            "depth_black and depth_white.",
        ),
        io.Float.Input(
            "depth_scale",
            default=1.0,
            min=0.0001,
            max=10000.0,
            step=0.01,
            round=False,
            tooltip="Only with 'multiply by scale': what map value 1.0 stands for, in dioptres "
            "(1/m), or in metres if metric.",
        ),
    ]


def range_ends() -> list[Any]:
    """Two distances, for the depth range that lies between them."""
    return [
        io.Float.Input(
            "depth_black",
            default=0.0,
            min=0.0,
            max=100000.0,
            step=0.1,
            round=False,
            optional=True,
            tooltip="Only with 'between two distances': how far black (0) of the map is, in metres; 0 stands "
            "for infinitely far. The kind says what grows evenly between the two: disparity, or metres.",
        ),
        io.Float.Input(
            "depth_white",
            default=1.0,
            min=0.0,
            max=100000.0,
            step=0.1,
            round=False,
            optional=True,
            tooltip="Only with 'between two distances': how far white (1) of the map is, in metres; 0 stands "
            "for infinitely far.",
        ),
    ]


class BokehLoadDepth(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehLoadDepth",
            display_name="Load Depth Map (16 bit)",
            category="Bokeh",
            description=(
                "Loads a depth map without losing precision: 8 bit, 16 bit (which Load Image clips to white) "
                "or floating point (TIFF, EXR, HDR, PFM, NumPy). Integers become 0..1, floating point stays as it is."
            ),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=input_pictures(FILES),
                    upload=io.UploadType.image,
                    tooltip="A grey picture or array in ComfyUI's input folder.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "depth", display_name="depth", tooltip="The map as a grey picture, full precision."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        """Naming ``file`` here admits files uploaded after the list was made, and those in sub-folders."""
        return check_input_file(file)

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> str | float:
        return input_file_hash(file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        node_id = getattr(cls.hidden, "unique_id", None)
        values = load_depth(input_file(file), lambda text: say(text, node_id))
        return io.NodeOutput(values[..., None].repeat(1, 1, 1, 3))
