"""Token shards: the format that the pipeline writes and the trainer reads; neither torch nor Ray.

Its rooms:

    format    names, versions and records: token sets, buckets, shard entries, `shards.json`
    writer    one tar and its sidecar, the same bytes for the same samples
    sidecar   where each member lies in a tar: offset, length, crc32
    reader    `open_dataset(DIR)`: batches by memory map
    order     shuffling as a function of (seed, epoch, position)
"""

from pipeline.shards.format import Bucket, ShardEntry, ShardError, TokenSet
from pipeline.shards.reader import Dataset, Samples, open_dataset

__all__ = [
    "Bucket",
    "Dataset",
    "Samples",
    "ShardEntry",
    "ShardError",
    "TokenSet",
    "open_dataset",
]
