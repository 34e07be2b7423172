"""Checkpoints: everything it takes to go on as if nothing had happened. A checkpoint is there whole or not at all.

A checkpoint is a folder ``step-00000500`` (500 steps done) with the weights of every learner
(``adapter.safetensors``), ``average.safetensors`` where there is one, ``state.pt`` (the optimisers', read with
``weights_only``) and ``run.json`` (settings, what data and models it was trained on). Random numbers and the place in
the data follow from seed and step (:mod:`trainer.seeded`), so they need no state of their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bokeh_ops.errors import BokehError
from trainer.changes import differences
from trainer.files import WRITE_ERRORS, replace_text, unwritable
from trainer.learner import Learner

_NAME = re.compile(r"^step-(\d{8,})$")
VERSION = 1


@dataclass
class State:
    """What a checkpoint holds.

    Attributes:
        learners: what trains, by name.
        scaler: of fp16 gradients, or None.
        step: steps done.
    """

    learners: Mapping[str, Learner]
    scaler: Any = None
    step: int = 0

    def tensors(self) -> dict[str, tuple[Mapping[str, Tensor], Callable[[Path], object]]]:
        """What lies in files of their own, by name, and what writes each; one learner's average is ``average``."""
        found: dict[str, tuple[Mapping[str, Tensor], Callable[[Path], object]]] = {}
        for name, learner in self.learners.items():
            found[name] = (learner.weights, learner.save)
            if learner.average is not None:
                average = learner.average.weights
                own = "average" if len(self.learners) == 1 else f"{name}-average"
                found[own] = (average, lambda path, average=average: save_file(average, path))
        return found


def save(folder: Path, state: State, run: Mapping[str, Any], keep: int) -> Path:
    """Write a checkpoint into ``folder`` and remove all but the last ``keep``.

    Args:
        folder: of all checkpoints.
        state: what to write.
        run: settings and identities, for :func:`restore` to compare.
        keep: at least 1.

    Raises:
        BokehError: it cannot be written; what was there is untouched.
    """
    path = folder / f"step-{state.step:08d}"
    temporary = folder / f".{path.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, (_, write) in state.tensors().items():
            write(temporary / f"{name}.safetensors")
        content = {
            "optimizers": {name: each.optimizer.state_dict() for name, each in state.learners.items()},
            "scaler": None if state.scaler is None else state.scaler.state_dict(),
            "step": state.step,
        }
        _save_state(content, temporary / "state.pt")
        replace_text(temporary / "run.json", json.dumps({"version": VERSION, **run}, indent=1))
        for file in temporary.iterdir():
            _sync(file)
        shutil.rmtree(path, ignore_errors=True)  # of an earlier run that went on from before it
        os.replace(temporary, path)
        _sync(folder)
    except WRITE_ERRORS as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in sorted(checkpoints(folder))[:-keep]:
        shutil.rmtree(folder / f"step-{old:08d}", ignore_errors=True)
    return path


def _save_state(content: dict[str, Any], path: Path) -> None:
    """``torch.save`` that says OSError where the disk is full; by itself it complains of positions in its archive."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def _sync(path: Path) -> None:
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder."""
    if not folder.is_dir():
        return []
    return [int(match.group(1)) for entry in folder.iterdir() if (match := _NAME.match(entry.name))]


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, or None."""
    steps = checkpoints(folder)
    return folder / f"step-{max(steps):08d}" if steps else None


def restore(
    path: Path,
    state: State,
    run: Mapping[str, Any],
    fixed: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda settings: settings,
) -> None:
    """Bring ``state`` to where a checkpoint was.

    Args:
        path: of the checkpoint.
        state: to fill.
        run: of now, as for :func:`save`.
        fixed: what of the settings may not have changed.

    Raises:
        BokehError: other settings, data or models (the differences are listed), another architecture, or damage.
    """
    wanted = {name: weights for name, (weights, _) in state.tensors().items()}
    try:
        before = json.loads((path / "run.json").read_text(encoding="utf-8"))
        changed = (
            [] if before.get("version") == VERSION else [f"version: {before.get('version')} -> {VERSION}"]
        )
        content = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        files = {name: path / f"{name}.safetensors" for name in wanted}
        found = {name: load_file(file) for name, file in files.items() if file.is_file()}
    except (OSError, ValueError, SafetensorError, RuntimeError, EOFError, KeyError) as error:
        raise BokehError(
            f"The checkpoint {path} cannot be read ({error}). Remove it, and training goes on from the one before, or "
            "from the start."
        ) from error
    # First the plain fact, then its cause: other settings.
    changed += list(differences(fixed(before.get("settings", {})), fixed(run["settings"])))
    changed += list(differences(before.get("identities", {}), run["identities"]))
    if changed:
        raise BokehError(
            f"{path} was trained with other settings; going on would mix the two:\n  "
            + "\n  ".join(changed)
            + "\nChange them back; or choose another folder for out (adapter.init takes over what was learnt)."
        )
    # A run of before there were several optimisers has the one of its adapter.
    optimizers = content.get("optimizers") or {"adapter": content.get("optimizer")}
    for name, weights in wanted.items():
        if name not in found or (name in state.learners and name not in optimizers):
            raise BokehError(f"The checkpoint {path} lacks {name}.safetensors; it is damaged. Remove it.")
        _check_same_layers(found[name], weights, str(path))
    with torch.no_grad():
        for name, weights in wanted.items():
            for key, value in weights.items():
                value.copy_(found[name][key])
    for name, learner in state.learners.items():
        learner.optimizer.load_state_dict(optimizers[name])
    if state.scaler is not None and content["scaler"] is not None:
        state.scaler.load_state_dict(content["scaler"])
    state.step = int(content["step"])


def _check_same_layers(found: Mapping[str, Any], wanted: Mapping[str, Any], source: str) -> None:
    """Raise unless weights are of this very architecture.

    Raises:
        BokehError: other layers, or other shapes.
    """
    odd = sorted(set(found) ^ set(wanted))
    if odd:
        raise BokehError(
            f"{source} is a checkpoint of another architecture: {odd[0]} is in only one of it and this run "
            f"({len(odd)} such tensors). Choose another folder for out, or the settings it was made with."
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise BokehError(
                f"{source} is a checkpoint of another architecture: {name} is {list(value.shape)}, expected "
                f"{list(wanted[name].shape)}. Choose another folder for out, or the settings it was made with."
            )
