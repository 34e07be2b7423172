"""Stable Diffusion 1.5."""

from __future__ import annotations

from typing import Any

from .architecture import SamplingDefaults, TrainingDefaults
from .unet import UNet


class SD15(UNet):
    name = "sd15"
    title = "SD1.5"
    text_files = "CLIP-L"
    sampling = SamplingDefaults(cfg=7.0, sampler="dpmpp_2m", size=512)
    training = TrainingDefaults(
        batch=80, rank=0, query_key_rank=0, layers="decoder", noise_offset=0.04, optimizer="adamw"
    )

    def matches(self, model: Any) -> bool:
        # Without vectors beside the text: later UNets have those.
        network = model.diffusion_model
        return getattr(network, "num_classes", None) is None and self.is_unet(network)

    def config_class(self) -> Any:
        import comfy.supported_models

        return comfy.supported_models.SD15


ARCHITECTURE = SD15()
