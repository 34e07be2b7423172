"""``python -m trainer focus``: the command line."""

from __future__ import annotations

import argparse
from typing import Any

from trainer.recipes.command import add_settings, run_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a focus transformer: it finds the main thing of a picture and its depth, on any data set with masks. "
        "Given again, a run goes on from its last checkpoint; Ctrl-C writes one. On several GPUs or machines: "
        "accelerate launch -m trainer focus CONFIG. A commented configuration lies in trainer/configs."
    )
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    from trainer.recipes.focus.config import FocusFit

    def train() -> Any:
        from trainer.recipes.focus.recipe import train_focus

        return train_focus

    return run_settings(arguments, FocusFit, train)
