"""``dataset.json``: what a data set is, how it was made, and its shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from bokeh_ops.errors import BokehError
from trainer.files import read_json, write_json

FORMAT, VERSION = "bokeh-dataset", 1
MANIFEST, SHARDS = "dataset.json", "shards"


@dataclass(frozen=True)
class Manifest:
    """What ``dataset.json`` says.

    Attributes:
        resolution: width and height of every picture, in pixels.
        shards: in order; ``name`` and ``samples``, and ``bytes`` and ``sha256`` where they were recorded.
        settings: how the data set was made.
        more: whatever else is in the file.
    """

    resolution: tuple[int, int]
    shards: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``dataset.json``, which makes a folder of shards a data set."""
    value = {
        "format": FORMAT,
        "version": VERSION,
        "resolution": list(manifest.resolution),
        "samples": sum(shard["samples"] for shard in manifest.shards),
        "settings": dict(manifest.settings),
        "shards": [dict(shard) for shard in manifest.shards],
        **manifest.more,
    }
    write_json(folder / MANIFEST, value)


def read_manifest(folder: Path) -> Manifest:
    """Read ``dataset.json``.

    Raises:
        BokehError: no data set, one of another version, or a damaged file.
    """
    path = folder / MANIFEST
    if not path.is_file():
        state = "its preparation has not finished" if (folder / "work").is_dir() else "no such file"
        raise BokehError(
            f"{folder} is not a data set: it has no {MANIFEST} ({state}). `python -m trainer prepare` makes one; "
            "given again with the same words it goes on where it stopped."
        )
    value = read_json(path, "a data set's description")
    if value.get("format") != FORMAT:
        raise BokehError(f"{path} says its format is {value.get('format')!r}, expected {FORMAT!r}.")
    if value.get("version") != VERSION:
        raise BokehError(
            f"{path} is of version {value.get('version')!r}; this program reads version {VERSION}. Update the one "
            "that is older, or prepare the data set again."
        )
    shards, resolution = value.get("shards"), value.get("resolution")
    if not (
        isinstance(resolution, list) and len(resolution) == 2 and all(_is_count(n, 1) for n in resolution)
    ):
        raise BokehError(f"{path}: 'resolution' is {resolution!r}, expected [width, height] in pixels.")
    if not isinstance(shards, list):
        raise BokehError(f"{path}: 'shards' is a {type(shards).__name__}, expected a list.")
    for number, shard in enumerate(shards):
        sound = (
            isinstance(shard, dict) and isinstance(shard.get("name"), str) and _is_count(shard.get("samples"))
        )
        if not sound or PurePosixPath(shard["name"]).name != shard["name"] or "\\" in shard["name"]:
            raise BokehError(
                f"{path}: shard {number} is {str(shard)[:100]}; expected a file's 'name' and its number of 'samples'."
            )
    known = {"format", "version", "resolution", "settings", "shards", "samples"}
    more = {name: entry for name, entry in value.items() if name not in known}
    settings = value.get("settings")
    return Manifest(tuple(resolution), shards, settings if isinstance(settings, dict) else {}, more)


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
