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

from trainer.dataset.order import Order
from trainer.dataset.read import Dataset, open_dataset
from trainer.dataset.sample import Sample, encode_sample
from trainer.dataset.write import DatasetWriter

__all__ = ["Dataset", "DatasetWriter", "Order", "Sample", "encode_sample", "open_dataset"]
