"""The few tags of a TIFF structure (which EXIF is) that somebody asks for.

Files of strangers: a directory may name itself as its successor, claim four thousand million values, or let
thousands of entries claim the whole file. So only the first directory and the EXIF directory are walked, only the
tags asked for are read, never more than :data:`MOST_VALUES` numbers or :data:`MOST_TEXT` bytes of one, and all that
goes wrong is told beside what could be read.

Source: TIFF 6.0, section 2; BigTIFF; EXIF 2.32 (CIPA DC-008), section 4.6.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import BinaryIO

MOST_VALUES = 4
MOST_TEXT = 1024
EXIF_DIRECTORY = 0x8769

# type: letter of `struct` for one number (rationals: for each of their two), bytes of one value
_TYPES = {
    1: ("B", 1),
    2: ("s", 1),
    3: ("H", 2),
    4: ("I", 4),
    5: ("I", 8),
    6: ("b", 1),
    7: ("s", 1),
    8: ("h", 2),
    9: ("i", 4),
    10: ("i", 8),
    11: ("f", 4),
    12: ("d", 8),
    13: ("I", 4),
    16: ("Q", 8),
    17: ("q", 8),
    18: ("Q", 8),
}
_TEXT, _RATIONALS, _BYTES = 2, (5, 10), 7


@dataclass(frozen=True)
class Ratio:
    """A fraction as it stands in the file; a denominator of 0 makes it NaN, for which EXIF has several meanings."""

    numerator: int
    denominator: int

    def __float__(self) -> float:
        return self.numerator / self.denominator if self.denominator else float("nan")


Value = float | str | bytes | Ratio | tuple[float | Ratio, ...]


@dataclass(frozen=True)
class _Entry:
    tag: int
    kind: int
    count: int
    place: bytes  # the value itself, or where it is


@dataclass(frozen=True)
class _Layout:
    """Byte order, and how large counts and offsets are."""

    order: str
    big: bool
    start: int  # of the structure in the file
    length: int  # of the structure

    def unpack(self, letters: str, content: bytes) -> tuple[int, ...]:
        return struct.unpack(self.order + letters, content)


class DamagedTags(Exception):
    """A structure that breaks off or cannot be one."""


def read_tags(
    file: BinaryIO, wanted: Collection[int], exif: Collection[int] = ()
) -> tuple[dict[int, Value], str | None]:
    """Tags of the first directory and of the EXIF directory.

    Args:
        file: binary, seekable, standing at the start of the structure (at ``II`` or ``MM``).
        wanted: tags of the first directory.
        exif: tags of the EXIF directory. Where both have one, the EXIF directory's counts.

    Returns:
        Values by tag: whole numbers, floats, :class:`Ratio`, text (up to its first NUL), bytes, or a tuple where
        there are 2 to 4 numbers (of more, the first 4); and what is wrong with the structure, or None. Tags that
        are missing, empty, damaged or of an unknown type are left out.
    """
    found: dict[int, Value] = {}
    damage: list[str] = []

    def walk(layout: _Layout, offset: int, tags: Collection[int]) -> None:
        for entry in _entries(file, layout, offset):
            if entry.tag in tags:
                try:
                    value = _value(file, layout, entry)
                except DamagedTags as error:
                    damage.append(str(error))
                    continue
                if value is not None:
                    found[entry.tag] = value

    try:
        layout, offset = _header(file)
        walk(layout, offset, {*wanted, EXIF_DIRECTORY})
        pointer = found.pop(EXIF_DIRECTORY, None)
        if isinstance(pointer, int) and exif:
            walk(layout, pointer, exif)
    except DamagedTags as error:
        damage.append(str(error))
    found.pop(EXIF_DIRECTORY, None)
    return found, damage[0] if damage else None


def claimed_bytes(file: BinaryIO) -> int:
    """How many bytes a reader that reads every value of the first directory would read, at most.

    Args:
        file: as for :func:`read_tags`.

    Returns:
        The sum over the entries, each at most the length of the structure; 0 where there is no directory.
    """
    total = 0
    try:
        layout, offset = _header(file)
        for entry in _entries(file, layout, offset):
            total += min(entry.count * _TYPES.get(entry.kind, ("B", 0))[1], layout.length)
    except DamagedTags:
        pass  # what comes before the damage is what such a reader reads
    return total


def _header(file: BinaryIO) -> tuple[_Layout, int]:
    start = file.tell()
    length = file.seek(0, 2) - start
    file.seek(start)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        raise DamagedTags("it does not begin with a TIFF header")
    (magic,) = struct.unpack(order + "H", head[2:4])
    if magic == 43 and len(head) == 16:
        return _Layout(order, True, start, length), struct.unpack(order + "Q", head[8:16])[0]
    if magic != 42:
        raise DamagedTags("it does not begin with a TIFF header")
    return _Layout(order, False, start, length), struct.unpack(order + "I", head[4:8])[0]


def _read(file: BinaryIO, layout: _Layout, offset: int, length: int) -> bytes:
    """Bytes at an offset; fewer only where the structure ends."""
    if not 0 <= offset < layout.length:
        raise DamagedTags(f"it refers to byte {offset} of {layout.length}")
    file.seek(layout.start + offset)
    return file.read(length)


def _entries(file: BinaryIO, layout: _Layout, offset: int) -> Iterator[_Entry]:
    wide = 8 if layout.big else 2
    number = _read(file, layout, offset, wide)
    if len(number) < wide:
        raise DamagedTags("it breaks off in a directory")
    (count,) = layout.unpack("Q" if layout.big else "H", number)
    size, letters = (20, "HHQ8s") if layout.big else (12, "HHI4s")
    count = min(count, 65535)  # as many tags as there can be
    content = _read(file, layout, offset + wide, count * size) if count else b""
    for begin in range(0, len(content) - size + 1, size):
        yield _Entry(*layout.unpack(letters, content[begin : begin + size]))  # type: ignore[arg-type]
    if len(content) < count * size:
        raise DamagedTags("it breaks off in a directory")


def _value(file: BinaryIO, layout: _Layout, entry: _Entry) -> Value | None:
    if entry.kind not in _TYPES or entry.count == 0:
        return None
    letter, each = _TYPES[entry.kind]
    text = entry.kind in (_TEXT, _BYTES)
    count = min(entry.count, MOST_TEXT if text else MOST_VALUES)
    if entry.count * each <= len(entry.place):
        content = entry.place[: count * each]
    else:
        (offset,) = layout.unpack("Q" if layout.big else "I", entry.place)
        if offset + entry.count * each > layout.length:
            raise DamagedTags(f"tag {entry.tag} claims {entry.count} values, more than there are")
        content = _read(file, layout, offset, count * each)
    if len(content) < count * each:
        raise DamagedTags(f"it breaks off in tag {entry.tag}")
    if entry.kind == _TEXT:
        return content.split(b"\0")[0].decode("utf-8", "replace")
    if entry.kind == _BYTES:
        return content
    if entry.kind in _RATIONALS:
        parts = layout.unpack(f"{2 * count}{letter}", content)
        numbers = tuple(Ratio(*parts[i : i + 2]) for i in range(0, len(parts), 2))
    else:
        numbers = layout.unpack(f"{count}{letter}", content)
    return numbers[0] if len(numbers) == 1 else numbers
