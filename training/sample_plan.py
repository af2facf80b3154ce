"""What the samples of a folder are: the weights, settings and prompts, and what is made together.

Rounding depends on how many rows are computed together, so the samples are cut into batches once
and for all, and the last batch is filled up with samples that nobody asked for: what a sample is
follows from its number, not from how many there are. On a GPU, where further rows cost little, a
batch is `batch_size`. On a CPU it is as many as there are before it, at least 4 and at most
`batch_size` (0-4, 4-8, 8-16, 16-32, 32-64, 64-96), so that 4 samples are not the work of 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tokenizer.settings import to_dict
from training.config import SampleConfig
from training.run import OpenedRun
from training.samples import bucket_of, chosen_prompts

_SMALLEST_BATCH = 4
_FREE = (
    "out",
    "num",
    "prompts",
    "max_prompts",
    "videos",
    "stream",
    "ranks",
    "device",
    "bucket",
    "text_weights",
)
"""Settings that say nothing about what is in a chunk, or that the plan has by itself."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the samples of a folder are; all but `num` must be the same to go on with them."""

    model: str
    step: int
    tokenizer: str
    device: str
    bucket: str
    prompts: list[str | None]
    settings: dict[str, Any]
    is_counted: bool
    """Whether `num` was asked for: such samples are never replaced."""
    num: int

    @classmethod
    def of(cls, run: OpenedRun, settings: SampleConfig, device: str) -> Plan:
        """UserError for a prompt that the run does not know."""
        prompts = chosen_prompts(run, settings)
        kept = {name: value for name, value in to_dict(settings).items() if name not in _FREE}
        return cls(
            model=run.fingerprint,
            step=run.step,
            tokenizer=run.record.tokenizer,
            device=device,
            bucket=bucket_of(run, settings),
            prompts=prompts,
            settings=kept,
            is_counted=settings.num is not None,
            num=settings.num or len(prompts),
        )

    @property
    def batches(self) -> list[range]:
        """The numbers of the samples that are generated together; the last batch may go beyond
        `num`."""
        most = self.settings["batch_size"]
        least = _SMALLEST_BATCH if self.device == "cpu" else most
        batches, start = list[range](), 0
        while start < self.num:
            batches.append(range(start, start + min(max(start, least), most)))
            start = batches[-1].stop
        return batches

    @property
    def chunks(self) -> list[range]:
        """The numbers of the samples of each chunk: of a batch those that are asked for."""
        return [range(each.start, min(each.stop, self.num)) for each in self.batches]

    def batch_of(self, chunk: range) -> range:
        """The batch that a chunk is generated in."""
        return next(each for each in self.batches if each.start == chunk.start)

    def prompt_of(self, number: int) -> str | None:
        return self.prompts[number % len(self.prompts)]

    def differences(self, earlier: Plan, has_videos: bool) -> list[str]:
        """Why this plan cannot go on where an earlier one was, each with both values.

        More samples are no reason, nor are more prompts with which those that are there keep
        theirs, nor another `fps` while nothing `has_videos`.
        """
        passed = {"num", "is_counted", "prompts"} | (set() if has_videos else {"fps"})
        ours, theirs, found = _flat(asdict(self)), _flat(asdict(earlier)), list[str]()
        for name in (*ours, *(each for each in theirs if each not in ours)):
            before, now = theirs.get(name), ours.get(name)
            if name not in passed and before != now:
                found.append(f"{name} {_short(before)}, not {_short(now)}")
        for number in range(earlier.num):
            before, now = earlier.prompt_of(number), self.prompt_of(number)
            if before != now:
                found.append(f"prompt {before!r} for sample {number}, not {now!r}")
                break
        if self.num < earlier.num:
            found.append(f"num {earlier.num}, not {self.num}")
        return found


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """By name, that of a section (guidance) before those in it."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            inside = _flat(value)
            flat |= inside if name == "settings" else {f"{name}.{k}": v for k, v in inside.items()}
        else:
            flat[name] = value
    return flat


def _short(value: Any) -> str:
    """The beginning of a hash, anything else as it is."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
