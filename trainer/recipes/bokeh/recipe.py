"""The recipe of Bokeh Diffusion: an adapter on a frozen model, on photographs and on contrastive sets."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bokeh_ops.adapter.files import count_double_blocks, read_adapter, write_adapter
from bokeh_ops.adapter.network import AdapterConfig, BokehAdapter, LayerSpec
from bokeh_ops.render import DEFAULT_MODEL
from trainer.comfyui import start
from trainer.config import Fit, fixed_part, record_for_others
from trainer.data import open_dataset
from trainer.data.pairs.identity import identity
from trainer.files import WRITE_ERRORS, unwritable
from trainer.frozen.cache import Store, Texts
from trainer.frozen.load import check_size
from trainer.frozen.model import Base, Fingerprints
from trainer.learner import Average, Learner, learning_rate, make_optimizer
from trainer.loop import Schedule, train
from trainer.processes import Alone, Processes
from trainer.recipes.bokeh.encode import fill_cache
from trainer.recipes.bokeh.feed import Fed, Feeder, feed_ahead, stock
from trainer.recipes.bokeh.plan import MicroBatch, Plan
from trainer.recipes.bokeh.samples import check as check_samples
from trainer.recipes.bokeh.samples import sheet, sweep, write_png
from trainer.recipes.bokeh.trainee import AUTOCAST, Trainee
from trainer.recipes.recipe import Recipe, Rows, Turn
from trainer.settings import to_plain

ADAPTER = "adapter.safetensors"


def fit(settings: Fit, beside: Path, base: Base | None = None) -> bool:
    """Train an adapter, from the last checkpoint in ``out`` where there is one.

    Args:
        settings: what to train, on what.
        beside: folder that relative paths in the settings start from.
        base: the frozen model, for one that is not read from the files of the settings.

    Returns:
        Whether all steps are done (else someone asked to stop, and a checkpoint was written).

    Raises:
        BokehError: as the parts say: no ComfyUI, no such file, another architecture, changed settings, a loss that is
            no number, a full disk.
    """
    settings = settings.resolved()
    processes = Processes(cpu=settings.device == "cpu")
    try:
        recipe = Bokeh(settings, beside, processes, base)
        return train(recipe, recipe.schedule(), recipe.out, processes, ADAPTER)
    finally:
        processes.close()


class Bokeh(Recipe):
    """An adapter in training.

    Args:
        settings: resolved.
        beside, base: as for :func:`fit`.
        processes: of this run.

    Raises:
        BokehError: as for :func:`fit`.
    """

    def __init__(self, settings: Fit, beside: Path, processes: Alone, base: Base | None = None) -> None:
        start(settings.comfyui, beside, cpu=settings.device == "cpu")
        from bokeh_ops.host.loading import models as loading
        from trainer.frozen.load import load_base

        self.settings, self.processes = settings, processes
        if settings.samples.every:
            check_samples(settings)
        self.out = beside / Path(settings.out).expanduser()
        folder = settings.cache.folder
        self.kept = beside / Path(folder).expanduser() if folder else self.out / "cache"
        photographs = open_dataset(beside / Path(settings.data.dataset).expanduser())
        sets = settings.data.pairs
        pairs = None if sets is None else open_dataset(beside / Path(sets).expanduser())
        self.plan = Plan(settings, stock(photographs, pairs))
        self.size = photographs.resolution
        check_size(photographs, settings.base)
        self.base = base or load_base(settings, beside, Fingerprints(self.kept / "files.json"))
        self.identities: dict[str, Any] = {
            "model": self.base.fingerprint,
            "dataset": identity(photographs),
            "pairs": None if pairs is None else identity(pairs),
        }
        cache = settings.cache
        self.latents = Store(self.kept / "latents" if cache.latents else None)
        computed = AUTOCAST[settings.precision] or torch.float32
        self.texts = Texts(self.base, Store(self.kept / "text" if cache.text else None), computed)
        self.feeder = Feeder(
            photographs,
            pairs,
            self.latents,
            self.base.image_fingerprint,
            settings.contrastive.lens or DEFAULT_MODEL,
            settings.data.captions,
            masks=bool(settings.localisation),
            here=loading.device().type == "cpu",
            memory=self.kept / "facts" if cache.latents or cache.text else None,
            identities=[self.identities["dataset"], self.identities["pairs"]],
        )
        self.adapter = starting_adapter(self.base, settings, beside)
        self.trainee = Trainee(self.base, self.adapter, settings)
        trained = choose_parameters(self.adapter, settings.localisation or 0.0)
        weights = self.adapter.state_dict()
        self.learner = Learner(
            weights,
            list(trained.values()),
            make_optimizer(trained.values(), settings.optimizer),
            lambda step: learning_rate(settings.optimizer, step, settings.steps),
            settings.optimizer.clip,
            Average(weights, settings.ema) if settings.ema else None,
            lambda path: write_adapter(self.adapter, path),
        )
        if settings.precision == "fp16":
            self.scaler = torch.amp.GradScaler(self.trainee.device.type)  # type: ignore[attr-defined]

    def schedule(self) -> Schedule:
        wanted = self.settings
        every = wanted.checkpoint
        return Schedule(wanted.steps, every.every, every.keep, wanted.samples.every, wanted.tensorboard)

    def prepare(self) -> None:
        """Encode what will be needed and is not kept."""
        fill_cache(
            self.settings,
            self.base,
            self.feeder,
            self.texts,
            self.latents,
            self.processes,
            self.identities,
            self.kept,
        )

    def describe(self) -> str:
        stock, world = self.plan.stock, self.processes.world
        known = len(stock.k) - int(np.isnan(stock.k).sum())
        trained = sum(parameter.numel() for parameter in self.learner.parameters)
        return (
            f"{trained:,} parameters train on {known} photographs of known K and {stock.scenes} scenes, "
            f"{self.plan.total} pictures a step, in {world} process{'es' if world > 1 else ''} on "
            f"{self.trainee.device}."
        )

    def trainables(self) -> Mapping[str, Learner]:
        return {"adapter": self.learner}

    def turns(self, step: int) -> list[Turn]:
        plan, processes = self.plan, self.processes
        jobs = list(plan.micro_batches(step, processes.rank, processes.world))
        weights = {"error": 1.0, "localisation": self.settings.localisation or 0.0}
        return [Turn(("adapter",), jobs, plan.total, weights, plan.kind(step))]

    def feed(self, jobs: Iterator[MicroBatch]) -> Iterator[Fed]:
        return feed_ahead(self.feeder, jobs, self.settings.data.workers)

    def losses(self, turn: Turn | None, fed: Fed) -> Rows:
        before = self.base.encoded
        latents, texts = self.latents_of(fed), self.texts(fed.captions)
        if self.base.encoded != before:
            self.trainee.load()  # an encoder may have needed the room
        found = self.trainee.losses(fed.micro, latents, texts, self.size, fed.masks)
        rows = [
            {
                "photograph": key,
                "k": picture.k,
                "told": picture.told,
                "caption": caption,
                "noise level": sigma,
                "pivot": picture.pivot,
            }
            for picture, key, caption, sigma in zip(
                fed.micro.pictures, fed.keys, fed.captions, found.sigma, strict=True
            )
        ]
        losses = {"error": found.error, "localisation": found.localisation}
        return Rows(losses, [picture.slot for picture in fed.micro.pictures], rows)

    def latents_of(self, fed: Fed) -> Tensor:
        """Latents of all rows, ``[R, C, H, W]``: from the cache, and from the autoencoder what is not there."""
        missing = [row for row, latent in enumerate(fed.latents) if latent is None]
        found = list(fed.latents)
        if missing:
            made = self.base.encode_images(fed.images(self.trainee.device))
            for row, latent in zip(missing, made, strict=True):
                found[row] = latent
                picture = fed.micro.pictures[row]
                again = fed.micro.kind == "photographs" or fed.micro.stored or not picture.k
                if self.settings.cache.latents and (again or self.settings.contrastive.variants):
                    self.latents.put(fed.names[row], {"latent": latent})
        return torch.stack([latent for latent in found if latent is not None])

    def training(self) -> AbstractContextManager[Any]:
        return self.trainee.training()

    def record(self) -> dict[str, Any]:
        return {"settings": to_plain(self.settings), "identities": self.identities}

    def fixed(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return fixed_part(settings)

    def trained_adapter(self, step: int) -> BokehAdapter:
        """The adapter as it is to be used: the average of the weights where there is one, with how it was made."""
        made = copy.deepcopy(self.adapter).cpu()
        training = {"steps": step, "settings": record_for_others(to_plain(self.settings)), **self.identities}
        made.config = replace(made.config, extra={**made.config.extra, "training": training})
        if self.learner.average is not None:
            made.load_state_dict(self.learner.average.weights)
        made.zero_grad(set_to_none=True)
        return made.requires_grad_(False).eval()

    def result(self, step: int) -> None:
        try:
            write_adapter(self.trained_adapter(step), self.out / ADAPTER)
        except WRITE_ERRORS as error:
            raise unwritable(self.out / ADAPTER, error) from error

    def samples(self, step: int) -> Tensor:
        with self.trainee.paused():
            adapter = self.trained_adapter(step).to(self.trainee.device)
            pictures = sweep(self.base, adapter, self.settings, self.texts, self.size)
        picture = sheet(pictures, self.settings)
        write_png(self.out / "samples" / f"step-{step:08d}.png", picture)
        return picture

    @torch.no_grad()
    def validation(self) -> dict[str, float]:
        errors = [
            self.losses(None, self.feeder.feed(micro)).losses["error"].cpu()
            for micro in self.plan.validation(self.settings.samples.validation)
        ]
        return {"error": float(torch.cat(errors).double().mean())} if errors else {}


def new_adapter(base: Base, settings: Fit) -> BokehAdapter:
    """An adapter for ``base`` that changes nothing yet, the same for the same seed; fp32, on the CPU.

    Args:
        base: whose layers it is for.
        settings: resolved.
    """
    from bokeh_ops.host.architectures import recognise

    wanted = settings.adapter
    architecture, widths = base.architecture, recognise(base.patcher).widths
    assert wanted.layers != "auto"  # resolved
    cross = architecture.bokeh_layers(widths, wanted.layers)
    query_key = architecture.query_key_layers(widths) if wanted.query_key_rank else []
    config = AdapterConfig(
        base=architecture.name,
        bokeh_hidden_dim=wanted.hidden,
        bokeh_context_dim=wanted.context,
        tokens=wanted.tokens,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return BokehAdapter(
            config,
            {path: LayerSpec(widths[path], wanted.rank or None) for path in cross},
            {path: LayerSpec(widths[path], wanted.query_key_rank) for path in query_key},
        )


def starting_adapter(base: Base, settings: Fit, beside: Path) -> BokehAdapter:
    """The adapter to train: a new one, or the one that ``adapter.init`` names, in fp32.

    Raises:
        BokehError: the named one cannot be read or is for another architecture.
    """
    from bokeh_ops.host.architectures import check_fits, recognise

    if settings.adapter.init is None:
        return new_adapter(base, settings)
    path = beside / Path(settings.adapter.init).expanduser()
    model = recognise(base.patcher)
    adapter = read_adapter(path, count_double_blocks(model.widths))
    check_fits(adapter, model, str(path))
    return adapter.float().train()


def choose_parameters(adapter: BokehAdapter, localisation: float) -> dict[str, torch.nn.Parameter]:
    """What trains, by name; the rest takes no gradient.

    With one token ``W'_k`` is inert (eq. 10 over a single key), and only the localisation regulariser sees it.
    """
    inert = adapter.config.tokens == 1 and not localisation
    chosen = {}
    for name, parameter in adapter.named_parameters():
        parameter.requires_grad_(not (inert and ".to_k_bokeh." in name))
        if parameter.requires_grad:
            chosen[name] = parameter
    return chosen
