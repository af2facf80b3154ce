"""Samples of a run as files: videos by class or prompt, a contact sheet, and what it took.

    SAMPLES/000_a_red_3_moving_left.mp4   one per sample (GIF where PyAV is absent)
    SAMPLES/contact_sheet.png             a row per class or prompt
    SAMPLES/samples.json                  prompts, seeds, files, codes, timing

Every file says that it was generated, by which weights and from which seed.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tokenizer.settings import UserError, to_dict
from training.config import SampleConfig
from training.guidance import is_guided
from training.pictures import contact_sheet, save_png, write_video
from training.run import OpenedRun, open_run, pick_device
from training.sampler import layout_of, sample_codes
from training.vocabulary import words


@dataclass(frozen=True)
class Generated:
    """Clips and what it took; sample i shows `prompts[i]` and has number i of the seed."""

    prompts: list[str | None]
    codes: np.ndarray  # int64 [n, l]
    frames: np.ndarray  # uint8 [n, t, h, w, 3]
    num_steps: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.codes.size / self.seconds


def generate(run: OpenedRun, prompts: list[str | None], settings: SampleConfig) -> Generated:
    """A clip per prompt; UserError on an unknown prompt or impossible setting, before any work."""
    bucket = settings.bucket or next(iter(run.record.shapes))
    if bucket not in run.record.shapes:
        raise UserError(f"bucket {bucket!r}: this run makes {', '.join(run.record.shapes)}")
    if run.vocabulary.kind == "none" and is_guided(settings.guidance):
        raise UserError(
            f"guidance.scale ({settings.guidance.scale}) needs a conditional model; this one has "
            "no condition: use --guidance.scale 1"
        )
    schedule = run.schedule(bucket)
    device = next(run.generator.parameters()).device
    encoded = torch.tensor(
        [run.vocabulary.encode(each) for each in prompts], dtype=torch.int64, device=device
    ).view(len(prompts), run.vocabulary.length)
    codes, frames = [], []
    started = time.perf_counter()
    for start in range(0, len(prompts), settings.batch_size):
        numbers = range(start, min(start + settings.batch_size, len(prompts)))
        part = sample_codes(
            run.generator,
            encoded[start : numbers.stop],
            schedule,
            settings,
            numbers,
            run.tokenizer.quantizer,
        )
        codes.append(part.cpu().numpy())
        frames.append(run.tokenizer.decode(part, schedule).cpu().numpy())
    return Generated(
        prompts=prompts,
        codes=np.concatenate(codes),
        frames=np.concatenate(frames),
        num_steps=layout_of(run.generator, schedule, settings).order.num_steps,
        seconds=time.perf_counter() - started,
    )


def default_prompts(run: OpenedRun, limit: int) -> list[str | None]:
    """Classes or captions of the training data that use its words evenly; [None] without any."""
    if run.vocabulary.kind == "none":
        return [None]
    used: Counter[str] = Counter()
    left, chosen = sorted(run.vocabulary.examples), list[str | None]()
    while left and len(chosen) < limit:
        best = min(left, key=lambda prompt: sum(used[word] for word in words(prompt)))
        used.update(words(best))
        left.remove(best)
        chosen.append(best)
    return chosen


def write_samples(folder: Path, settings: SampleConfig) -> Generated:
    """Samples the run in `folder`, writes the files, prints a line of timing."""
    run = open_run(folder, pick_device(settings.device))
    chosen: list[str | None] = list(settings.prompts) or default_prompts(run, settings.max_prompts)
    prompts = [prompt for prompt in chosen for _ in range(settings.count)]
    for prompt in chosen:
        run.vocabulary.encode(prompt)
    out = Path(settings.out) if settings.out else folder / "samples"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    generated = generate(run, prompts, settings)
    made_by = {
        "generated": "true",
        "model": run.fingerprint,
        "step": str(run.step),
        "seed": str(settings.seed),
    }
    files = []
    for number, (prompt, frames) in enumerate(zip(prompts, generated.frames)):
        name = f"{number:03d}_{_slug(prompt)}.mp4"
        metadata = made_by | {"sample": str(number), "prompt": prompt or ""}
        files.append(write_video(frames, out / name, settings.fps, metadata).name)
    rows = [
        (
            prompt or "sample",
            list(generated.frames[row * settings.count : (row + 1) * settings.count]),
        )
        for row, prompt in enumerate(chosen)
    ]
    sheet = contact_sheet(
        rows, title="Generated clips", subtitle=_timing(generated), frames_per_clip=9
    )
    save_png(sheet, out / "contact_sheet.png", made_by)
    record = made_by | {
        "settings": to_dict(settings),
        "num_steps": generated.num_steps,
        "seconds": round(generated.seconds, 4),
        "tokens_per_second": round(generated.tokens_per_second, 1),
        "samples": [
            {"file": file, "prompt": prompt, "codes": codes.tolist()}
            for file, prompt, codes in zip(files, prompts, generated.codes)
        ],
    }
    (out / "samples.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    print(f"{_timing(generated)}; {out / 'contact_sheet.png'}")
    return generated


def _timing(generated: Generated) -> str:
    return (
        f"{len(generated.prompts)} clips, {generated.num_steps} steps each, "
        f"{generated.seconds:.2f} s, {generated.tokens_per_second:.0f} tokens/s"
    )


def _slug(prompt: str | None) -> str:
    return re.sub(r"[^a-z0-9]+", "_", (prompt or "sample").lower()).strip("_")[:60] or "sample"
