"""``python -m trainer distil``: the command line."""

from __future__ import annotations

import argparse
from typing import Any

from trainer.recipes.command import add_settings, run_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Distil SD1.5, SDXL or FLUX into a generator of a few steps by distribution matching (DMD2), for ComfyUI's "
        "sampler lcm with the scheduler simple. Given again, a run goes on from its last checkpoint; Ctrl-C writes "
        "one. On several GPUs or machines: accelerate launch -m trainer distil CONFIG. Commented configurations lie "
        "in trainer/configs."
    )
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    from trainer.recipes.dmd.config import Distil

    def train() -> Any:
        from trainer.recipes.dmd.recipe import distil

        return distil

    return run_settings(arguments, Distil, train)
