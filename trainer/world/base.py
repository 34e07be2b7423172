"""The base models of the small world: dimensions, first weights, and how a text and a picture enter them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bokeh_ops.host.architectures import named
from trainer.seeded import generator as draws
from trainer.world.paint import SIDE
from trainer.world.scene import BACKDROPS, COLOURS, GROUNDS, KINDS, TIMES

TOKENS = 12
WIDTH = 64
"""Numbers per token."""
BLUR_WORDS = ("blurred", "sharp", "background")
VOCABULARY = (*KINDS, *COLOURS, *GROUNDS, *BACKDROPS, *TIMES, *BLUR_WORDS)

UNET: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 24,
    "out_channels": 24,
    "model_channels": 64,
    # Little at the full 16 x 16: there a block costs sixteen times what it does at 4 x 4.
    "num_res_blocks": [0, 1, 1],
    "channel_mult": [1, 1, 2],
    "conv_resample": False,
    "num_heads": 4,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": WIDTH,
    "use_linear_in_transformer": False,
    "legacy": False,
}
FLUX: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 24,
    "out_channels": 24,
    "patch_size": 2,
    "vec_in_dim": WIDTH,
    "context_in_dim": WIDTH,
    "hidden_size": 192,
    "mlp_ratio": 3.0,
    "num_heads": 6,
    "depth": 1,
    "depth_single_blocks": 3,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
}


NETWORKS = {"sd15": UNET, "flux": FLUX}
"""Arguments of the host's network classes, by architecture."""


def describe(architecture: str) -> dict[str, Any]:
    """What the file of a base model says of itself (:mod:`bokeh_ops.host.small.model`)."""
    known = named(architecture)
    return {
        "architecture": architecture,
        "config": NETWORKS[architecture],
        "prediction": "flow" if known.flow else "v",
        "shift": known.timestep_shift(SIDE // 4, SIDE // 4),
        "pictures": "cosines",
        "tokens": TOKENS,
        "vocabulary": list(VOCABULARY),
    }


def first_weights(network: nn.Module, seed: int) -> None:
    """Weights to start training from: the usual random ones; what closes a branch and the network starts at 0.

    The host makes its layers without setting their weights.
    """
    source = torch.Generator().manual_seed(int(draws(seed, "first weights").integers(2**63)))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("scale") or (weight.ndim == 1 and not name.endswith("bias")):
                weight.fill_(1.0)
            elif weight.ndim == 1 or _closing(name):
                weight.zero_()
            else:
                fan_in = weight[0].numel()
                weight.copy_(torch.randn(weight.shape, generator=source) / fan_in**0.5)
                if "_mod." in name or ".modulation." in name or "embed" in name or "_in." in name:
                    weight.mul_(0.5)


_CLOSING = (
    "out.2.weight",  # of the UNet
    ".out_layers.3.weight",
    ".proj_out.weight",
    "final_layer.linear.weight",  # of FLUX
    "final_layer.adaLN_modulation.1.weight",
    "_mod.lin.weight",
    ".modulation.lin.weight",
)


def _closing(name: str) -> bool:
    return name.endswith(_CLOSING)


def blur_words(k: float) -> str:
    """What a photographer who mentions it at all says of a picture: two words, or none in between.

    Args:
        k: counted at 512 pixels.
    """
    if k >= 14:
        return "blurred background"
    return "sharp background" if k <= 5 else ""


class Rows:
    """Embeddings of captions, made once each."""

    def __init__(self, words: Any) -> None:
        self.words = words
        self.known: dict[str, tuple[Tensor, Tensor | None]] = {}

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor | None]:
        """``[R, tokens, width]`` and ``[R, pooled]``."""
        found = []
        for text in texts:
            if text not in self.known:
                self.known[text] = self.words.encode(text)
            found.append(self.known[text])
        pools = [pooled for _, pooled in found if pooled is not None]
        return torch.stack([rows for rows, _ in found]), torch.stack(pools) if pools else None
