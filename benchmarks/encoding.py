"""How fast clips become codes: the encoder as the actor runs it beside the plain model.

    python benchmarks/encoding.py                     make bench-encoder
    python benchmarks/encoding.py --device cuda --presets small base --batch-size 64

The plain model is the same architecture with the same weights, run clip by clip, eager, in float32.
The actor's encoder runs padded batches, on a GPU compiled and in bfloat16 outside the quantizer; it
begins with frames in host memory and ends with codes there, as in a build. Both do the same clips
in turns, round by round, so that a slow minute falls on both; the medians of the rounds are shown.
The quantizer's share is that of a batch's time, by running it alone on the batch's latents. Memory
is the peak above what the process held with the model loaded: the device's allocator on a GPU, the
resident set on a CPU. Each case is a process of its own, with the settings of malloc that encoder
actors have.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.executor.ray import KEEP_MEMORY

OUT = Path(__file__).parent / "out"
CLIPS = {"tiny": (9, 64), "small": (17, 128), "base": (17, 256)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--presets", nargs="+", default=["tiny", "small", "small-s8"])
    parser.add_argument("--batch-size", type=int, default=16, help="of the actor (default: 16)")
    parser.add_argument("--batches", type=int, default=1, help="batches a round (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--compile", default="auto", help="auto, off or on")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(_case(arguments.case, arguments)))
        return 0
    cases = []
    for preset in arguments.presets:
        command = [sys.executable, __file__, *sys.argv[1:], "--case", preset]
        done = subprocess.run(
            command, env=os.environ | KEEP_MEMORY, stdout=subprocess.PIPE, text=True, check=True
        )
        cases.append(json.loads(done.stdout))
        _show(cases[-1])
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {cases[0]['device']}",
        "date": time.strftime("%Y-%m-%d"),
        "torch": cases[0]["torch"],
        "cases": cases,
    }
    OUT.mkdir(exist_ok=True)
    (OUT / "encoding.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _show(case: dict[str, Any]) -> None:
    for name, value in case.items():
        print(f"{name:<32}{value}")
    print(flush=True)


def _case(preset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from pipeline.config import TokenizeSettings
    from pipeline.encode import CodeEncoder
    from tokenizer.folder import load_tokenizer, save_tokenizer
    from tokenizer.model import signed

    settings = TokenizeSettings(
        batch_size=arguments.batch_size,
        device=arguments.device,
        precision=arguments.precision,
        compile=arguments.compile,
        threads=1,
    )
    num_frames, side = CLIPS[preset.partition("-")[0]]
    count = arguments.batch_size * arguments.batches
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, num_frames, 8, 8, 3), dtype=np.uint8)
    clips = coarse.repeat(side // 8, axis=2).repeat(side // 8, axis=3)
    with tempfile.TemporaryDirectory(prefix="tessera-bench-") as folder:
        save_tokenizer(_randomised(preset), folder)
        actor = CodeEncoder(Path(folder), settings)
        plain = load_tokenizer(folder, device=arguments.device)
    device = torch.device(arguments.device)

    def in_batches() -> np.ndarray:
        starts = range(0, count, settings.batch_size)
        parts = [actor.encode(clips[start : start + settings.batch_size]) for start in starts]
        return np.concatenate(parts)

    def clip_by_clip() -> np.ndarray:
        with torch.inference_mode():
            parts = [
                plain.encode(torch.from_numpy(clips[index : index + 1]).to(device)).cpu()
                for index in range(count)
            ]
        return torch.cat(parts).numpy()

    batch = signed(torch.from_numpy(clips[: settings.batch_size]).to(device))
    schedule = plain.schedule_for(num_frames, side, side)
    with torch.inference_mode():
        latents = plain.encode_latents(batch)

    def quantizer_alone() -> None:
        with torch.inference_mode():
            plain.quantizer.encode(latents, schedule)

    fast_codes, memory = _with_peak(in_batches, device)
    slow_codes, plain_memory = _with_peak(clip_by_clip, device)
    rounds: dict[str, list[float]] = {"actor": [], "plain": [], "quantizer": []}
    programs: dict[str, Callable[[], Any]] = {
        "actor": in_batches,
        "plain": clip_by_clip,
        "quantizer": quantizer_alone,
    }
    for _ in range(arguments.rounds):
        for name, program in programs.items():
            rounds[name].append(_seconds(program, device))
    seconds = {name: statistics.median(values) for name, values in rounds.items()}
    return {
        "preset": preset,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu, one thread",
        "torch": torch.__version__,
        "clip": f"{num_frames} x {side} x {side}",
        "codes_per_clip": schedule.num_tokens,
        "batch_size": settings.batch_size,
        "precision": settings.autoencoder_precision,
        "compiled": settings.is_compiled,
        "clips_per_second": round(count / seconds["actor"], 2),
        "plain_clips_per_second": round(count / seconds["plain"], 2),
        "ratio": round(seconds["plain"] / seconds["actor"], 2),
        "ratio_of_each_round": [
            round(slow / fast, 2) for slow, fast in zip(rounds["plain"], rounds["actor"])
        ],
        "quantizer_share": round(arguments.batches * seconds["quantizer"] / seconds["actor"], 3),
        "peak_memory_mib": round(memory, 1),
        "plain_peak_memory_mib": round(plain_memory, 1),
        "equal_codes": round(float((fast_codes == slow_codes).mean()), 5),
    }


def _randomised(preset: str) -> Any:
    """A tokenizer whose every layer matters: an untrained network's last layer is zero."""
    import torch

    from tokenizer.model import Tokenizer
    from tokenizer.presets import PRESETS

    torch.manual_seed(0)
    tokenizer = Tokenizer(PRESETS[preset])
    for parameter in tokenizer.autoencoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    codebook = tokenizer.quantizer.codebook
    codebook.set_codes(torch.randn_like(codebook.weight))
    return tokenizer


def _seconds(program: Callable[[], Any], device: Any) -> float:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    program()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _with_peak(program: Callable[[], np.ndarray], device: Any) -> tuple[np.ndarray, float]:
    """What a program returns on its second run, and its peak memory there in MiB."""
    import torch

    program()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        given = program()
        return given, (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps for itself would hide the peak
    before_mib, peak, done = _resident_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], _resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    given = program()
    done.set()
    watcher.join()
    return given, max(peak[0] - before_mib, 0.0)


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(main())
