"""Writing a data set shard by shard."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bokeh_ops.errors import BokehError
from trainer.data.manifest import MANIFEST, SHARDS, Manifest, write_manifest
from trainer.data.shard import index_path, read_index, shard_entry, write_shard
from trainer.files import remove_leftovers

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


class DatasetWriter:
    """Writes samples into shards, each of which appears on disk whole or not at all.

    A writer opened on a folder in which a killed process left finished shards goes on behind them: ``keys`` has
    what they hold, and a key in there is not written again. :meth:`finish` makes it a data set.

    Args:
        folder: of the data set.
        resolution: width and height of the pictures.
        settings: how the data set is made; kept in ``dataset.json``.
        samples_per_shard: held in memory until the shard is full.

    Raises:
        BokehError: the folder is a finished data set already.
    """

    def __init__(
        self,
        folder: Path,
        resolution: tuple[int, int],
        settings: Mapping[str, Any],
        samples_per_shard: int = 256,
    ) -> None:
        if (folder / MANIFEST).exists():
            raise BokehError(f"{folder} is a finished data set; choose another folder, or remove it first.")
        if samples_per_shard < 1:
            raise BokehError(f"A shard is to hold {samples_per_shard} samples; it must be at least 1.")
        self.folder, self.resolution, self.settings = folder, resolution, dict(settings)
        self.samples_per_shard = samples_per_shard
        self.shards: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self._waiting: dict[str, dict[str, bytes]] = {}
        self._recover()

    def add(self, key: str, files: Mapping[str, bytes]) -> bool:
        """Add a sample (:func:`~trainer.data.encode_sample`).

        Args:
            key: letters, digits, ``_`` and ``-``; at most 80.
            files: by the ending that follows the key.

        Returns:
            Whether it was new.

        Raises:
            BokehError: an unusable key, or the shard cannot be written.
        """
        if not _KEY.fullmatch(key):
            raise BokehError(f"The key {key!r} is not made of 1 to 80 letters, digits, '_' and '-'.")
        if key in self.keys or key in self._waiting:
            return False
        self._waiting[key] = dict(files)
        if len(self._waiting) >= self.samples_per_shard:
            self._flush()
        return True

    def finish(self, more: Mapping[str, Any] | None = None) -> None:
        """Write the last shard and ``dataset.json``.

        Args:
            more: further entries for ``dataset.json``.
        """
        if self._waiting:
            self._flush()
        write_manifest(self.folder, Manifest(self.resolution, self.shards, self.settings, dict(more or {})))

    def _flush(self) -> None:
        path = self.folder / SHARDS / f"shard-{len(self.shards):05d}.tar"
        self.shards.append(write_shard(path, self._waiting.items()))
        self.keys.update(self._waiting)
        self._waiting = {}

    def _recover(self) -> None:
        shards = self.folder / SHARDS
        remove_leftovers(shards)
        while entry := shard_entry(path := shards / f"shard-{len(self.shards):05d}.tar"):
            self.keys.update(sample.key for sample in read_index(path))
            self.shards.append(entry)
        for path in shards.glob("shard-*.tar"):  # those without index, and any behind the first of them
            if path.name not in {str(entry["name"]) for entry in self.shards}:
                path.unlink()
                index_path(path).unlink(missing_ok=True)
