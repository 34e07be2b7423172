"""FLUX.1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from .architecture import Architecture, HostModel, SamplingDefaults, TrainingDefaults, copy_input

if TYPE_CHECKING:
    from ..attention.model_call import ModelCall

_TOKENS, _MU = (256, 4096), (0.5, 1.15)


class Flux(Architecture):
    name = "flux"
    title = "FLUX"
    flow = True
    cross_attention = False
    branches = True
    size_multiple = 16
    most_cfg = 3.0  # with a real negative prompt some go a little above 1
    guided = True
    pooled = True
    text_tokens = 256  # what the host pads short prompts to
    text_encoders = ("l", "t5xxl")
    text_files = "CLIP-L and T5-XXL"
    sampling = SamplingDefaults(cfg=1.0, sampler="euler", size=1024)
    training = TrainingDefaults(
        batch=48, rank=128, query_key_rank=128, layers="all", noise_offset=0.0, optimizer="prodigy"
    )
    toy = {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "vec_in_dim": 16,
        "context_in_dim": 16,
        "hidden_size": 96,
        "mlp_ratio": 4.0,
        "num_heads": 3,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [8, 12, 12],
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": True,
    }

    def matches(self, model: Any) -> bool:
        network = model.diffusion_model
        return hasattr(network, "double_blocks") and hasattr(network, "single_blocks")

    def claims(self, model: Any) -> bool:
        import comfy.model_base

        return isinstance(model, comfy.model_base.Flux)

    def widths(self, network: Any) -> dict[str, int]:
        return {
            f"{kind}.{i}": block.hidden_size if hasattr(block, "hidden_size") else network.hidden_size
            for kind in ("double_blocks", "single_blocks")
            for i, block in enumerate(getattr(network, kind))
        }

    def summary(self, network: Any) -> str:
        return f"{len(network.double_blocks)} double and {len(network.single_blocks)} single blocks"

    def bokeh_layers(self, widths: Mapping[str, int], layers: Literal["decoder", "all"]) -> list[str]:
        return list(widths)

    def query_key_layers(self, widths: Mapping[str, int]) -> list[str]:
        return list(widths)

    def projection(self, path: str, which: Literal["q", "k"], width: int) -> tuple[str, int | None]:
        fused = f"{path}.img_attn.qkv" if path.startswith("double_blocks.") else f"{path}.linear1"
        return fused, ("q", "k").index(which) * width

    def text_places(self, text: Tensor) -> int:
        return text.shape[1]

    def attach(
        self, options: dict[str, Any], call: ModelCall, model: HostModel, network: nn.Module, x: Tensor
    ) -> AbstractContextManager[dict[str, Any]]:
        from ..attention.joint import attach

        return attach(options, call, model.widths, network, x)

    def text_encoder_kind(self) -> Any:
        import comfy.sd

        return comfy.sd.CLIPType.FLUX

    def small_model(self, config: dict[str, Any], v_prediction: bool) -> tuple[Any, Callable[[Any], Any]]:
        import comfy.model_base
        import comfy.supported_models

        from ..differences import flux_config

        settings = comfy.supported_models.Flux({**flux_config(config), "image_model": "flux"})
        return settings, lambda device: comfy.model_base.Flux(settings, device=device)

    def text_width(self, config: Mapping[str, Any]) -> int:
        return config["context_in_dim"]

    def pooled_width(self, config: Mapping[str, Any]) -> int | None:
        return config["vec_in_dim"]

    def timestep_shift(self, height: int, width: int) -> float | None:
        """Linear in the number of tokens: 0.5 at 256 (256 x 256 pixels), 1.15 at 4096 (1024 x 1024)."""
        tokens = -(-height // 2) * -(-width // 2)
        slope = (_MU[1] - _MU[0]) / (_TOKENS[1] - _TOKENS[0])
        return _MU[0] + slope * (tokens - _TOKENS[0])

    def training_hooks(self, network: nn.Module) -> Iterator[Any]:
        for module in network.modules():
            if isinstance(module, nn.LayerNorm):
                yield module.register_forward_pre_hook(copy_input)

    def checkpoint_blocks(self, network: Any) -> Iterator[tuple[nn.Module, tuple[str, int] | None]]:
        for kind in ("double", "single"):
            for index, block in enumerate(getattr(network, f"{kind}_blocks")):
                yield block, (f"{kind}_block", index)

    def bottleneck(self, network: Any) -> tuple[nn.Module, int]:
        return network.double_blocks[-1], network.hidden_size

    def features(self, given: Any) -> Tensor:
        return given[0]  # the picture's tokens, before the text's

    def timestep_embedding(self, network: Any) -> tuple[nn.Module, int]:
        return network.time_in, network.hidden_size  # guidance and pooled text are added to it


ARCHITECTURE = Flux()
