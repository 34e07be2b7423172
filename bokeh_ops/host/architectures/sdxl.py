"""Stable Diffusion XL and its kin of the same network: Turbo, Lightning, Pony, Illustrious, SSD-1B, Vega, KOALA.

The paper has no SDXL. What is said of SD1.5 is taken over, as the layers are of the same kind: bokeh attention in the
decoder's cross-attentions, grounding in every self-attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .architecture import SamplingDefaults, TrainingDefaults
from .unet import UNet

_SIZES = 6 * 256
"""Of what the network is told beside the text: six sizes in pixels, 256 features each."""


class SDXL(UNet):
    name = "sdxl"
    title = "SDXL"
    pooled = True
    lens = True
    text_encoders = ("g", "l")
    text_files = "CLIP-L and CLIP-G"
    recomputed = ("ResBlock", "BasicTransformerBlock")  # up to ten of them in a SpatialTransformer
    sampling = SamplingDefaults(cfg=7.0, sampler="dpmpp_2m", size=1024)
    training = TrainingDefaults(
        batch=80, rank=0, query_key_rank=0, layers="decoder", noise_offset=0.04, optimizer="adamw"
    )
    toy = {
        **UNet.toy,
        # As SDXL: none at the full size, several in one place.
        "transformer_depth": [0, 2],
        "transformer_depth_output": [0, 0, 2, 2],
        "transformer_depth_middle": 2,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": 16 + _SIZES,
    }

    def matches(self, model: Any) -> bool:
        import comfy.model_base

        return isinstance(model, comfy.model_base.SDXL) and self.is_unet(model.diffusion_model)

    def config_class(self) -> Any:
        import comfy.supported_models

        return comfy.supported_models.SDXL

    def model_class(self) -> Any:
        import comfy.model_base

        return comfy.model_base.SDXL

    def lens_layers(self, network: Any, widths: Mapping[str, int]) -> list[str]:
        # All of diffusers' down_blocks.1.attentions.0, where a token is 16 pixels wide.
        block = f"input_blocks.{2 + network.num_res_blocks[0]}."
        return [path for path in widths if path.startswith(block) and path.endswith(".attn1")]

    def pooled_width(self, config: Mapping[str, Any]) -> int | None:
        return config["adm_in_channels"] - _SIZES

    def picture_conditions(self, width: int, height: int) -> dict[str, Any]:
        return {"width": width, "height": height, "target_width": width, "target_height": height}


ARCHITECTURE = SDXL()
