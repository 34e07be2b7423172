"""Setting a training up from its settings, and carrying it out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bokeh_ops.errors import BokehError
from bokeh_ops.host.architectures import named
from bokeh_ops.render import DEFAULT_MODEL
from trainer.data import open_dataset
from trainer.data.pairs.identity import identity
from trainer.fit import checkpoint
from trainer.fit.base import Base, Fingerprints
from trainer.fit.build import Average, choose_parameters, make_optimizer, starting_adapter
from trainer.fit.cache import Store, Texts
from trainer.fit.comfyui import find_comfyui
from trainer.fit.config import Fit
from trainer.fit.data import Feeder, feed_ahead, stock
from trainer.fit.loop import ADAPTER, Run, train
from trainer.fit.model import AUTOCAST, Trainee
from trainer.fit.plan import Plan
from trainer.fit.prepare import fill_cache
from trainer.fit.processes import Processes
from trainer.fit.samples import check as check_samples


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
        run = set_up(settings, beside, processes, base)
        if run.state.step >= settings.steps:
            _say(
                processes,
                f"{run.out} has been trained for {run.state.step} of {settings.steps} steps: nothing to do. Raise "
                "steps to go on.",
            )
            return True
        _say(processes, describe(run))
        micros = (
            micro
            for step in range(run.state.step, settings.steps)
            for micro in run.plan.micro_batches(step, processes.rank, processes.world)
        )
        done = train(run, feed_ahead(run.feeder, micros, settings.data.workers))
        _say(processes, f"{run.state.step} of {settings.steps} steps done. The adapter: {run.out / ADAPTER}")
        return done
    finally:
        processes.close()


def describe(run: Run) -> str:
    """One line on what is about to be trained."""
    stock, world = run.plan.stock, run.processes.world
    known = len(stock.k) - int(np.isnan(stock.k).sum())
    trained = sum(parameter.numel() for parameter in run.parameters)
    return (
        f"{trained:,} parameters train on {known} photographs of known K and {stock.scenes} scenes, {run.plan.total} "
        f"pictures a step, in {world} process{'es' if world > 1 else ''} on {run.trainee.device}."
    )


def _say(processes: Processes, text: str) -> None:
    if processes.first:
        print(text, file=sys.stderr)


def set_up(settings: Fit, beside: Path, processes: Processes, base: Base | None = None) -> Run:
    """Everything that a training consists of, its state from the last checkpoint.

    Args:
        settings: resolved.
        beside, base: as for :func:`fit`.
        processes: of this run.

    Raises:
        BokehError: as for :func:`fit`.
    """
    from bokeh_ops.host.loading.start import start_comfyui

    start_comfyui(find_comfyui(settings.comfyui, beside), cpu=settings.device == "cpu")
    from trainer.fit.load import load_base

    if settings.samples.every:
        check_samples(settings)
    out = beside / Path(settings.out).expanduser()
    kept = beside / Path(settings.cache.folder).expanduser() if settings.cache.folder else out / "cache"
    photographs = open_dataset(beside / Path(settings.data.dataset).expanduser())
    pairs = (
        None if settings.data.pairs is None else open_dataset(beside / Path(settings.data.pairs).expanduser())
    )
    plan = Plan(settings, stock(photographs, pairs))
    _check_size(photographs.resolution, settings)
    if base is None:
        base = load_base(settings, beside, Fingerprints(kept / "files.json"))
    identities: dict[str, Any] = {
        "model": base.fingerprint,
        "dataset": identity(photographs),
        "pairs": None if pairs is None else identity(pairs),
    }
    latents = Store(kept / "latents" if settings.cache.latents else None)
    computed = AUTOCAST[settings.precision] or torch.float32
    texts = Texts(base, Store(kept / "text" if settings.cache.text else None), computed)
    feeder = Feeder(
        photographs,
        pairs,
        latents,
        base.image_fingerprint,
        settings.contrastive.lens or DEFAULT_MODEL,
        settings.data.captions,
    )
    adapter = starting_adapter(base, settings, beside)
    trainee = Trainee(base, adapter, settings)
    parameters = list(choose_parameters(adapter, settings.localisation or 0.0).values())
    state = checkpoint.State(
        adapter=adapter,
        optimizer=make_optimizer(parameters, settings.optimizer),
        scaler=torch.amp.GradScaler(trainee.device.type) if settings.precision == "fp16" else None,  # type: ignore[attr-defined]
        average=Average(adapter, settings.ema) if settings.ema else None,
    )
    run = Run(
        settings=settings,
        out=out,
        plan=plan,
        feeder=feeder,
        texts=texts,
        latents=latents,
        trainee=trainee,
        parameters=parameters,
        state=state,
        processes=processes,
        identities=identities,
        size=photographs.resolution,
    )
    last = checkpoint.latest(out / "checkpoints")
    if last is not None:
        checkpoint.restore(last, state, run.record())
        _say(processes, f"Going on from {last}.")
    fill_cache(settings, base, feeder, texts, latents, processes, identities, kept)
    return run


def _check_size(resolution: tuple[int, int], settings: Fit) -> None:
    multiple = named(settings.base.architecture).size_multiple
    if any(side % multiple for side in resolution):
        raise BokehError(
            f"The photographs of {settings.data.dataset} are {resolution[0]} x {resolution[1]}; "
            f"{settings.base.architecture} needs sides that are multiples of {multiple}. Prepare the data set at "
            "another size, such as 512 x 512."
        )
