"""The settings of ``python -m trainer distil``.

Source of the defaults: Yin et al., "Improved Distribution Matching Distillation" (DMD2, NeurIPS 2024), and Shrivastava
et al., "Fine-grained Defocus Blur Control for Generative Image Models", sec. 3.1. What neither says is marked "(ours)".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic.dataclasses import dataclass

from trainer.config import STEPS, Cache, Optimizer, Run, fixed_but_free, usual
from trainer.settings import STRICT, Flag, section, setting

METRIC = "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf"
"""A depth model that measures metres."""


@dataclass(frozen=True, config=STRICT)
class Data:
    dataset: str = setting(help="folder made by `python -m trainer prepare` or `world data`")
    captions: int = setting(0, "captions used of each photograph; 0: all", ge=0)
    sharp: Flag = setting(False, "take only photographs that are all in focus (ours)")
    shallow: str | None = setting(
        None,
        "another, of photographs with blur; every other step then trains generator, focus and lens on it",
    )


@dataclass(frozen=True, config=STRICT)
class Through:
    depth: str | None = setting(None, "folder of a depth model of transformers that measures metres")
    focus: str | None = setting(
        None, "focus transformer to start from, of `python -m trainer focus`; empty: the shipped one"
    )
    scale: Flag = setting(
        True, "let the scale of the focus distance (eq. 5) learn; false: blur stays that of the camera (ours)"
    )
    lr: float | None = setting(
        None, "learning rate of the focus transformer; empty: the generator's", gt=0, le=10
    )


@dataclass(frozen=True, config=STRICT)
class Lora:
    rank: int = setting(
        64, "of both LoRAs, alpha is the same; 0: three whole networks are trained", ge=0, le=1024
    )


@dataclass(frozen=True, config=STRICT)
class Matching:
    guidance: float | None = setting(
        None, "of the teacher: classifier-free 8; FLUX: the distilled guidance it is told, 3.5 (ours)", ge=0
    )
    negative: str = setting("", "negative prompt of classifier-free guidance")
    least: float = setting(0.02, "smallest timestep of the comparison, as a share of all", ge=0, le=1)
    most: float = setting(0.98, "largest timestep of the comparison, as a share of all", gt=0, le=1)

    def __post_init__(self) -> None:
        if self.least >= self.most:
            raise ValueError(
                f"matching.least is {self.least:g} and most {self.most:g}; least must be below most."
            )


@dataclass(frozen=True, config=STRICT)
class Fake:
    updates: int = setting(5, "of the fake model for one of the generator", ge=1, le=100)
    lr: float | None = setting(None, "learning rate of fake model and head; empty: the generator's", gt=0)


@dataclass(frozen=True, config=STRICT)
class Losses:
    matching: float = setting(1.0, "of the generator: weight of distribution matching", gt=0, le=1e6)
    adversarial: float = setting(5e-3, "of the generator: weight of the head's opinion", ge=0, le=1e6)
    denoising: float = setting(1.0, "of the fake model: weight of denoising", gt=0, le=1e6)
    head: float = setting(1e-2, "of fake model and head: weight of telling pictures apart", ge=0, le=1e6)
    focus: float = setting(
        200.0, "of the focus transformer: weight of what ties it to where it started", ge=0, le=1e6
    )

    def __post_init__(self) -> None:
        if bool(self.adversarial) != bool(self.head):
            raise ValueError(
                f"losses.adversarial is {self.adversarial:g} and losses.head {self.head:g}; set both above 0, or "
                "both to 0 for a training without a head."
            )


@dataclass(frozen=True, config=STRICT)
class Batch:
    total: int = setting(8, "pictures of a step, over all processes (ours)", ["batch_size"], ge=1, le=65536)
    micro: int = setting(1, "pictures in memory at once", ge=1, le=4096)


@dataclass(frozen=True, config=STRICT)
class Samples:
    every: int = setting(500, "steps between sheets of samples and validation; 0: none", ge=0)
    captions: int = setting(
        6, "pictures whose captions are on a sheet: the last of the data set, not trained on", ge=1, le=64
    )
    steps: int = setting(20, "sampling steps of the teacher", ge=1, le=1000)
    cfg: float | None = setting(
        None, f"classifier-free guidance of the teacher. {usual(lambda a: a.sampling.cfg)}", ge=0, le=100
    )
    guidance: float = setting(3.5, "FLUX: distilled guidance of the teacher", ge=0, le=100)
    sampler: str | None = setting(None, f"of the teacher. {usual(lambda a: a.sampling.sampler)}")
    seed: int = setting(0, "seed of the noise", ge=0)


@dataclass(frozen=True, config=STRICT)
class Descent(Optimizer):
    lr: float | None = setting(
        None,
        "learning rate. adamw: 5e-5 with LoRAs (ours), 5e-7 without; prodigy: 1",
        ["learning_rate"],
        gt=0,
        le=10,
    )


@dataclass(frozen=True, config=STRICT)
class Distil(Run):
    """All settings of a run."""

    data: Data = section(Data, "real pictures and captions", required=True)
    init: str | None = setting(
        None, "result of an earlier run that the generator starts from; empty: the teacher"
    )
    lens: Through = section(Through, "with data.shallow: what pictures go through")
    exif: Flag = setting(
        False, "tell generator and fake model f-number and focal length; photographs without are left out"
    )
    steps: int = setting(10000, "updates of the generator (ours)", **STEPS)
    generator_steps: int = setting(4, "steps that a picture is made in", ge=1, le=64)
    lora: Lora = section(Lora)
    matching: Matching = section(Matching)
    fake: Fake = section(Fake)
    losses: Losses = section(Losses)
    batch: Batch = section(Batch)
    optimizer: Descent = section(Descent)
    samples: Samples = section(Samples)
    cache: Cache = section(Cache)
    shard: Flag = setting(False, "spread the networks' weights over all processes, each with a share (ours)")

    def __post_init__(self) -> None:
        if self.exif and (self.data.shallow is not None or self.data.sharp):
            what = "data.shallow" if self.data.shallow is not None else "data.sharp"
            raise ValueError(
                f"exif and {what} are both set; a generator either learns blur from f-number and focal length, on "
                "photographs of all kinds, or is sharp and has a lens. Leave out one."
            )
        if self.data.shallow is not None and self.lens.depth is None:
            raise ValueError(
                "data.shallow is set and lens.depth is not, so nothing is known of how deep a generated picture is; "
                "set lens.depth to the folder of a depth model that measures metres, such as "
                f"{METRIC}."
            )
        if self.data.shallow is None and (self.lens.depth is not None or self.lens.focus is not None):
            raise ValueError(
                "lens.depth or lens.focus is set and data.shallow is not, so no step goes through the lens; set "
                "data.shallow to a data set of photographs with blur, or leave lens out."
            )
        if (
            self.shard
            and not self.lora.rank
            and (self.precision == "fp16" or self.optimizer.name == "prodigy")
        ):
            raise ValueError(
                "shard with lora.rank 0 takes neither precision fp16 nor optimizer.name prodigy, which need all "
                "gradients in one place; use bf16 and adamw."
            )
        if self.shard and self.exif:
            raise ValueError(
                "shard and exif are both set; what generators are told by is not spread. Leave out one."
            )

    def resolved(self) -> Distil:
        """A copy in which everything that depends on something else is filled in."""
        known, wanted, lora = self.base.known, self.optimizer, self.lora.rank > 0
        name = wanted.name or "adamw"
        lr = wanted.lr or (1.0 if name == "prodigy" else 5e-5 if lora else 5e-7)
        # What trains as a whole is kept in single precision: small updates would be rounded away.
        usual_weights = self.precision if lora else "fp32"
        guidance, cfg = self.matching.guidance, self.samples.cfg
        return replace(
            self,
            base=replace(
                self.base, weights=usual_weights if self.base.weights == "auto" else self.base.weights
            ),
            matching=replace(
                self.matching,
                guidance=guidance if guidance is not None else 3.5 if known.guided else 8.0,
            ),
            fake=replace(self.fake, lr=self.fake.lr or lr),
            lens=replace(self.lens, lr=self.lens.lr or lr),
            optimizer=replace(wanted, name=name, lr=lr),
            samples=replace(
                self.samples,
                cfg=known.sampling.cfg if cfg is None else cfg,
                sampler=self.samples.sampler or known.sampling.sampler,
            ),
        )


def fixed_part(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's settings has to stay as it is when it is resumed."""
    kept = fixed_but_free(settings, "captions")
    kept.pop("shard")
    if settings["optimizer"]["schedule"] == "constant":
        kept.pop("steps")
    return kept
