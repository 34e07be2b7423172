"""YAML into settings classes, every error with file and line.

The classes are pydantic's dataclasses (:func:`setting`, :data:`STRICT`), which know types and ranges. What is added
here is what pydantic cannot say: the line in the file, the setting that was probably meant, and plain words.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from trainer.cli import UsageError

Settings = TypeVar("Settings")
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Of every settings class: nothing unknown, no infinities."""

_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
Flag = Annotated[bool, BeforeValidator(lambda value: _flag(value))]
"""True or false in YAML's words; pydantic would take 1 for true too."""


def _flag(value: Any) -> bool:
    found = value if isinstance(value, bool) else _FLAGS.get(str(value).lower())
    if found is None:
        raise PydanticCustomError("flag", "neither true nor false")
    return found


def setting(default: Any = ..., help: str = "", also: Sequence[str] = (), **limits: float) -> Any:
    """A field of a settings class: its default, what it is, and pydantic's ``ge``, ``le`` or ``gt``.

    ``also`` are names that other trainers have for it, to be recognised in an error.
    """
    more: Any = {"description": help, "json_schema_extra": {"also": list(also)}, **limits}
    if isinstance(default, list):
        return Field(default_factory=lambda: list(default), **more)
    return Field(default, **more)


def section(cls: type, help: str = "", required: bool = False) -> Any:
    """A field that is a settings class of its own, by default with all its defaults."""
    return Field(description=help) if required else Field(default_factory=cls, description=help)


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
    try:
        return TypeAdapter(cls).validate_python(_plain(node, source, ""))
    except ValidationError as error:
        said = [_explain(each, node, cls, source) for each in error.errors()]
        raise UsageError("\n".join(dict.fromkeys(said))) from error


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


def _plain(node: yaml.Node, source: str, prefix: str) -> Any:
    """What pydantic reads: scalars as they are written, as YAML 1.1 does not know 1e-4 for a number."""
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key, child in node.value:
            name = f"{prefix}{key.value}"
            if key.value in found:
                raise UsageError(f"{_place(key, source)}: {name} is set twice.")
            found[str(key.value)] = _plain(child, source, f"{name}.")
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, source, prefix) for child in node.value]
    return None if node.tag == "tag:yaml.org,2002:null" else node.value


def _place(node: Any, source: str) -> str:
    mark = getattr(node, "start_mark", None)
    return source if mark is None else f"{source}, line {mark.line + 1}"


def _explain(error: Any, node: Any, cls: type, source: str) -> str:
    """One of pydantic's errors in plain words."""
    field, key, prefix, within, mark = None, "", "", cls, node
    for part in error["loc"]:
        if isinstance(part, int):
            key, node = f"{key}[{part}]", node.value[part]
        else:
            if field is not None:
                within = _kind(field.annotation)
            prefix, key = key, f"{key}.{part}" if key else str(part)
            field = _fields(within).get(part)
            pair = next((pair for pair in getattr(node, "value", ()) if pair[0].value == part), None)
            mark, node = (node, None) if pair is None else pair
            continue
        mark = node
    said, value = error["type"], getattr(node, "value", None)
    if said in ("unexpected_keyword_argument", "extra_forbidden"):
        text = f"{key} is no setting. {_nearest(str(error['loc'][-1]), prefix, within, cls)}"
    elif said == "missing":
        text = f"{key} is missing: {field.description if field else ''}"
    elif said == "value_error":  # a check of several settings together
        text = str(error["ctx"]["error"])
    elif said == "dataclass_type":
        kind = cls if field is None else _kind(field.annotation)
        text = f"{key} must be settings (name: value), such as {', '.join(_fields(kind))}.".lstrip()
    else:
        assert field is not None
        text = f"{key} {_wrong(field, _kind(field.annotation), said, node, value, '[' in key)}"
    return f"{_place(mark, source)}: {text}"


def _wrong(field: Any, kind: Any, said: str, node: Any, value: Any, item: bool) -> str:
    limits = list(field.metadata)
    if typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        if not item:
            return f"must be a list, such as [{_EXAMPLES.get(_bare(inner), '...')}]."
        limits, kind = list(getattr(inner, "__metadata__", ())), _bare(inner)
        limits = [limit for each in limits for limit in getattr(each, "metadata", [each])]
    if not isinstance(node, yaml.ScalarNode):
        return f"must be {_NAMES.get(kind, kind)}, not a list or a group of settings."
    if typing.get_origin(kind) is Literal:
        choices = [str(choice) for choice in typing.get_args(kind)]
        near = difflib.get_close_matches(value, choices, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return f"is {value!r}; it must be one of {', '.join(choices)}.{hint}"
    if said in ("greater_than_equal", "less_than_equal", "greater_than", "finite_number"):
        words = {"gt": "above", "ge": "at least", "le": "at most"}
        bounds = [
            f"{words[name]} {getattr(limit, name):g}"
            for name in words
            for limit in limits
            if getattr(limit, name, None) is not None
        ]
        return f"is {value}; it must be {' and '.join(bounds) or 'finite'}."
    return f"is {value!r}; it must be {_NAMES.get(kind, kind)}."


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_EXAMPLES = {int: "1, 2", float: "0.5, 1", str: "a, b"}
_TYPES = {bool: "true/false", int: "whole number", float: "number", str: "text"}


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _kind(hint: Any) -> Any:
    """A type without ``| None``."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
    return _bare(hint)


def _fields(cls: Any) -> Mapping[str, Any]:
    """pydantic's fields of a settings class."""
    return getattr(cls, "__pydantic_fields__", {})


def _all_fields(cls: type, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """``(key, name, field)`` of every setting, sections opened, in order."""
    for name, field in _fields(cls).items():
        if _fields(_kind(field.annotation)):
            yield from _all_fields(_kind(field.annotation), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", name, field


def _also(field: Any) -> Sequence[str]:
    return (field.json_schema_extra or {}).get("also", ())


def _nearest(name: str, prefix: str, within: type, root: type) -> str:
    """Which setting was probably meant: one of the same section, or one of that name elsewhere."""
    fields = _fields(within)
    here = {other: other for other in fields}
    here |= {other: own for own, field in fields.items() for other in _also(field)}
    near = difflib.get_close_matches(name, here, 1, 0.7)
    if near:
        return f"Did you mean {prefix + '.' if prefix else ''}{here[near[0]]}?"
    elsewhere: dict[str, str] = {}
    for key, own, field in _all_fields(root):
        for other in (own, *_also(field)):
            elsewhere.setdefault(other, key)
    near = difflib.get_close_matches(name, elsewhere, 1, 0.8)
    return f"Did you mean {elsewhere[near[0]]}?" if near else f"There are: {', '.join(fields)}."


def to_plain(settings: Any) -> dict[str, Any]:
    """A settings object as nested dictionaries of plain values, for JSON and YAML."""
    return dataclasses.asdict(settings)


def to_yaml(settings: Any) -> str:
    """A settings object as YAML that :func:`parse_settings` reads back."""
    return yaml.safe_dump(to_plain(settings), sort_keys=False, allow_unicode=True)


def describe_settings(cls: type) -> Iterator[tuple[str, str, str, str]]:
    """``(key, type, default, help)`` of every setting, sections opened, in order."""
    for key, _, field in _all_fields(cls):
        default = "required" if field.is_required() else field.get_default(call_default_factory=True)
        shown = "" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
        yield key, _type_name(_kind(field.annotation)), shown, str(field.description)


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is list:
        return f"list of {_TYPES[_bare(typing.get_args(kind)[0])]}s"
    return _TYPES[kind]
