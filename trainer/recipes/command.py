"""The command line of a recipe that is told its settings by a file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The arguments of such a command."""
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


def run_settings(
    arguments: argparse.Namespace, cls: type[Any], train: Callable[[], Callable[..., bool]]
) -> int:
    """Read the settings, and show them or train.

    Args:
        arguments: those of :func:`add_settings`.
        cls: the settings class.
        train: imports the function that is given the settings and the folder they lie in.
    """
    from trainer.settings import read_settings, to_yaml

    settings = read_settings(arguments.config, cls, arguments.overrides)
    if arguments.show:
        print(to_yaml(settings.resolved()), end="")
        return 0
    return 0 if train()(settings, arguments.config.absolute().parent) else 130
