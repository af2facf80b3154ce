"""What writing token shards costs: ours, webdataset's ShardWriter, plain tarfile; one run.

    python benchmarks/shard_writing.py            # 20,000 samples; `make bench-shards` runs it too
    python benchmarks/shard_writing.py --samples 2000 --repeats 1

Every writer gets the same samples (3,400 uint16 codes and about 250 bytes of JSON with a caption)
and writes tars of 1,000 of them. Ours also makes the index and a crc32 of every member. "Encoded
before" means that the arrays and the JSON were made bytes outside the time that is taken (ours has
that for JSON only: it takes arrays). Figures are CPU microseconds per sample, user and
system, of a process of its own: the median of the repeats, which alternate between the writers.
Prints a table and writes it to `benchmarks/out/shard_writing.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NUM_CODES, SAMPLES_PER_SHARD = 3400, 1000
OUT = Path(__file__).parent / "out" / "shard_writing.json"
Sample = tuple[str, np.ndarray, dict[str, Any]]


def make_samples(count: int) -> list[Sample]:
    """Key, uint16 [3400] and metadata of about 250 bytes as JSON."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 4096, (count, NUM_CODES)).astype(np.uint16)
    words = ["a", "red", "seven", "moves", "slowly", "left", "over", "the", "sand", "at", "night"]
    samples = []
    for number in range(count):
        source = hashlib.sha256(str(number // 4).encode()).hexdigest()[:16]
        key = f"{source}_{number * 512:012d}_{number * 512 + 512:012d}_0"
        caption = " ".join(words[index] for index in random.integers(0, len(words), 18))
        samples.append(
            (
                key,
                codes[number],
                {
                    "key": key,
                    "caption": caption,
                    "label": str(number % 101),
                    "fps": 8.0,
                    "num_frames": 17,
                    "motion": round(float(random.random()), 4),
                    "split": "train",
                },
            )
        )
    return samples


def npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def json_bytes(metadata: dict[str, Any]) -> bytes:
    return json.dumps(metadata, sort_keys=True, separators=(",", ":")).encode()


def write_ours(samples: list[Sample], folder: Path, hashed: bool = False) -> None:
    from pipeline.shards.hashing import HashingStream
    from pipeline.shards.writer import ShardWriter

    for number, start in enumerate(range(0, len(samples), SAMPLES_PER_SHARD)):
        with open(folder / f"{number:06d}.tar", "wb") as file:
            stream = HashingStream(file) if hashed else file
            writer = ShardWriter(stream, ("codes.npy",))
            for key, codes, metadata in samples[start : start + SAMPLES_PER_SHARD]:
                writer.write(key, {"codes.npy": codes}, metadata)
            sidecar = writer.close()
        (folder / f"{number:06d}.idx").write_bytes(sidecar)


def write_ours_hashed(samples: list[Sample], folder: Path) -> None:
    write_ours(samples, folder, hashed=True)


def write_webdataset(samples: list[Sample], folder: Path) -> None:
    import webdataset

    pattern = str(folder / "%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=SAMPLES_PER_SHARD, mtime=0, verbose=0) as writer:
        for key, codes, metadata in samples:
            writer.write({"__key__": key, "codes.npy": codes, "json": metadata})


def write_webdataset_encoded(samples: list[tuple[str, bytes, bytes]], folder: Path) -> None:
    import webdataset

    pattern = str(folder / "%06d.tar")
    with webdataset.ShardWriter(
        pattern, maxcount=SAMPLES_PER_SHARD, mtime=0, verbose=0, encoder=False
    ) as writer:
        for key, codes, metadata in samples:
            writer.write({"__key__": key, "codes.npy": codes, "json": metadata})


def write_tarfile_encoded(samples: list[tuple[str, bytes, bytes]], folder: Path) -> None:
    for number, start in enumerate(range(0, len(samples), SAMPLES_PER_SHARD)):
        path = folder / f"{number:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, codes, metadata in samples[start : start + SAMPLES_PER_SHARD]:
                for extension, payload in (("codes.npy", codes), ("json", metadata)):
                    entry = tarfile.TarInfo(f"{key}.{extension}")
                    entry.size = len(payload)
                    tar.addfile(entry, io.BytesIO(payload))


def plain(sample: Sample) -> Any:
    return sample


def with_encoded_json(sample: Sample) -> Any:
    key, codes, metadata = sample
    return key, codes, json_bytes(metadata)


def encoded(sample: Sample) -> Any:
    key, codes, metadata = sample
    return key, npy_bytes(codes), json_bytes(metadata)


Writer = tuple[str, Callable[[Sample], Any], Callable[[Any, Path], None]]
WRITERS: dict[str, Writer] = {
    "ours": ("Tessera, with index and crc32", plain, write_ours),
    "ours_json": ("Tessera, the same, JSON encoded before", with_encoded_json, write_ours),
    "ours_sha256": ("Tessera, with sha256 of the file as well", plain, write_ours_hashed),
    "webdataset": ("webdataset ShardWriter, encodes", plain, write_webdataset),
    "webdataset_encoded": (
        "webdataset ShardWriter, encoded before",
        encoded,
        write_webdataset_encoded,
    ),
    "tarfile_encoded": ("tarfile, encoded before", encoded, write_tarfile_encoded),
}


def measure(name: str, count: int, folder: Path) -> float:
    """CPU microseconds per sample, in this process."""
    _, prepare, write = WRITERS[name]
    samples = [prepare(sample) for sample in make_samples(count)]
    write(samples[:SAMPLES_PER_SHARD], folder)  # imports, caches
    for path in folder.iterdir():
        path.unlink()
    started = time.process_time()
    write(samples, folder)
    return (time.process_time() - started) / count * 1e6


def check(folder: Path, count: int) -> str:
    """sha256 over what was written, as key, codes and JSON; ValueError when samples are missing."""
    import webdataset

    digest, found = hashlib.sha256(), 0
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        codes = np.load(io.BytesIO(sample["codes.npy"]))
        digest.update(sample["__key__"].encode() + codes.tobytes())
        digest.update(json_bytes(json.loads(sample["json"])))
        found += 1
    if found != count:
        raise ValueError(f"{found} of {count} samples are in {folder}")
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    parser.add_argument("--folder", type=Path, default=None, help="where the tars go")
    parser.add_argument("--one", choices=WRITERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        seconds = measure(arguments.one, arguments.samples, arguments.folder)
        print(json.dumps({"us": seconds, "content": check(arguments.folder, arguments.samples)}))
        return
    results = run_all(arguments.samples, arguments.repeats)
    print_table(results)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten to {arguments.out}")


def run_all(count: int, repeats: int) -> dict[str, Any]:
    """Every writer in processes of its own; ValueError when they do not hold the same content."""
    memory = Path("/dev/shm")
    base = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    timings: dict[str, list[float]] = {name: [] for name in WRITERS}
    contents: set[str] = set()
    for _ in range(repeats):
        for name in WRITERS:
            folder = Path(tempfile.mkdtemp(prefix="tessera-writing-", dir=base))
            command = [sys.executable, __file__, "--one", name, "--samples", str(count)]
            try:
                done = subprocess.run(
                    [*command, "--folder", str(folder)], check=True, capture_output=True, text=True
                )
            finally:
                shutil.rmtree(folder)
            row = json.loads(done.stdout.splitlines()[-1])
            timings[name].append(row["us"])
            contents.add(row["content"])
    if len(contents) != 1:
        raise ValueError("the writers did not write the same content")
    ours = statistics.median(timings["ours"])
    return {
        "samples": count,
        "repeats": repeats,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "in_memory": base is not None,
        "writers": {
            name: {
                "name": WRITERS[name][0],
                "cpu_us_per_sample": round(statistics.median(values), 2),
                "range": [round(min(values), 2), round(max(values), 2)],
                "times_ours": round(statistics.median(values) / ours, 2),
            }
            for name, values in timings.items()
        },
    }


def print_table(results: dict[str, Any]) -> None:
    print(f"writing {results['samples']} samples of {NUM_CODES} uint16 codes and JSON")
    print(f"{'':52}{'CPU us/sample':>14}{'range':>16}{'x ours':>9}")
    for row in results["writers"].values():
        low, high = row["range"]
        print(
            f"{row['name']:52}{row['cpu_us_per_sample']:14.1f}{f'{low:.1f}-{high:.1f}':>16}"
            f"{row['times_ours']:9.1f}"
        )


if __name__ == "__main__":
    main()
