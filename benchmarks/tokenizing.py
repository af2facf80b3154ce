"""What the tokenize phase costs beyond its work: CPU seconds, and how busy it keeps an encoder.

    python benchmarks/tokenizing.py            make bench-tokenize; about 15 minutes on two cores

The work is the decoding and the encoding of the kept clips, each done alone: one process, nothing
beside it, with the settings of malloc that encoder actors have. The phase does the same on Ray,
with its processes, queues, copies, shards and commits. What it takes to start Ray and to load the
model is taken out by a run over one unit: the phase's cost is that of all units less that of the
first, against the work of all units less the first.

The second table is about time: an encoder that waits 200 ms a batch and takes no CPU, as a GPU does
for the processor, over 20 units, unit borders included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.annotate import AnnotateJob
from pipeline.commit import Store
from pipeline.config import (
    AnnotateSettings,
    BuildConfig,
    ClipSettings,
    SelectSettings,
    TokenizeSettings,
)
from pipeline.encode import EncoderRecipe, code_recipe
from pipeline.executor.inline import InlineExecutor
from pipeline.executor.ray import KEEP_MEMORY, RayExecutor
from pipeline.feed import decode_chunk
from pipeline.meter import Meter, adopt_orphans
from pipeline.plan import make_plan, read_plan, units_of
from pipeline.select import read_selection, select_clips, write_selection
from pipeline.shards.format import Bucket, TokenSet
from pipeline.sources.listing import list_sources
from pipeline.status import Status, Watch
from pipeline.tokenize import ClipUnit, TokenizeJob
from tokenizer.scales import Schedule, single_grid
from tokenizer.settings import read_settings, save_settings

OUT = Path(__file__).parent / "out"
GOAL = 1.10
BUSY_GOAL = 0.95
BATCH_SECONDS = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", type=int, default=160, help="films of 20 s, 640 x 360")
    parser.add_argument("--run", nargs=2, metavar=("DIR", "UNITS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        return _run(Path(arguments.run[0]), int(arguments.run[1]))
    if not KEEP_MEMORY.items() <= os.environ.items():  # what encoder actors have, for the bare work
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    adopt_orphans()
    meter = Meter()
    with tempfile.TemporaryDirectory(prefix="tessera-bench-") as folder:
        root = Path(folder)
        config = _prepare(root, arguments.films)
        units = _units(config)
        print(f"{len(units)} units, {sum(len(unit.clips) for unit in units)} clips", flush=True)
        decode, encode = _alone(config, units[1:])
        print(f"alone: decoding {decode:.1f} s, encoding {encode:.1f} s", flush=True)
        first = _phase(meter, root, config, 1)
        whole = _phase(meter, root, config, len(units))
    ratio = (whole["cpu_seconds"] - first["cpu_seconds"]) / (decode + encode)
    busy = _busy_share()
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "date": time.strftime("%Y-%m-%d"),
        "num_units": len(units),
        "num_clips": sum(len(unit.clips) for unit in units),
        "decode_alone_cpu_seconds": round(decode, 1),
        "encode_alone_cpu_seconds": round(encode, 1),
        "start_and_first_unit_cpu_seconds": first["cpu_seconds"],
        "phase_cpu_seconds": whole["cpu_seconds"],
        "phase_wall_seconds": whole["wall_seconds"],
        "ratio": round(ratio, 3),
        "goal": GOAL,
        "waiting_encoder_busy": round(busy, 4),
        "busy_goal": BUSY_GOAL,
    }
    OUT.mkdir(exist_ok=True)
    (OUT / "tokenizing.json").write_text(json.dumps(result, indent=1) + "\n")
    for name, value in result.items():
        print(f"{name:<36}{value}")
    return 0


def _prepare(root: Path, num_films: int) -> BuildConfig:
    """Films, their annotations and selection, and a tokenizer with random weights."""
    import torch

    from tokenizer.folder import save_tokenizer
    from tokenizer.model import Tokenizer
    from tokenizer.presets import PRESETS

    torch.manual_seed(0)
    save_tokenizer(Tokenizer(PRESETS["small"]), root / "tokenizer")
    for number in range(num_films):
        _write_film(root / "films" / f"{number:03d}.mp4", number)
    config = BuildConfig(
        sources=(str(root / "films"),),
        out=str(root / "data"),
        num_cpus=2,
        annotate=AnnotateSettings(sources_per_unit=8),
        clips=ClipSettings(fps=8.0, buckets=("9x128x128",)),
        select=SelectSettings(drop={}, val_share=0.0),
        tokenize=TokenizeSettings(
            tokenizer=str(root / "tokenizer"), samples_per_shard=32, batch_size=8, threads=1
        ),
    )
    save_settings(config, root / "build.yaml")
    store = Store(config.out)
    store.prepare()
    plan = make_plan(config, list_sources(config.sources), store)
    job = AnnotateJob(config, store.root)
    units = [job.unit(sources) for sources in units_of(plan)]
    list(InlineExecutor().annotate(job, units, Watch(Status("annotate", 0, 0), store)))
    clips = [clip for unit in units for clip in job.rows(unit)]
    write_selection(select_clips(clips, config.select), store)
    return config


def _write_film(path: Path, seed: int) -> None:
    """20 s of a drifting pattern with noise: enough to keep a decoder at work."""
    import av

    generator = np.random.default_rng(seed)
    pattern = generator.integers(0, 255, (45, 80, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for index in range(480):
            picture = np.roll(pattern, (2 * index, 3 * index), axis=(0, 1))
            picture[::4, ::4] ^= generator.integers(0, 32, (90, 160, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _job(config: BuildConfig) -> TokenizeJob:
    recipe = code_recipe(Path(str(config.tokenize.tokenizer)), config.tokenize)
    return TokenizeJob(config, config.out, recipe)


def _units(config: BuildConfig) -> list[ClipUnit]:
    store = Store(config.out)
    plan, selection = read_plan(store), read_selection(store)
    assert selection is not None
    job = _job(config)
    return job.fed(job.units(selection, plan), plan, {}, {})


def _alone(config: BuildConfig, units: list[ClipUnit]) -> tuple[float, float]:
    """CPU seconds of decoding, and of encoding, in this process, one after the other."""
    (encoder,) = _job(config).load_model()
    decode = encode = 0.0
    warm = True
    for unit in units:
        started = time.process_time()
        clips = [clip for chunk in unit.chunks for clip in decode_chunk(chunk).clips]
        decode += time.process_time() - started
        batches = [
            np.stack(clips[start : start + encoder.batch_size])
            for start in range(0, len(clips), encoder.batch_size)
        ]
        if warm:
            encoder.encode(batches[0])
            warm = False
        started = time.process_time()
        for batch in batches:
            encoder.encode(batch)
        encode += time.process_time() - started
    return decode, encode


def _phase(meter: Meter, root: Path, config: BuildConfig, num_units: int) -> dict[str, float]:
    """The phase over the first units, in processes of its own; what they cost in all."""
    for path in (Path(config.out) / "_commits").glob("tokenize-*"):
        path.unlink()
    before, started = meter.total(), time.monotonic()
    command = [sys.executable, __file__, "--run", str(root), str(num_units)]
    subprocess.run(command, check=True)
    return {
        "cpu_seconds": round(meter.total() - before, 1),
        "wall_seconds": round(time.monotonic() - started, 1),
    }


class WaitingEncoder:
    """200 ms a batch, and no processor."""

    token_set = TokenSet(name="codes", kind="codes", dtype="uint16", codebook_size=256)
    batch_size = 8

    def schedule(self, bucket: Bucket) -> Schedule:
        return single_grid(bucket.num_frames, 1, 1)

    def encode(self, frames: np.ndarray) -> np.ndarray:
        time.sleep(BATCH_SECONDS)
        return frames.mean(axis=(2, 3, 4)).astype(np.uint16)


class WaitingRecipe(EncoderRecipe):
    def load(self) -> WaitingEncoder:  # type: ignore[override]
        return WaitingEncoder()


def _busy_share() -> float:
    """The waiting encoder over 20 units of two batches: its share of first batch to last."""
    with tempfile.TemporaryDirectory(prefix="tessera-bench-") as folder:
        config = _prepare(Path(folder), 20)
        store = Store(config.out)
        plan, selection = read_plan(store), read_selection(store)
        assert selection is not None
        settings = replace(config.tokenize, samples_per_shard=16)
        recipe = WaitingRecipe("waiting", None, settings, "waiting")
        job = TokenizeJob(replace(config, tokenize=settings), config.out, recipe)
        units = job.fed(job.units(selection, plan), plan, {}, {})[:20]
        watch = Watch(Status("tokenize", 20, 0), store)
        with RayExecutor(None, config.num_cpus) as executor:
            for unit_id in executor.run_clips(job, units, watch):
                watch.done(unit_id)
        assert watch.status.num_done == 20
        assert watch.status.encoder_busy is not None
        return watch.status.encoder_busy


def _run(root: Path, num_units: int) -> int:
    config = read_settings(BuildConfig, root / "build.yaml")
    units = _units(config)[:num_units]
    job = _job(config)
    watch = Watch(Status("tokenize", len(units), 0), job.store)
    with RayExecutor(None, config.num_cpus) as executor:
        assert len(list(executor.run_clips(job, units, watch))) == len(units)
    return 0


if __name__ == "__main__":
    sys.exit(main())
