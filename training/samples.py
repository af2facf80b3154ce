"""Samples of a run: clips by number, each a function of its prompt, its number and the seed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tokenizer.scales import Schedule
from tokenizer.settings import UserError
from training.config import SampleConfig
from training.generator import Generator
from training.given import Given, passes
from training.guidance import is_guided
from training.order import check_steps
from training.resize import resized
from training.run import OpenedRun, open_run
from training.sampler import Sampling, layout_of, sampling
from training.vocabulary import words


@dataclass(frozen=True)
class Generated:
    """Clips and what it took; sample i shows `prompts[i]` and has number i of the seed."""

    prompts: list[str | None]
    codes: np.ndarray  # int64 [n, l]
    frames: np.ndarray  # uint8 [n, t, h, w, 3]
    num_steps: int
    seconds: float


def open_to_sample(run_dir: Path, settings: SampleConfig, device: str) -> OpenedRun:
    """A run for the prompts and the size of the settings; UserError where it is not for them."""
    run = open_run(run_dir, device, prompts=settings.prompts, text_weights=settings.text_weights)
    run = run if settings.shape is None else resized(run, settings.shape)
    in_precision(run.generator, settings.precision)
    return run


def in_precision(generator: Generator, precision: str) -> Generator:
    """The generator, its weights and so its cache and passes from now on in this precision."""
    return generator.to(getattr(torch, precision))


def generate(
    run: OpenedRun,
    prompts: list[str | None],
    settings: SampleConfig,
    given: Given | None = None,
) -> Generated:
    """A clip per prompt, around the cells that are given.

    UserError on an unknown prompt or impossible setting, before any work.
    """
    schedule = check_settings(run, settings)
    for prompt in set(prompts):
        run.vocabulary.encode(prompt)
    codes, frames = [], []
    started = time.perf_counter()
    for start in range(0, len(prompts), settings.batch_size):
        part = prompts[start : start + settings.batch_size]
        numbers = range(start, start + len(part))
        made = sample_batch(run, part, numbers, schedule, settings, given).codes()
        codes.append(made.cpu().numpy())
        frames.append(run.tokenizer.decode(made, schedule).cpu().numpy())
    return Generated(
        prompts=prompts,
        codes=np.concatenate(codes),
        frames=np.concatenate(frames),
        num_steps=num_passes(run, schedule, settings, given),
        seconds=time.perf_counter() - started,
    )


def sample_batch(
    run: OpenedRun,
    prompts: Sequence[str | None],
    numbers: Sequence[int],
    schedule: Schedule,
    settings: SampleConfig,
    given: Given | None = None,
) -> Sampling:
    """The samples with these numbers, still to be made (see `sampling`)."""
    device = next(run.generator.parameters()).device
    encoded = torch.tensor(
        [run.vocabulary.encode(each) for each in prompts], dtype=torch.int64, device=device
    ).view(len(prompts), run.vocabulary.length)
    return sampling(
        run.generator,
        encoded,
        schedule,
        settings,
        numbers,
        run.tokenizer.quantizer,
        given=given,
    )


def num_passes(
    run: OpenedRun, schedule: Schedule, settings: SampleConfig, given: Given | None = None
) -> int:
    """Forward passes of one clip."""
    layout = layout_of(run.generator, schedule, settings, given)
    return sum(1 for _ in passes(layout, None if given is None else given.cells))


def check_settings(run: OpenedRun, settings: SampleConfig) -> Schedule:
    """The schedule of the clips asked for; UserError when this run cannot make them so."""
    bucket = bucket_of(run, settings)
    if bucket not in run.record.shapes:
        raise UserError(f"bucket {bucket!r}: this run makes {', '.join(run.record.shapes)}")
    if run.vocabulary.kind == "none" and is_guided(settings.guidance):
        raise UserError(
            f"guidance.scale ({settings.guidance.scale}) needs a conditional model; this one has "
            "no condition: use --guidance.scale 1"
        )
    if not run.is_guidable and is_guided(settings.guidance):
        raise UserError(
            f"guidance.scale ({settings.guidance.scale}) needs a model that was also trained "
            "without its condition; this one had condition.dropout 0: use --guidance.scale 1"
        )
    if run.vocabulary.kind == "none" and settings.prompts:
        raise UserError(
            f"prompts ({list(settings.prompts)}): this run was trained without a condition; leave "
            "them out"
        )
    if settings.text_weights is not None and run.vocabulary.tower is None:
        raise UserError(
            f"text_weights ({settings.text_weights}) are for condition.kind clip_text; this run "
            f"has {run.vocabulary.kind}: leave them out"
        )
    schedule = run.schedule(bucket)
    check_steps(settings.num_steps, layout_of(run.generator, schedule, settings).order)
    return schedule


def bucket_of(run: OpenedRun, settings: SampleConfig) -> str:
    return settings.bucket or next(iter(run.record.shapes))


def chosen_prompts(run: OpenedRun, settings: SampleConfig) -> list[str | None]:
    """The prompts that samples take in turn; UserError for one that the run does not know.

    Without any in the settings: all classes or kept captions of the training data for `num`
    samples, else `max_prompts` of them.
    """
    chosen = list[str | None](settings.prompts)
    if not chosen and settings.num is not None and run.vocabulary.kind == "class":
        chosen = list(run.vocabulary.names)
    elif not chosen:
        limit = settings.max_prompts if settings.num is None else settings.num
        chosen = default_prompts(run, limit)
    for prompt in chosen:
        run.vocabulary.encode(prompt)
    return chosen


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
