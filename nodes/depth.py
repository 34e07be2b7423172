"""Depth maps from files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..bokeh_ops.depth import load_depth
from ..bokeh_ops.host.notices import say


class BokehLoadDepth(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        folder = Path(folder_paths.get_input_directory())
        files = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
        return io.Schema(
            node_id="BokehLoadDepth",
            display_name="Load Depth Map (16 bit)",
            category="Bokeh",
            description=(
                "Loads a depth map without losing precision: 8 bit, 16 bit (which Load Image clips to white) "
                "or floating point TIFF. Integers become 0..1, floating point stays as it is."
            ),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=sorted(folder_paths.filter_files_content_types(files, ["image"])),
                    upload=io.UploadType.image,
                    tooltip="A grey picture in ComfyUI's input folder.",
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
    def validate_inputs(cls, file: str) -> bool | str:
        """Naming ``file`` here admits files uploaded after the list was made, and those in sub-folders."""
        return (
            True
            if folder_paths.exists_annotated_filepath(file)
            else f"There is no file {file!r} in the input folder."
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        return hashlib.sha256(Path(folder_paths.get_annotated_filepath(file)).read_bytes()).hexdigest()

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        node_id = getattr(cls.hidden, "unique_id", None)
        values = load_depth(folder_paths.get_annotated_filepath(file), lambda text: say(text, node_id))
        return io.NodeOutput(values[..., None].repeat(1, 1, 1, 3))
