"""What `tessera stats` costs: a dataset of 10,000 shards, finished and half finished; one run.

    python benchmarks/stats.py            # 10,000 commits of 10 x 4,096 codes, 1,000,000 clips
    python benchmarks/stats.py --commits 500 --clips 20000

Every commit is a real one, made by `Tally` and written by the commit protocol's record: 100 samples
of 3,410 codes in 10 scales (as large as the tables of a full shard, since a code counts once it
occurs), scores, captions, 40 labels. There are no shards at all, so nothing could read them.
Figures are wall seconds and CPU seconds of the command in a process of its own. Prints a table and
writes it to `benchmarks/out/stats.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.shards.format import (
    Bucket,
    ShardEntry,
    TokenSet,
    canonical_json,
    dump_declaration,
)
from pipeline.statistics import Tally, merge
from tokenizer.scales import image_and_clip

OUT = Path(__file__).parent / "out" / "stats.json"
CODEBOOK_SIZE, SAMPLES, NUM_LABELS, NUM_RECORDS = 4096, 100, 40, 50
SCHEDULE = image_and_clip(10, sizes=(1, 2, 4, 8, 16))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--commits", type=int, default=10_000)
    parser.add_argument("--clips", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stats-") as folder:
        root = Path(folder)
        rows = make_dataset(root, arguments.commits, arguments.clips)
        rows["finished"] = timed("stats", folder)
        rows["finished, --by source"] = timed("stats", folder, "--by", "source")
        rows["finished, --sql"] = timed("stats", folder, "--sql", "select count(*) from manifest")
        (root / "_SUCCESS").unlink()
        rows["being made"] = timed("stats", folder)
    for name, row in rows.items():
        print(f"{name:<32}" + "  ".join(f"{key} {value:,.3f}" for key, value in row.items()))
    OUT.parent.mkdir(exist_ok=True)
    facts = {"python": platform.python_version(), "machine": platform.machine()}
    facts |= {"cpus": os.cpu_count(), "numpy": np.__version__, "pyarrow": pa.__version__}
    OUT.write_text(
        json.dumps({"arguments": vars(arguments), "rows": rows, **facts}, indent=1) + "\n"
    )


def make_dataset(root: Path, num_commits: int, num_clips: int) -> dict[str, dict[str, float]]:
    """A finished dataset without its shards; the cost of `add_sample`."""
    draw = np.random.default_rng(0)
    records, seconds = [], 0.0
    for _ in range(NUM_RECORDS):
        tally = Tally()
        for metadata, codes in [sample(draw) for _ in range(SAMPLES)]:
            started = time.process_time()
            tally.add_sample(metadata, codes, SCHEDULE.scale_of_token, CODEBOOK_SIZE, codes.nbytes)
            seconds += time.process_time() - started
        tally.add_outcome("kept", SAMPLES)
        records.append(tally.to_json())
    (root / "_commits").mkdir()
    entries, results = [], []
    for number in range(num_commits):
        path = f"parts/train-t37_h256_w256-{number:012x}.tar"
        statistics = records[number % NUM_RECORDS]
        result = {
            "phase": "tokenize",
            "parts": [{"path": path, "sha256": f"{number:064x}", "size_bytes": 700_000}],
            "num_samples": SAMPLES,
            "statistics": statistics,
        }
        commit = canonical_json({"unit": path, "result": result, "run": {"host": "here"}})
        (root / "_commits" / f"tokenize-{number:024x}.json").write_bytes(commit)
        results.append(statistics)
        entries.append(
            ShardEntry(
                path=path,
                sha256=f"{number:064x}",
                size_bytes=700_000,
                num_samples=SAMPLES,
                bucket="t37_h256_w256",
                split="train",
                index_offset=0,
                index_bytes=0,
            )
        )
    started = time.process_time()
    total = merge(*results)
    merging = time.process_time() - started
    (root / "statistics.json").write_bytes(canonical_json(total))
    codes = TokenSet(name="codes", kind="codes", dtype="uint16", codebook_size=CODEBOOK_SIZE)
    bucket = Bucket(name="t37_h256_w256", num_frames=37, height=256, width=256, schedule=SCHEDULE)
    (root / "shards.json").write_text(dump_declaration([codes], [bucket], entries))
    write_manifest(root, num_clips, draw)
    (root / "_SUCCESS").touch()
    return {
        "add_sample": {"CPU us/sample": 1e6 * seconds / (NUM_RECORDS * SAMPLES)},
        "a commit": {"kB": len(commit) / 1000},
        "statistics.json": {"kB": (root / "statistics.json").stat().st_size / 1000},
        "merge at finalize": {"CPU s": merging},
    }


def sample(draw: np.random.Generator) -> tuple[dict[str, Any], np.ndarray]:
    start = round(float(draw.random() * 100), 3)
    metadata = {
        "num_frames": 37,
        "height": 256,
        "width": 256,
        "start_seconds": start,
        "end_seconds": start + 4.625,
        "label": str(draw.integers(0, NUM_LABELS)),
        "caption": "x" * int(draw.integers(20, 200)),
        "caption_by": "sidecar",
        "split": "train",
        "bucket": "t37_h256_w256",
        "scores": {name: float(draw.random() * 50) for name in ("brightness", "motion")},
    }
    skewed = draw.random(SCHEDULE.num_tokens) ** 2 * CODEBOOK_SIZE
    return metadata, skewed.astype(np.uint16)


def write_manifest(root: Path, count: int, draw: np.random.Generator) -> None:
    outcomes = np.array(["kept"] * 8 + ["dropped:too_static", "error:corrupt"])
    numbers = np.arange(count)
    columns = {
        "outcome": outcomes[numbers % 10],
        "uri": [f"videos/{number // 20:07d}.mp4" for number in numbers],
        "kind": np.full(count, "video"),
        "source_id": [f"{number // 20:064x}" for number in numbers],
        "start_seconds": np.round(draw.random(count) * 100, 3),
        "num_frames": np.full(count, 37, np.int32),
        "brightness": np.round(draw.random(count) * 255, 4),
        "motion": np.round(draw.random(count) * 50, 4),
        "sharpness": np.round(draw.random(count) * 900, 4),
    }
    table = pa.table(columns)
    table = table.append_column("end_seconds", pa.array(columns["start_seconds"] + 4.625))
    pq.write_table(table, root / "manifest.parquet", compression="zstd")


def timed(*arguments: str) -> dict[str, float]:
    """Wall and CPU seconds of a command, the better of two."""
    best: dict[str, float] = {}
    for _ in range(2):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        command = [sys.executable, "-m", "pipeline", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if not best or wall < best["wall s"]:
            best = {"wall s": wall, "CPU s": cpu}
    return best


if __name__ == "__main__":
    main()
