"""``python -m trainer fit``: the command line."""

from __future__ import annotations

import argparse
from typing import Any

from trainer.recipes.command import add_settings, run_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a bokeh adapter on the checkpoint you already have, through your own ComfyUI. Given "
        "again, a run goes on from its last checkpoint; Ctrl-C writes one. On several GPUs or machines: "
        "accelerate launch -m trainer fit CONFIG. Commented configurations lie in trainer/configs."
    )
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    from trainer.config import Fit

    def train() -> Any:
        from trainer.recipes.bokeh.recipe import fit

        return fit

    return run_settings(arguments, Fit, train)
