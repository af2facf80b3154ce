"""Token shards: the format that the pipeline writes and the trainer reads; neither torch nor Ray.

Its rooms:

    format          names, versions and records: token sets, buckets, shards, `shards.json`
    writer          one tar and its sidecar, the same bytes for the same samples
    dataset_writer  a dataset of samples that were made elsewhere
    packing         codes in as few bits as they need
    hashing         a stream that hashes what passes through it
    sidecar         where each member lies in a tar: offset, length, crc32
    npy             headers of arrays
    tarwalk         the members of a tar, whoever wrote it
    tarheaders      their headers, checked many at a time
    tarindex        the samples of a tar that came without a sidecar
    reader          `open_dataset(DIR)`: what is in a dataset
    folder          where its files lie: on this machine
    remote          where its files lie: in an object store
    stock           WebDataset tars of others as a dataset
    cache           what is kept of them, and of remote shards
    table           parquet files
    where           filters over the manifest
    overrides       other captions
    removal         samples that were taken out
    companions      further token sets from other datasets
    shard           one tar under a memory map
    memory          all maps as one array
    checksum        crc32, fast
    members         where one member of every sample lies
    samples         batches by random access
    order           shuffling as a function of (seed, epoch, position)
    mixture         turns by weight
    views           several samples of one clip
    stream          the endless epochs of some samples
    steps           which samples a step sees
    batch           what is read for a step
    loader          batches for a trainer
    prefetch        reading ahead by threads
    windows         fetching remote shards ahead
"""

from pipeline.shards.batch import Batch
from pipeline.shards.format import Bucket, ShardEntry, ShardError, TokenSet
from pipeline.shards.loader import BucketPlan, Loader, LoaderConfig, Source
from pipeline.shards.reader import Dataset, open_dataset
from pipeline.shards.samples import Samples
from pipeline.shards.shard import DamagedSample

__all__ = [
    "Batch",
    "Bucket",
    "BucketPlan",
    "DamagedSample",
    "Dataset",
    "Loader",
    "LoaderConfig",
    "Samples",
    "ShardEntry",
    "ShardError",
    "Source",
    "TokenSet",
    "open_dataset",
]
