"""Reading a data set: single photographs at random, in an order that can be resumed."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from bokeh_ops.errors import BokehError
from trainer.data.manifest import SHARDS, Manifest, read_manifest
from trainer.data.order import Order
from trainer.data.sample import Sample, decode_sample
from trainer.data.shard import Entry, file_sha256, read_files, read_index

_INDEXES_KEPT = 64


def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Open a data set.

    Args:
        path: its folder, or the ``dataset.json`` in it.

    Raises:
        BokehError: no data set, one of an unknown version, or a damaged description.
    """
    folder = Path(path)
    if folder.name == "dataset.json":
        folder = folder.parent
    return Dataset(folder, read_manifest(folder))


class Dataset:
    """Annotated photographs, numbered 0 to ``len - 1``. Opened by :func:`open_dataset`.

    Holds no open files, only the indexes of the shards last used, so it may be handed to other processes.

    Attributes:
        folder: where it lies.
        manifest: what ``dataset.json`` says.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._ends = list(accumulate(int(shard["samples"]) for shard in manifest.shards))
        self._indexes: OrderedDict[int, list[Entry]] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def resolution(self) -> tuple[int, int]:
        """Width and height of every picture, in pixels."""
        return self.manifest.resolution

    @property
    def settings(self) -> dict[str, Any]:
        """How it was made."""
        return dict(self.manifest.settings)

    def sample(self, index: int) -> Sample:
        """The photograph of a number.

        Raises:
            BokehError: no such number, or a damaged shard; the message names shard and sample.
        """
        shard, entry = self._entry(index)
        try:
            return decode_sample(entry.key, read_files(shard, entry), self.resolution)
        except BokehError as error:
            raise BokehError(
                f"The shard {shard}, sample {entry.key!r} (number {index}): {error}. Copy the shard again, or "
                "prepare the data set again."
            ) from error

    def key(self, index: int) -> str:
        """The key of a number, without reading the photograph."""
        return self._entry(index)[1].key

    def facts(self) -> tuple[np.ndarray, np.ndarray]:
        """What training chooses by, of every photograph, without reading any.

        Returns:
            K, float64 ``[len]``, NaN where the lens is unknown; and whether it is all in focus, bool ``[len]``.
        """
        entries = [entry for number in range(len(self._ends)) for entry in self._index(number)]
        k = np.array([np.nan if entry.k is None else entry.k for entry in entries], dtype=np.float64)
        return k, np.array([entry.all_in_focus for entry in entries], dtype=bool)

    def order(self, seed: int = 0, indices: np.ndarray | None = None) -> Order:
        """An endless, shuffled order over all photographs, or over some, that can be resumed at any position."""
        return Order(len(self) if indices is None else indices, seed)

    def iterate(self, seed: int = 0, start: int = 0) -> Iterator[tuple[int, Sample]]:
        """Photographs without end, every pass shuffled anew: ``(position, sample)`` from a position on."""
        order = self.order(seed)
        position = start
        while True:
            yield position, self.sample(order[position])
            position += 1

    def verify(self) -> None:
        """Read every shard whole and compare it with its recorded hash.

        Raises:
            BokehError: a shard is missing, damaged or another one.
        """
        for number, shard in enumerate(self.manifest.shards):
            self._index(number)
            path = self.folder / SHARDS / shard["name"]
            if "sha256" in shard and (found := file_sha256(path)) != shard["sha256"]:
                raise BokehError(
                    f"The shard {path} is damaged: its SHA-256 is {found}, not {shard['sha256']}."
                )

    def _entry(self, index: int) -> tuple[Path, Entry]:
        if not 0 <= index < len(self):
            raise BokehError(f"There is no sample {index}: {self.folder} has {len(self)}, numbered from 0.")
        number = bisect_right(self._ends, index)
        entry = self._index(number)[index - (self._ends[number - 1] if number else 0)]
        return self.folder / SHARDS / self.manifest.shards[number]["name"], entry

    def _index(self, number: int) -> list[Entry]:
        if number in self._indexes:
            self._indexes.move_to_end(number)
            return self._indexes[number]
        shard = self.manifest.shards[number]
        path = self.folder / SHARDS / shard["name"]
        entries = read_index(path)
        if len(entries) != shard["samples"]:
            last = f", the last is {entries[-1].key!r}" if entries else ""
            raise BokehError(
                f"The shard {path} holds {len(entries)} samples, expected {shard['samples']}{last}: it is truncated "
                "or another file. Copy it again, or prepare the data set again."
            )
        self._indexes[number] = entries
        if len(self._indexes) > _INDEXES_KEPT:
            self._indexes.popitem(last=False)
        return entries

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indexes": OrderedDict()}
