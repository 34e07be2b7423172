"""Genfocus: a photograph's blur taken away, and made anew where it is wanted, by FLUX and two LoRAs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy_api.latest import io

from ..bokeh_ops.depth.conventions import DepthMap
from ..bokeh_ops.depth.focus import Focus
from ..bokeh_ops.errors import BokehError
from ..bokeh_ops.genfocus import PRE_DEBLURRED_SHIFT, STEPS, Kind, defocus_picture
from ..bokeh_ops.genfocus.files import BranchLora, read_branch_lora
from ..bokeh_ops.genfocus.strength import StrengthUnit, defocus_maps
from ..bokeh_ops.host.folders import loras as library
from ..bokeh_ops.host.folders.files import check_names
from ..bokeh_ops.host.genfocus.sample import TILE, Sampling
from ..bokeh_ops.host.notices import say
from .lens import DepthType, FocusType

GenfocusType = io.Custom("GENFOCUS")
_KINDS = {"by its name": None, **{kind.network: kind for kind in Kind}}


class LoadGenfocus(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadGenfocus",
            display_name="Load Genfocus",
            category="Bokeh",
            description=(
                "One of Genfocus' two LoRAs: deblurNet takes the blur out of a photograph, bokehNet makes blur anew. "
                "Link it to Deblur Photograph or Refocus Photograph; it acts on the tokens of the photograph alone, so "
                "it does not go on the model."
            ),
            inputs=[
                io.Combo.Input(
                    "lora",
                    options=library.names(),
                    tooltip="deblurNet.safetensors or bokehNet.safetensors, in models/loras or a folder in it.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Of the LoRA. 1 as trained, 0 is off. How blurred the picture gets is Refocus Photograph's "
                    "to say.",
                ),
                io.Combo.Input(
                    "kind",
                    options=list(_KINDS),
                    optional=True,
                    tooltip="Which of the two it is. Both have the same layers, so the file's name tells; choose here "
                    "if yours is named otherwise.",
                ),
            ],
            outputs=[
                GenfocusType.Output(
                    "genfocus",
                    display_name="genfocus",
                    tooltip="For Deblur Photograph or Refocus Photograph.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, lora: str | None = None) -> bool | str:
        return check_names(library.lora_path, lora)

    @classmethod
    def fingerprint_inputs(cls, lora: str | None, **_: Any) -> str | float:
        return library.lora_hash(lora)

    @classmethod
    def execute(cls, lora: str, strength: float, kind: str = next(iter(_KINDS))) -> io.NodeOutput:
        found = read_branch_lora(library.lora_path(lora), _KINDS[kind])
        return io.NodeOutput(replace(found, strength=strength))


def _inputs(kind: Kind) -> tuple[list[Any], list[Any]]:
    """What comes first, and what comes after a node's own inputs."""
    task, what = kind.value, "photograph" if kind is Kind.DEBLUR else "picture all in focus"
    return [
        io.Image.Input("image", tooltip=f"The {what}, or several, one after another. Any size."),
        io.Model.Input("model", tooltip="FLUX.1-dev, in any precision, fp8 and GGUF too. LoRAs on it act."),
        io.Vae.Input("vae", tooltip="Of FLUX."),
        io.Conditioning.Input(
            "positive",
            tooltip=f"A prompt by FLUX's text encoders. {kind.network} was trained with '{task.prompt}'.",
        ),
        GenfocusType.Input("genfocus", tooltip=f"{kind.network}, from Load Genfocus."),
    ], [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Of the noise.",
        ),
        io.Int.Input("steps", default=STEPS, min=1, max=10000, tooltip=f"Genfocus takes {STEPS}."),
        io.Float.Input(
            "guidance",
            default=task.guidance,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip=f"FLUX's distilled guidance. Genfocus takes {task.guidance:g} here.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.SAMPLER_NAMES,
            default="euler",
            tooltip="Genfocus takes euler.",
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.SCHEDULER_NAMES,
            default="simple",
            tooltip="How the noise falls.",
        ),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=f"Below 1 sampling starts from the {what} with less noise on it, and changes less.",
        ),
        io.Int.Input(
            "tile",
            default=TILE,
            min=0,
            max=4096,
            step=16,
            tooltip="Pixels along the tiles that a large picture is sampled in, which bounds memory. Genfocus takes "
            f"{TILE}. 0: none, all of it at once, up to about 1024 x 1024.",
        ),
        io.Boolean.Input(
            "reuse",
            default=False,
            tooltip="The photograph's keys and values of the first step serve all others: about twice as quick, takes "
            "more memory, and changes the picture a little.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where the picture is made anew; the rest stays as it is. Without it: everywhere.",
        ),
    ]


def _sampling(kind: Kind, node_id: str | None, genfocus: BranchLora, **settings: Any) -> Sampling:
    genfocus.check(kind)
    if genfocus.kind is None:
        say(
            f"{genfocus.name} does not tell by its name whether it is deblurNet or bokehNet; it is taken for "
            f"{kind.network}.",
            node_id,
        )
    if not genfocus.strength:
        say(
            "the strength of Genfocus' LoRA is 0, so FLUX has not learnt what to do with the photograph.",
            node_id,
        )
    settings["sampler"], settings["side"] = settings.pop("sampler_name"), settings.pop("tile")
    return Sampling(lora=genfocus, keep=settings.pop("reuse"), node_id=node_id, **settings)


def _checked(image: torch.Tensor, what: str, like: torch.Tensor | None = None) -> torch.Tensor:
    """Pictures ``[B, 3, H, W]``."""
    if image.ndim != 4 or 0 in image.shape or image.shape[-1] not in (1, 3):
        alpha = " Put a picture with alpha on a background first." if image.shape[-1] == 4 else ""
        raise BokehError(
            f"Expected {what} as pictures [B, H, W, 3], at least one; got {tuple(image.shape)}.{alpha}"
        )
    if not bool(torch.isfinite(image).all()):
        raise BokehError(f"{what[0].upper()}{what[1:]} has values that are NaN or infinite.")
    if like is not None and (image.shape[1:3] != like.shape[1:3] or len(image) not in (1, len(like))):
        raise BokehError(
            f"{what[0].upper()}{what[1:]} is {tuple(image.shape)}, but the photograph is {tuple(like.shape)}: size and "
            "batch must agree, or one serve all."
        )
    return image.movedim(-1, 1).expand(-1, 3, -1, -1)


def _mask(mask: torch.Tensor | None, image: torch.Tensor) -> torch.Tensor | None:
    """``[B or 1, H, W]``."""
    if mask is None:
        return None
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or 0 in mask.shape or len(mask) not in (1, len(image)):
        raise BokehError(
            f"The mask is {tuple(mask.shape)} for {len(image)} pictures; give one [1, H, W], or one each."
        )
    if mask.shape[1:] != image.shape[1:3]:
        size = tuple(image.shape[1:3])
        mask = torch.nn.functional.interpolate(mask[:, None].float(), size, mode="bilinear", antialias=True)[
            :, 0
        ]
    return mask.clamp(0, 1)


class DeblurPhotograph(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        first, last = _inputs(Kind.DEBLUR)
        return io.Schema(
            node_id="DeblurPhotograph",
            display_name="Deblur Photograph (Genfocus)",
            category="Bokeh",
            description=(
                "Takes the lens blur out of a photograph, so that everything is in focus: FLUX paints it anew and sees "
                "the photograph beside it. Estimate depth from the result, and Refocus Photograph makes blur where you "
                "want it."
            ),
            inputs=[
                *first,
                *last,
                io.Image.Input(
                    "pre_deblurred",
                    optional=True,
                    tooltip="For deblurNet_with_pre_deblur alone: the photograph, deblurred before by other means.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "picture", display_name="image", tooltip="All in focus, of the photograph's size."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        mask: torch.Tensor | None = None,
        pre_deblurred: torch.Tensor | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        node_id = getattr(cls.hidden, "unique_id", None)
        sampling = _sampling(Kind.DEBLUR, node_id, **settings)
        photographs = _checked(image, "the photograph")
        seen, columns = [[one] for one in photographs], [0]
        if sampling.lora.pre_deblurred and pre_deblurred is None:
            # As its authors give it where there is none.
            pre_deblurred = torch.zeros_like(image)
            say(
                f"{sampling.lora.name} sees a picture deblurred before, too; without one it is shown black.",
                node_id,
            )
        if pre_deblurred is not None:
            before = _checked(pre_deblurred, "the picture deblurred before", image)
            seen = [[before[row % len(before)], one] for row, one in enumerate(photographs)]
            columns = [PRE_DEBLURRED_SHIFT, 0]
        made = sampling(photographs, seen, columns, _mask(mask, image))
        return io.NodeOutput(made.movedim(1, -1).contiguous())


class RefocusPhotograph(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        first, last = _inputs(Kind.BOKEH)
        return io.Schema(
            node_id="RefocusPhotograph",
            display_name="Refocus Photograph (Genfocus)",
            category="Bokeh",
            description=(
                "Makes lens blur in a picture that is all in focus, by its depth: FLUX paints it anew and sees the "
                "picture and how blurred each place is to be. For a photograph, Deblur Photograph first."
            ),
            inputs=[
                *first,
                io.MultiType.Input(
                    "depth",
                    [DepthType, io.Image, io.Mask],
                    tooltip="Of the picture: from Estimate Depth or Depth From Geometry, which know their unit. A grey "
                    "map (near is bright) has none, which does for the unit 'largest radius'.",
                ),
                io.Float.Input(
                    "strength",
                    default=20.0,
                    min=0.01,
                    max=10000.0,
                    step=0.1,
                    round=False,
                    tooltip="How much blur, in strength_unit.",
                ),
                io.Combo.Input(
                    "strength_unit",
                    options=[unit.value for unit in StrengthUnit],
                    default=StrengthUnit.RADIUS.value,
                    tooltip="K: pixels of blur radius per dioptre (1/m), on a picture whose longer side is 512, or on "
                    "this one (Genfocus' own K). f-number: of a full-frame camera with the picture's field of view. "
                    "Largest radius: in pixels, of what is blurred most; needs no metres.",
                ),
                *last,
                FocusType.Input(
                    "focus",
                    optional=True,
                    tooltip="What stays sharp, from Bokeh Focus: a point, a mask, a distance. Without it: what is in "
                    "the middle. Several values make a series.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "picture",
                    display_name="image",
                    tooltip="With lens blur. A focus pull gives a batch.",
                ),
                io.Mask.Output(
                    "defocus",
                    display_name="defocus",
                    tooltip="Signed blur radius in pixels, in front of the focus above 0: for Bokeh Defocus Views.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        depth: DepthMap | torch.Tensor,
        strength: float,
        strength_unit: str,
        focus: Focus | None = None,
        mask: torch.Tensor | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        node_id = getattr(cls.hidden, "unique_id", None)
        sampling = _sampling(Kind.BOKEH, node_id, **settings)
        pictures = _checked(image, "the picture")

        def stop(*_: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()

        steps = defocus_maps(
            depth,
            focus or Focus(),
            strength,
            strength_unit,
            pictures,
            lambda text: say(text, node_id),
            comfy.model_management.get_torch_device(),
            stop,
        )
        defocus = torch.cat(steps)
        # Other pictures run from -1 to 1 in the VAE, this one from 0: half of what it takes lies above the middle.
        shown = (1 + defocus_picture(defocus)) / 2
        several = pictures.repeat(len(steps), 1, 1, 1)
        seen = [[one, blur.expand(3, -1, -1)] for one, blur in zip(several, shown, strict=True)]
        masked = _mask(mask, image)
        made = sampling(several, seen, None, masked)
        return io.NodeOutput(made.movedim(1, -1).contiguous(), defocus[:, 0].contiguous())
