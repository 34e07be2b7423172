"""The sub-commands of ``evaluate``: each is a module that is imported when it is asked for.

Such a module has ``HELP``, ``add_arguments(parser)`` and ``run(arguments) -> int``. Its top imports the standard
library and :mod:`bokeh_ops.errors` alone, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
from importlib import import_module

SUBCOMMANDS = {
    "images": "trainer.measure.images",
    "model": "trainer.measure.model",
    "pairs": "trainer.measure.pairs",
    "renderer": "trainer.measure.renderer",
}
"""Name of a sub-command: its module."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a sub-parser for each of :data:`SUBCOMMANDS`."""
    subparsers = parser.add_subparsers(dest="subcommand", required=True, metavar="WHAT")
    for name, module in SUBCOMMANDS.items():
        what = import_module(module)
        own = subparsers.add_parser(
            name,
            help=what.HELP,
            description=what.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        what.add_arguments(own)
        own.set_defaults(carry_out=what.run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the sub-command that was asked for."""
    return arguments.carry_out(arguments)
