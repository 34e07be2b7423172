"""Depth blur for pictures that are sharp everywhere, and depth maps for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..bokeh_ops import depth as depths
from ..bokeh_ops import focus as focusing
from ..bokeh_ops.errors import BokehError
from ..bokeh_ops.host.notices import say
from ..bokeh_ops.optics import TRAINING_WIDTH, k_at_width
from ..bokeh_ops.render import Aperture, Lens, blur_amount, colour_defocus, render_sweep
from ..bokeh_ops.values import K_TRAINED, format_value, parse_values

AT_REFERENCE = f"at {TRAINING_WIDTH} px width (scales with the image)"
AT_IMAGE = "in image pixels"
BY_POINT, BY_MASK, BY_VALUE, BY_DISTANCE = "point", "mask", "disparity value", "distance in metres"
USUAL_K = K_TRAINED[1]


class BokehMeRender(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehMeRender",
            display_name="BokehMe Render (depth of field, lens blur from a depth map)",
            category="Bokeh",
            description=(
                "Blurs a picture that is sharp everywhere as a lens would, from its depth map: every pixel's "
                "light is spread over its circle of confusion, in linear light. The classical renderer of "
                "BokehMe (Peng et al. 2022). A sharp foreground still bleeds a little into a blurred "
                "background."
            ),
            inputs=[
                io.Image.Input(
                    "image", tooltip="The picture, sharp everywhere. Batches work; alpha is kept."
                ),
                io.MultiType.Input(
                    "depth",
                    [io.Image, io.Mask],
                    tooltip="Its depth map, grey, one for all pictures or one each. Another size is resized, "
                    "another shape refused. For a 16-bit file use Load Depth Map (16 bit).",
                ),
                io.Combo.Input(
                    "depth_kind",
                    options=[kind.value for kind in depths.DepthKind],
                    default=depths.DepthKind.DISPARITY.value,
                    tooltip="What bright means. disparity: near is bright and values grow with 1/distance "
                    "(MiDaS, Depth Anything, phone portraits). inverted: far is bright. metric: values are "
                    "distances in metres. Never guessed.",
                ),
                io.Combo.Input(
                    "depth_range",
                    options=[scaling.value for scaling in depths.DepthRange],
                    default=depths.DepthRange.NORMALISE.value,
                    tooltip="Units of the map. normalise: stretch each map to 0 (farthest) .. 1 (nearest), "
                    "right for relative depth. as is: values are dioptres (or metres if metric). multiply by "
                    "scale: use depth_scale.",
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
                io.Float.Input(
                    "k",
                    display_name="K",
                    default=12.0,
                    min=0.0,
                    max=USUAL_K,
                    step=0.1,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="Strength: pixels of blur radius per unit of disparity between a thing and the "
                    "focus. 0 is all in focus, 30 the strongest usual. Ignored while k_values is filled.",
                ),
                io.Combo.Input(
                    "k_reference",
                    options=[AT_REFERENCE, AT_IMAGE],
                    default=AT_REFERENCE,
                    tooltip=f"Where K's pixels are counted: on a picture {TRAINING_WIDTH} px wide, so that "
                    "the look is the same at any size (Bokeh Diffusion's K), or on this picture (BokehMe's "
                    "K).",
                ),
                io.Combo.Input(
                    "focus_mode",
                    options=[BY_POINT, BY_MASK, BY_VALUE, BY_DISTANCE],
                    default=BY_POINT,
                    tooltip="What stays sharp: what lies at focus_x, focus_y; what focus_mask covers; the "
                    "disparity focus_value; or the distance focus_value (needs a map in metres or dioptres).",
                ),
                io.Float.Input(
                    "focus_x",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Focus mode point: from 0 (left edge) to 1 (right edge).",
                ),
                io.Float.Input(
                    "focus_y",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Focus mode point: from 0 (top edge) to 1 (bottom edge).",
                ),
                io.Float.Input(
                    "focus_value",
                    default=1.0,
                    min=-1000000.0,
                    max=1000000.0,
                    step=0.01,
                    round=False,
                    tooltip="Focus mode disparity value: in the units of the disparity after depth_range "
                    "(normalised: 0 farthest, 1 nearest; else dioptres). Focus mode distance: metres.",
                ),
                io.Float.Input(
                    "gamma",
                    default=2.2,
                    min=1.0,
                    max=5.0,
                    step=0.1,
                    tooltip="Turns pixel values into light before they are added. 2.2 is display gamma; "
                    "higher brings highlights out (BokehMe's command line uses 4); 1 for pictures that are "
                    "linear.",
                ),
                io.Int.Input(
                    "blades",
                    default=0,
                    min=0,
                    max=16,
                    tooltip="Aperture blades: 0 is round, 3 to 16 make polygonal highlights.",
                ),
                io.Float.Input(
                    "rotation",
                    default=0.0,
                    min=-180.0,
                    max=180.0,
                    step=1.0,
                    tooltip="Turn of the aperture polygon in degrees; without effect when round.",
                ),
                io.Float.Input(
                    "highlight_boost",
                    default=0.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Makes blurred highlights (above 220 of 255) brighter first, as they were "
                    "clipped in the photograph. 0 is off, 0.4 is usual.",
                ),
                io.String.Input(
                    "k_values",
                    default="",
                    optional=True,
                    tooltip="Several K at once, as '0, 4, 8, 12, 18, 28' or '0:30:5'. Gives all pictures at "
                    "the first value, then all at the second. Empty: K alone.",
                ),
                io.Mask.Input(
                    "focus_mask",
                    optional=True,
                    tooltip="Focus mode mask: what should be sharp. The median disparity inside it is the "
                    "focus.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "rendered", display_name="image", tooltip="The pictures with depth of field."
                ),
                io.Image.Output(
                    "defocus_map",
                    display_name="defocus map",
                    tooltip="To look at: white in focus, orange to dark red in front of it, blue behind it. "
                    "The colours end at the largest blur radius of this output.",
                ),
                io.Mask.Output(
                    "defocus",
                    display_name="blur amount",
                    tooltip="How blurred each pixel is: 0 in focus, 1 at the largest blur radius of this "
                    "output. Invert it for a mask of what is sharp.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, k: float | None = None) -> bool | str:
        """Naming ``k`` here lifts its limit of 30, which is the slider's, not the lens's."""
        return True if k is None or k >= 0 else f"K is {k}; it must be 0 (all in focus) or larger."

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        depth: torch.Tensor,
        depth_kind: str,
        depth_range: str,
        depth_scale: float,
        k: float,
        k_reference: str,
        focus_mode: str,
        focus_x: float,
        focus_y: float,
        focus_value: float,
        gamma: float,
        blades: int,
        rotation: float,
        highlight_boost: float,
        k_values: str = "",
        focus_mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        node_id = getattr(cls.hidden, "unique_id", None)

        def notice(text: str) -> None:
            say(text, node_id)

        if image.ndim != 4 or 0 in image.shape:
            raise BokehError(f"Expected pictures [B, H, W, C], at least one; got {tuple(image.shape)}.")
        batch, height, width, _ = image.shape
        ks = parse_values(k_values) if k_values.strip() else [k]
        disparity = depths.to_disparity(depth, depth_kind, depth_range, depth_scale, notice)
        disparity = depths.fit_to_image(disparity, batch, height, width, notice)
        focus = _focus(disparity, focus_mode, focus_x, focus_y, focus_value, focus_mask, depth_range)
        lens = Lens(0.0, focus, gamma, Aperture(blades, rotation), highlight_boost)
        pixels = [float(k_at_width(value, width)) if k_reference == AT_REFERENCE else value for value in ks]
        bar = comfy.utils.ProgressBar(1000 * len(ks) * batch)

        def progress(done: int, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)

        rendered = render_sweep(
            image.movedim(-1, 1),
            disparity.to(image.device),
            lens,
            pixels,
            device=comfy.model_management.get_torch_device(),
            progress=progress,
        )
        _remark(ks, float(rendered.defocus.abs().max()), notice)
        # A boosted highlight may exceed the picture's own range; nodes downstream expect 0..1.
        pictures = rendered.image.clamp(max=max(1.0, float(image.max()))).movedim(1, -1).contiguous()
        colours = colour_defocus(rendered.defocus).movedim(1, -1).contiguous()
        return io.NodeOutput(pictures, colours, blur_amount(rendered.defocus))


def _focus(
    disparity: torch.Tensor,
    mode: str,
    x: float,
    y: float,
    value: float,
    mask: torch.Tensor | None,
    depth_range: str,
) -> float | torch.Tensor:
    if mode == BY_POINT:
        return focusing.focus_at_point(disparity, x, y)
    if mode == BY_VALUE:
        return value
    if mode == BY_MASK:
        if mask is None:
            raise BokehError(
                "The focus mode is 'mask' but no focus_mask is connected; connect one or choose 'point'."
            )
        return focusing.focus_in_mask(disparity, mask)
    if depth_range == depths.DepthRange.NORMALISE.value:
        raise BokehError(
            "A focus distance in metres needs a depth map in metres or dioptres, but the map is normalised, "
            "which forgets the units. Choose another depth_range, or focus by a point, a mask or a value "
            "from 0 to 1."
        )
    return focusing.focus_at_distance(value)


def _remark(ks: list[float], largest: float, notice: depths.Notice) -> None:
    """Say when the numbers asked for are unusual, or did nothing."""
    unusual = [format_value(k) for k in ks if k > USUAL_K]
    if unusual:
        notice(f"K = {', '.join(unusual)} is above {USUAL_K:g}, the range Bokeh Diffusion is trained on.")
    if not any(ks):
        notice("K is 0: everything is in focus and the picture is unchanged.")
    elif largest < 0.5:
        notice(
            f"The largest blur radius is {largest:.2g} pixels, so hardly anything is blurred. Raise K, or "
            "check the depth map's range (normalise it, or set its scale) and the focus."
        )


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
        values = depths.load_depth(folder_paths.get_annotated_filepath(file))
        return io.NodeOutput(values[..., None].repeat(1, 1, 1, 3))
