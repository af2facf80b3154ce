"""What reading token shards costs: ours, webdataset, LitData, MosaicML Streaming, a raw memmap.

    python benchmarks/shard_reading.py          # 20,000 samples of 3,400 codes
    python benchmarks/shard_reading.py --samples 4000 --repeats 1 --no-peers

The same content (3,400 uint16 codes and about 250 bytes of JSON with a caption) in each format.
Every reader gives batches of 32: a uint16 array [32, 3400] and 32 parsed dicts, checked against the
content. Figures are CPU microseconds per sample, user and system with child processes, of a fresh
process each, the first batch apart: the median of the repeats, which alternate between the readers;
fast readers go through several epochs. "First batch" is wall time from making the reader (imports
apart) to its first batch, "resume" from its state in the middle of an epoch to the next batch. All
files are in memory, and malloc keeps its memory (see ENVIRONMENT). LitData and Streaming live in an
environment of their own, which this program makes under `benchmarks/out/peers`. Prints a table and
writes it to `benchmarks/out/shard_reading.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BATCH, SAMPLES_PER_SHARD, NUM_CODES = 32, 1000, 3400
LEAST_SECONDS = 1.2  # measured at least, in whole epochs
OUT = Path(__file__).parent / "out"
PEERS = ("litdata", "mosaicml-streaming")
# Without the last three, glibc gives the memory of each batch back and faults it in again, or not,
# as its heap happens to lie: twice the time for one reader, nothing for another.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "MALLOC_TOP_PAD_": str(1 << 26),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
Batches = Iterator[tuple[np.ndarray, list[dict[str, Any]]]]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A row of the table; `batches(folder, epoch)` reads an epoch, `make` writes the format."""

    title: str
    shuffled: bool
    batches: Callable[[Path, int], Batches]
    make: Callable[[Path], None] | None = None
    resume: Callable[[Path, int], Callable[[], Batches]] | None = None
    is_peer: bool = False
    one_epoch: bool = False


def ours(
    order: str, check: bool = True, threads: int = 0, views: str = "all"
) -> tuple[Callable[[Path, int], Batches], Callable[[Path, int], Callable[[], Batches]]]:
    """Our loader: an epoch, and how it goes on from a state."""
    from functools import lru_cache

    @lru_cache(maxsize=1)
    def loader(folder: Path) -> Any:
        from pipeline.shards import Loader, LoaderConfig, open_dataset

        config = LoaderConfig(
            global_batch_size=BATCH, order=order, tail="drop", views=views, threads=threads, depth=4
        )
        return Loader(open_dataset(folder / "tessera").by_bucket("train", check=check), config)

    def batches(folder: Path, epoch: int) -> Batches:
        count = num_samples(folder) // BATCH
        with loader(folder).batches(epoch * count, (epoch + 1) * count) as found:
            for batch in found:
                yield batch.arrays, batch.metadata

    def resume(folder: Path, step: int) -> Callable[[], Batches]:
        state = json.dumps(loader(folder).state(step))
        loader.cache_clear()

        def again() -> Batches:
            fresh = loader(folder)
            first = fresh.resume(json.loads(state))
            with fresh.batches(first, num_samples(folder) // BATCH) as found:
                for batch in found:
                    yield batch.arrays, batch.metadata

        return again

    return batches, resume


def webdataset_batches(decode: bool, shuffle: bool) -> Callable[[Path, int], Batches]:
    """Stock webdataset: `.decode()`, or arrays by `np.frombuffer` (tuned)."""

    def batches(folder: Path, epoch: int) -> Batches:
        import webdataset

        tars = sorted(str(path) for path in (folder / "tessera" / "parts").glob("*.tar"))
        dataset = webdataset.WebDataset(
            tars, shardshuffle=len(tars) if shuffle else False, detshuffle=True, seed=epoch
        )
        if shuffle:
            dataset = dataset.compose(webdataset.detshuffle(1000, seed=epoch))
        if decode:
            dataset = dataset.decode()
            yield from in_batches((each["codes.npy"], each["json"]) for each in dataset)
        else:
            yield from in_batches(
                (np.frombuffer(each["codes.npy"], np.uint16, offset=128), json.loads(each["json"]))
                for each in dataset
            )

    return batches


def memmap_batches(shuffle: bool, whole: bool) -> Callable[[Path, int], Batches]:
    """A raw memmap behind torch's DataLoader: sample by sample, or (`whole`) a batch at once."""

    def batches(folder: Path, epoch: int) -> Batches:
        import torch
        from torch.utils.data import DataLoader

        codes = np.load(folder / "codes.npy", mmap_mode="r")
        text = np.memmap(folder / "metadata.bin", dtype=np.uint8, mode="r")
        ends = np.load(folder / "metadata_ends.npy")
        starts, view = ends - np.diff(ends, prepend=0), memoryview(text)

        class Samples(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return len(codes)

            def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
                return codes[index], json.loads(bytes(view[starts[index] : ends[index]]))

        class Whole(Samples):
            def __getitems__(self, indices: list[int]) -> tuple[np.ndarray, list[dict[str, Any]]]:
                spans = zip(starts[indices].tolist(), ends[indices].tolist())
                parsed = json.loads(b"[" + b",".join([view[a:b] for a, b in spans]) + b"]")
                return codes[indices], parsed

        def collate(samples: list[Any]) -> tuple[np.ndarray, list[dict[str, Any]]]:
            return np.stack([each[0] for each in samples]), [each[1] for each in samples]

        yield from DataLoader(
            Whole() if whole else Samples(),
            batch_size=BATCH,
            shuffle=shuffle,
            generator=torch.Generator().manual_seed(epoch),
            collate_fn=(lambda batch: batch) if whole else collate,
            drop_last=True,
        )

    return batches


def litdata_batches(shuffle: bool) -> Callable[[Path, int], Batches]:
    def batches(folder: Path, epoch: int) -> Batches:
        from litdata import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(str(folder / "litdata"), shuffle=shuffle, seed=epoch)
        loader = StreamingDataLoader(
            dataset, batch_size=BATCH, num_workers=0, collate_fn=collate_bytes, drop_last=True
        )
        yield from loader

    return batches


def make_litdata(folder: Path) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder / "litdata"), chunk_bytes="8MB")
    for number, (codes, text) in enumerate(raw_samples(folder)):
        writer[number] = {"codes": codes.tobytes(), "json": text}
    writer.done()
    writer.merge()


def streaming_batches(shuffle: bool) -> Callable[[Path, int], Batches]:
    def batches(folder: Path, epoch: int) -> Batches:
        from streaming import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(
            local=str(folder / "streaming"),
            shuffle=shuffle,
            shuffle_seed=epoch,
            batch_size=BATCH,
            num_canonical_nodes=1,
        )
        yield from StreamingDataLoader(
            dataset, batch_size=BATCH, num_workers=0, collate_fn=collate_bytes, drop_last=True
        )

    return batches


def make_streaming(folder: Path) -> None:
    from streaming import MDSWriter

    columns = {"codes": "bytes", "json": "bytes"}
    with MDSWriter(out=str(folder / "streaming"), columns=columns, size_limit=1 << 23) as writer:
        for codes, text in raw_samples(folder):
            writer.write({"codes": codes.tobytes(), "json": text})


def collate_bytes(samples: list[dict[str, Any]]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    rows = [np.frombuffer(each["codes"], np.uint16) for each in samples]
    return np.stack(rows), [json.loads(each["json"]) for each in samples]


def in_batches(samples: Iterator[tuple[np.ndarray, dict[str, Any]]]) -> Batches:
    rows, parsed = [], []
    for row, metadata in samples:
        rows.append(row)
        parsed.append(metadata)
        if len(rows) == BATCH:
            yield np.stack(rows), parsed
            rows, parsed = [], []


def our_reader(title: str, shuffled: bool, one_epoch: bool = False, **options: Any) -> Reader:
    batches, resume = ours(**options)
    return Reader(
        title=title, shuffled=shuffled, batches=batches, resume=resume, one_epoch=one_epoch
    )


READERS = {
    "ours": our_reader("Tessera", False, order="none"),
    "memmap": Reader(
        title="raw memmap, DataLoader", shuffled=False, batches=memmap_batches(False, False)
    ),
    "memmap_whole": Reader(
        title="raw memmap, DataLoader, a batch at once",
        shuffled=False,
        batches=memmap_batches(False, True),
    ),
    "litdata": Reader(
        title="LitData",
        shuffled=False,
        batches=litdata_batches(False),
        make=make_litdata,
        is_peer=True,
    ),
    "webdataset": Reader(
        title="webdataset, tuned", shuffled=False, batches=webdataset_batches(False, False)
    ),
    "streaming": Reader(
        title="MosaicML Streaming",
        shuffled=False,
        batches=streaming_batches(False),
        make=make_streaming,
        is_peer=True,
    ),
    "webdataset_decode": Reader(
        title="webdataset, .decode()", shuffled=False, batches=webdataset_batches(True, False)
    ),
    "ours_global": our_reader("Tessera, global shuffle", True, order="global"),
    "ours_window": our_reader("Tessera, windows of 8 shards", True, order="window"),
    "ours_global_view": our_reader(
        "Tessera, global, one view per clip", True, order="global", views="one"
    ),
    "ours_thread": our_reader("Tessera, global, 1 thread ahead", True, order="global", threads=1),
    "ours_threads": our_reader("Tessera, global, 2 threads ahead", True, order="global", threads=2),
    "ours_first": our_reader(
        "Tessera, global, first epoch, crc32", True, one_epoch=True, order="global"
    ),
    "ours_first_unchecked": our_reader(
        "Tessera, global, first epoch, no crc32", True, one_epoch=True, order="global", check=False
    ),
    "memmap_shuffled": Reader(
        title="raw memmap, DataLoader", shuffled=True, batches=memmap_batches(True, False)
    ),
    "memmap_whole_shuffled": Reader(
        title="raw memmap, DataLoader, a batch at once",
        shuffled=True,
        batches=memmap_batches(True, True),
    ),
    "litdata_shuffled": Reader(
        title="LitData", shuffled=True, batches=litdata_batches(True), is_peer=True
    ),
    "webdataset_shuffled": Reader(
        title="webdataset, tuned", shuffled=True, batches=webdataset_batches(False, True)
    ),
    "streaming_shuffled": Reader(
        title="MosaicML Streaming", shuffled=True, batches=streaming_batches(True), is_peer=True
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="names of readers, with commas between")
    parser.add_argument("--no-peers", action="store_true", help="leave LitData and Streaming out")
    parser.add_argument("--out", type=Path, default=OUT / "shard_reading.json")
    parser.add_argument("--one", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--make", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        READERS[arguments.make].make(arguments.folder)
    elif arguments.one:
        print(json.dumps(measure(READERS[arguments.one], arguments.folder)))
    else:
        names = arguments.only.split(",") if arguments.only else list(READERS)
        results = run_all(names, arguments.samples, arguments.repeats, not arguments.no_peers)
        print_table(results)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"\nwritten to {arguments.out}")


def measure(reader: Reader, folder: Path) -> dict[str, Any]:
    """CPU per sample, first batch and resume, in this process; ValueError for wrong content."""
    expected = np.load(folder / "codes.npy", mmap_mode="r")[:, 0].astype(np.int64)
    total, samples, cpu, epoch = 0, 0, 0.0, 0
    consume(reader.batches(folder, 0), 2)  # imports
    if reader.resume is not None:
        reader.resume(folder, 1)  # forgets what it opened
    started = time.perf_counter()
    batches = reader.batches(folder, 0)
    next(batches)
    first_batch = time.perf_counter() - started
    del batches
    while cpu < LEAST_SECONDS and not (reader.one_epoch and epoch):
        if reader.one_epoch and reader.resume is not None:
            reader.resume(folder, 1)
        batches = reader.batches(folder, epoch)
        first, texts = next(batches)
        total, before = int(first[:, 0].astype(np.int64).sum()), cpu_seconds()
        count = 0
        for arrays, metadata in batches:
            count += len(metadata)
            total += int(arrays[:, 0].sum(dtype=np.int64))
        cpu += cpu_seconds() - before
        samples += count
        epoch += 1
        if len(texts) != BATCH or first.shape != (BATCH, NUM_CODES) or first.dtype != np.uint16:
            raise ValueError(f"{reader.title}: batches of {first.dtype} {first.shape}")
        if count + BATCH == len(expected) and total != expected.sum():
            raise ValueError(f"{reader.title}: other content")
    result = {"us": cpu / samples * 1e6, "first_batch_ms": first_batch * 1e3, "epochs": epoch}
    if reader.resume is not None:
        result["resume_ms"] = resume_ms(reader, folder, len(expected) // BATCH // 2)
    return result


def resume_ms(reader: Reader, folder: Path, step: int) -> float:
    batches = reader.batches(folder, 0)
    consume(batches, step)
    codes, _ = next(batches)
    again = reader.resume(folder, step) if reader.resume else None
    assert again is not None
    started = time.perf_counter()
    found, _ = next(again())
    seconds = time.perf_counter() - started
    if not np.array_equal(found, codes):
        raise ValueError(f"{reader.title}: resumed at another batch")
    return seconds * 1e3


def consume(batches: Batches, count: int) -> None:
    for _, _ in zip(range(count), batches):
        pass


def cpu_seconds() -> float:
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def run_all(names: list[str], count: int, repeats: int, with_peers: bool) -> dict[str, Any]:
    """Every reader in processes of its own, on content made for this run."""
    memory = Path("/dev/shm")
    base = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="tessera-reading-", dir=base))
    skipped: dict[str, str] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    try:
        make_content(folder, count)
        wants_peers = with_peers and any(READERS[name].is_peer for name in names)
        peers, reason = peers_python() if wants_peers else (None, "left out")
        made: set[Any] = set()
        for _ in range(repeats):
            for name in names:
                reader = READERS[name]
                python = peers if reader.is_peer else sys.executable
                if python is None:
                    skipped[name] = reason
                    continue
                source = name.removesuffix("_shuffled")
                make = READERS[source].make
                if make is not None and source not in made:
                    run([python, __file__, "--make", source, "--folder", str(folder)])
                    made.add(source)
                line = run([python, __file__, "--one", name, "--folder", str(folder)])
                rows.setdefault(name, []).append(json.loads(line))
    finally:
        shutil.rmtree(folder)
    return {
        "samples": count,
        "repeats": repeats,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "in_memory": base is not None,
        "skipped": skipped,
        "readers": {name: summary(READERS[name], each) for name, each in rows.items()},
    }


def summary(reader: Reader, rows: list[dict[str, Any]]) -> dict[str, Any]:
    values = [row["us"] for row in rows]
    found = {
        "name": reader.title,
        "shuffled": reader.shuffled,
        "cpu_us_per_sample": round(statistics.median(values), 2),
        "range": [round(min(values), 2), round(max(values), 2)],
    }
    for key in ("first_batch_ms", "resume_ms"):
        if key in rows[0]:
            found[key] = round(statistics.median(row[key] for row in rows), 2)
    return found


def run(command: list[str]) -> str:
    """The last line that a program prints; what it says when it fails."""
    done = subprocess.run(
        ["nice", *command],
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def make_content(folder: Path, count: int) -> None:
    """The content as raw files and as a dataset of ours, which is stock webdataset too."""
    from shard_writing import json_bytes, make_samples

    from pipeline.shards import Bucket, TokenSet
    from pipeline.shards.dataset_writer import DatasetWriter

    samples = make_samples(count)
    token_set = TokenSet(name="codes", kind="codes", dtype="uint16", codebook_size=4096)
    bucket = Bucket(name="t17_h128_w128", num_frames=17, height=128, width=128)
    with DatasetWriter(
        folder / "tessera", [token_set], [bucket], samples_per_shard=SAMPLES_PER_SHARD
    ) as writer:
        for key, codes, metadata in samples:
            writer.write(key, {"codes": codes}, metadata)
    np.save(folder / "codes.npy", np.stack([codes for _, codes, _ in samples]))
    texts = [json_bytes(metadata) for _, _, metadata in samples]
    (folder / "metadata.bin").write_bytes(b"".join(texts))
    np.save(folder / "metadata_ends.npy", np.cumsum([len(text) for text in texts]))


def raw_samples(folder: Path) -> Iterator[tuple[np.ndarray, bytes]]:
    codes = np.load(folder / "codes.npy", mmap_mode="r")
    text, start = (folder / "metadata.bin").read_bytes(), 0
    for row, end in zip(codes, np.load(folder / "metadata_ends.npy").tolist()):
        yield row, text[start:end]
        start = end


def num_samples(folder: Path) -> int:
    return len(np.load(folder / "metadata_ends.npy", mmap_mode="r"))


def peers_python() -> tuple[str | None, str]:
    """The Python that has LitData and Streaming, made if need be; or why there is none.

    Their environment sees the packages of this one (torch) behind its own.
    """
    environment = OUT / "peers"
    python = environment / "bin" / "python"
    wanted = hashlib.sha256(" ".join(PEERS).encode()).hexdigest()
    stamp = environment / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python), ""
    print(f"installing {' and '.join(PEERS)} into {environment}", file=sys.stderr)
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(environment)],
        [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *PEERS],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return None, f"cannot be installed: {done.stderr.strip().splitlines()[-1]}"
        packages = Path(sysconfig.get_path("purelib"))
        own = environment / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        (own / "zz_project.pth").write_text(f"{packages}\n")
    stamp.write_text(wanted)
    return str(python), ""


def print_table(results: dict[str, Any]) -> None:
    rows = results["readers"]
    print(f"reading {results['samples']} samples of {NUM_CODES} uint16 codes and parsed JSON")
    for shuffled in (False, True):
        base = rows.get("memmap_shuffled" if shuffled else "memmap")
        print(
            f"\n{'shuffled' if shuffled else 'sequential':44}{'CPU us/sample':>14}{'range':>16}"
            f"{'x memmap':>10}{'first ms':>10}{'resume ms':>11}"
        )
        for row in rows.values():
            if row["shuffled"] != shuffled:
                continue
            low, high = row["range"]
            ratio = f"{row['cpu_us_per_sample'] / base['cpu_us_per_sample']:.2f}" if base else ""
            print(
                f"{row['name']:44}{row['cpu_us_per_sample']:14.2f}{f'{low:.1f}-{high:.1f}':>16}"
                f"{ratio:>10}{row['first_batch_ms']:10.1f}{row.get('resume_ms', ''):>11}"
            )
    for name, reason in results["skipped"].items():
        print(f"{READERS[name].title}: {reason}")


if __name__ == "__main__":
    main()
