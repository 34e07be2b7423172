"""The training itself."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bokeh_ops.adapter.files import write_adapter
from bokeh_ops.adapter.network import BokehAdapter
from bokeh_ops.errors import BokehError
from trainer.files import WRITE_ERRORS, replace_text, unwritable
from trainer.fit import checkpoint
from trainer.fit.build import clip_gradients, learning_rate
from trainer.fit.cache import Store, Texts
from trainer.fit.config import Fit, record_for_others
from trainer.fit.data import Fed, Feeder
from trainer.fit.log import Log, describe_rows
from trainer.fit.model import Trainee
from trainer.fit.plan import Plan
from trainer.fit.processes import Processes
from trainer.fit.samples import sheet, sweep, write_png
from trainer.fit.schema import to_plain

ADAPTER = "adapter.safetensors"
MOST_SKIPPED = 20
"""Steps in a row that fp16 may leave out because a gradient overflowed."""


@dataclass
class Run:
    """Everything that a running training consists of.

    Attributes:
        settings: resolved.
        out: folder of the run.
        plan, feeder, texts, latents: the data.
        trainee: the network.
        parameters: what trains.
        state: what a checkpoint holds.
        processes: who shares the work.
        identities: of data and models, kept in checkpoints.
        size: width and height of the photographs.
    """

    settings: Fit
    out: Path
    plan: Plan
    feeder: Feeder
    texts: Texts
    latents: Store
    trainee: Trainee
    parameters: list[torch.nn.Parameter]
    state: checkpoint.State
    processes: Processes
    identities: dict[str, Any]
    size: tuple[int, int]

    def record(self) -> dict[str, Any]:
        """Settings and identities, as checkpoints keep them."""
        return {"settings": to_plain(self.settings), "identities": self.identities}


class Diverged(BokehError):
    """The loss is no longer a number."""


def train(run: Run, feed: Iterator[Fed]) -> bool:
    """Train until all steps are done, or until someone asks to stop.

    Args:
        run: set up, its state where the last checkpoint left it.
        feed: micro-batches of this process, from ``run.state.step`` on.

    Returns:
        Whether all steps are done. A checkpoint is written either way.

    Raises:
        Diverged: loss or gradient is no number; the last checkpoint is kept and the batch is described in a file.
        BokehError: a photograph or a file cannot be read or written.
    """
    from tqdm import tqdm

    settings, state, first = run.settings, run.state, run.processes.first
    log = Log(run.out, state.step, settings.tensorboard) if first else None
    bar = tqdm(
        total=settings.steps,
        initial=state.step,
        desc="Training",
        unit="step",
        disable=None if first else True,
    )
    saved = state.step
    skipped = 0
    try:
        with _asked_to_stop() as stop, run.trainee.training():
            while state.step < settings.steps:
                began = time.monotonic()
                values, stopping = _step(run, feed, stop)
                skipped = skipped + 1 if values.pop("skipped") else 0
                if skipped > MOST_SKIPPED:
                    raise Diverged(
                        f"The gradients overflowed fp16 in {skipped} steps in a row. Use precision bf16 or fp32."
                    )
                state.step += 1
                if log is not None:
                    log.step(state.step, {**values, "seconds": time.monotonic() - began})
                bar.update()
                bar.set_postfix(loss=f"{values['loss']:.4f}")
                if state.step % settings.checkpoint.every == 0 or stopping or state.step == settings.steps:
                    _save(run)
                    saved = state.step
                every = settings.samples.every
                if every and state.step % every == 0 and not stopping:
                    _sample(run, log)
                if stopping:
                    break
    except BaseException:
        if first and saved:
            print(f"The last checkpoint is of step {saved}.", file=sys.stderr)
        raise
    finally:
        bar.close()
        if log is not None:
            log.close()
    return state.step >= settings.steps


def _step(run: Run, feed: Iterator[Fed], stop: list[bool]) -> tuple[dict[str, Any], bool]:
    """One step: forward and backward over its micro-batches, one update. Its values, and whether to stop."""
    settings, state, processes = run.settings, run.state, run.processes
    number, total = state.step, run.plan.total
    rate = learning_rate(settings.optimizer, number, settings.steps)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    # Per row of the step: its error and its regulariser; and one place for who was asked to stop.
    told = torch.zeros(2 * total + 1, dtype=torch.float32, device=processes.device)
    done: list[tuple[Fed, list[float]]] = []
    for _ in run.plan.micro_batches(number, processes.rank, processes.world):
        fed = next(feed)
        error, localisation, sigma = _forward_backward(run, fed)
        slots = [picture.slot for picture in fed.micro.pictures]
        told[slots] = error.to(told.device)
        told[[total + slot for slot in slots]] = localisation.to(told.device)
        done.append((fed, sigma))
    told[2 * total] = float(stop[0])
    told = processes.add_up(told).cpu()
    gradients = processes.add_up_gradients(run.parameters)
    errors = told[:total]
    if not bool(torch.isfinite(told).all()):
        raise _diverged(run, "The loss", done, errors)
    if state.scaler is not None:
        state.scaler.unscale_(state.optimizer)
    norm = clip_gradients(gradients, settings.optimizer.clip)
    fine = math.isfinite(norm)
    if not fine and state.scaler is None:
        raise _diverged(run, "The gradient", done, errors)
    if state.scaler is not None:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        state.optimizer.step()
    if state.average is not None:
        state.average.update(state.adapter, number)
    values = {
        "kind": run.plan.kind(number),
        # In double precision, so that the mean does not depend on how it is added up.
        "error": float(errors.double().mean()),
        "localisation": float(told[total : 2 * total].double().mean()),
        "lr": rate,
        "gradient": norm if fine else None,
        "skipped": not fine,
    }
    values["loss"] = values["error"] + (settings.localisation or 0.0) * values["localisation"]
    if "d" in state.optimizer.param_groups[0]:
        values["prodigy_d"] = float(state.optimizer.param_groups[0]["d"])
    return values, bool(told[2 * total])


def _forward_backward(run: Run, fed: Fed) -> tuple[Tensor, Tensor, list[float]]:
    latents = latents_of(run, fed)
    losses = run.trainee.losses(fed.micro, latents, run.texts(fed.captions), fed.masks)
    # Divided by the rows of the whole step, so that gradients of micro-batches and processes just add up.
    loss = (losses.error + (run.settings.localisation or 0.0) * losses.localisation).sum() / run.plan.total
    scaler = run.state.scaler
    (loss if scaler is None else scaler.scale(loss)).backward()
    return losses.error.detach(), losses.localisation.detach(), losses.sigma


def latents_of(run: Run, fed: Fed) -> Tensor:
    """Latents of all rows, ``[R, C, H, W]``: from the cache, and from the autoencoder what is not there."""
    missing = [row for row, latent in enumerate(fed.latents) if latent is None]
    found = list(fed.latents)
    if missing:
        made = run.trainee.base.encode_images(fed.images)
        for row, latent in zip(missing, made, strict=True):
            found[row] = latent
            picture = fed.micro.pictures[row]
            again = fed.micro.kind == "photographs" or fed.micro.stored or not picture.k
            if run.settings.cache.latents and (again or run.settings.contrastive.variants):
                run.latents.put(fed.names[row], {"latent": latent})
    return torch.stack([latent for latent in found if latent is not None])


def _diverged(run: Run, what: str, done: list[tuple[Fed, list[float]]], errors: Tensor) -> Diverged:
    number = run.state.step + 1
    path = run.out / f"bad-batch-{number:08d}-{run.processes.rank}.json"
    losses = {slot: float(value) for slot, value in enumerate(errors)}
    rows = describe_rows(
        [fed.micro for fed, _ in done],
        [fed.keys for fed, _ in done],
        [fed.captions for fed, _ in done],
        [sigma for _, sigma in done],
        losses,
    )
    replace_text(path, json.dumps({"step": number, "rows": rows}, indent=1, ensure_ascii=False))
    bad = next((row["photograph"] for row in rows if row["loss"] in ("nan", "inf", "-inf")), None)
    return Diverged(
        f"{what} of step {number} is not a number{f' (first at the photograph {bad})' if bad else ''}. Nothing of this "
        f"step was kept. The batch is described in {path}; look at its photographs, or lower the learning rate, or use "
        "precision bf16 or fp32."
    )


def trained_adapter(run: Run) -> BokehAdapter:
    """The adapter as it is to be used: the average of the weights where there is one, with a record of its making."""
    adapter, state = run.state.adapter, run.state
    made = copy.deepcopy(adapter).cpu()
    made.config = replace(adapter.config, extra={**adapter.config.extra, "training": _made(run)})
    if state.average is not None:
        made.load_state_dict(state.average.weights)
    made.zero_grad(set_to_none=True)
    return made.requires_grad_(False).eval()


def _made(run: Run) -> dict[str, Any]:
    settings = record_for_others(to_plain(run.settings))
    return {"steps": run.state.step, "settings": settings, **run.identities}


def _save(run: Run) -> None:
    """A checkpoint, and the adapter as it is now beside it."""
    if run.processes.first:
        checkpoint.save(run.out / "checkpoints", run.state, run.record(), run.settings.checkpoint.keep)
        try:
            write_adapter(trained_adapter(run), run.out / ADAPTER)
        except WRITE_ERRORS as error:
            raise unwritable(run.out / ADAPTER, error) from error
    run.processes.wait()


def _sample(run: Run, log: Log | None) -> None:
    if log is not None:
        with run.trainee.paused():
            adapter = trained_adapter(run).to(run.trainee.device)
            pictures = sweep(run.trainee.base, adapter, run.settings, run.texts, run.size)
        picture = sheet(pictures, run.settings)
        write_png(run.out / "samples" / f"step-{run.state.step:08d}.png", picture)
        log.picture("samples", picture, run.state.step)
    run.processes.wait()


@contextmanager
def _asked_to_stop() -> Iterator[list[bool]]:
    """A place that says True once SIGINT or SIGTERM came; the second one interrupts at once."""
    asked = [False]
    before: dict[int, Any] = {}

    def ask(number: int, _frame: Any) -> None:
        asked[0] = True
        print("Stopping after this step; once more to stop at once.", file=sys.stderr)
        signal.signal(number, before[number])

    numbers = [signal.SIGINT] if os.name == "nt" else [signal.SIGINT, signal.SIGTERM]
    try:
        for number in numbers:
            before[number] = signal.signal(number, ask)
    except ValueError:  # not in the main thread, where nobody can press Ctrl-C
        before.clear()
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
