"""Who tells pictures of a lens from those that were made: the adversary (eq. 11)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bokeh_ops.errors import BokehError


class Judge(nn.Module):
    """Logits of how real each part of a picture looks.

    Args:
        backbone: folder of a ConvNeXt of ``transformers`` whose features are judged, as in the paper; None: small
            convolutions that learn it all.
        width: of the small convolutions.
    """

    def __init__(self, backbone: Path | None = None, width: int = 32) -> None:
        super().__init__()
        self.backbone: Any = None
        if backbone is None:
            sizes = [3, width, 2 * width, 4 * width]
            layers: list[nn.Module] = []
            for inner, outer in pairwise(sizes):
                convolution = nn.Conv2d(inner, outer, 4, 2, 1)
                layers += [nn.utils.parametrizations.spectral_norm(convolution), nn.LeakyReLU(0.2)]
            self.heads = nn.ModuleList([nn.Sequential(*layers, nn.Conv2d(sizes[-1], 1, 3, 1, 1))])
            return
        from transformers import ConvNextModel

        try:
            self.backbone = ConvNextModel.from_pretrained(str(backbone)).eval().requires_grad_(False)
        except (OSError, ValueError) as error:
            raise BokehError(
                f"{backbone} is not a folder of a ConvNeXt of transformers (config.json and model.safetensors): {error}"
            ) from error
        self.heads = nn.ModuleList(nn.Conv2d(size, 1, 1) for size in self.backbone.config.hidden_sizes)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Logits ``[R, 1, h, w]`` of each head, of pictures ``[R, 3, H, W]``, 0..1."""
        if self.backbone is None:
            return [self.heads[0](pictures * 2 - 1)]
        mean, deviation = (pictures.new_tensor(each).view(3, 1, 1) for each in (_MEAN, _DEVIATION))
        features = self.backbone((pictures - mean) / deviation, output_hidden_states=True).hidden_states[1:]
        return [head(each) for head, each in zip(self.heads, features, strict=True)]

    def trainable(self) -> tuple[dict[str, Tensor], dict[str, nn.Parameter]]:
        """What a checkpoint keeps, and what of it trains; the rest are the norms' own numbers."""
        kept = {
            name: value for name, value in self.state_dict(keep_vars=True).items() if "backbone." not in name
        }
        return kept, {name: value for name, value in kept.items() if isinstance(value, nn.Parameter)}


_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def looks_real(logits: list[Tensor]) -> Tensor:
    """``-log D`` of each picture, ``[R]``."""
    return torch.stack([F.softplus(-each).flatten(1).mean(1) for each in logits]).mean(0)


def looks_made(logits: list[Tensor]) -> Tensor:
    """``-log(1 - D)`` of each picture, ``[R]``."""
    return torch.stack([F.softplus(each).flatten(1).mean(1) for each in logits]).mean(0)
