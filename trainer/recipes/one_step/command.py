"""``python -m trainer lens``: the command line."""

from __future__ import annotations

import argparse
from typing import Any

from trainer.recipes.command import add_settings, run_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a diffusion lens (BokehDiff): SDXL that renders lens blur in one step, on scenes made by `synthesize`. "
        "Given again, a run goes on from its last checkpoint; Ctrl-C writes one. On several GPUs or machines: "
        "accelerate launch -m trainer lens CONFIG. A commented configuration lies in trainer/configs."
    )
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    from trainer.recipes.one_step.config import LensFit

    def train() -> Any:
        from trainer.recipes.one_step.recipe import train_lens

        return train_lens

    return run_settings(arguments, LensFit, train)
