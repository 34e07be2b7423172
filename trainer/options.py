"""Options stated once: a field of a dataclass is the setting, its argument on the command line, and its check."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from bokeh_ops.errors import BokehError

Made = TypeVar("Made")


@dataclass(frozen=True)
class Option:
    """What there is to say of a field besides its type and default.

    Attributes:
        group: heading that it stands under in the help.
        text: the help; its default is added unless ``shown`` is empty or the default nothing.
        metavar: what stands for its value in the help.
        within: whether a value is possible, and what to say of one that is not: ``"it must be at least 1"``.
        choices: all that may be given.
        name: of the argument, where not that of the field.
        read: the value from what was given.
        shown: the default as the help says it.
        several: may be given several times.
    """

    group: str
    text: str
    metavar: str | None = None
    within: tuple[Callable[[Any], bool], str] | None = None
    choices: tuple[str, ...] | None = None
    name: str | None = None
    read: Callable[[Any], Any] | None = None
    shown: str | None = None
    several: bool = False


def option(default: Any, group: str, text: str, metavar: str | None = None, **more: Any) -> Any:
    """A field of a dataclass that is an :class:`Option`."""
    return field(default=default, metadata={"option": Option(group, text, metavar, **more)})


def add_options(groups: Mapping[str, Any], kind: type) -> None:
    """Declare the options of a dataclass, each in its group; left out they are None."""
    types = get_type_hints(kind)
    for name, default, own in _options(kind):
        type_ = next(each for each in (*get_args(types[name]), types[name]) if each is not NoneType)
        words: dict[str, Any] = {"help": own.text}
        if own.several:
            words.update(action="append", metavar=own.metavar)
        elif type_ is bool and own.read is None:
            words.update(action="store_true", default=None)
        else:
            words.update(metavar=own.metavar, choices=own.choices)
            words["type"] = str if own.read is not None or own.choices else type_
        shown = (
            own.shown
            if own.shown is not None
            else ""
            if default is None or default is False
            else f"{default}"
        )
        if shown:
            words["help"] += f" ({shown})"
        groups[own.group].add_argument(f"--{_flag(name, own)}", **words)


def from_arguments(kind: type[Made], arguments: argparse.Namespace, **more: Any) -> Made:
    """The dataclass from a command line that :func:`add_options` declared.

    Args:
        more: further fields, and those that are not to be as given.

    Raises:
        BokehError: a value that is not possible.
    """
    given = {}
    for name, _, own in _options(kind):
        value = getattr(arguments, _flag(name, own).replace("-", "_"))
        if value is not None:
            given[name] = own.read(value) if own.read else value
    return kind(**{**given, **more})


def check(settings: Any) -> None:
    """Refuse values that are not possible; called by ``__post_init__``.

    Raises:
        BokehError: naming the option.
    """
    for name, _, own in _options(type(settings)):
        if own.within is not None and not own.within[0](value := getattr(settings, name)):
            raise BokehError(f"--{_flag(name, own)} is {value!r}; {own.within[1]}.")


def _options(kind: type) -> list[tuple[str, Any, Option]]:
    return [
        (each.name, each.default, each.metadata["option"])
        for each in fields(kind)
        if "option" in each.metadata
    ]


def _flag(name: str, own: Option) -> str:
    return own.name or name.replace("_", "-")
