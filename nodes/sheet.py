"""Several pictures side by side, with their K."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..bokeh_ops.picture.sheet import BACKGROUNDS, PLACES, contact_sheet, sheet_labels


class BokehContactSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehContactSheet",
            display_name="Bokeh Contact Sheet",
            category="Bokeh",
            description="Lays a batch of pictures out on one labelled sheet, for example a sweep over K.",
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="The pictures. Several scenes at several values: all scenes at the first value, then "
                    "all at the second, as the samplers and renderers here give them; each scene gets its own rows.",
                ),
                io.String.Input(
                    "values",
                    default="",
                    tooltip="The numbers to write at the pictures, as '0, 4, 8' or '0:30:5'. Empty: 1, 2, 3, ...",
                ),
                io.String.Input(
                    "prefix",
                    default="K = ",
                    tooltip="Written before each value; not used where values is empty.",
                ),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Pictures in a row. 0 finds a number that gives a well-proportioned sheet.",
                ),
                io.Int.Input(
                    "cell_size",
                    default=512,
                    min=0,
                    max=16384,
                    tooltip="Longest side of a picture on the sheet, in pixels; larger ones are reduced. 0 keeps "
                    "their size.",
                ),
                io.Combo.Input(
                    "background",
                    options=list(BACKGROUNDS),
                    default="dark",
                    tooltip="Colour of the sheet; also what shows through transparent pictures.",
                ),
                io.Combo.Input(
                    "label_place",
                    options=list(PLACES),
                    default=PLACES[0],
                    optional=True,
                    tooltip="Whether a label stands below or above its picture.",
                ),
                io.String.Input(
                    "title", default="", optional=True, tooltip="A line over the whole sheet; empty for none."
                ),
            ],
            outputs=[io.Image.Output("sheet", display_name="sheet", tooltip="The sheet, one picture.")],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        values: str,
        prefix: str,
        columns: int,
        cell_size: int,
        background: str,
        label_place: str = PLACES[0],
        title: str = "",
    ) -> io.NodeOutput:
        labels = sheet_labels(values, prefix, len(images))
        sheet = contact_sheet(
            images,
            labels,
            columns,
            cell_size=cell_size,
            background=background,
            place=label_place,
            title=title,
        )
        return io.NodeOutput(sheet)
