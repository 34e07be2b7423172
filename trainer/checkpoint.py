"""Checkpoints: everything it takes to go on as if nothing had happened. A checkpoint is there whole or not at all.

A checkpoint is a folder ``step-00000500`` (500 steps done) with the weights of every learner
(``adapter.safetensors``), ``average.safetensors`` where there is one, ``state.pt`` (the optimisers', read with
``weights_only``) and ``run.json`` (settings, what data and models it was trained on). Of weights that are spread over
the processes the optimisers' tensors are in files of their own (``optimizer.generator.exp_avg.safetensors``): all files
are whole, are gathered one after another, and are read by any number of processes. Random numbers and the place in
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
from safetensors.torch import load_file
from torch import Tensor

from bokeh_ops.errors import BokehError
from trainer.changes import differences
from trainer.files import WRITE_ERRORS, replace_text, unwritable
from trainer.learner import Learner
from trainer.sharding import is_spread, share_of, write_whole

Write = Callable[[Path | None], object]
"""Writes a file; without a path another process does, and this one gives its shares of what is spread."""

_STATE = "optimizer."
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

    def tensors(self) -> dict[str, tuple[Mapping[str, Tensor], Write]]:
        """What lies in files of their own, by name, and what writes each; one learner's average is ``average``."""
        found: dict[str, tuple[Mapping[str, Tensor], Write]] = {}
        for name, learner in self.learners.items():
            found[name] = (learner.weights, learner.save)
            if learner.average is not None:
                average = learner.average.weights
                own = "average" if len(self.learners) == 1 else f"{name}-average"
                found[own] = (average, lambda path, average=average: write_whole(average, path))
        return found


def _apart(name: str, content: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Take the tensors that are spread out of an optimiser's state: by the name of their file, and by parameter."""
    found: dict[str, dict[str, Tensor]] = {}
    kept: dict[int, dict[str, Any]] = {}
    for number, values in content["state"].items():
        for key, value in values.items():
            if is_spread(value):
                found.setdefault(f"{_STATE}{name}.{key}", {})[str(number)] = value
            else:
                kept.setdefault(number, {})[key] = value
    content["state"] = kept
    return found


def _together(name: str, content: dict[str, Any], folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Put back what :func:`_apart` took out, and spread what is spread now."""
    for file in folder.glob(f"{_STATE}{name}.*.safetensors"):
        key = file.name.split(".")[-2]
        for number, value in load_file(file).items():
            content["state"].setdefault(int(number), {})[key] = value
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for number, values in content["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameters[number].shape:
                values[key] = share_of(value, parameters[number])


def save(folder: Path, state: State, run: Mapping[str, Any], keep: int, first: bool = True) -> Path:
    """Write a checkpoint into ``folder`` and remove all but the last ``keep``.

    Where weights are spread over the processes all have to call this.

    Args:
        folder: of all checkpoints.
        state: what to write.
        run: settings and identities, for :func:`restore` to compare.
        keep: at least 1.
        first: whether this process writes; others give their shares.

    Raises:
        BokehError: it cannot be written; what was there is untouched.
    """
    optimizers = {name: each.optimizer.state_dict() for name, each in state.learners.items()}
    writes = {name: write for name, (_, write) in state.tensors().items()}
    for name, content in optimizers.items():
        for own, spread in _apart(name, content).items():
            writes[own] = lambda path, spread=spread: write_whole(spread, path)
    path = folder / f"step-{state.step:08d}"
    temporary = folder / f".{path.name}.tmp"
    if not first:
        for write in writes.values():
            write(None)
        return path
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, write in writes.items():
            write(temporary / f"{name}.safetensors")
        content = {
            "optimizers": optimizers,
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
                value.copy_(share_of(found[name][key], value))
    for name, learner in state.learners.items():
        _together(name, optimizers[name], path, learner.optimizer)
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
