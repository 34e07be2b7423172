"""The settings of ``python -m trainer focus``.

Source of the defaults: Shrivastava et al., "Fine-grained Defocus Blur Control", sec. 3.2 and 4. What the paper does
not say is marked "(ours)".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic.dataclasses import dataclass

from bokeh_ops.depth.focus_transformer import Sizes
from bokeh_ops.errors import BokehError
from trainer.config import STEPS, Checkpoints, Optimizer
from trainer.settings import STRICT, Flag, section, setting


@dataclass(frozen=True, config=STRICT)
class Data:
    dataset: str = setting(help="folder of a data set with masks, such as `prepare` and `world data` make")
    worse_depth: float = setting(
        0.0,
        "depth is eroded, dilated, blurred or shifted by up to this share of the width (ours)",
        ge=0,
        le=0.2,
    )
    no_depth: float = setting(0.1, "share of the pictures that are told no depth (ours)", ge=0, le=1)


@dataclass(frozen=True, config=STRICT)
class Network:
    side: int = setting(64, "pixels both ways that pictures are resized to (ours)", ge=8, le=4096)
    patch: int = setting(8, "pixels of a token both ways; even, a divisor of side (ours)", ge=2, le=256)
    width: int = setting(64, "of a token (ours)", ge=1, le=4096)
    heads: int = setting(4, "of attention; a divisor of width (ours)", ge=1, le=256)
    layers: int = setting(3, "of the encoder (ours)", ge=1, le=256)
    init: str | None = setting(None, "file of a network to go on from, which must have these sizes")

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.side, self.patch, self.width, self.heads, self.layers)

    def __post_init__(self) -> None:
        try:
            _ = self.sizes
        except BokehError as error:
            raise ValueError(f"network: {error}") from error


@dataclass(frozen=True, config=STRICT)
class Losses:
    bce: float = setting(1.0, "weight of the cross entropy of the saliency map (ours)", ge=0, le=1e6)
    huber: float = setting(
        200.0, "weight of the Huber loss of the focus distance, where depth is told", ge=0, le=1e6
    )
    reference: str | None = setting(
        None, "file of a frozen network whose map and distance are learnt; empty: those of the masks"
    )

    def __post_init__(self) -> None:
        if not (self.bce or self.huber):
            raise ValueError("losses.bce and losses.huber are both 0; nothing would be learnt.")


@dataclass(frozen=True, config=STRICT)
class Batch:
    total: int = setting(16, "pictures of a step, over all processes", ["batch_size"], ge=1, le=65536)
    micro: int = setting(16, "pictures in memory at once", ge=1, le=4096)


@dataclass(frozen=True, config=STRICT)
class Samples:
    every: int = setting(500, "steps between sheets of samples; 0: none", ge=0)
    scenes: int = setting(
        64, "pictures for validation, the last of the data set, which are not trained on", ge=1, le=4096
    )


@dataclass(frozen=True, config=STRICT)
class Descent(Optimizer):
    warmup: int = setting(100, "steps over which the learning rate rises from 0 (ours)", ge=0)
    schedule: Literal["constant", "cosine"] = setting("cosine", "learning rate after the warm-up (ours)")


@dataclass(frozen=True, config=STRICT)
class FocusFit:
    """All settings of a run."""

    out: str = setting(help="folder for checkpoints, samples and the result", also=["output_dir", "output"])
    data: Data = section(Data, "the pictures", required=True)
    network: Network = section(Network)
    steps: int = setting(3000, "steps to train (ours)", **STEPS)
    losses: Losses = section(Losses)
    batch: Batch = section(Batch)
    optimizer: Descent = section(Descent)
    samples: Samples = section(Samples)
    seed: int = setting(0, "of everything that is drawn", ge=0, le=2**63 - 1)
    ema: float = setting(0.99, "decay of an average of the weights; 0: none (ours)", ge=0, le=0.999999)
    device: Literal["auto", "cpu"] = setting(
        "auto", "where to train; auto: an accelerator, where there is one"
    )
    tensorboard: Flag = setting(True, "write curves and sample pictures for TensorBoard")
    checkpoint: Checkpoints = section(Checkpoints)

    def resolved(self) -> FocusFit:
        """A copy in which everything that depends on something else is filled in."""
        wanted = self.optimizer
        return replace(self, optimizer=replace(wanted, name=wanted.name or "adamw", lr=wanted.lr or 1e-3))
