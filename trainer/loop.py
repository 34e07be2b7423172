"""The one loop: steps, micro-batches, updates, checkpoints, log and samples of whatever a recipe trains."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bokeh_ops.errors import BokehError
from trainer import checkpoint
from trainer.files import replace_text
from trainer.learner import Learner, clip_gradients
from trainer.log import Log
from trainer.processes import Alone
from trainer.recipes.recipe import Recipe, Rows, Turn
from trainer.sharding import local

MOST_SKIPPED = 20
"""Steps in a row that fp16 may leave out because a gradient overflowed."""


@dataclass(frozen=True)
class Schedule:
    """How long, and how often what is done.

    Attributes:
        steps: in all.
        save: steps between checkpoints.
        keep: checkpoints kept.
        samples: steps between samples and validation, which are also made before the first step and after the last; 0:
            never.
        tensorboard: whether to write for TensorBoard.
        until: stop at this step, as if asked to.
    """

    steps: int
    save: int
    keep: int = 2
    samples: int = 0
    tensorboard: bool = False
    until: int | None = None


class Diverged(BokehError):
    """The loss is no longer a number."""


class Loop:
    """A training, its state where the last checkpoint in ``out`` left it.

    Args:
        recipe: what is trained.
        schedule: how long.
        out: folder of checkpoints, log and samples.
        processes: who shares the work.

    Raises:
        BokehError: the checkpoint is of another training, or damaged.
    """

    def __init__(self, recipe: Recipe, schedule: Schedule, out: Path, processes: Alone | None = None) -> None:
        self.recipe, self.schedule, self.out = recipe, schedule, out
        self.processes = processes or Alone()
        self.state = checkpoint.State(recipe.trainables(), recipe.scaler)
        last = checkpoint.latest(out / "checkpoints")
        if last is not None:
            checkpoint.restore(last, self.state, recipe.record(), recipe.fixed)
            self.processes.say(f"Going on from {last}.")

    @property
    def done(self) -> bool:
        return self.state.step >= self.schedule.steps

    def run(self) -> bool:
        """Train until all steps are done, or until someone asks to stop.

        Returns:
            Whether all steps are done. A checkpoint is written either way.

        Raises:
            Diverged: loss or gradient is no number; the last checkpoint is kept and the batch is described in a file.
            BokehError: a photograph or a file cannot be read or written.
        """
        from tqdm import tqdm

        state, schedule, first = self.state, self.schedule, self.processes.first
        end = min(schedule.steps, schedule.until or schedule.steps)
        log = Log(self.out, state.step, schedule.tensorboard) if first else None
        bar = tqdm(
            total=schedule.steps,
            initial=state.step,
            desc="Training",
            unit="step",
            dynamic_ncols=True,
            disable=None if first else True,
        )
        saved, skipped = state.step, 0
        try:
            with _asked_to_stop() as stop, self.recipe.training():
                feed = self.feed()
                if state.step == 0:
                    self._look(log)
                while state.step < end:
                    began = time.monotonic()
                    values, stopping, pictures = self.step(feed, stop)
                    skipped = skipped + 1 if values.pop("skipped") else 0
                    if skipped > MOST_SKIPPED:
                        raise Diverged(
                            f"The gradients overflowed fp16 in {skipped} steps in a row. Use precision bf16 or fp32."
                        )
                    seconds = time.monotonic() - began
                    told = {"seconds": seconds, "pictures_per_second": pictures / seconds}
                    if log is not None:
                        log.step(state.step, {**values, **told, "memory_gb": memory_gb()})
                    bar.update()
                    bar.set_postfix_str(
                        f"loss {values['loss']:.4f}, {pictures / seconds:.3g} pictures/s, {memory_gb():.1f} GB"
                    )
                    if state.step % schedule.save == 0 or stopping or state.step == end:
                        self._save()
                        saved = state.step
                    due = schedule.samples and state.step % schedule.samples == 0
                    if not stopping and (due or state.step == schedule.steps):
                        self._look(log)
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
        return self.done

    def feed(self) -> Iterator[Any]:
        """What the micro-batches of this process need, from the next step on."""
        steps = range(self.state.step, self.schedule.steps)
        return self.recipe.feed(
            job for step in steps for turn in self.recipe.turns(step) for job in turn.jobs
        )

    def step(self, feed: Iterator[Any], stop: list[bool] | None = None) -> tuple[dict[str, Any], bool, int]:
        """One step.

        Args:
            feed: :meth:`feed`.
            stop: whether this process was asked to stop.

        Returns:
            What to log of it, whether any process was asked to stop, and how many pictures it took.
        """
        turns = self.recipe.turns(self.state.step)
        values: dict[str, Any] = {"skipped": False, "loss": 0.0}
        stopping = False
        for turn in turns:
            found, asked = self._turn(turn, feed, bool(stop and stop[0]))
            stopping = stopping or asked
            values["skipped"] = values["skipped"] or found.pop("skipped")
            # Of several turns each is told of, and the loss of the step is the last one's.
            values |= found if len(turns) == 1 else {f"{turn.kind}/{name}": v for name, v in found.items()}
            values["loss"] = found["loss"]
        self.state.step += 1
        return values, stopping, sum(turn.rows for turn in turns)

    def _turn(self, turn: Turn, feed: Iterator[Any], stop: bool) -> tuple[dict[str, Any], bool]:
        """One update: forward and backward over its micro-batches. What to log, and whether to stop."""
        processes, scaler, number = self.processes, self.state.scaler, self.state.step
        learners = [self.state.learners[name] for name in turn.learners]
        rates = [learner.begin(number) for learner in learners]
        names = list(turn.weights)
        # Per row of the turn its losses; and one place for who was asked to stop.
        told = torch.zeros(len(names) * turn.rows + 1, dtype=torch.float32, device=processes.device)
        done: list[Rows] = []
        for _ in turn.jobs:
            rows = self.recipe.losses(turn, next(feed))
            # Divided by the rows of the whole turn, so that gradients of micro-batches and processes just add up.
            loss = sum(turn.weights[name] * rows.losses[name] for name in names).sum() / turn.rows  # type: ignore[union-attr]
            (loss if scaler is None else scaler.scale(loss)).backward()
            for place, name in enumerate(names):
                slots = [place * turn.rows + slot for slot in rows.slots]
                told[slots] = rows.losses[name].detach().to(told.device)
            done.append(rows)
        told[-1] = float(stop)
        told = processes.add_up(told).cpu()
        losses = dict(zip(names, told[:-1].view(len(names), turn.rows), strict=True))
        processes.add_up_gradients([parameter for learner in learners for parameter in learner.parameters])
        if not bool(torch.isfinite(told).all()):
            raise self._diverged("The loss", done, losses[names[0]])
        norms = [self._update(learner) for learner in learners]
        fine = all(math.isfinite(norm) for norm in norms)
        if not fine and scaler is None:
            raise self._diverged("The gradient", done, losses[names[0]])
        for learner in learners:
            if scaler is None:
                learner.optimizer.step()
            else:
                scaler.step(learner.optimizer)
            learner.optimizer.zero_grad(set_to_none=True)  # room for the next one's
            if learner.average is not None:
                learner.average.update(learner.weights, number)
        if scaler is not None:
            scaler.update()
        # In double precision, so that the mean does not depend on how it is added up.
        means = {name: float(rows.double().mean()) for name, rows in losses.items()}
        values: dict[str, Any] = {} if turn.kind is None else {"kind": turn.kind}
        values |= means
        for name, learner, rate, norm in zip(turn.learners, learners, rates, norms, strict=True):
            of = "" if len(learners) == 1 else f"/{name}"
            values |= {f"lr{of}": rate, f"gradient{of}": norm if math.isfinite(norm) else None}
            if "d" in learner.optimizer.param_groups[0]:
                values[f"prodigy_d{of}"] = float(learner.optimizer.param_groups[0]["d"])
        values |= {"loss": sum(turn.weights[name] * means[name] for name in names), "skipped": not fine}
        return values, bool(told[-1])

    def _update(self, learner: Learner) -> float:
        """The norm of a learner's gradients, which are clipped to its bound."""
        if self.state.scaler is not None:
            self.state.scaler.unscale_(learner.optimizer)
        gradients = [local(parameter.grad) for parameter in learner.parameters if parameter.grad is not None]
        return clip_gradients(gradients, learner.clip, self.processes.add_up if learner.spread else None)

    def _diverged(self, what: str, done: list[Rows], losses: torch.Tensor) -> Diverged:
        number = self.state.step + 1
        path = self.out / f"bad-batch-{number:08d}-{self.processes.rank}.json"
        rows = [
            {**told, "loss": repr(float(losses[slot]))}
            for each in done
            for slot, told in zip(each.slots, each.told or [{}] * len(each.slots), strict=True)
        ]
        replace_text(path, json.dumps({"step": number, "rows": rows}, indent=1, ensure_ascii=False))
        bad = next((row.get("photograph") for row in rows if row["loss"] in ("nan", "inf", "-inf")), None)
        return Diverged(
            f"{what} of step {number} is not a number{f' (first at the photograph {bad})' if bad else ''}. Nothing of "
            f"this step was kept. The batch is described in {path}; look at its photographs, or lower the learning "
            "rate, or use precision bf16 or fp32."
        )

    def _save(self) -> None:
        """A checkpoint, and the result as it is now beside it."""
        first = self.processes.first
        if first or self.recipe.together:
            folder = self.out / "checkpoints"
            checkpoint.save(folder, self.state, self.recipe.record(), self.schedule.keep, first)
            self.recipe.result(self.state.step)
        self.processes.wait()

    def _look(self, log: Log | None) -> None:
        """Samples and validation, by the first process, or by all where its weights are spread over them."""
        if self.schedule.samples and (log is not None or self.recipe.together):
            step = self.state.step
            with other_bars_out():
                found, sheet = self.recipe.validation(), self.recipe.samples(step)
            if log is not None and found:
                log.validation(step, found)
            if log is not None and sheet is not None:
                log.picture("samples", sheet, step)
        self.processes.wait()


def train(recipe: Recipe, schedule: Schedule, out: Path, processes: Alone, result: str) -> bool:
    """Train from the last checkpoint in ``out`` where there is one, and say so.

    Args:
        recipe: what is trained.
        schedule: how long.
        out: as for :class:`Loop`.
        processes: who shares the work.
        result: name of the file in ``out`` that is to be used.

    Returns:
        Whether all steps are done (else someone asked to stop, and a checkpoint was written).

    Raises:
        BokehError: as :meth:`Loop.run`.
    """
    loop = Loop(recipe, schedule, out, processes)
    state = loop.state
    if loop.done:
        processes.say(
            f"{out} has been trained for {state.step} of {schedule.steps} steps: nothing to do. Raise steps to go on."
        )
        return True
    recipe.prepare()
    processes.say(recipe.describe())
    done = loop.run()
    processes.say(f"{state.step} of {schedule.steps} steps done. The result: {out / result}")
    return done


def memory_gb() -> float:
    """The most memory that was in use so far: of the accelerator, else of this process; 0 where nobody tells."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e9 if sys.platform == "darwin" else most / 1e6


@contextmanager
def other_bars_out() -> Iterator[None]:
    """Keeps what others draw on the error stream, such as a sampler's progress bar, from breaking up ours."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


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
