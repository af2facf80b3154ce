"""What the steps in a trace of `trainer.profile_steps` were spent on: seconds by category.

    spent = spent_in(Path("run/profile/steps_23_25.json.gz"))
    spent.by_category["attention"] / 3, spent.longest[0]

Where a GPU was recorded its kernels count, and two at once count twice; else the operators of the
CPU, each without those that it calls. Categories are told by names, which torch and the libraries
below it change now and then: what nobody knows is `other`, and `longest` shows what took most.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

CATEGORIES = ("matmul", "attention", "optimizer", "copies", "other")
_KERNELS = (
    ("attention", r"attention|flash|fmha|sdpa"),
    ("matmul", r"gemm|gemv|cutlass|cublas|nvjet|xmma|splitk|triton_tem_fused_(add)?mm|_mm_"),
    ("optimizer", r"multi_tensor_apply|adam|lpnorm"),
    ("copies", r"nccl|memcpy|memset|split_with_sizes|chunk_cat|catarray|direct_copy"),
)
_OPERATORS = (
    ("attention", r"scaled_dot_product|flash_attention"),
    ("matmul", r"^aten::(mm|addmm|bmm|baddbmm)$|^mkl"),
    ("optimizer", r"^optimizer\.|adam|^aten::(_foreach|linalg_vector_norm)"),
    ("copies", r"^aten::(copy_|cat|clone)$|^c10d|^fsdp"),
)
_MOST_NAMED = 16
_NAME_LENGTH = 100


@dataclass(frozen=True)
class Spent:
    """Seconds by category, and of the kernels or operators that took most of them."""

    of: str
    """Whose they are: kernels or operators."""
    span: float
    """From the beginning of the first to the end of the last."""
    by_category: dict[str, float]
    longest: list[tuple[str, float]]


class _Event(NamedTuple):
    """A piece of a trace, in microseconds."""

    kind: str
    name: str
    thread: tuple[Any, Any]
    start: float
    duration: float

    @property
    def end(self) -> float:
        return self.start + self.duration


def spent_in(trace: Path) -> Spent:
    """The seconds of a trace as torch's profiler exports it, gzipped."""
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        pieces = json.load(file)["traceEvents"]
    events = [
        _Event(
            str(each.get("cat")),
            str(each.get("name")),
            (each.get("pid"), each.get("tid")),
            float(each["ts"]),
            float(each["dur"]),
        )
        for each in pieces
        if each.get("ph") == "X" and "ts" in each and "dur" in each
    ]
    kernels = [each for each in events if each.kind in ("kernel", "gpu_memcpy", "gpu_memset")]
    if kernels:
        return _summed("kernels", kernels, ((each.name, each.duration) for each in kernels))
    operators = [each for each in events if each.kind in ("cpu_op", "user_annotation")]
    return _summed("operators", operators, _own_durations(operators))


def _summed(of: str, events: list[_Event], durations: Iterable[tuple[str, float]]) -> Spent:
    by_name: dict[str, float] = defaultdict(float)
    for name, microseconds in durations:
        by_name[name] += microseconds / 1e6
    by_category = dict.fromkeys(CATEGORIES, 0.0)
    for name, seconds in by_name.items():
        by_category[_category(name, _KERNELS if of == "kernels" else _OPERATORS)] += seconds
    start = min((each.start for each in events), default=0.0)
    end = max((each.end for each in events), default=0.0)
    longest = sorted(by_name.items(), key=lambda each: -each[1])[:_MOST_NAMED]
    return Spent(
        of=of,
        span=(end - start) / 1e6,
        by_category=by_category,
        longest=[(name[:_NAME_LENGTH], seconds) for name, seconds in longest],
    )


def _category(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for category, pattern in rules:
        if re.search(pattern, name, re.IGNORECASE):
            return category
    return "other"


def _own_durations(events: list[_Event]) -> Iterator[tuple[str, float]]:
    """Of each operator, what is not its callees'; all of an optimizer's step is its own."""
    threads: dict[tuple[Any, Any], list[_Event]] = defaultdict(list)
    for each in events:
        threads[each.thread].append(each)
    for members in threads.values():
        callers: list[tuple[str, float]] = []  # those that have not ended: name, end
        for event in sorted(members, key=lambda each: (each.start, -each.duration)):
            while callers and event.start >= callers[-1][1]:
                callers.pop()
            name = event.name
            if callers:
                yield callers[-1][0], -event.duration
                if callers[-1][0].startswith("Optimizer.step"):
                    name = callers[-1][0]
            callers.append((name, event.end))
            yield name, event.duration
