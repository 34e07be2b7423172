"""The command line of a recipe that is told its settings by a file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.processes import Alone


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


def carry_out(settings: Any, make: Callable[[Alone], Any], result: Callable[[Any], str]) -> bool:
    """Train a recipe from its last checkpoint, where there is one, with processes of its own.

    Args:
        settings: resolved; with ``steps``, ``device``, ``checkpoint``, ``samples`` and ``tensorboard``.
        make: makes the recipe, which has a folder ``out``.
        result: name of the file in it that is to be used.

    Returns:
        Whether all steps are done (else someone asked to stop, and a checkpoint was written).

    Raises:
        BokehError: as the recipe's parts say.
    """
    from trainer.loop import Schedule, train
    from trainer.processes import Processes

    processes = Processes(cpu=settings.device == "cpu")
    try:
        recipe = make(processes)
        every = settings.checkpoint
        schedule = Schedule(
            settings.steps, every.every, every.keep, settings.samples.every, settings.tensorboard
        )
        return train(recipe, schedule, recipe.out, processes, result(recipe))
    finally:
        processes.close()


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
