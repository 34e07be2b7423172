"""Annotated photographs on disk: the format that ``prepare`` writes and ``fit`` reads.

A data set is a folder::

    DIR/dataset.json               what it is, how it was made, and its shards in order
    DIR/shards/shard-00000.tar     WebDataset layout, one photograph = four files with one key
        KEY.jpg (or .png)          8-bit sRGB, cropped and resized to exactly the training resolution
        KEY.disparity.png          16-bit grey; dioptres = value / 65535 * disparity_scale
        KEY.mask.png               8-bit foreground mask, 255 in the foreground
        KEY.json                   captions, K, focus distance, lens, crop, source, licence
    DIR/shards/shard-00000.index.json    where each file lies in the shard; may be missing

The shards are plain tar files and are read by the WebDataset library as they are. :func:`open_dataset` reads
single photographs at random, :class:`DatasetWriter` writes shards such that a killed process leaves only whole
ones behind.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.data.order import Order
    from trainer.data.read import Dataset, open_dataset
    from trainer.data.sample import Sample, encode_sample
    from trainer.data.write import DatasetWriter

__all__ = ["Dataset", "DatasetWriter", "Order", "Sample", "encode_sample", "open_dataset"]

_ROOMS = {
    "Dataset": "read",
    "DatasetWriter": "write",
    "Order": "order",
    "Sample": "sample",
    "encode_sample": "sample",
    "open_dataset": "read",
}


def __getattr__(name: str) -> Any:
    """Imported when asked for: ``prepare --help`` needs none of it, nor the packages behind it."""
    if name not in _ROOMS:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"trainer.data.{_ROOMS[name]}"), name)
