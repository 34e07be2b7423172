"""The small world from the command line.

::

    python -m trainer.world sheet FILE.png [--first SEED] [--rows N]     # a sheet of scenes at several K
    python -m trainer.world data FOLDER [--photographs N] [--sharp N] [--first SEED]
    python -m trainer.world train sd15|flux OUT --data FOLDER [FOLDER ...] [--steps N] ...

``train`` may be stopped and given again: it goes on. ``OUT/base.safetensors`` is the result, the average of the
weights; **Load Bokeh Demo Model** and the trainer's ``base.checkpoint`` read it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from bokeh_ops.errors import BokehError


def main(words: Sequence[str] | None = None) -> int:
    from trainer.world.train import Plan

    parser = argparse.ArgumentParser(prog="python -m trainer.world", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    sheet = commands.add_parser("sheet", help="write a contact sheet of scenes at several K")
    sheet.add_argument("file", type=Path)
    sheet.add_argument("--first", type=int, default=0, help="seed of the first scene")
    sheet.add_argument("--rows", type=int, default=8, help="scenes")
    data = commands.add_parser("data", help="write a data set that `fit` and `train` read")
    data.add_argument("folder", type=Path)
    data.add_argument("--photographs", type=int, default=10800, help="scenes taken at random K")
    data.add_argument("--sharp", type=int, default=1200, help="scenes that are all in focus")
    data.add_argument("--first", type=int, default=0, help="seed of the first scene")
    train = commands.add_parser("train", help="train a base model")
    train.add_argument("architecture", choices=("sd15", "flux"))
    train.add_argument("out", type=Path)
    train.add_argument("--data", type=Path, nargs="+", required=True, help="folders written by `data`")
    train.add_argument("--until", type=int, help="stop at this step (the plan stays as it is)")
    for field in fields(Plan):
        name = f"--{field.name.replace('_', '-')}"
        kind = int if isinstance(field.default, int) else float
        train.add_argument(name, type=kind, default=field.default, help=f"default {field.default}")
    chosen = parser.parse_args(words)
    try:
        return {"sheet": _sheet, "data": _data, "train": _train}[chosen.command](chosen)
    except BokehError as error:
        print(f"{parser.prog} {chosen.command}: {error}", file=sys.stderr)
        return 1


def _sheet(chosen: argparse.Namespace) -> int:
    from trainer.world.sheet import write_sheet

    write_sheet(chosen.file, range(chosen.first, chosen.first + chosen.rows))
    return 0


def _data(chosen: argparse.Namespace) -> int:
    from trainer.world.data import write_dataset

    torch.set_num_threads(1)  # more only get in each other's way with pictures this small
    write_dataset(chosen.folder, chosen.photographs, chosen.sharp, chosen.first)
    return 0


def _train(chosen: argparse.Namespace) -> int:
    from bokeh_ops.host.start import start_comfyui
    from trainer.fit.comfyui import find_comfyui
    from trainer.world.train import Pictures, Plan, Training

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    start_comfyui(find_comfyui(None, Path.cwd()), cpu=True)
    plan = Plan(**{field.name: getattr(chosen, field.name) for field in fields(Plan)})
    training = Training(chosen.architecture, Pictures(chosen.data), plan, chosen.out)
    count = sum(value.numel() for value in training.parameters.values())
    print(f"{chosen.architecture}: {count / 1e6:.2f} M parameters, from step {training.step}", flush=True)
    training.run(chosen.until)
    return 0


if __name__ == "__main__":
    sys.exit(main())
