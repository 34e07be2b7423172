"""A lens or a model, for a photograph that gets another aperture."""

from __future__ import annotations

import math

import torch
from comfy_api.latest import io

from ..bokeh_ops.errors import BokehError
from ..bokeh_ops.numbers import format_value, parse_values
from .adapter import k_slider

BY_DIRECTION, LENS, MODEL = "by direction", "lens alone", "model alone"


class BokehLensOrModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BokehLensOrModel",
            display_name="Lens or Model (Bokeh)",
            category="Bokeh",
            description=(
                "Chooses, for every K that a photograph is given, between a lens and a model: towards more blur the "
                "lens, which is exact where the depth is right; towards less the model, as no lens can take blur "
                "away. What no K needs is not computed."
            ),
            inputs=[
                k_slider(
                    "photo_bokeh",
                    "K of the photograph",
                    0.0,
                    "How blurred its background is now: 0 for sharp everywhere, 30 strongest.",
                ),
                io.String.Input(
                    "target_bokeh",
                    display_name="target K",
                    default="0, 8, 20, 28",
                    tooltip="The K of the pictures that come in, in their order: the same list as for Lens Blur from "
                    "Depth and Grounded Sampler.",
                ),
                io.Combo.Input(
                    "way",
                    options=[BY_DIRECTION, LENS, MODEL],
                    default=BY_DIRECTION,
                    tooltip="by direction: the lens for the photograph's K and above, the model below. The others "
                    "take all from one, to compare.",
                ),
                io.Image.Input(
                    "by_lens",
                    lazy=True,
                    optional=True,
                    tooltip="From Lens Blur from Depth, with the photograph's K and K values set: all photographs at "
                    "the first K, then all at the second.",
                ),
                io.Image.Input(
                    "by_model",
                    lazy=True,
                    optional=True,
                    tooltip="The decoded targets of Grounded Sampler with a trajectory, in the same order.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image", display_name="image", tooltip="The photographs, in the order of target K."
                ),
                io.String.Output(display_name="text", tooltip="Which K is whose."),
            ],
        )

    @classmethod
    def validate_inputs(cls, photo_bokeh: float | None = None) -> bool | str:
        # As for Grounded Sampler: a K outside the slider's range is allowed.
        return True

    @classmethod
    def check_lazy_status(
        cls,
        photo_bokeh: float,
        target_bokeh: str,
        way: str,
        **images: torch.Tensor | None,
    ) -> list[str]:
        needed = _sources(photo_bokeh, parse_values(target_bokeh, camera=photo_bokeh), way)
        # The host names only what is connected; for the rest its own error would say less than that of execute.
        return [name for name, pictures in images.items() if name in needed and pictures is None]

    @classmethod
    def execute(
        cls,
        photo_bokeh: float,
        target_bokeh: str,
        way: str,
        by_lens: torch.Tensor | None = None,
        by_model: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        given = {"by_lens": by_lens, "by_model": by_model}
        targets = parse_values(target_bokeh, camera=photo_bokeh)
        sources = _sources(photo_bokeh, targets, way)
        parts = {}
        for name in dict.fromkeys(sources):
            pictures = given[name]
            listed = ", ".join(
                format_value(k) for k, source in zip(targets, sources, strict=True) if source == name
            )
            if pictures is None:
                raise BokehError(
                    f"{name} is not connected, and K {listed} is to come from it. Connect it, or choose another way."
                )
            if pictures.shape[0] % len(targets) or not len(pictures):
                raise BokehError(
                    f"{name} brings {pictures.shape[0]} pictures for {len(targets)} K; expected as many for each K. "
                    "Give the same list of K to all three nodes."
                )
            parts[name] = pictures.unflatten(0, (len(targets), -1))
        shapes = {name: tuple(part.shape[1:]) for name, part in parts.items()}
        if len(set(shapes.values())) > 1:
            told = "; ".join(
                f"{name}: {of[0]} of {of[2]} x {of[1]}, {of[3]} channels" for name, of in shapes.items()
            )
            raise BokehError(
                f"The pictures for each K differ ({told}). Render the photograph at the model's size, or carry the "
                "model's to its full size with Carry Edit to Full Size."
            )
        chosen = torch.cat([parts[source][place].cpu() for place, source in enumerate(sources)])
        text = "\n".join(
            f"K {format_value(k)}: {'lens' if source == 'by_lens' else 'model'}"
            for k, source in zip(targets, sources, strict=True)
        )
        return io.NodeOutput(chosen, text)


def _sources(photo_bokeh: float, targets: list[float], way: str) -> list[str]:
    """The input that each K comes from."""
    if not 0 <= photo_bokeh < math.inf:
        raise BokehError(f"K of the photograph is {photo_bokeh}; it must be 0 (all in focus) or larger.")
    if way != BY_DIRECTION:
        return ["by_lens" if way == LENS else "by_model"] * len(targets)
    return ["by_lens" if k >= photo_bokeh else "by_model" for k in targets]
