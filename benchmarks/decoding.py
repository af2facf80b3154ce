"""What decoding costs: annotate, tokenize-decode and samples of long files, by every library.

    python benchmarks/decoding.py                     make bench-decode
    python benchmarks/decoding.py --quick             one file a task, one round
    python benchmarks/decoding.py --rounds 7

Three tasks on the files of $TESSERA_VIDEOS:

    annotate    every frame to 64 x 36 RGB, with all scores and shots (ours), or alone (others)
    tokenize    8 frames a second to 128 x 128 RGB
    samples     16 evenly spaced frames of a long file, 256 x 256

The bound is FFmpeg inside a process, and nothing else: PyAV decodes every frame with one thread and
converts those that are wanted by one swscale call (area). "ours" are our decoders of each library;
the others use the libraries as their manuals say, resizing in the decoder where they can. Each
candidate is a process of its own on one thread; they take turns, so that a slow minute falls on all
of them. Milliseconds are of CPU, user and system together, the median of the rounds; those of
ffmpeg include its start. A candidate whose pictures are not the bound's (mean of a frame more than
4 levels away) has them counted in the last column.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

OUT = Path(__file__).parent / "out"
VIDEOS = Path(os.environ.get("TESSERA_VIDEOS", Path(__file__).parents[2] / "shared" / "videos"))
FILES = {
    "annotate": [
        "bbb_480p_30s.mp4",
        "bottles_static_40s.mp4",
        "bbb_1080p60_2s.mp4",
        "foreman_hevc_720p.mp4",
        "bbb_720p_30s_vp8.webm",
    ],
    "samples": ["bbb_480p_30s.mp4", "bottles_static_40s.mp4", "long_10min_96x54.mp4"],
}
FILES["tokenize"] = FILES["annotate"]
TASKS = ("annotate", "tokenize", "samples")
SIDE = {"tokenize": 128, "samples": 256}
FPS = 8
NUM_SAMPLES = 16
TOLERANCE = 4.0

Pictures = Iterator[np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one file a task, one round")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--candidate", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.candidate:
        return _serve(*arguments.candidate)
    rows = []
    for task in arguments.tasks:
        files = [name for name in FILES[task] if (VIDEOS / name).exists()]
        if not files:
            print(f"no videos for {task} at {VIDEOS} (TESSERA_VIDEOS names another folder)")
            return 1
        for name in files[: 1 if arguments.quick else None]:
            group = _compare(task, name, 1 if arguments.quick else arguments.rounds)
            _show(task, name, group)
            rows += group
    OUT.mkdir(exist_ok=True)
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "date": time.strftime("%Y-%m-%d"),
        "rounds": arguments.rounds,
        "rows": rows,
    }
    target = OUT / ("decoding_quick.json" if arguments.quick else "decoding.json")
    target.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _compare(task: str, name: str, rounds: int) -> list[dict[str, Any]]:
    """A row per candidate: CPU milliseconds beside the bound's, and how many pictures differ."""
    workers = {each: _start(task, name, each) for each in CANDIDATES[task]}
    costs: dict[str, list[float]] = {each: [] for each in workers}
    answers: dict[str, dict[str, Any]] = {}
    for _ in range(rounds + 1):  # the first warms up
        for candidate, process in workers.items():
            if candidate in answers and "error" in answers[candidate]:
                continue
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            line = process.stdout.readline()
            answers[candidate] = json.loads(line or '{"error": "died"}')
            costs[candidate].append(answers[candidate].get("cpu_ms", float("nan")))
    for process in workers.values():
        process.communicate()
    bound = statistics.median(costs["bound"][1:])
    rows = []
    for candidate, each in costs.items():
        answer = answers[candidate]
        row: dict[str, Any] = {"task": task, "file": name, "candidate": candidate}
        if "error" in answer:
            rows.append(row | {"error": answer["error"]})
            continue
        cpu_ms = statistics.median(each[1:])
        wrong = _wrong(answer["means"], answers["bound"]["means"])
        rows.append(
            row
            | {"cpu_ms": cpu_ms, "range_ms": [min(each[1:]), max(each[1:])]}
            | {"ratio": cpu_ms / bound, "frames": len(answer["means"]), "wrong": wrong}
        )
    return rows


def _wrong(means: list[float], truth: list[float]) -> int:
    """How many pictures are missing, too many, or not the bound's."""
    there = min(len(means), len(truth))
    differ = np.abs(np.array(means[:there]) - truth[:there]) > TOLERANCE
    return int(differ.sum()) + abs(len(means) - len(truth))


def _show(task: str, name: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{task}: {name}")
    print(f"  {'':34s}{'CPU ms':>8s}{'range':>16s}{'x bound':>9s}{'frames':>8s}{'wrong':>7s}")
    for row in rows:
        if "error" in row:
            print(f"  {row['candidate']:34s}{row['error'][:60]}")
            continue
        low, high = row["range_ms"]
        print(
            f"  {row['candidate']:34s}{row['cpu_ms']:8.0f}{f'{low:.0f}-{high:.0f}':>16s}"
            f"{row['ratio']:9.2f}{row['frames']:8d}{row['wrong'] or '':>7}",
            flush=True,
        )


def _start(task: str, name: str, candidate: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, "--candidate", task, name, candidate],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _serve(task: str, name: str, candidate: str) -> int:
    """A candidate's process: for each line on stdin, does the task once and says what it cost."""
    path = str(VIDEOS / name)
    run = CANDIDATES[task][candidate]
    for _ in sys.stdin:
        try:
            started = _cpu_seconds()
            means = [float(picture.mean()) for picture in _kept(run(path, task))]
            print(json.dumps({"cpu_ms": 1000 * (_cpu_seconds() - started), "means": means}))
        except Exception as error:  # a library's own, whatever it is
            print(json.dumps({"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}))
        sys.stdout.flush()
    return 0


def _kept(pictures: Pictures) -> Pictures:
    """Every picture looked at once, as one that is used would be: a few of its rows."""
    for picture in pictures:
        yield picture[::8]


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _times(path: str, task: str) -> list[float]:
    """When the task wants frames, in seconds from the first one; by the file's header."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = container.duration / av.time_base
    if task == "samples":
        return [(k + 0.5) * seconds / NUM_SAMPLES for k in range(NUM_SAMPLES)]
    return [k / FPS for k in range(int(np.ceil(seconds * FPS - 1e-6)))]


def bound(path: str, task: str) -> Pictures:
    """PyAV, one thread, decodes all; one swscale call for each frame that is wanted."""
    import av
    from av.video.reformatter import Interpolation, VideoReformatter

    size = SIDE.get(task)
    times = iter(_times(path, task)) if size else None
    wanted = next(times) if times else None
    width, height = (size, size) if size else (64, 36)
    reformatter = VideoReformatter()

    def small(frame: Any) -> np.ndarray:
        made = reformatter.reformat(
            frame, width, height, "rgb24", interpolation=Interpolation.AREA, threads=1
        )
        return made.to_ndarray()

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        first = held = None
        for frame in container.decode(stream):
            if times is None:
                yield small(frame)
                continue
            first = frame.pts if first is None else first
            seconds = float((frame.pts - first) * stream.time_base)
            while wanted is not None and held is not None and wanted < seconds - 1e-6:
                yield small(held)
                wanted = next(times, None)
            held = frame
        while wanted is not None and times is not None:
            yield small(held)
            wanted = next(times, None)


def annotated(path: str, task: str) -> Pictures:
    """Ours, as the annotate phase does it: probe, scan, shots, every score."""
    from pipeline.analysis import analyse
    from pipeline.clip import Clip
    from pipeline.config import BuildConfig
    from pipeline.decode import open_decoder
    from pipeline.decode.scan import gather_scan

    config = BuildConfig(sources=(path,), out="unused")
    decoder = open_decoder("pyav", config.limits, config.decode)
    probe = decoder.probe(path)
    scan = gather_scan(decoder, path)
    assert list(analyse(Clip(clip_id="", source_id="0" * 64, uri=path), probe, scan, config))
    yield from scan.frames


def scanned(path: str, task: str) -> Pictures:
    """Ours, the frames alone."""
    from pipeline.decode import open_decoder

    for each in open_decoder("pyav").scan(path):
        yield each.frame


def streamed(library: Any) -> Callable[[str, str], Pictures]:
    def run(path: str, task: str) -> Pictures:
        from pipeline.decode import open_decoder

        decoder = open_decoder(library)
        for frames in decoder.stream(path, fps=FPS, height=SIDE[task], width=SIDE[task]):
            yield from frames.pixels

    return run


def sampled(library: Any) -> Callable[[str, str], Pictures]:
    def run(path: str, task: str) -> Pictures:
        from pipeline.decode import open_decoder

        side = SIDE[task]
        yield from (
            open_decoder(library).sample(path, _times(path, task), height=side, width=side).pixels
        )

    return run


def decord_itself(path: str, task: str) -> Pictures:
    import decord

    side = SIDE.get(task)
    shape = {"width": side or 64, "height": side or 36}
    reader = decord.VideoReader(path, num_threads=1, **shape)
    if side is None:
        for _ in range(len(reader)):
            yield reader.next().asnumpy()
        return
    starts = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
    wanted = np.searchsorted(starts - starts[0], _times(path, task), side="right") - 1
    yield from reader.get_batch(wanted.tolist()).asnumpy()


def torchcodec_itself(path: str, task: str) -> Pictures:
    import torch
    from torchcodec.decoders import VideoDecoder
    from torchvision.transforms.v2 import Resize

    torch.set_num_threads(1)
    side = SIDE.get(task)
    decoder = VideoDecoder(
        path,
        dimension_order="NHWC",
        num_ffmpeg_threads=1,
        transforms=[Resize((side or 36, side or 64))],
    )
    if side is None:
        for index in range(0, len(decoder), 64):
            yield from decoder.get_frames_in_range(
                index, min(index + 64, len(decoder))
            ).data.numpy()
        return
    begin = decoder.metadata.begin_stream_seconds
    times = [begin + each + 1e-4 for each in _times(path, task)]
    yield from decoder.get_frames_played_at(times).data.numpy()


def ffmpeg(path: str, task: str) -> Pictures:
    """The command line, one thread, pictures through a pipe."""
    side = SIDE.get(task)
    width, height = (side, side) if side else (64, 36)
    rate = f"fps={FPS}:start_time=0:round=up," if task == "tokenize" else ""
    command = [
        *("ffmpeg", "-nostdin", "-loglevel", "error", "-threads", "1", "-filter_threads", "1"),
        *("-noautorotate", "-i", path, "-an", "-sn", "-fps_mode", "passthrough"),
        *("-vf", f"{rate}scale={width}:{height}:flags=area", "-threads", "1"),
        *("-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while len(data := process.stdout.read(3 * width * height)) == 3 * width * height:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


def ffmpeg_seeking(path: str, task: str) -> Pictures:
    """The command line once for each sample, seeking by time."""
    side = SIDE[task]
    for seconds in _times(path, task):
        command = [
            *("ffmpeg", "-nostdin", "-loglevel", "error", "-threads", "1", "-filter_threads", "1"),
            *("-ss", f"{max(0.0, seconds):.6f}", "-i", path, "-an", "-sn", "-frames:v", "1"),
            *("-vf", f"scale={side}:{side}:flags=area", "-pix_fmt", "rgb24"),
            *("-f", "rawvideo", "pipe:1"),
        ]
        data = subprocess.run(command, capture_output=True, check=True).stdout
        yield np.frombuffer(data, np.uint8).reshape(side, side, 3)


CANDIDATES: dict[str, dict[str, Callable[[str, str], Pictures]]] = {
    "annotate": {
        "bound": bound,
        "ours, all scores": annotated,
        "ours, frames alone": scanned,
        "decord, frames alone": decord_itself,
        "torchcodec, frames alone": torchcodec_itself,
        "ffmpeg, frames alone": ffmpeg,
    },
    "tokenize": {
        "bound": bound,
        "ours, pyav": streamed("pyav"),
        "ours, decord": streamed("decord"),
        "ours, torchcodec": streamed("torchcodec"),
        "decord": decord_itself,
        "torchcodec": torchcodec_itself,
        "ffmpeg": ffmpeg,
    },
    "samples": {
        "bound": bound,
        "ours, pyav": sampled("pyav"),
        "ours, decord": sampled("decord"),
        "ours, torchcodec": sampled("torchcodec"),
        "decord": decord_itself,
        "torchcodec": torchcodec_itself,
        "ffmpeg, once a sample": ffmpeg_seeking,
    },
}

if __name__ == "__main__":
    sys.exit(main())
