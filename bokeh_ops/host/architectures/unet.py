"""What the UNets of Stable Diffusion have in common: SD1.5, SDXL."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from .architecture import Architecture, HostModel, Watch

if TYPE_CHECKING:
    from ..attention.model_call import ModelCall


class UNet(Architecture):
    """A UNet whose transformer blocks have self-attention (``attn1``) and attention to the text (``attn2``).

    Attributes:
        recomputed: classes of the modules that gradient checkpointing computes again, what the host's sequential blocks
            are made of.
    """

    recomputed: tuple[str, ...] = ("ResBlock", "SpatialTransformer")
    toy: Mapping[str, Any] = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "num_heads": 2,
        "use_spatial_transformer": True,
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "context_dim": 16,
        "use_linear_in_transformer": False,
        "legacy": False,
    }

    def widths(self, network: Any) -> dict[str, int]:
        return {
            path: module.heads * module.dim_head
            for path, module in network.named_modules()
            if path.endswith((".attn1", ".attn2")) and hasattr(module, "heads")
        }

    def is_unet(self, network: Any) -> bool:
        """Whether a network is a UNet with transformer blocks."""
        blocks = hasattr(network, "input_blocks") and hasattr(network, "output_blocks")
        return blocks and bool(self.widths(network))

    def summary(self, network: Any) -> str:
        return f"UNet, {len(self.widths(network))} attention layers"

    def bokeh_layers(self, widths: Mapping[str, int], layers: Literal["decoder", "all"]) -> list[str]:
        cross = [path for path in widths if path.endswith(".attn2")]
        return cross if layers == "all" else [path for path in cross if path.startswith("output_blocks.")]

    def query_key_layers(self, widths: Mapping[str, int]) -> list[str]:
        return [path for path in widths if path.endswith(".attn1")]

    def projection(self, path: str, which: Literal["q", "k"], width: int) -> tuple[str, int | None]:
        return f"{path}.to_{which}", None

    def attach(
        self, options: dict[str, Any], call: ModelCall, model: HostModel, network: nn.Module, x: Tensor
    ) -> AbstractContextManager[dict[str, Any]]:
        from ..attention.unet import attach

        return attach(options, call, model.widths, network)

    def text_encoder_kind(self) -> Any:
        import comfy.sd

        return comfy.sd.CLIPType.STABLE_DIFFUSION

    @abstractmethod
    def config_class(self) -> Any:
        """The host's class of a model's configuration."""

    def model_class(self) -> Any:
        """The host's class of a model."""
        import comfy.model_base

        return comfy.model_base.BaseModel

    def claims(self, model: Any) -> bool:
        return isinstance(getattr(model, "model_config", None), self.config_class())

    def small_model(self, config: dict[str, Any], v_prediction: bool) -> tuple[Any, Callable[[Any], Any]]:
        import comfy.model_base

        settings = self.config_class()(config)
        settings.unet_config = config
        kind = comfy.model_base.ModelType.V_PREDICTION if v_prediction else comfy.model_base.ModelType.EPS
        return settings, lambda device: self.model_class()(settings, model_type=kind, device=device)

    def checkpoint_blocks(self, network: Any) -> Iterator[tuple[nn.Module, tuple[str, int] | None]]:
        for module in network.modules():
            # By the names of all its classes: a network that is spread over processes has classes of its own.
            if any(each.__name__ in self.recomputed for each in type(module).__mro__):
                yield module, None

    def bottleneck(self, network: Any) -> tuple[nn.Module, int]:
        # The host calls the parts of a block one by one. KOALA has no middle block.
        last = (network.middle_block or network.input_blocks[-1])[-1]
        return last, last.out_channels

    def features(self, given: Any) -> Tensor:
        return given.flatten(2).mT

    def timestep_embedding(self, network: Any) -> tuple[nn.Module, int]:
        return network.time_embed, 4 * network.model_channels

    def watched(self, options: dict[str, Any], paths: list[str], watch: Watch) -> dict[str, Any]:
        from ..attention.unet import watch_cross_attention

        return watch_cross_attention(options, paths, watch)
