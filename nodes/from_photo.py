"""K and focus of a photograph that exists."""

from __future__ import annotations

import math
from statistics import median

import comfy.model_management
import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui

from ..bokeh_ops.adapter.conditions import K
from ..bokeh_ops.camera.exif import read_exif
from ..bokeh_ops.camera.from_photo import PhotoBlur, Source, from_photograph
from ..bokeh_ops.camera.optics import k_at_width
from ..bokeh_ops.camera.strength import Strength
from ..bokeh_ops.depth import conventions as depths
from ..bokeh_ops.depth.focus import Focus, FocusMode
from ..bokeh_ops.errors import BokehError
from ..bokeh_ops.host.folders.files import input_file
from ..bokeh_ops.host.notices import say
from ..bokeh_ops.numbers import PER_DIOPTRE, PerDioptre
from ..bokeh_ops.render import overlay
from .camera import NO_PHOTOGRAPH, BokehFromCamera, photograph_input
from .depth import range_ends, reading_inputs
from .lens import DepthType, FocusType


class BokehFromPhoto(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehFromPhoto",
            display_name="Bokeh K From Photo (EXIF or pixels)",
            category="Bokeh",
            description=(
                "How strongly a photograph is blurred already, and where it is sharp: from its EXIF data, or from its "
                "pixels and its depth alone. Says how sure that is, and what was missing."
            ),
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The photograph, any size. Each picture of a batch is looked at by itself, in a copy whose "
                    "longer side is 640 px.",
                ),
                io.MultiType.Input(
                    "depth",
                    [DepthType, io.Image, io.Mask],
                    tooltip="Its depth: from Estimate Depth, which knows its unit, or a grey map, one for all pictures "
                    "or one each. A map in metres or dioptres makes K that of a camera.",
                ),
                io.Combo.Input(
                    "source",
                    options=[source.value for source in Source],
                    default=Source.AUTO.value,
                    tooltip="auto: EXIF where the photograph file tells lens and sensor and the depth has a unit, else "
                    "pixels. EXIF: refuses where they do not. pixels: by the blur that is seen, also of pictures that "
                    "no camera took.",
                ),
                *reading_inputs(),
                photograph_input(
                    "Empty for none, or the same photograph as it came from the camera: its EXIF data tell "
                    "f-number, focal length and sensor. It must show the same as the picture, not another crop."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the photograph is sharp, such as the subject. The focus is then at its depth, "
                    "and K is surer.",
                ),
                io.Float.Input(
                    "focal_pixels",
                    default=0.0,
                    min=0.0,
                    max=1000000.0,
                    step=1.0,
                    round=False,
                    optional=True,
                    tooltip="Only with the depth kind 'canonical': the picture's focal length in pixels, counted on "
                    "the map's width.",
                ),
                *range_ends(),
            ],
            outputs=[
                io.Float.Output(
                    "k",
                    display_name="K",
                    tooltip="Pixels of blur radius per dioptre, or per unit of a map that has none, counted at 512 px. "
                    "Of several pictures the median.",
                ),
                FocusType.Output(
                    "focus",
                    display_name="focus",
                    tooltip="What is sharp, one value for each picture: for Lens Blur from Depth.",
                ),
                io.Float.Output(
                    "focus_disparity",
                    display_name="focus disparity",
                    tooltip="The disparity in focus in the map's own unit, for Bokeh Focus, 'disparity value'. Of "
                    "several pictures the median.",
                ),
                io.Float.Output(
                    "distance",
                    display_name="focus distance",
                    tooltip="The focus in metres; 0 where the map has no unit. Of several pictures the median.",
                ),
                io.Float.Output(
                    "confidence",
                    display_name="confidence",
                    tooltip="0 to 1: from 0.6 good, from 0.33 fair, below poor. Of several pictures the least.",
                ),
                io.String.Output(
                    "text",
                    display_name="text",
                    tooltip="All of it in words, a line for each picture, and what was missing.",
                ),
                io.String.Output(
                    "k_values",
                    display_name="K values",
                    tooltip="The K of each picture, with commas and, where it is known, their unit.",
                ),
                io.Image.Output(
                    "preview",
                    display_name="preview",
                    tooltip="The picture in grey, green where it is taken to be sharp, orange in front of that, blue "
                    "behind: look whether that is so.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, photograph: str | None = "") -> bool | str:
        return BokehFromCamera.validate_inputs(photograph)

    @classmethod
    def fingerprint_inputs(cls, photograph: str | None = "", **_: object) -> str | float:
        return BokehFromCamera.fingerprint_inputs(photograph)

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        depth: torch.Tensor | depths.DepthMap,
        source: str,
        depth_kind: str,
        depth_range: str,
        depth_scale: float,
        photograph: str = "",
        mask: torch.Tensor | None = None,
        focal_pixels: float = 0.0,
        depth_black: float = 0.0,
        depth_white: float = 1.0,
    ) -> io.NodeOutput:
        node_id = getattr(cls.hidden, "unique_id", None)

        def notice(text: str) -> None:
            say(text, node_id)

        if image.ndim != 4 or 0 in image.shape:
            raise BokehError(f"Expected pictures [B, H, W, C], at least one; got {tuple(image.shape)}.")
        batch, height, width, _ = image.shape
        exif = None if photograph in NO_PHOTOGRAPH else read_exif(input_file(photograph))
        scaling = depths.DepthRange(depth_range)
        if Source(source) is Source.EXIF or (Source(source) is Source.AUTO and exif is not None):
            # Not lost to normalising where EXIF data have a use for the unit.
            try:
                scaling = Strength([PerDioptre(1.0)]).reading(depth, depth_kind, depth_range, notice)
            except BokehError:
                if Source(source) is Source.EXIF:
                    raise
        known = depths.to_depth_map(
            depth, depth_kind, scaling, depth_scale, notice, focal_pixels, (depth_black, depth_white)
        )
        depths.check_fit(known.disparity, batch, height, width, notice)
        if mask is not None and (mask.ndim != 3 or mask.shape[0] not in (1, batch)):
            raise BokehError(
                f"The mask is {tuple(mask.shape)} for {batch} pictures; give a mask [B, H, W], one for all or one each."
            )
        found, previews = [], []
        for row in range(batch):
            comfy.model_management.throw_exception_if_processing_interrupted()
            picture = image[row : row + 1].movedim(-1, 1).cpu()
            own = depths.DepthMap(_row(known.disparity, row).cpu(), known.unit)
            try:
                one = from_photograph(
                    picture, own, None if mask is None else _row(mask, row).cpu(), exif, source
                )
            except BokehError as error:
                if batch == 1:
                    raise
                raise BokehError(f"Picture {row + 1} of {batch}: {error}") from error
            found.append(one)
            previews.append(_preview(picture, own.disparity, one))
        return _given_out(found, torch.cat(previews), notice)


def _row(values: torch.Tensor, row: int) -> torch.Tensor:
    return values[row % len(values)][None]


def _preview(picture: torch.Tensor, disparity: torch.Tensor, one: PhotoBlur) -> torch.Tensor:
    small = F.interpolate(picture[:, :3].float(), size=one.size, mode="area")
    at = depths.fit_to_image(disparity, 1, *one.size)
    defocus = k_at_width(one.k, max(one.size)) * (at - one.focus)
    return overlay(small, torch.as_tensor(defocus)).movedim(1, -1)


def _given_out(found: list[PhotoBlur], preview: torch.Tensor, notice: depths.Notice) -> io.NodeOutput:
    several = len(found) > 1
    lines = [f"Picture {row}: {one.text}" if several else one.text for row, one in enumerate(found, 1)]
    text = "\n".join(lines)
    doubtful = [line for line, one in zip(lines, found, strict=True) if one.doubtful]
    if doubtful:
        notice(" ".join(doubtful) + " Link a mask of what is sharp, or say K by hand.")
    warning = K.outside([one.k for one in found])
    if warning:
        notice(warning)
    units = isinstance(found[0].k, PerDioptre)
    k = median(one.k for one in found)
    listed = ", ".join(f"{one.k:.8g}" for one in found) + (f" {PER_DIOPTRE}" if units else "")
    distance = median(one.distance or 0.0 for one in found)
    focus = Focus(FocusMode.DISPARITY, values=tuple(one.focus for one in found), one_each=True)
    return io.NodeOutput(
        PerDioptre(k) if units else k,
        focus,
        median(one.focus for one in found),
        distance if math.isfinite(distance) else 10_000.0,
        min(one.confidence for one in found),
        text,
        listed,
        preview,
        ui=ui.PreviewImage(preview[:1]),
    )
