"""BokehDiff as a lens model: SDXL with a LoRA that renders lens blur in one step, or a small model that does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..bokeh_ops.diffusion_lens import PROMPT
from ..bokeh_ops.diffusion_lens.files import read_encoder, read_lora
from ..bokeh_ops.errors import BokehError
from ..bokeh_ops.host.diffusion_lens.attach import lens_layers
from ..bokeh_ops.host.diffusion_lens.lens import DiffusionLens
from ..bokeh_ops.host.diffusion_lens.weights import add_lora, with_encoder
from ..bokeh_ops.host.folders import renderers as library
from ..bokeh_ops.host.folders.files import check_names
from ..bokeh_ops.host.notices import say
from ..bokeh_ops.host.small.lens import is_lens, read_lens
from .lens import LensType


class LoadDiffusionLens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = [library.NONE, *library.FOLDER.names()]
        return io.Schema(
            node_id="LoadDiffusionLens",
            display_name="Load Diffusion Lens (BokehDiff)",
            category="Bokeh",
            description=(
                "A lens model that is one step of SDXL: its self-attention spreads light over circles of confusion, "
                "and it is trained for hair, fur and leaves, where depth is wrong. Link it to Lens Blur from Depth. "
                "Model and VAE that come in are not changed."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="SDXL. LoRAs on it act too; an ordinary checkpoint is best. A small lens needs none.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Of SDXL. For fp16, one that was made for it (sdxl-vae-fp16-fix).",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip=f"A prompt by SDXL's text encoders. BokehDiff was trained with '{PROMPT}'.",
                ),
                io.Combo.Input(
                    "lora",
                    options=files,
                    tooltip="BokehDiff's pytorch_lora_weights.safetensors, or one trained here, in "
                    "models/bokeh_renderers or a folder in it; or a small lens, a whole model that needs nothing else. "
                    "none: SDXL as it is, which has not learnt to be a lens.",
                ),
                io.Combo.Input(
                    "encoder",
                    options=files,
                    tooltip="BokehDiff's vae.ckpt: layers of the VAE's encoder that were trained with the LoRA. Files "
                    "that hold more than tensors are refused. none: the VAE's own.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="Of the LoRA. 1 as trained, 0 is off. How blurred the picture gets is K's to say.",
                ),
                io.Boolean.Input(
                    "occlusion",
                    default=True,
                    tooltip="Whether things in front take the light of what is behind them away, as in the paper. Off "
                    "saves some time.",
                ),
            ],
            outputs=[LensType.Output("lens", display_name="lens", tooltip="For Lens Blur from Depth.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, lora: str | None = None, encoder: str | None = None) -> bool | str:
        return check_names(library.weights_path, lora, encoder)

    @classmethod
    def fingerprint_inputs(cls, lora: str | None, encoder: str | None, **kwargs: Any) -> str | float:
        return library.weights_hash(lora, encoder)

    @classmethod
    def execute(
        cls,
        lora: str,
        encoder: str,
        strength: float,
        occlusion: bool,
        model: Any = None,
        vae: Any = None,
        positive: Any = None,
    ) -> io.NodeOutput:
        node_id = getattr(cls.hidden, "unique_id", None)

        def notice(text: str) -> None:
            say(text, node_id)

        path, layers = library.weights_path(lora), library.weights_path(encoder)
        linked = {"model": model, "vae": vae, "positive": positive}
        if path is not None and is_lens(path):
            spare = [name for name, value in linked.items() if value is not None]
            if spare or layers is not None or strength != 1:
                notice(
                    f"{lora} is a small lens, a whole model: what is linked ({', '.join(spare) or 'nothing'}), encoder "
                    "and strength do nothing."
                )
            return io.NodeOutput(replace(read_lens(path), occlusion=occlusion, notice=notice))
        absent = [name for name, value in linked.items() if value is None]
        if absent:
            raise BokehError(
                f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not linked. A diffusion lens is made of "
                "SDXL: connect a checkpoint's model and vae, and a prompt by its text encoders. Or choose a small lens."
            )
        if path is None or strength == 0:
            notice(
                "There is no LoRA, so SDXL is asked as it is, which has not learnt to be a lens. Choose BokehDiff's "
                "pytorch_lora_weights.safetensors, and a strength above 0."
            )
        lens_layers(model)  # the model's fault is said before the files'
        if path is not None and strength:
            model = add_lora(model, read_lora(path), strength, lora)
        if layers is not None:
            vae = with_encoder(vae, read_encoder(layers), encoder)
        return io.NodeOutput(DiffusionLens(model, vae, positive, occlusion, notice=notice))
