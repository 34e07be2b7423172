"""K from the settings of a camera, or from a photograph."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..bokeh_ops.adapter.conditions import K
from ..bokeh_ops.camera.exif import fill_in, read_exif
from ..bokeh_ops.camera.optics import SENSORS, TRAINING_WIDTH, Camera
from ..bokeh_ops.camera.optics import sensor_width as named_sensor_width
from ..bokeh_ops.host.folders.files import check_input_file, input_file, input_file_hash, input_pictures
from ..bokeh_ops.host.notices import say
from ..bokeh_ops.numbers import PER_DIOPTRE, PerDioptre, format_value, parse_values

CUSTOM = "custom width"
# Empty and not a word: the front end would look for a preview of a file of that name.
NO_PHOTOGRAPH = ("", "none")


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
                    min=0.5,
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
                io.Int.Input(
                    "image_width",
                    default=TRAINING_WIDTH,
                    min=1,
                    max=65536,
                    tooltip=f"Longer side of the picture, in pixels, on which K counts the blur. {TRAINING_WIDTH} is "
                    "what Bokeh adapters are trained on; Lens Blur from Depth takes it at '512 px' for any size.",
                ),
                io.Combo.Input(
                    "photograph",
                    options=[NO_PHOTOGRAPH[0], *input_pictures()],
                    default=NO_PHOTOGRAPH[0],
                    upload=io.UploadType.image,
                    tooltip="Empty for none, or a photograph as it came from the camera. Whatever its EXIF data "
                    "hold (f-number, focal length, the camera's sensor, crop and digital zoom, rarely the focus "
                    "distance) is used in place of the values above; they count where it is silent.",
                ),
                io.String.Input(
                    "f_numbers",
                    default="",
                    optional=True,
                    tooltip="Several f-numbers at once, as '1.4, 2, 2.8, 4': the output 'K values' then holds the K of "
                    "each, for the k_values of Lens Blur from Depth.",
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
    ) -> io.NodeOutput:
        node_id = getattr(cls.hidden, "unique_id", None)
        width = sensor_width / 1000 if sensor == CUSTOM else named_sensor_width(sensor)
        camera = Camera(focal_length / 1000, f_number, focus_distance, width)
        notes = []
        if photograph not in NO_PHOTOGRAPH:
            exif = read_exif(input_file(photograph))
            camera, taken, missing = fill_in(camera, exif)
            source = f"{photograph} ({exif.camera})" if exif.camera else photograph
            notes.append(f"From {source}: {', '.join(taken) or 'nothing'}.")
            if missing:
                notes.append(f"Not in it, so taken from this node: {', '.join(missing)}.")
        stops = parse_values(f_numbers, "f-number") if f_numbers.strip() else [camera.f_number]
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
        return io.NodeOutput(PerDioptre(camera.k(image_width), camera.f_number), text, camera.focus_distance, listed)
