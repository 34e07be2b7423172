"""Checkpoints: everything it takes to go on as if nothing had happened. A checkpoint is there whole or not at all.

A checkpoint is a folder ``step-00000500`` (500 steps done) with ``adapter.safetensors``, ``average.safetensors``
where there is one, ``state.pt`` (the optimiser's, read with ``weights_only``) and ``run.json`` (settings, what data
and models it was trained on). Random numbers and the place in the data follow from seed and step
(:mod:`trainer.seeded`, :mod:`.plan`), so they need no state of their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bokeh_ops.adapter.files import write_adapter
from bokeh_ops.adapter.network import BokehAdapter
from bokeh_ops.errors import BokehError
from trainer.files import WRITE_ERRORS, replace_text, unwritable
from trainer.fit.build import Average, check_same_layers
from trainer.fit.config import fixed_part
from trainer.fit.schema import differences

_NAME = re.compile(r"^step-(\d{8,})$")
VERSION = 1


@dataclass
class State:
    """What a checkpoint holds.

    Attributes:
        adapter: being trained.
        optimizer: its optimiser.
        scaler: of fp16 gradients, or None.
        average: of the weights, or None.
        step: steps done.
    """

    adapter: BokehAdapter
    optimizer: torch.optim.Optimizer
    scaler: Any
    average: Average | None
    step: int = 0


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
        write_adapter(state.adapter, temporary / "adapter.safetensors")
        if state.average is not None:
            save_file(state.average.weights, temporary / "average.safetensors")
        content = {
            "optimizer": state.optimizer.state_dict(),
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


def restore(path: Path, state: State, run: Mapping[str, Any]) -> None:
    """Bring ``state`` to where a checkpoint was.

    Args:
        path: of the checkpoint.
        state: to fill.
        run: of now, as for :func:`save`.

    Raises:
        BokehError: other settings, data or models (the differences are listed), another architecture, or damage.
    """
    try:
        before = json.loads((path / "run.json").read_text(encoding="utf-8"))
        changed = (
            [] if before.get("version") == VERSION else [f"version: {before.get('version')} -> {VERSION}"]
        )
        tensors = load_file(path / "adapter.safetensors")
        content = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        averaged = path / "average.safetensors"
        average = load_file(averaged) if averaged.is_file() else None
    except (OSError, ValueError, SafetensorError, RuntimeError, EOFError, KeyError) as error:
        raise BokehError(
            f"The checkpoint {path} cannot be read ({error}). Remove it, and training goes on from the one before, or "
            "from the start."
        ) from error
    # First the plain fact, then its cause: other settings.
    changed += list(differences(fixed_part(before.get("settings", {})), fixed_part(run["settings"])))
    changed += list(differences(before.get("identities", {}), run["identities"]))
    if changed:
        raise BokehError(
            f"{path} was trained with other settings; going on would mix the two:\n  "
            + "\n  ".join(changed)
            + "\nChange them back; or choose another folder for out (adapter.init takes over what was learnt)."
        )
    check_same_layers(tensors, state.adapter, str(path))
    if (average is None) != (state.average is None):
        raise BokehError(f"The checkpoint {path} lacks average.safetensors; it is damaged. Remove it.")
    state.adapter.load_state_dict(tensors)
    state.optimizer.load_state_dict(content["optimizer"])
    if state.scaler is not None and content["scaler"] is not None:
        state.scaler.load_state_dict(content["scaler"])
    if state.average is not None and average is not None:
        state.average.load(average)
    state.step = int(content["step"])
