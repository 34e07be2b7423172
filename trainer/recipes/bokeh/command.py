"""``python -m trainer fit``: the command line."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a bokeh adapter on the checkpoint you already have, through your own ComfyUI. Given "
        "again, a run goes on from its last checkpoint; Ctrl-C writes one. On several GPUs or machines: "
        "accelerate launch -m trainer fit CONFIG. Commented configurations lie in trainer/configs."
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file with the settings")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="a setting that goes before the file's, such as optimizer.lr=1e-4; may be given several times",
    )
    parser.add_argument(
        "--show", action="store_true", help="print all settings with their defaults, and stop"
    )


def run(arguments: argparse.Namespace) -> int:
    from trainer.config import Fit
    from trainer.settings import read_settings, to_yaml

    settings = read_settings(arguments.config, Fit, arguments.overrides)
    if arguments.show:
        print(to_yaml(settings.resolved()), end="")
        return 0
    from trainer.recipes.bokeh.recipe import fit

    return 0 if fit(settings, arguments.config.absolute().parent) else 130
