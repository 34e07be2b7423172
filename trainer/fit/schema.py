"""YAML into dataclasses: every key known, every value of its type and in its range, every error with file and line.

A settings class is a dataclass whose fields are ``bool``, ``int``, ``float``, ``str``, ``Literal[...]``,
``list[...]`` of these, another settings class, or one of these ``| None``. Metadata of a field: ``help`` (for
people), ``least``, ``most`` (inclusive) and ``above`` (exclusive).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from trainer.cli import UsageError

Settings = TypeVar("Settings")

_MISSING = dataclasses.MISSING


def setting(default: Any = _MISSING, help: str = "", also: Sequence[str] = (), **limits: float) -> Any:
    """A field of a settings class: its default, what it is, and ``least``, ``most`` or ``above``.

    ``also`` are names that other trainers have for it, to be recognised in an error.
    """
    metadata = {"help": help, "also": tuple(also), **limits}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type, help: str = "", required: bool = False) -> Any:
    """A field that is a settings class of its own, by default with all its defaults."""
    if required:
        return dataclasses.field(metadata={"help": help})
    return dataclasses.field(default_factory=cls, metadata={"help": help})


def read_settings(path: str | Path, cls: type[Settings], overrides: Sequence[str] = ()) -> Settings:
    """Read a YAML file into ``cls``.

    Args:
        path: the file.
        cls: a settings class.
        overrides: ``key=value`` with dotted keys and YAML values, which go before what the file says.

    Raises:
        UsageError: the file is missing or is no YAML; a key is unknown (the nearest right one is named), given
            twice or missing; a value has the wrong type or lies outside its range. With file, line and key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The configuration {path} cannot be read: {error}.") from error
    return parse_settings(text, cls, str(path), overrides)


def parse_settings(
    text: str, cls: type[Settings], source: str = "configuration", overrides: Sequence[str] = ()
) -> Settings:
    """The same for YAML that is at hand; ``source`` is what to call it in a message."""
    node = _compose(text, source)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UsageError(f"{override!r} sets nothing; write KEY=VALUE, such as optimizer.lr=1e-4.")
        _put(node, key.strip().split("."), _compose(value, override), override)
    return _Reader(source, cls).settings(node, cls, "")


def _compose(text: str, source: str) -> yaml.Node:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"{source} is not YAML: {' '.join(str(error).split())}.") from error
    return yaml.MappingNode("tag:yaml.org,2002:map", []) if node is None else node


def _put(node: yaml.Node, path: list[str], value: yaml.Node, override: str) -> None:
    for depth, name in enumerate(path):
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"{override!r}: {'.'.join(path[:depth])} is a value and has no {name}.")
        last = depth == len(path) - 1
        found = next((child for key, child in node.value if key.value == name), None)
        if last or found is None:
            node.value = [(key, child) for key, child in node.value if key.value != name]
            found = value if last else yaml.MappingNode("tag:yaml.org,2002:map", [])
            node.value.append((yaml.ScalarNode("tag:yaml.org,2002:str", name), found))
        node = found


class _Reader:
    def __init__(self, source: str, root: type) -> None:
        self.source, self.root = source, root

    def error(self, node: Any, key: str, text: str) -> UsageError:
        mark = getattr(node, "start_mark", None)
        place = f"{self.source}, line {mark.line + 1}" if mark is not None else self.source
        return UsageError(f"{place}: {key} {text}" if key else f"{place}: {text}")

    def settings(self, node: Any, cls: type, prefix: str) -> Any:
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, prefix, f"must be settings (name: value), such as {', '.join(fields)}.")
        hints = typing.get_type_hints(cls)
        given: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = str(key_node.value)
            key = f"{prefix}.{name}" if prefix else name
            if name not in fields:
                raise self.error(key_node, key, f"is no setting. {self.nearest(name, prefix, fields)}")
            if name in given:
                raise self.error(key_node, key, "is set twice.")
            given[name] = self.value(value_node, hints[name], key, fields[name].metadata)
        for name, field in fields.items():
            if name not in given and field.default is _MISSING and field.default_factory is _MISSING:
                key = f"{prefix}.{name}" if prefix else name
                raise self.error(node, key, f"is missing: {field.metadata.get('help', '')}")
        try:
            return cls(**given)
        except UsageError as error:  # a check of several settings together
            raise self.error(node, "", str(error)) from error

    def nearest(self, name: str, prefix: str, fields: Mapping[str, Any]) -> str:
        """Which setting was probably meant: one of the same section, or one of that name elsewhere."""
        here = {other: other for other in fields}
        here |= {other: field.name for field in fields.values() for other in field.metadata.get("also", ())}
        near = difflib.get_close_matches(name, here, 1, 0.7)
        if near:
            return f"Did you mean {prefix + '.' if prefix else ''}{here[near[0]]}?"
        elsewhere: dict[str, str] = {}
        for key, field in _all_fields(self.root):
            for other in (field.name, *field.metadata.get("also", ())):
                elsewhere.setdefault(other, key)
        near = difflib.get_close_matches(name, elsewhere, 1, 0.8)
        if near:
            return f"Did you mean {elsewhere[near[0]]}?"
        return f"There are: {', '.join(fields)}."

    def value(self, node: Any, hint: Any, key: str, limits: Mapping[str, Any]) -> Any:
        options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
        null = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
        if null and type(None) in options:
            return None
        (kind,) = (option for option in options if option is not type(None))
        if dataclasses.is_dataclass(kind):
            return self.settings(node, typing.cast(type, kind), key)
        return self.plain(node, kind, key, limits)

    def plain(self, node: Any, kind: Any, key: str, limits: Mapping[str, Any]) -> Any:
        if typing.get_origin(kind) is list:
            if not isinstance(node, yaml.SequenceNode):
                raise self.error(
                    node, key, f"must be a list, such as [{_example(typing.get_args(kind)[0])}]."
                )
            (item,) = typing.get_args(kind)
            return [self.value(child, item, f"{key}[{i}]", limits) for i, child in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, key, f"must be {_name(kind)}, not a list or a group of settings.")
        if typing.get_origin(kind) is Literal:
            choices = typing.get_args(kind)
            for choice in choices:
                if node.value == str(choice):
                    return choice
            near = difflib.get_close_matches(node.value, [str(choice) for choice in choices], 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise self.error(
                node, key, f"is {node.value!r}; it must be one of {', '.join(map(str, choices))}.{hint}"
            )
        value = _scalar(node, kind)
        if value is _MISSING:
            raise self.error(node, key, f"is {node.value!r}; it must be {_name(kind)}.")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            self.check_range(node, key, value, limits)
        return value

    def check_range(self, node: Any, key: str, value: float, limits: Mapping[str, Any]) -> None:
        least, most, above = limits.get("least"), limits.get("most"), limits.get("above")
        fine = (least is None or value >= least) and (most is None or value <= most)
        if fine and (above is None or value > above) and math.isfinite(value):
            return
        low = f"above {above:g}" if above is not None else f"at least {least:g}" if least is not None else ""
        high = f"at most {most:g}" if most is not None else ""
        raise self.error(
            node, key, f"is {node.value}; it must be {' and '.join(filter(None, (low, high))) or 'finite'}."
        )


def _scalar(node: Any, kind: Any) -> Any:
    """The value of a YAML scalar as ``kind``, or _MISSING where it is something else."""
    text, tag = node.value, node.tag.rpartition(":")[2]
    if kind is str:
        return text if tag not in ("null",) else _MISSING
    if kind is bool:
        return {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}.get(
            text.lower() if tag == "bool" else "", _MISSING
        )
    if tag == "bool":
        return _MISSING
    try:
        # Also where YAML 1.1 sees a text: it does not know 1e-4 for a number.
        return int(text.replace("_", "")) if kind is int else float(text.replace("_", ""))
    except ValueError:
        return _MISSING


def _all_fields(cls: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every setting with its dotted key, sections opened, in order."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _all_fields(typing.cast(type, hints[field.name]), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def _name(kind: Any) -> str:
    return {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
    }.get(kind, str(kind))


def _example(kind: Any) -> str:
    return {int: "1, 2", float: "0.5, 1", str: "a, b"}.get(kind, "...")


def to_plain(settings: Any) -> dict[str, Any]:
    """A settings object as nested dictionaries of plain values, for JSON and YAML."""
    return dataclasses.asdict(settings)


def to_yaml(settings: Any) -> str:
    """A settings object as YAML that :func:`parse_settings` reads back."""
    return yaml.safe_dump(to_plain(settings), sort_keys=False, allow_unicode=True)


def describe_settings(cls: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """``(key, type, default, help)`` of every setting, sections opened, in order."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from describe_settings(typing.cast(type, hint), f"{key}.")
            continue
        default = field.default_factory() if field.default_factory is not _MISSING else field.default
        shown = "required" if default is _MISSING else "" if default is None else _shown(default)
        yield key, _type_name(hint), shown, str(field.metadata.get("help", ""))


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_type_name(option) for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is list:
        return f"list of {_type_name(typing.get_args(hint)[0])}s"
    return {bool: "true/false", int: "whole number", float: "number", str: "text"}.get(hint, str(hint))


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """``key: before -> after`` for every setting in which two of :func:`to_plain`'s dictionaries differ."""
    for key in [*one, *(key for key in other if key not in one)]:
        before, after = one.get(key, "(not there)"), other.get(key, "(not there)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}: {before} -> {after}"
