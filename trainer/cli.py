"""``python -m trainer COMMAND``: one command line for everything that is not done inside ComfyUI.

A command is a module with two functions, imported only when it is asked for, so that ``--help`` is quick and
needs none of the packages that training does::

    def add_arguments(parser: argparse.ArgumentParser) -> None: ...
    def run(arguments: argparse.Namespace) -> int: ...          # the exit status

or, where it has commands of its own, with one that takes the rest of the line::

    def main(words: Sequence[str]) -> int: ...

Exit status: 0 done; 1 the work could not be done, with the reason on the error stream; 2 the command line or
a configuration is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from bokeh_ops.errors import BokehError

COMMANDS: dict[str, tuple[str, str]] = {
    "prepare": ("trainer.data.prepare.command", "make an annotated data set of photographs"),
    "pairs": ("trainer.data.pairs.command", "render contrastive sets of a data set to disk"),
    "synthesize": ("trainer.synthesis.command", "make scenes of tilted planes, traced through a thin lens"),
    "fit": ("trainer.recipes.bokeh.command", "train a bokeh adapter"),
    "lens": ("trainer.recipes.one_step.command", "train a diffusion lens"),
    "focus": (
        "trainer.recipes.focus.command",
        "train a focus transformer, which finds the main thing of a picture",
    ),
    "distil": ("trainer.recipes.dmd.command", "distil a generator of a few steps"),
    "toy": ("trainer.toy", "make a toy world to try training in"),
    "world": ("trainer.world.command", "make, learn and measure the small world"),
    "export": ("trainer.export.command", "convert an adapter between file layouts and precisions"),
    "evaluate": ("trainer.measure.command", "measure lens models, adapters and folders of pictures"),
}
"""Name of a command: the module that carries it out, and what it does."""

INSTALL = 'pip install ".[train]"'


class UsageError(BokehError):
    """A command line or a configuration that asks for something that does not exist."""


def main(words: Sequence[str] | None = None) -> int:
    """Carry out one command and return its exit status.

    Args:
        words: the command line without the program's name; by default that of this process.
    """
    words = list(sys.argv[1:] if words is None else words)
    # Only the command that is asked for is imported: the first word that is not an option.
    asked = next((word for word in words if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="From photographs to a bokeh adapter, and measurements of what it does.",
        epilog="`python -m trainer COMMAND --help` explains a command.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = None
    for name, (module, help_text) in COMMANDS.items():
        own = commands.add_parser(
            name, help=help_text, description=help_text[0].upper() + help_text[1:] + "."
        )
        if name == asked:
            try:
                chosen = importlib.import_module(module)
            except ModuleNotFoundError as error:
                print(
                    f"`python -m trainer {name}` needs the package {error.name!r}, which is not installed. "
                    f"Install what training needs, in the folder of this extension: {INSTALL}",
                    file=sys.stderr,
                )
                return 1
            if hasattr(chosen, "add_arguments"):
                chosen.add_arguments(own)
    with_rest = chosen is not None and hasattr(chosen, "main") and words[0] == asked
    arguments = None if with_rest else parser.parse_args(words)
    assert chosen is not None  # argparse has refused anything else
    try:
        return chosen.main(words[1:]) if arguments is None else chosen.run(arguments)
    except BokehError as error:
        print(f"{parser.prog} {asked}: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
