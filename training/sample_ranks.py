"""Sampling into a folder by one process or several, as `tessera sample` does.

    write_samples(Path("runs/demo/run"), SampleConfig(num=10000, ranks=4))

Rank r of n makes every n-th of the missing chunks and, of the first samples, videos. Every rank
computes on one thread, or on a GPU of its own where there are enough, and a chunk in its whole
batch, so that a sample's bits do not depend on how many ranks or samples there are. Run again after
any end, it goes on with the chunks that are missing.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from tokenizer.settings import UserError
from training.config import SampleConfig
from training.frame_stream import first_at, stream_frames
from training.pictures import contact_sheet, save_png, write_video
from training.run import OpenedRun, pick_device
from training.sample_folder import SampleFolder
from training.sample_plan import Plan
from training.sampler import layout_of
from training.samples import check_settings, open_to_sample, sample_batch

_SHEET_ROWS, _SHEET_COLUMNS = 20, 4
_SECONDS_BETWEEN_LINES = 10.0


def write_samples(run_dir: Path, settings: SampleConfig) -> SampleFolder:
    """Samples the run in `run_dir` and prints a line of timing; UserError before any work."""
    device = pick_device(settings.device)
    run = open_to_sample(run_dir, settings, device)
    schedule = check_settings(run, settings)
    plan = Plan.of(run, settings, device)
    folder = SampleFolder(Path(settings.out) if settings.out else run_dir / "samples", plan)
    folder.begin()
    started = time.perf_counter()
    missing = folder.missing()
    order = layout_of(run.generator, schedule, settings).order
    if settings.stream and missing:
        at = first_at(order)
        _say(
            f"the first frame of a clip is there after {at} of its {order.num_steps} steps"
            if at < order.num_steps
            else f"no frame is finished before the last of the {at} steps: all come at once"
        )
    chunks = _unfinished(folder, settings)
    progress = _Progress(sum(map(len, missing)))
    if settings.ranks > 1 and len(chunks) > 1:
        _in_processes(run_dir, settings, folder, chunks, progress)
    else:
        _one_by_one(run, settings, folder, chunks, lambda: progress(_left(folder)))
    progress.end()
    seconds = time.perf_counter() - started
    made = sum(map(len, missing))
    rate = made * schedule.num_tokens / seconds
    line = f"{plan.num} clips, {order.num_steps} steps each, "
    line += f"{seconds:.2f} s, {rate:.0f} tokens/s" if made else "all of them there already"
    sheet = _contact_sheet(run, settings, folder, line)
    videos = range(min(settings.videos, plan.num))
    report = {
        "num_steps": order.num_steps,
        "num_made_last": made,
        "seconds": round(seconds, 4),
        "tokens_per_second": round(rate, 1),
        "videos": [folder.video_of(number).name for number in videos],
    }
    folder.finish(report)
    print(f"{line}; {sheet}")
    return folder


def _unfinished(folder: SampleFolder, settings: SampleConfig) -> list[range]:
    """Chunks without codes, or without all of the videos asked for."""
    missing = set(folder.missing())
    return [
        chunk
        for chunk in folder.plan.chunks
        if chunk in missing
        or not all(folder.has_video(each) for each in chunk if each < settings.videos)
    ]


def _left(folder: SampleFolder) -> int:
    return sum(map(len, folder.missing()))


def _one_by_one(
    run: OpenedRun,
    settings: SampleConfig,
    folder: SampleFolder,
    chunks: Sequence[range],
    after_each: Callable[[], object],
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for chunk in chunks:
            _make(run, settings, folder, chunk)
            after_each()
    finally:
        torch.set_num_threads(threads)


def _make(run: OpenedRun, settings: SampleConfig, folder: SampleFolder, chunk: range) -> None:
    """The codes of a chunk where they are missing, then those of its videos that are."""
    if not folder.has_codes(chunk):
        schedule = run.schedule(folder.plan.bucket)
        batch = folder.plan.batch_of(chunk)
        prompts = [folder.plan.prompt_of(number) for number in batch]
        sampling = sample_batch(run, prompts, batch, schedule, settings)
        if settings.stream and chunk.start < settings.videos:
            stream = stream_frames(run.tokenizer, *sampling)
            num_frames = run.record.shapes[folder.plan.bucket].num_frames
            _stream(folder, chunk[: settings.videos - chunk.start], stream, num_frames)
        codes = sampling.codes()
        folder.write_codes(chunk, codes[: len(chunk)].cpu().numpy())
    numbers = [each for each in chunk if each < settings.videos and not folder.has_video(each)]
    if not numbers:
        return
    for number, frames in zip(numbers, _frames(run, folder, numbers)):
        metadata = {"sample": str(number), "prompt": folder.plan.prompt_of(number) or ""}
        path = folder.video_of(number)
        write_video(frames, path, settings.fps, folder.made_by() | metadata)


def _stream(
    folder: SampleFolder,
    numbers: range,
    stream: Iterator[UInt8[Tensor, "b t h w 3"]],
    num_frames: int,
) -> None:
    """Writes the frames of the first samples of a batch as they come."""
    first = 0
    for frames in stream:
        for number, pixels in zip(numbers, frames.cpu().numpy()):
            folder.write_frames(number, first, pixels)
        first += frames.shape[1]
        _say(f"samples {numbers[0]} to {numbers[-1]}: {first} of {num_frames} frames")


def _frames(run: OpenedRun, folder: SampleFolder, numbers: list[int]) -> np.ndarray:
    device = next(run.generator.parameters()).device
    codes = torch.from_numpy(folder.codes(numbers)).to(device)
    return run.tokenizer.decode(codes, run.schedule(folder.plan.bucket)).cpu().numpy()


def _in_processes(
    run_dir: Path,
    settings: SampleConfig,
    folder: SampleFolder,
    chunks: list[range],
    progress: _Progress,
) -> None:
    """Ranks of processes; UserError when one of them fails, after all have ended."""
    context = multiprocessing.get_context("spawn")
    count = min(settings.ranks, len(chunks))
    ranks: list[BaseProcess] = [
        context.Process(
            target=_rank, args=(run_dir, settings, folder, chunks[rank::count], rank), daemon=True
        )
        for rank in range(count)
    ]
    for each in ranks:
        each.start()
    while any(each.is_alive() for each in ranks):
        ranks[0].join(timeout=0.5)
        if not ranks[0].is_alive():
            time.sleep(0.1)
        progress(_left(folder))
    failed = {rank: each.exitcode for rank, each in enumerate(ranks) if each.exitcode}
    if failed:
        shown = ", ".join(f"rank {rank} (exit code {code})" for rank, code in failed.items())
        raise UserError(
            f"sampling failed in {shown}; {_left(folder)} samples are missing: the same command "
            "goes on from here"
        )


def _rank(
    run_dir: Path, settings: SampleConfig, folder: SampleFolder, chunks: list[range], rank: int
) -> None:
    """One process; it ends when the one that started it has gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    device = folder.plan.device
    if device == "cuda":
        device = f"cuda:{rank % torch.cuda.device_count()}"
    try:
        run = open_to_sample(run_dir, settings, device)
        if run.fingerprint != folder.plan.model:
            raise UserError(f"{run_dir}: has been trained on since sampling began")

        def stop_if_alone() -> None:
            if not parent.is_alive():
                sys.exit(1)

        _one_by_one(run, settings, folder, chunks, stop_if_alone)
    except UserError as error:
        print(f"rank {rank}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _contact_sheet(
    run: OpenedRun, settings: SampleConfig, folder: SampleFolder, subtitle: str
) -> Path:
    """The first samples of the first prompts, a row each."""
    plan, rows = folder.plan, []
    for row, prompt in enumerate(plan.prompts[: min(_SHEET_ROWS, plan.num)]):
        numbers = list(range(row, plan.num, len(plan.prompts)))[:_SHEET_COLUMNS]
        rows.append((prompt or "sample", list(_frames(run, folder, numbers))))
    sheet = contact_sheet(rows, title="Generated clips", subtitle=subtitle, frames_per_clip=9)
    return save_png(sheet, folder.path / "contact_sheet.png", folder.made_by())


def _say(line: str) -> None:
    """A line for people, over the one that shows progress on a terminal."""
    print(f"\r\x1b[K{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


class _Progress:
    """How many samples are there, on a terminal in one line, elsewhere now and then."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._started = self._said = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, left: int) -> None:
        now = time.monotonic()
        done = self._total - left
        if not done or not (self._is_terminal or now - self._said >= _SECONDS_BETWEEN_LINES):
            return
        self._said = now
        rate = done / (now - self._started)
        line = f"{done:,} of {self._total:,} samples, {rate:.1f}/s, {left / rate:.0f} s left"
        print(
            f"\r\x1b[K{line}" if self._is_terminal else line,
            end="" if self._is_terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
