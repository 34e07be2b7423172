"""A LoRA of SDXL's UNet in training, in the layout of BokehDiff's release."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import BokehError

RANK = 8
"""Of the released weights; alpha is the same."""


class LensLora(nn.Module):
    """Low-rank changes of linear and convolution layers, zero at first.

    Args:
        patcher: a MODEL of SDXL.
        rank: of all of them.
        layers: ``down``: those of the downsampling half, as the paper has it; ``all``: of the whole UNet, as the
            released weights were trained.

    Attributes:
        places: by the host's path of a layer its name in diffusers.
    """

    def __init__(self, patcher: Any, rank: int = RANK, layers: Literal["down", "all"] = "down") -> None:
        super().__init__()
        network = patcher.model.diffusion_model
        modules = dict(network.named_modules())
        self.places: dict[str, str] = {}
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for theirs, ours in comfy.utils.unet_to_diffusers(patcher.model.model_config.unet_config).items():
            path, name = ours.removesuffix(".weight"), theirs.removesuffix(".weight")
            chosen = (
                name.startswith("down_blocks.") if layers == "down" else "_blocks" in name or "mid" in name
            )
            module = modules.get(path)
            if not theirs.endswith(".weight") or not chosen or not isinstance(module, (nn.Linear, nn.Conv2d)):
                continue
            if isinstance(module, nn.Linear):
                inner, outer = (module.in_features,), (module.out_features, rank)
            else:
                inner, outer = (module.in_channels, *module.kernel_size), (module.out_channels, rank, 1, 1)
            self.places[path] = name
            key = path.replace(".", "/")  # no dots in names of parameters
            self.down[key] = nn.Parameter(torch.randn(rank, *inner) / rank)
            self.up[key] = nn.Parameter(torch.zeros(outer))
        if not self.places:
            raise BokehError("The model has no layers that a LoRA of a diffusion lens could go on; use SDXL.")

    def hooks(self, network: nn.Module) -> Iterator[Any]:
        """Put the changes on the layers' outputs; handles to take them off again."""
        for path in self.places:
            key = path.replace(".", "/")
            yield network.get_submodule(path).register_forward_hook(self._added(key))

    def _added(self, key: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
            down, up = self.down[key], self.up[key]
            x = given[0].to(down.dtype)
            if isinstance(module, nn.Conv2d):
                small = F.conv2d(x, down, None, module.stride, module.padding, module.dilation)
                return out + F.conv2d(small, up).to(out.dtype)
            return out + F.linear(F.linear(x, down), up).to(out.dtype)

        return hook

    def released(self) -> dict[str, Tensor]:
        """The tensors of ``pytorch_lora_weights.safetensors``."""
        found: dict[str, Tensor] = {}
        for path, name in sorted(self.places.items(), key=lambda item: item[1]):
            key = path.replace(".", "/")
            found[f"{name}.lora_A.weight"] = self.down[key].detach().float().cpu().contiguous()
            found[f"{name}.lora_B.weight"] = self.up[key].detach().float().cpu().contiguous()
        return found
