"""The settings of ``python -m trainer fit``. Where a default is empty it is the paper's for the architecture.

Source of the defaults: Fortes et al., "Bokeh Diffusion" (SIGGRAPH Asia 2025), sec. 3 and supp. A.2 and B.1. What
the paper does not say is marked "(ours)".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from bokeh_ops.host.architectures import Architecture, architectures, named
from trainer.settings import STRICT, Flag, section, setting

Precision = Literal["fp32", "bf16", "fp16"]
if TYPE_CHECKING:
    Named = str
else:
    Named = Literal[tuple(architectures())]


def usual(of: Callable[[Architecture], object]) -> str:
    """Which default is which architecture's, for the help: ``SD1.5, SDXL: 80; FLUX: 48``."""
    found: dict[str, list[str]] = {}
    for each in architectures().values():
        value = of(each)
        found.setdefault(f"{value:g}" if isinstance(value, float) else str(value), []).append(each.title)
    return "; ".join(f"{', '.join(titles)}: {value}" for value, titles in found.items())


@dataclass(frozen=True, config=STRICT)
class Base:
    """The frozen model: files, by path or by their name in ComfyUI's model folders."""

    architecture: Named = setting(help="kind of model")
    checkpoint: str | None = setting(None, "single file with model, text encoder and autoencoder")
    diffusion_model: str | None = setting(None, "a model in parts: the diffusion model")
    text_encoders: list[str] = setting([], f"a model in parts: {usual(lambda a: a.text_files)}")
    vae: str | None = setting(None, "a model in parts: the autoencoder; or another one than the checkpoint's")
    weights: Literal["auto", "fp32", "bf16", "fp16", "fp8_e4m3fn"] = setting(
        "auto", "type the frozen weights are held in; auto: the type of precision"
    )
    prediction: Literal["auto", "epsilon", "v"] = setting(
        "auto", "of discrete schedules: what the model predicts, where its file does not tell"
    )
    zero_terminal_snr: Flag = setting(False, "with v: the noise schedule ends in pure noise")
    guidance: float = setting(1.0, "FLUX: distilled guidance that it is trained at (ours)", ge=0)

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.diffusion_model is None):
            raise ValueError("base needs either checkpoint or diffusion_model: the model to train on.")
        if self.known.flow and (self.prediction != "auto" or self.zero_terminal_snr):
            raise ValueError(
                f"base.prediction and base.zero_terminal_snr are for discrete schedules, and {self.known.title} is a "
                "flow; leave them out."
            )
        if self.zero_terminal_snr and self.prediction != "v":
            raise ValueError("base.zero_terminal_snr needs base.prediction: v.")

    @property
    def known(self) -> Architecture:
        return named(self.architecture)


@dataclass(frozen=True, config=STRICT)
class Data:
    dataset: str = setting(help="folder made by `python -m trainer prepare`")
    pairs: str | None = setting(None, "folder made by `python -m trainer pairs`; empty: rendered as needed")
    captions: int = setting(0, "captions used of each photograph; 0: all", ge=0)
    workers: int = setting(2, "processes that read and render ahead", ge=0, le=256)


@dataclass(frozen=True, config=STRICT)
class Adapter:
    init: str | None = setting(None, "adapter file to go on from")
    rank: int | None = setting(
        None,
        f"rank of bokeh keys and values; 0: full matrices. {usual(lambda a: a.training.rank)}",
        ge=0,
        le=4096,
    )
    query_key_rank: int | None = setting(
        None,
        f"rank of the query/key adapters; 0: none. {usual(lambda a: a.training.query_key_rank)}",
        ge=0,
        le=4096,
    )
    layers: Literal["auto", "decoder", "all"] = setting(
        "auto",
        f"layers with bokeh attention, of a UNet's decoder or all; auto is {usual(lambda a: a.training.layers)}",
    )
    tokens: int = setting(1, "bokeh tokens", ge=1, le=64)
    hidden: int = setting(64, "width of the embedding's hidden layer", ge=1, le=65536)
    context: int = setting(768, "width of a bokeh token", ge=1, le=65536)


@dataclass(frozen=True, config=STRICT)
class Batch:
    total: int | None = setting(
        None,
        f"pictures of a step, over all processes. {usual(lambda a: a.training.batch)}",
        ["batch_size"],
        ge=1,
        le=65536,
    )
    micro: int = setting(4, "pictures in memory at once; the rest of a step is accumulated", ge=1, le=4096)


@dataclass(frozen=True, config=STRICT)
class Contrastive:
    share: float = setting(0.5, "share of the steps that train on rendered sets", ge=0, le=1)
    levels: int = setting(4, "pictures of a set: one scene at that many K (ours)", ge=2, le=64)
    k_least: float = setting(0.0, "smallest K that is drawn, counted at 512 pixels", ge=0, le=1000)
    k_most: float = setting(30.0, "largest K that is drawn, counted at 512 pixels", gt=0, le=1000)
    sharp: float = setting(0.1, "share of the sets that hold the photograph itself, K = 0 (ours)", ge=0, le=1)
    variants: int = setting(
        0, "different sets of a scene; 0: always new ones, which cannot be cached (ours)", ge=0
    )
    lens: str | None = setting(None, "lens model that renders; empty: the default of bokeh_ops.render")

    def __post_init__(self) -> None:
        if self.k_least >= self.k_most:
            raise ValueError(
                f"contrastive.k_least is {self.k_least:g} and k_most {self.k_most:g}; least must be below most."
            )


@dataclass(frozen=True, config=STRICT)
class Noise:
    offset: float | None = setting(
        None,
        f"noise shared by all pixels of a channel. {usual(lambda a: a.training.noise_offset)}",
        ge=0,
        le=1,
    )
    min_snr: float = setting(2.0, "of discrete schedules: gamma of min-SNR weighting; 0: off", ge=0, le=1000)
    density: Literal["logit-normal", "uniform"] = setting(
        "logit-normal", "of flows: how noise levels are drawn, before the shift (ours)"
    )
    logit_mean: float = setting(0.0, "of flows: of the logit-normal density (ours)", ge=-10, le=10)
    logit_std: float = setting(1.0, "of flows: of the logit-normal density (ours)", gt=0, le=10)
    shift: float | None = setting(
        None,
        "of flows: exponent mu of the timestep shift; empty: by resolution, as in sampling",
        ge=-10,
        le=10,
    )


@dataclass(frozen=True, config=STRICT)
class Dropout:
    """What a picture is trained without: at most one of the three happens."""

    caption: float = setting(0.05, "share of pictures trained with an empty caption (ours)", ge=0, le=1)
    condition: float = setting(0.05, "share trained with K = -30, the negative value (ours)", ge=0, le=1)
    both: float = setting(0.05, "share trained with both (ours)", ge=0, le=1)

    def __post_init__(self) -> None:
        if self.caption + self.condition + self.both > 1:
            raise ValueError("dropout.caption, condition and both add up to more than 1.")


@dataclass(frozen=True, config=STRICT)
class Optimizer:
    name: Literal["adamw", "prodigy"] | None = setting(None, usual(lambda a: a.training.optimizer))
    lr: float | None = setting(None, "learning rate. adamw: 1e-4, prodigy: 1", ["learning_rate"], gt=0, le=10)
    betas: list[Annotated[float, Field(ge=0, le=0.999999)]] = setting(
        [0.9, 0.999], "decay of the two averages (ours)"
    )
    weight_decay: float = setting(0.01, "decoupled weight decay (ours)", ge=0, le=1)
    warmup: int = setting(0, "steps over which the learning rate rises from 0 (ours)", ge=0)
    schedule: Literal["constant", "cosine"] = setting("constant", "learning rate after the warm-up (ours)")
    clip: float = setting(1.0, "largest norm of the gradient; 0: off (ours)", ge=0, le=1e6)

    def __post_init__(self) -> None:
        if len(self.betas) != 2:
            raise ValueError(f"optimizer.betas has {len(self.betas)} numbers; it must have 2.")


@dataclass(frozen=True, config=STRICT)
class Checkpoints:
    every: int = setting(500, "steps between checkpoints", ge=1)
    keep: int = setting(2, "checkpoints kept", ge=1)


@dataclass(frozen=True, config=STRICT)
class Samples:
    every: int = setting(500, "steps between sample sweeps; 0: none", ge=0)
    validation: int = setting(
        16, "photographs whose loss is measured with them, on noise that stays the same; 0: none", ge=0
    )
    prompts: list[str] = setting(
        ["a portrait of a woman in a park, photograph"], "prompts, each sampled at every K"
    )
    negative: str = setting("", "negative prompt")
    k: list[Annotated[float, Field(ge=-1000, le=1000)]] = setting([0.0, 8.0, 20.0, 28.0], "K of the targets")
    pivot: float = setting(14.0, "K of the pivot", ge=-1000, le=1000)
    steps: int = setting(30, "sampling steps", ge=1, le=1000)
    grounding_steps: int = setting(-1, "grounded steps; -1: 60 %", ge=-1, le=1000)
    cfg: float | None = setting(
        None, f"classifier-free guidance. {usual(lambda a: a.sampling.cfg)}", ge=0, le=100
    )
    guidance: float = setting(3.0, "FLUX: distilled guidance", ge=0, le=100)
    sampler: str | None = setting(None, usual(lambda a: a.sampling.sampler))
    scheduler: str = setting("simple", "scheduler of ComfyUI")
    seed: int = setting(0, "seed of the noise", ge=0)


@dataclass(frozen=True, config=STRICT)
class Cache:
    folder: str | None = setting(None, "where latents and embeddings are kept; empty: in out")
    latents: Flag = setting(True, "keep what the autoencoder makes of photographs")
    text: Flag = setting(True, "keep what the text encoders make of captions")


STEPS: dict[str, Any] = {"also": ["max_train_steps", "max_steps"], "ge": 1, "le": 10**9}
"""Of a setting for the number of steps."""


@dataclass(frozen=True, config=STRICT)
class Run:
    """What the runs of all recipes are told."""

    out: str = setting(help="folder for checkpoints, samples and the result", also=["output_dir", "output"])
    base: Base = section(Base, "the frozen model", required=True)
    seed: int = setting(0, "of everything that is drawn", ge=0, le=2**63 - 1)
    precision: Precision = setting(
        "bf16", "type the network computes in (autocast)", ["mixed_precision", "dtype"]
    )
    checkpointing: Flag = setting(
        True, "compute activations again on the way back, to save memory", ["gradient_checkpointing"]
    )
    ema: float = setting(0.0, "decay of an average of the weights; 0: none", ge=0, le=0.999999)
    device: Literal["auto", "cpu"] = setting("auto", "where to train; auto: what ComfyUI would use")
    comfyui: str | None = setting(None, "folder of ComfyUI; empty: BOKEH_COMFYUI, or the one this lies in")
    tensorboard: Flag = setting(True, "write curves and sample pictures for TensorBoard")
    checkpoint: Checkpoints = section(Checkpoints)


@dataclass(frozen=True, config=STRICT)
class Fit(Run):
    """All settings of a run."""

    data: Data = section(Data, "the photographs", required=True)
    steps: int = setting(12000, "steps to train", **STEPS)
    adapter: Adapter = section(Adapter)
    batch: Batch = section(Batch)
    contrastive: Contrastive = section(Contrastive)
    noise: Noise = section(Noise)
    localisation: float | None = setting(
        None,
        "weight of the localisation regulariser. With several bokeh tokens in a UNet: 0.01, else 0",
        ge=0,
        le=1000,
    )
    dropout: Dropout = section(Dropout)
    optimizer: Optimizer = section(Optimizer)
    samples: Samples = section(Samples)
    cache: Cache = section(Cache)

    def __post_init__(self) -> None:
        known = self.base.known
        if self.localisation and not known.cross_attention:
            raise ValueError(
                f"localisation needs cross-attention, which {known.title} lacks; leave it out or set it to 0."
            )
        if self.adapter.layers == "decoder" and not known.cross_attention:
            raise ValueError(f"adapter.layers is decoder; {known.title} has none: leave it out.")
        total, levels = self.resolved_total(), self.contrastive.levels
        if self.contrastive.share and total % levels:
            raise ValueError(
                f"batch.total is {total} and contrastive.levels {levels}: a step must hold whole sets, so the total "
                "must be a multiple of the levels."
            )
        if self.contrastive.share and self.batch.micro < levels:
            raise ValueError(
                f"batch.micro is {self.batch.micro} and contrastive.levels {levels}: a set is grounded on its pivot "
                "and must be in memory as a whole. Raise micro or lower levels."
            )

    def resolved_total(self) -> int:
        return self.batch.total or self.base.known.training.batch

    def resolved(self) -> Fit:
        """A copy in which everything that depends on the architecture is filled in."""
        known = self.base.known
        usual, sampling = known.training, known.sampling

        def given(value: Any, default: Any) -> Any:
            return default if value is None else value

        name = given(self.optimizer.name, usual.optimizer)
        lr = self.optimizer.lr if self.optimizer.lr is not None else 1.0 if name == "prodigy" else 1e-4
        layers = self.adapter.layers
        weights = self.precision if self.base.weights == "auto" else self.base.weights
        return replace(
            self,
            base=replace(self.base, weights=weights),
            adapter=replace(
                self.adapter,
                rank=given(self.adapter.rank, usual.rank),
                query_key_rank=given(self.adapter.query_key_rank, usual.query_key_rank),
                layers=usual.layers if layers == "auto" else layers,
            ),
            batch=replace(self.batch, total=self.resolved_total()),
            noise=replace(self.noise, offset=given(self.noise.offset, usual.noise_offset)),
            localisation=given(
                self.localisation, 0.01 if known.cross_attention and self.adapter.tokens > 1 else 0.0
            ),
            optimizer=replace(self.optimizer, name=name, lr=lr),
            samples=replace(
                self.samples,
                cfg=given(self.samples.cfg, sampling.cfg),
                sampler=given(self.samples.sampler, sampling.sampler),
            ),
        )


FREE = ("out", "device", "comfyui", "tensorboard", "checkpointing", "checkpoint")
"""Settings of :class:`Run` that may change between two parts of one run: they do not change what is learnt."""

FREE_WITHIN = {"data": ("workers",), "batch": ("micro",)}


def fixed_but_free(settings: Mapping[str, Any], apart: str) -> dict[str, Any]:
    """What of a recipe's settings has to stay as it is when it is resumed: all but what is free for every recipe.

    Args:
        settings: :func:`~trainer.settings.to_plain`.
        apart: the setting of ``samples`` that says what is not trained on.
    """
    kept = {key: value for key, value in settings.items() if key not in (*FREE, "cache")}
    kept["batch"] = {"total": settings["batch"]["total"]}
    kept["samples"] = {apart: settings["samples"][apart]}
    return kept


def fixed_part(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's settings (:func:`~trainer.settings.to_plain`) has to stay as it is when it is resumed.

    The number of steps may change unless the learning rate depends on it.
    """
    kept = {key: value for key, value in settings.items() if key not in (*FREE, "samples", "cache")}
    for key, names in FREE_WITHIN.items():
        if isinstance(kept.get(key), Mapping):
            kept[key] = {name: value for name, value in kept[key].items() if name not in names}
    if settings.get("optimizer", {}).get("schedule") == "constant":
        kept.pop("steps", None)
    return kept


FILES = {
    "base": ("checkpoint", "diffusion_model", "text_encoders", "vae"),
    "data": ("dataset", "pairs"),
    "adapter": ("init",),
}
"""Settings that name files or folders of the machine."""


def record_for_others(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How an adapter was made, to be kept in its file: what determines what is learnt, and of paths the last name.

    Adapters are passed on, and folders of the machine that trained them are nobody's business.
    """

    def last(value: Any) -> Any:
        if isinstance(value, str):
            return PurePath(value.replace("\\", "/")).name
        return [last(each) for each in value] if isinstance(value, list) else value

    record = fixed_part(settings)
    for part, names in FILES.items():
        record[part] = {key: last(value) if key in names else value for key, value in record[part].items()}
    return record
