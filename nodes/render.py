"""Depth blur for pictures that are sharp everywhere."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..bokeh_ops.adapter.conditions import K
from ..bokeh_ops.cache import Kept
from ..bokeh_ops.camera.optics import TRAINING_WIDTH, Camera
from ..bokeh_ops.camera.strength import Strength, distance_of
from ..bokeh_ops.depth import conventions as depths
from ..bokeh_ops.depth.focus import Focus, FocusMode
from ..bokeh_ops.depth.frames import fit_frames
from ..bokeh_ops.errors import BokehError
from ..bokeh_ops.host.folders.renderers import load_renderer
from ..bokeh_ops.host.memory import within_memory
from ..bokeh_ops.host.notices import say
from ..bokeh_ops.numbers import parse_values
from ..bokeh_ops.render import DEFAULT_MODEL, MODELS, Aperture, Lens, LensModel, render_series
from ..bokeh_ops.render.contract import USUAL_RECOVERY, largest_radius
from ..bokeh_ops.render.transfer import TRANSFERS, from_light
from .adapter import k_slider
from .depth import range_ends, reading_inputs
from .lens import ApertureType, CameraType, DepthType, FocusType, LensType

AT_REFERENCE, AT_IMAGE = f"{TRAINING_WIDTH} px", "image px"
BOKEHME = "bokehme"
RECOVERS = ("layered",)  # models that guess clipped light back
USUAL_K = K.most
ALIGNED = Kept(1 << 30)
"""Depth maps whose edges were aligned: some 120 frames of 1920 x 1080, or 24 maps of 11 megapixels."""


class BokehMeRender(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehMeRender",
            display_name="Lens Blur from Depth (BokehMe Render)",
            category="Bokeh",
            description=(
                "Blurs a picture that is sharp everywhere as a lens would, from its depth map: every pixel's "
                "light is spread over its circle of confusion, in linear light. Link Bokeh Aperture for shaped "
                "highlights and Bokeh Focus for more ways to focus."
            ),
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The picture, sharp everywhere. A batch is rendered frame by frame; alpha is kept.",
                ),
                io.MultiType.Input(
                    "depth",
                    [DepthType, io.Image, io.Mask],
                    tooltip="Its depth: from Estimate Depth, which knows its unit, or a grey map, one for all pictures "
                    "or one each. Another size is resized, another shape stretched. For a 16-bit file use Load Depth "
                    "Map (16 bit).",
                ),
                *reading_inputs(),
                io.Combo.Input(
                    "edges",
                    options=[edges.value for edges in depths.DepthEdges],
                    default=depths.DepthEdges.ALIGNED.value,
                    tooltip="aligned: moves soft edges of the map to those of the picture, best for estimated and for "
                    "small maps; crisp edges stay unless the picture plainly contradicts them. as is: never touches "
                    "the map.",
                ),
                io.Float.Input(
                    "k",
                    display_name="K",
                    default=12.0,
                    min=0.0,
                    max=USUAL_K,
                    step=0.1,
                    round=0.001,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="Strength: pixels of blur radius per unit of disparity between a thing and the "
                    "focus. 0 is all in focus, 30 the strongest usual. Ignored while k_values or f_number is set.",
                ),
                io.Combo.Input(
                    "k_reference",
                    options=[AT_REFERENCE, AT_IMAGE],
                    default=AT_REFERENCE,
                    tooltip=f"Where K's pixels are counted. {AT_REFERENCE}: on a picture whose longer side has so "
                    "many, so that the look is the same at any size (Bokeh Diffusion's K, and that of Bokeh K From "
                    "Camera). "
                    f"{AT_IMAGE}: on this picture (BokehMe's K).",
                ),
                io.Float.Input(
                    "focus_x",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="The point that stays sharp, from 0 (left edge) to 1 (right edge), unless focus or "
                    "focus_mask is linked.",
                ),
                io.Float.Input(
                    "focus_y",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="The point that stays sharp, from 0 (top edge) to 1 (bottom edge), unless focus or "
                    "focus_mask is linked.",
                ),
                io.Combo.Input(
                    "model",
                    options=[DEFAULT_MODEL, *(name for name in MODELS if name != DEFAULT_MODEL), BOKEHME],
                    default=DEFAULT_MODEL,
                    tooltip="How light is spread. layered: occlusion-aware, any aperture. classical: BokehMe's "
                    "scatter; bleeds at edges. thin_lens: each pixel by its own depth; round apertures. bokehme: "
                    "the scatter mended by BokehMe's networks, from models/bokeh_renderers.",
                ),
                io.Combo.Input(
                    "transfer",
                    options=list(TRANSFERS),
                    default=next(iter(TRANSFERS)),
                    tooltip="How pixel values become light, which is what adds up. sRGB: ordinary pictures. gamma "
                    "2.2: as BokehMe reckons. linear (HDR): renderings and HDR pictures; values above 1 are kept.",
                ),
                io.Float.Input(
                    "highlight_recovery",
                    default=USUAL_RECOVERY,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=False,
                    tooltip="Lamps that the picture's white cut off get this much light back, in units of white, "
                    "before they are blurred. Lamps are small and alone in the dark; paper, snow and windows stay as "
                    "they are. 0 is off. For the model layered, and not for linear pictures.",
                ),
                io.String.Input(
                    "k_values",
                    display_name="K values",
                    default="",
                    optional=True,
                    tooltip="Several K at once, as '0, 4, 8, 12, 18, 28' or '0:30:5'. Gives all pictures at "
                    "the first value, then all at the second. f-numbers such as 'f/2.8' where Bokeh K From Camera "
                    "gives K. Empty: K alone.",
                ),
                io.Float.Input(
                    "focal_pixels",
                    default=0.0,
                    min=0.0,
                    max=1000000.0,
                    step=1.0,
                    round=False,
                    optional=True,
                    tooltip="The picture's focal length in pixels, counted on the map's width. Only with f_number, "
                    "for depth that does not tell it (0: the depth's own), and with the depth kind 'canonical'.",
                ),
                ApertureType.Input(
                    "aperture",
                    optional=True,
                    tooltip="From Bokeh Aperture: blades, pictures, ovals, cat's eye. Round without.",
                ),
                FocusType.Input(
                    "focus",
                    optional=True,
                    tooltip="From Bokeh Focus: what stays sharp, in place of focus_x and focus_y.",
                ),
                io.Mask.Input(
                    "focus_mask",
                    optional=True,
                    tooltip="What should be sharp: the median disparity inside it is the focus. With a focus linked "
                    "that has no mask of its own, this is its mask.",
                ),
                io.Float.Input(
                    "grain",
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    round=False,
                    optional=True,
                    tooltip="Gives what is blurred the picture's own grain back, as strong as it was at 1, so that a "
                    "grainy subject does not look pasted. 0 is what a lens does. Pictures without grain get none.",
                ),
                *range_ends(),
                io.Float.Input(
                    "f_number",
                    display_name="f-number",
                    default=0.0,
                    min=0.0,
                    max=128.0,
                    step=0.1,
                    round=False,
                    optional=True,
                    tooltip="Above 0 it takes K's place: the blur of a full-frame camera at this f-number that sees "
                    "what the picture shows, focused where it is sharp. Needs depth in metres and the focal length, as "
                    "Depth Pro tells both to Estimate Depth. 0: K.",
                ),
                k_slider(
                    "photo_bokeh",
                    "K of the photograph",
                    0.0,
                    "Blur that the picture has already, focused at the same distance: only what K lacks is added, and "
                    "K below it changes nothing. 0 for a picture that is sharp everywhere.",
                    optional=True,
                ),
                CameraType.Input(
                    "camera",
                    optional=True,
                    tooltip="From Bokeh K From Camera: its f-numbers, focal length and sensor take K's place, focused "
                    "where the picture is sharp. Needs depth in metres.",
                ),
                LensType.Input(
                    "lens",
                    optional=True,
                    tooltip="A lens model from elsewhere, such as Load Diffusion Lens. It takes the place of model.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "rendered", display_name="image", tooltip="The pictures with depth of field."
                ),
                io.Mask.Output(
                    "signed_defocus",
                    display_name="signed defocus",
                    tooltip="The blur radius of each pixel in pixels, as numbers: 0 in focus, positive in front of it, "
                    "negative behind it. For computing on; to look at it, link Bokeh Defocus Views.",
                ),
                io.Float.Output(
                    "distance",
                    display_name="focus distance",
                    tooltip="Metres, of the first picture; infinity where it is focused there, 0 where depth has no "
                    "unit.",
                ),
                CameraType.Output(
                    "cameras",
                    display_name="camera",
                    tooltip="The camera of each picture, with its focus, where f-numbers were asked for: for Save "
                    "Photograph, which writes it into the file.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, k: float | None = None, photo_bokeh: float | None = None) -> bool | str:
        """Naming them here lifts their limit of 30, which is the slider's, not the lens's."""
        for name, value in (("K", k), ("K of the photograph", photo_bokeh)):
            if value is not None and not value >= 0:
                return f"{name} is {value}; it must be 0 (all in focus) or larger."
        return True

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        depth: torch.Tensor | depths.DepthMap,
        depth_kind: str,
        depth_range: str,
        depth_scale: float,
        edges: str,
        k: float,
        k_reference: str,
        focus_x: float,
        focus_y: float,
        model: str,
        transfer: str,
        highlight_recovery: float,
        k_values: str = "",
        focal_pixels: float = 0.0,
        aperture: Aperture | None = None,
        focus: Focus | None = None,
        focus_mask: torch.Tensor | None = None,
        grain: float = 0.0,
        depth_black: float = 0.0,
        depth_white: float = 1.0,
        f_number: float = 0.0,
        photo_bokeh: float = 0.0,
        lens: LensModel | None = None,
        camera: tuple[Camera, ...] | None = None,
    ) -> io.NodeOutput:
        node_id = getattr(cls.hidden, "unique_id", None)

        def notice(text: str) -> None:
            say(text, node_id)

        if image.ndim != 4 or 0 in image.shape:
            raise BokehError(f"Expected pictures [B, H, W, C], at least one; got {tuple(image.shape)}.")
        batch, height, width, _ = image.shape
        pictures, gamma = image.movedim(-1, 1), TRANSFERS[transfer]
        if camera is not None:
            camera = _one_lens(camera)
        if camera is not None and (f_number or k_values.strip()):
            notice("f_number and k_values are not looked at, because a camera is linked.")
        strength = (
            Strength([each.f_number for each in camera], stops=True, present=photo_bokeh, camera=camera[0])
            if camera is not None
            else Strength([f_number], stops=True, present=photo_bokeh)
            if f_number
            else Strength(
                parse_values(k_values, camera=k) if k_values.strip() else [k],
                width=TRAINING_WIDTH if k_reference == AT_REFERENCE else max(height, width),
                present=photo_bokeh,
            )
        )
        renderer = within_memory(lens or (load_renderer() if model == BOKEHME else model), notice)
        device = comfy.model_management.get_torch_device()

        def stop(*_: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()

        def shown_on(bar: comfy.utils.ProgressBar) -> Callable[[int, int], None]:
            def progress(done: int, total: int) -> None:
                stop()
                bar.update_absolute(done, total)

            return progress

        def shown(row: int) -> torch.Tensor:
            frame = pictures[row : row + 1]
            return from_light(frame, "srgb") if gamma == 1 else frame

        scaling = strength.reading(depth, depth_kind, depth_range, notice)
        known = depths.to_depth_map(
            depth, depth_kind, scaling, depth_scale, notice, focal_pixels, (depth_black, depth_white)
        )
        units, maps = known.unit is depths.DepthUnit.DIOPTRES, known.disparity
        focal = (focal_pixels or known.focal_pixels or 0.0) / maps.shape[3]
        strength.check_focal(focal)
        del known  # or it would stay in memory beside the maps with aligned edges
        maps = fit_frames(
            maps,
            batch,
            height,
            width,
            notice,
            shown if depths.DepthEdges(edges) is depths.DepthEdges.ALIGNED else None,
            device,
            shown_on(comfy.utils.ProgressBar(1)),
            ALIGNED,
        )
        recovers = lens is None and model in RECOVERS
        if not recovers and gamma != 1 and highlight_recovery not in (0.0, USUAL_RECOVERY):
            name = f"{model!r}" if lens is None else "that is linked"
            notice(f"highlight_recovery is not looked at: the lens model {name} recovers no highlights.")
        if focus is not None and focus.mask is not None and focus_mask is not None:
            notice("focus_mask is not looked at, because the focus that is linked has a mask of its own.")
        if focus is None:
            mode = FocusMode.POINT if focus_mask is None else FocusMode.MASK
            focus = Focus(mode, focus_x, focus_y)
        steps = focus.with_mask(focus_mask).find(maps, units, notice)
        recovery = 0.0 if gamma == 1 else highlight_recovery
        pixels = [strength.at(at.disparity, height, width, focal) for at in steps]
        lenses = [
            Lens(
                value,
                at.disparity,
                gamma,
                aperture or Aperture(),
                highlight_recovery=recovery,
                focus_band=at.band,
                sharp=at.sharp,
            )
            for values in zip(*pixels, strict=True)
            for value, at in zip(values, steps, strict=True)
        ]
        progress = shown_on(comfy.utils.ProgressBar(1000 * len(lenses) * batch))
        made, defocus = render_series(pictures, maps, lenses, renderer, device, progress, grain)
        low, high = defocus.aminmax()
        _remark(strength, float(max(-low, high)), height, width, notice)
        if gamma != 1:
            # A recovered highlight may exceed the picture's own range; nodes downstream expect 0..1.
            made.clamp_(max=max(1.0, float(image.max())))
        cameras = [strength.cameras(at.disparity, height, width, focal) for at in steps]
        # In the order of the lenses: each strength at each step of a focus pull.
        taken = tuple(one for values in zip(*cameras, strict=True) for pictures in values for one in pictures)
        distance = float(distance_of(steps[0].disparity)[0]) if units else 0.0
        return io.NodeOutput(made.movedim(1, -1).contiguous(), defocus[:, 0].contiguous(), distance, taken)


def _one_lens(cameras: tuple[Camera | None, ...]) -> tuple[Camera, ...]:
    """One camera for each f-number.

    Raises:
        BokehError: there is none, or they have several lenses or sensors.
    """
    known = [each for each in cameras if each is not None]
    if not known:
        raise BokehError(
            "The camera that is linked is of pictures that were blurred by K, which many cameras have. Link that of "
            "Bokeh K From Camera."
        )
    lenses = {(each.focal_length, each.sensor_width) for each in known}
    if len(lenses) > 1:
        raise BokehError(
            f"The cameras that are linked have {len(lenses)} different lenses or sensors; give one, with one or more "
            "f-numbers, as Bokeh K From Camera does."
        )
    return tuple({each.f_number: each for each in known}.values())


def _remark(strength: Strength, largest: float, height: int, width: int, notice: depths.Notice) -> None:
    """Say when the numbers asked for are unusual, or did nothing."""
    if not strength.stops and strength.present and min(strength.values) <= strength.present:
        notice(
            f"A lens adds blur and takes none away: up to the photograph's K of {strength.present:g} the picture is "
            "unchanged. For less blur, Bokeh Invert and Grounded Sampler."
        )
        if not largest:
            return
    if not any(strength.values):
        notice("K is 0: everything is in focus and the picture is unchanged.")
    elif largest < 0.5:
        notice(
            f"The largest blur radius is {abs(largest):.2g} pixels, so hardly anything is blurred. Raise K, or "
            "check the depth map's range (normalise it, or set its scale) and the focus."
        )
    elif largest > max(height, width):
        most = largest_radius(height, width)
        less = (
            f" It is drawn with {most:.0f} pixels, twice the picture's diagonal, as a disc of that size covers all of "
            "the picture."
            if largest > most
            else ""
        )
        notice(
            f"The largest blur radius is {largest:.6g} pixels, more than the picture's longer side of "
            f"{max(height, width)}.{less} Lower K, or check the depth map's range: a K per dioptre is too much for a "
            "map in other units."
        )
