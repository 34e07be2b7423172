"""Depth maps from files."""

from __future__ import annotations

from comfy_api.latest import io

from ..bokeh_ops.depth.files import FILES, load_depth
from ..bokeh_ops.host.folders.files import check_input_file, input_file, input_file_hash, input_pictures
from ..bokeh_ops.host.notices import say


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
