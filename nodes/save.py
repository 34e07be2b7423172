"""Saving pictures as photographs are: with what camera took them in their EXIF data."""

from __future__ import annotations

import os
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..bokeh_ops.camera.exif import written_exif
from ..bokeh_ops.camera.optics import Camera
from ..bokeh_ops.errors import BokehError
from .lens import CameraType

FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WebP": ".webp"}
_MOST_PIXELS = {"JPEG": 65500, "PNG": 2**31 - 1, "WebP": 16383}


class BokehSavePhotograph(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehSavePhotograph",
            display_name="Save Photograph (Bokeh, with EXIF)",
            category="Bokeh",
            description=(
                "Saves pictures with f-number, focal length, sensor and focus distance in their EXIF data, where other "
                "programs, and the nodes here, read them. PNG carries the workflow, too."
            ),
            inputs=[
                io.Image.Input("images", tooltip="To save; 8 bits."),
                io.String.Input(
                    "filename_prefix",
                    default="photograph",
                    tooltip="Of the files, in ComfyUI's output folder; may name a sub-folder, as Save Image's.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default="JPEG",
                    tooltip="All hold EXIF data. PNG is without loss and holds the workflow.",
                ),
                io.Int.Input(
                    "quality", default=95, min=1, max=100, tooltip="Of JPEG and WebP. Without effect for PNG."
                ),
                CameraType.Input(
                    "camera",
                    optional=True,
                    tooltip="From Lens Blur from Depth, one for each picture; or from Bokeh K From Camera, one for "
                    "all. Without it the files have no camera in them.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        filename_prefix: str,
        format: str,
        quality: int,
        camera: tuple[Camera | None, ...] | None = None,
    ) -> io.NodeOutput:
        if images.ndim != 4 or 0 in images.shape or images.shape[-1] not in (1, 3, 4):
            raise BokehError(f"Expected pictures [B, H, W, C], at least one; got {tuple(images.shape)}.")
        batch, height, width, _ = images.shape
        most = _MOST_PIXELS[format]
        if max(height, width) > most:
            raise BokehError(
                f"The pictures are {width} x {height}; {format} holds {most} pixels each way. Choose PNG, or make them "
                "smaller."
            )
        cameras = camera or (None,)
        if len(cameras) not in (1, batch):
            raise BokehError(
                f"There are {len(cameras)} cameras for {batch} pictures; give one for all, or one each, as Lens Blur "
                "from Depth does."
            )
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        saved = []
        for row, pixels in enumerate(images):
            picture = _picture(pixels, format)
            file = f"{name.replace('%batch_num%', str(row))}_{counter + row:05}_{FORMATS[format]}"
            own = cameras[row % len(cameras)]
            more: dict[str, Any] = {} if own is None else {"exif": written_exif(own, width, height)}
            if format == "PNG":
                more |= {"pnginfo": ui.ImageSaveHelper._create_png_metadata(cls), "compress_level": 4}
            else:
                more["quality"] = quality
            picture.save(os.path.join(folder, file), format=format, **more)
            saved.append(ui.SavedResult(file, subfolder, io.FolderType.output))
        return io.NodeOutput(ui=ui.SavedImages(saved))


def _picture(pixels: torch.Tensor, format: str) -> Image.Image:
    """8 bits; JPEG has no alpha."""
    values = pixels.detach().float().nan_to_num(0.0).clamp(0, 1).mul(255).round().byte().cpu()
    if values.shape[-1] == 1:
        return Image.fromarray(values[..., 0].numpy())
    return Image.fromarray(values[..., :3].numpy() if format == "JPEG" else values.numpy())
