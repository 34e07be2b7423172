"""A photograph as a source hands it on: the file, what is known beside it, and maps that lie there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trainer.data.prepare.rejection import Rejected

MOST_BESIDE = 256 * 2**20
"""Larger files beside a picture are not read."""

MOST_TEXT = 2**20

BESIDE = {
    "depth": ("depth.png", "depth.tif", "depth.tiff", "depth.npy", "depth.exr"),
    "mask": ("mask.png", "mask.npy", "mask.jpg"),
    "captions": ("txt",),
}
"""What may lie beside a picture, by the endings that follow its name."""


@dataclass(frozen=True)
class Item:
    """A photograph that is to be looked at.

    Attributes:
        id: what it is called, the same on every run and machine: its path, or shard or file and place in it.
        where: the file it is in.
        offsets: for a photograph in a tar file, offset and length of its files by the ending after its key.
        content: the picture itself, where the source had to read it anyway.
        given: what the source says of it.
        broken: why there is no photograph here at all.
    """

    id: str
    where: Path
    offsets: Mapping[str, tuple[int, int]] | None = None
    content: bytes | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    broken: str | None = None


def key_for(id: str, digest: str) -> str:
    """A photograph's name in the data set: as readable as it can be, and its own.

    Args:
        id: of the item.
        digest: SHA-256 of its file, so that two of the same id from different sources have different keys.
    """
    name = id.rpartition("/")[2]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", name.rpartition(".")[0] or name)[-40:].strip("-")
    return f"{stem or 'picture'}-{hashlib.sha256(f'{id} {digest}'.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


class Record:
    """Access to a photograph and to what lies beside it.

    Args:
        item: which one.
        picture_endings: of pictures, for those in tar files.
    """

    def __init__(self, item: Item, picture_endings: tuple[str, ...]) -> None:
        self.item = item
        self._picture = next((e for e in item.offsets or () if e.lower() in picture_endings), None)

    def picture(self, most: int) -> bytes:
        """The picture file's content.

        Raises:
            Rejected: it cannot be read, or is larger than ``most`` bytes.
        """
        if self.item.broken is not None:
            raise Rejected("unreadable", self.item.broken)
        if self.item.content is not None:
            return self.item.content
        try:
            if self.item.offsets is not None:
                content = self._slice(self._picture or "", most)
            else:
                if self.item.where.stat().st_size > most:
                    raise Rejected("too_large", f"{self.item.where.stat().st_size} bytes of at most {most}")
                content = self.item.where.read_bytes()
        except OSError as error:
            raise Rejected("unreadable", str(error)) from error
        if not content:
            raise Rejected("unreadable", "an empty file")
        return content

    def given(self) -> dict[str, Any]:
        """What is known of it: from the source, and from a JSON file beside the picture.

        Raises:
            Rejected: ``bad_fields``: a JSON file that holds no object.
        """
        with self.beside("json") as path:
            if path is None:
                return dict(self.item.given)
            try:
                if path.stat().st_size > MOST_TEXT:
                    raise Rejected("bad_fields", f"the JSON beside it has {path.stat().st_size} bytes")
                value = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise Rejected("bad_fields", f"the JSON beside it cannot be read: {error}") from error
            if not isinstance(value, dict):
                raise Rejected("bad_fields", f"the JSON beside it holds a {type(value).__name__}")
            return {**self.item.given, **value}

    @contextmanager
    def beside(self, *endings: str) -> Iterator[Path | None]:
        """The file beside the picture that has its name and the first of some endings that is there, or None.

        An ending with braces is a pattern instead: ``"maps/{stem}_d.png"``, from the picture's folder on.
        """
        item = self.item
        if item.offsets is not None:
            ending = next((ending for ending in endings if ending in item.offsets), None)
            if ending is None:
                yield None
                return
            with TemporaryDirectory(prefix="bokeh-") as folder:
                path = Path(folder) / f"map.{ending.rpartition('.')[2]}"
                path.write_bytes(self._slice(ending, MOST_BESIDE))
                yield path
            return
        if item.content is not None:
            yield None
            return
        found = self._file(endings)
        if found is not None and found.stat().st_size > MOST_BESIDE:
            raise Rejected("bad_fields", f"{found.name} has {found.stat().st_size} bytes")
        yield found

    def has(self, *endings: str) -> bool:
        """Whether :meth:`beside` has a file to give."""
        if self.item.offsets is not None:
            return any(ending in self.item.offsets for ending in endings)
        return self.item.content is None and self._file(endings) is not None

    def _file(self, endings: tuple[str, ...]) -> Path | None:
        stem = self.item.where.stem
        names = [
            ending.replace("{stem}", stem) if "{" in ending else f"{stem}.{ending}" for ending in endings
        ]
        return next((path for name in names if (path := self.item.where.parent / name).is_file()), None)

    def _slice(self, ending: str, most: int) -> bytes:
        offset, length = (self.item.offsets or {})[ending]
        if length > most:
            raise Rejected("too_large", f"{ending}: {length} bytes of at most {most}")
        with open(self.item.where, "rb") as file:
            file.seek(offset)
            content = file.read(length)
        if len(content) < length:
            raise Rejected("unreadable", "the tar file breaks off here")
        return content
