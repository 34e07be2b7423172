"""K and depth of field from the settings of a camera, or from a photograph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..bokeh_ops.adapter.conditions import K
from ..bokeh_ops.camera.exif import fill_in, read_exif
from ..bokeh_ops.camera.optics import SENSORS, TRAINING_WIDTH, Camera, metres, sharp_circle
from ..bokeh_ops.camera.optics import sensor_width as named_sensor_width
from ..bokeh_ops.depth.conventions import DepthMap, DepthUnit
from ..bokeh_ops.depth.frames import fit_frames
from ..bokeh_ops.errors import BokehError
from ..bokeh_ops.host.folders.files import check_input_file, input_file, input_file_hash, input_pictures
from ..bokeh_ops.host.notices import say
from ..bokeh_ops.numbers import PER_DIOPTRE, PerDioptre, format_value, parse_values
from ..bokeh_ops.picture.sheet import contact_sheet
from ..bokeh_ops.render import overlay
from .lens import CameraType, DepthType

CUSTOM = "custom width"
_SHORTEST = 0.5
"""Millimetres; a focal length below is one in metres."""
# Empty and not a word: the front end would look for a preview of a file of that name.
NO_PHOTOGRAPH = ("", "none")


def _camera_inputs() -> list[Any]:
    return [
        io.Float.Input(
            "f_number",
            default=1.8,
            min=0.5,
            max=128.0,
            step=0.1,
            round=False,
            tooltip="Aperture: 1.4 blurs much, 16 hardly. K is inversely proportional to it.",
        ),
        io.Float.Input(
            "focal_length",
            default=50.0,
            min=_SHORTEST,
            max=5000.0,
            step=1.0,
            round=False,
            tooltip="The lens's true focal length in mm (a phone's is 4 to 9 mm), not its 35 mm equivalent.",
        ),
        io.Float.Input(
            "focus_distance",
            default=2.0,
            min=0.001,
            max=10000.0,
            step=0.1,
            round=False,
            tooltip="Distance from the camera to what is sharp, in metres.",
        ),
        io.Combo.Input(
            "sensor",
            options=[*SENSORS, CUSTOM],
            default="Full frame",
            tooltip="Format of the sensor: its longer side counts. "
            + "; ".join(f"{name} {width:g} mm" for name, (width, _) in SENSORS.items())
            + ".",
        ),
        io.Float.Input(
            "sensor_width",
            default=36.0,
            min=0.5,
            max=500.0,
            step=0.1,
            round=False,
            tooltip=f"Only with '{CUSTOM}': the sensor's longer side in mm.",
        ),
    ]


def photograph_input(tooltip: str) -> Any:
    """The choice of a file that was uploaded as it came from the camera, or of none."""
    return io.Combo.Input(
        "photograph",
        options=[NO_PHOTOGRAPH[0], *input_pictures()],
        default=NO_PHOTOGRAPH[0],
        upload=io.UploadType.image,
        tooltip=tooltip,
    )


_ITS_CAMERA = (
    "Empty for none, or a photograph as it came from the camera. Whatever its EXIF data hold (f-number, focal length, "
    "the camera's sensor, crop and digital zoom, rarely the focus distance) is used in place of the values above; they "
    "count where it is silent."
)


def _camera(
    f_number: float,
    focal_length: float,
    focus_distance: float,
    sensor: str,
    sensor_width: float,
    photograph: str,
) -> tuple[Camera, float, list[str]]:
    """The camera that these inputs describe, its pictures' shape (long over short side), and what to say of it."""
    if focal_length < _SHORTEST:
        raise BokehError(
            f"The focal length is {focal_length:g} mm, which no lens has; it is counted in millimetres, so 50 mm is "
            "50. Metres go times 1000."
        )
    width, shape = sensor_width / 1000, 1.5
    if sensor != CUSTOM:
        width, shape = named_sensor_width(sensor), SENSORS[sensor][0] / SENSORS[sensor][1]
    camera = Camera(focal_length / 1000, f_number, focus_distance, width)
    notes = []
    if photograph not in NO_PHOTOGRAPH:
        exif = read_exif(input_file(photograph))
        camera, taken, missing = fill_in(camera, exif)
        shape = max(exif.width, exif.height) / min(exif.width, exif.height)
        source = f"{photograph} ({exif.camera})" if exif.camera else photograph
        notes.append(f"From {source}: {', '.join(taken) or 'nothing'}.")
        if missing:
            notes.append(f"Not in it, so taken from this node: {', '.join(missing)}.")
    return camera, shape, notes


class BokehFromCamera(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehFromCamera",
            display_name="Bokeh K From Camera",
            category="Bokeh",
            description=(
                "The blur strength K of a real camera: from f-number, focal length, focus distance and sensor, or "
                "from the EXIF data of a photograph. K = f² S / (2 N (S - f)) x pixels per metre of the sensor."
            ),
            inputs=[
                *_camera_inputs(),
                io.Int.Input(
                    "image_width",
                    default=TRAINING_WIDTH,
                    min=1,
                    max=65536,
                    tooltip=f"Longer side of the picture, in pixels, on which K counts the blur. {TRAINING_WIDTH} is "
                    "what Bokeh adapters are trained on; Lens Blur from Depth takes it at '512 px' for any size.",
                ),
                photograph_input(_ITS_CAMERA),
                io.String.Input(
                    "f_numbers",
                    default="",
                    optional=True,
                    tooltip="Several f-numbers at once, as '1.4, 2, 2.8, 4': the output 'K values' then holds the K of "
                    "each, for the k_values of Lens Blur from Depth.",
                ),
                io.Float.Input(
                    "focus_scale",
                    default=1.0,
                    min=0.1,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    tooltip="The focus scale of Find Main Thing, which was learned with an image generator: K = f² S / "
                    "(2 N (focus_scale S - f)), so above 1 it blurs less. 1 for a lens as it is.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    "k",
                    display_name="K",
                    tooltip="Pixels of blur radius per dioptre (1/m) between a thing and the focus. It keeps its unit: "
                    "Lens Blur from Depth refuses it for a map that has none. Where it goes, lists of K may hold "
                    "f-numbers: 'f/2.8, f/8'.",
                ),
                io.String.Output(
                    "text",
                    display_name="text",
                    tooltip="The camera in words, with its K, and what is unusual.",
                ),
                io.Float.Output(
                    "distance",
                    display_name="focus distance",
                    tooltip="Metres, from the photograph where it says it: for Bokeh Focus, 'distance in metres'.",
                ),
                io.String.Output(
                    "k_values",
                    display_name="K values",
                    tooltip="The K of each of f_numbers, with commas and their unit: for the K values of Lens "
                    "Blur from Depth. K alone where f_numbers is empty.",
                ),
                CameraType.Output(
                    "camera",
                    display_name="camera",
                    tooltip="The camera itself, once for each of f_numbers: for Lens Blur from Depth, where it is "
                    "focused on what Bokeh Focus chooses, whatever focus_distance says.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, photograph: str | None = "") -> bool | str:
        """Naming ``photograph`` here admits files uploaded after the list was made, and those in sub-folders."""
        return True if photograph in NO_PHOTOGRAPH else check_input_file(photograph)

    @classmethod
    def fingerprint_inputs(cls, photograph: str | None = "", **_: object) -> str | float:
        return "" if photograph in NO_PHOTOGRAPH else input_file_hash(photograph)

    @classmethod
    def execute(
        cls,
        f_number: float,
        focal_length: float,
        focus_distance: float,
        sensor: str,
        sensor_width: float,
        image_width: int,
        photograph: str = "",
        f_numbers: str = "",
        focus_scale: float = 1.0,
    ) -> io.NodeOutput:
        node_id = getattr(cls.hidden, "unique_id", None)
        camera, _, notes = _camera(f_number, focal_length, focus_distance, sensor, sensor_width, photograph)
        camera = replace(camera, focus_scale=focus_scale)
        stops = parse_values(f_numbers, "f-number", stops=True) if f_numbers.strip() else [camera.f_number]
        series = [replace(camera, f_number=stop).k(image_width) for stop in stops]
        if f_numbers.strip():
            each = ", ".join(
                f"f/{format_value(n)}: {format_value(k)}" for n, k in zip(stops, series, strict=True)
            )
            notes.append(f"K of each f-number: {each}.")
        warning = K.outside([camera.k(image_width)])
        if warning and image_width == TRAINING_WIDTH:
            notes.append(warning)
        if notes:
            say(" ".join(notes), node_id)
        text = " ".join([f"{camera.describe(image_width)}.", *notes])
        listed = f"{', '.join(f'{k:.8g}' for k in series)} {PER_DIOPTRE}"
        cameras = tuple(replace(camera, f_number=stop) for stop in stops)
        return io.NodeOutput(
            PerDioptre(camera.k(image_width), camera.f_number), text, camera.focus_distance, listed, cameras
        )


class BokehDepthOfField(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehDepthOfField",
            display_name="Depth of Field Readout (Bokeh)",
            category="Bokeh",
            description=(
                "What a camera shows sharp: near and far limit, hyperfocal distance and how far infinity is blurred, "
                "as text; and with depth in metres as a picture in which all of it is tinted."
            ),
            inputs=[
                *_camera_inputs(),
                io.Float.Input(
                    "circle",
                    display_name="circle of confusion",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=1.0,
                    round=False,
                    tooltip="Diameter in µm, on the sensor, up to which a blurred point looks sharp. 0: the sensor's "
                    "diagonal / 1500, as for a print seen whole; 28.8 for full frame. Twice its pixels' pitch, some 8, "
                    "for a look at single pixels.",
                ),
                photograph_input(_ITS_CAMERA),
                DepthType.Input(
                    "depth",
                    optional=True,
                    tooltip="For the overlay: depth in metres, from Estimate Depth with a model that measures, such as "
                    "Depth Pro, or from Depth From Geometry.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="For the overlay: the pictures that the depth belongs to, uncropped. Grey without.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "text", display_name="text", tooltip="The camera, what it shows sharp, and its K."
                ),
                io.Image.Output(
                    "overlay",
                    display_name="overlay",
                    tooltip="The picture in grey, green where it looks sharp, orange in front of that, blue behind, "
                    "with the limits below it. Needs depth.",
                ),
                io.Float.Output("near", display_name="near limit", tooltip="Metres."),
                io.Float.Output(
                    "far", display_name="far limit", tooltip="Metres; infinity where all behind is sharp."
                ),
                io.Float.Output(
                    "hyperfocal",
                    display_name="hyperfocal distance",
                    tooltip="Metres: focused there, all from half of it to infinity looks sharp.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, photograph: str | None = "") -> bool | str:
        """As that of Bokeh K From Camera."""
        return BokehFromCamera.validate_inputs(photograph)

    @classmethod
    def fingerprint_inputs(cls, photograph: str | None = "", **_: object) -> str | float:
        return BokehFromCamera.fingerprint_inputs(photograph)

    @classmethod
    def execute(
        cls,
        f_number: float,
        focal_length: float,
        focus_distance: float,
        sensor: str,
        sensor_width: float,
        circle: float = 0.0,
        photograph: str = "",
        depth: DepthMap | None = None,
        image: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        camera, shape, notes = _camera(
            f_number, focal_length, focus_distance, sensor, sensor_width, photograph
        )
        if image is not None:
            shape = max(image.shape[1:3]) / min(image.shape[1:3])
        diameter = circle / 1e6 or sharp_circle(camera.sensor_width, shape)
        limits = camera.sharp_range(diameter)
        text = "\n".join([f"{camera.describe()}.", camera.describe_sharp(diameter), *notes])
        if notes:
            say(" ".join(notes), getattr(cls.hidden, "unique_id", None))
        shown = ExecutionBlocker("Depth of Field Readout: link depth in metres, and it makes the overlay.")
        if depth is not None:
            shown = _overlay(camera, diameter, depth, image)
        return io.NodeOutput(text, shown, *limits, camera.hyperfocal(diameter))


def _overlay(camera: Camera, circle: float, depth: DepthMap, image: torch.Tensor | None) -> torch.Tensor:
    """Pictures tinted by what lies within the limits of a camera, with these written below."""
    if depth.unit is not DepthUnit.DIOPTRES:
        raise BokehError(
            "The depth that is linked has no unit: it knows near and far, not metres, so it cannot tell what lies "
            "within the limits. Take a model that measures, such as Depth Pro."
        )
    maps = depth.disparity
    pictures = maps.new_full((len(maps), *maps.shape[2:], 1), 0.5) if image is None else image
    batch, height, width, _ = pictures.shape
    side = max(height, width)
    to_pixels = side / camera.sensor_width / 2
    k, focus = camera.k(side), 1 / camera.focus_distance
    near, far = (metres(limit) for limit in camera.sharp_range(circle))
    legend = f"green: sharp, {near} to {far}; orange: nearer; blue: farther"
    sheets = []
    for row, plane in enumerate(fit_frames(maps, batch, height, width)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        picture = pictures[row].movedim(-1, 0)[None].cpu()
        tinted = overlay(picture, k * (plane.cpu().float() - focus), acceptable=circle * to_pixels)
        sheets.append(contact_sheet(tinted.movedim(1, -1), [legend]))
    return torch.cat(sheets)
