"""What differs between the settings of two runs, as plain dictionaries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """``key: before -> after`` for every setting in which two of ``to_plain``'s dictionaries differ."""
    for key in [*one, *(key for key in other if key not in one)]:
        before, after = one.get(key, "(not there)"), other.get(key, "(not there)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}: {before} -> {after}"
