"""Orders as text: steps, how many cells each has, where they are, and what each step is fed.

    loop step  contexts  queries  seen    cells
    0          1 start            1       1
    1-1279     1 token            2-1280  1

Loop step g feeds the transformer `contexts` (which are kept) and `queries` (which are not), lets
them see so many rows in all, and has the logits of so many cells at its end: those of step g + 1.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int

from tokenizer.scales import Schedule
from tokenizer.settings import UserError, to_dict
from training.layout import Embedding, Layout, Role
from training.method_config import MethodConfig
from training.methods import METHODS
from training.order import Order

T = TypeVar("T")
WIDTH = 100
PRINTED_CELLS = 512
"""Larger schedules are drawn rather than printed cell by cell."""


def describe(layout: Layout, method: MethodConfig, steps: Int[np.ndarray, " cells"]) -> str:
    """The whole report; `steps` is the step of each cell (`drawn_steps`)."""
    return "\n".join(
        [*_summary(layout, method), "", *_tables(layout.order, steps), *_feeding(layout)]
    )


def drawn_steps(order: Order, seed: int) -> Int[np.ndarray, " cells"]:
    """The step of each cell, from 1; where the order is random, for sample 0 of this seed."""
    if not order.shuffled:
        return order.step_of_cell
    from training.draws import numpy_generator

    steps = np.empty_like(order.step)
    steps[order.drawn(numpy_generator(seed, "order", 0))] = order.step
    return steps


def compare(schedule: Schedule) -> str:
    """Methods on one schedule, a line each: those that fit it, then why others do not."""
    rows: list[Sequence[str]] = [("method", "steps", "largest", "rows in training", "heads")]
    refused: dict[str, list[str]] = {}
    for method in _METHODS:
        try:
            training = METHODS[method.name](schedule, 0, method, True)
            order = METHODS[method.name](schedule, 0, method, False).order
        except UserError as error:
            refused.setdefault(str(error), []).append(title_of(method))
            continue
        numbers = (order.num_steps, max(order.sizes), training.num_rows, training.num_heads)
        rows.append((title_of(method), *(f"{number:,}" for number in numbers)))
    lines = [*_wrapped(_of_schedule(schedule)), "", *_columns(rows)]
    for reason, names in refused.items():
        lines += ["", *_wrapped(f"{', '.join(names)}: {reason}")]
    return "\n".join(lines)


def fitting(schedule: Schedule) -> Iterator[tuple[MethodConfig, Order]]:
    """Those methods that fit a schedule, each with its order."""
    for method in _METHODS:
        with suppress(UserError):
            yield method, METHODS[method.name](schedule, 0, method, False).order


def title_of(method: MethodConfig) -> str:
    """The name of a method and the settings that differ from the defaults, and PAR's regions."""
    plain, given = to_dict(MethodConfig(name=method.name)), to_dict(method)
    changed = [key for key in given if given[key] != plain[key]]
    if method.name == "par":
        changed = list(dict.fromkeys(["regions", *changed]))
    return " ".join([method.name, *(_setting(key, given[key]) for key in changed)])


def _setting(key: str, value: Any) -> str:
    if value is True:
        return key
    return f"{key}={'x'.join(map(str, value)) if isinstance(value, list) else value}"


_METHODS = (
    MethodConfig(name="raster"),
    MethodConfig(name="par", regions=(1, 2, 2)),
    MethodConfig(name="par", regions=(1, 4, 4)),
    MethodConfig(name="nar"),
    MethodConfig(name="nar", frame_causal=True),
    MethodConfig(name="arpg", num_steps=32),
    MethodConfig(name="next_scale"),
    MethodConfig(name="next_scale", inner="nar"),
    MethodConfig(name="next_scale", inner="random", num_steps=8),
)
"""What is compared."""


def _summary(layout: Layout, method: MethodConfig) -> Iterator[str]:
    order = layout.order
    cells = order.schedule.num_tokens
    yield from _wrapped(f"{title_of(method)}: {_of_schedule(order.schedule)}")
    yield (
        f"{_counted(order.num_steps, 'step')} of {cells / order.num_steps:.1f} cells on average; "
        f"raster has {cells:,}"
    )
    if order.shuffled:
        yield "random: another order for each sample, this is sample 0's"
    sizes = "  ".join(_run(size, count) for size, count in _runs(order.sizes))
    yield from _wrapped(f"cells of each step: {sizes}")
    if layout.num_heads > 1:
        yield f"{layout.num_heads} heads; a cell's logits are the mean over those that reach it"


def _of_schedule(schedule: Schedule) -> str:
    if schedule.grid is not None:
        return f"one grid of {_shape(schedule.grid)}: {schedule.num_tokens:,} cells"
    pyramids = [", ".join(_shape(scale.shape) for scale in each) for each in schedule.pyramids]
    runs = "; then ".join(
        text if count == 1 else f"{count} times {text}" for text, count in _runs(pyramids)
    )
    return f"{len(schedule.scales)} scales, {schedule.num_tokens:,} cells: {runs}"


def _tables(order: Order, steps: Int[np.ndarray, " cells"]) -> Iterator[str]:
    """The step of each cell, frames of a scale side by side."""
    if len(steps) > PRINTED_CELLS:
        yield "step of each cell: draw it with --out order.png"
        yield ""
        return
    width = len(str(order.num_steps)) + 1
    for number, (scale, table) in enumerate(
        zip(order.schedule.scales, order.schedule.split(steps))
    ):
        yield f"step of each cell, scale {number}, latent frames [{scale.t0}, {scale.t1})"
        per_line = max(1, WIDTH // (scale.w * width + 3))
        for start in range(0, scale.t, per_line):
            for row in np.moveaxis(table[start : start + per_line], 0, 1):
                yield "  " + "   ".join(
                    "".join(str(step).rjust(width) for step in frame) for frame in row
                )
            yield ""


class _Fed(NamedTuple):
    contexts: str
    queries: str
    cells: int


def _feeding(layout: Layout) -> Iterator[str]:
    """What each loop step feeds; runs of like steps are one line."""
    steps: list[tuple[_Fed, int]] = []
    by_step = np.argsort(layout.feed, kind="stable")
    starts = np.searchsorted(layout.feed[by_step], np.arange(1, layout.order.num_steps))
    kept = 0
    for fed, cells in zip(np.split(by_step, starts), layout.order.sizes):
        is_query = layout.role[fed] == Role.QUERY
        contexts, queries = (_kinds(layout.embedding[fed[each]]) for each in (~is_query, is_query))
        steps.append((_Fed(contexts, queries, cells), kept + len(fed)))
        kept += int((~is_query).sum())
    rows = [("loop step", "contexts", "queries", "seen", "cells")]
    start = 0
    for like, members in groupby(steps, key=lambda each: each[0]):
        seen = [each[1] for each in members]
        stop = start + len(seen)
        where, saw = _range(start, stop - 1), _range(seen[0], seen[-1])
        rows.append((where, like.contexts, like.queries, saw, str(like.cells)))
        start = stop
    yield from _columns(rows)
    yield f"sampling feeds {layout.num_rows:,} rows in {_counted(layout.order.num_steps, 'pass')}"


def _kinds(embeddings: Int[np.ndarray, " rows"]) -> str:
    """ "4 tokens + 3 transitions"."""
    counts = [(Embedding(kind), int((embeddings == kind).sum())) for kind in np.unique(embeddings)]
    return " + ".join(
        _counted(count, kind.name.lower().replace("_", " ")) for kind, count in counts
    )


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="    ")


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip()


def _runs(values: Iterable[T]) -> list[tuple[T, int]]:
    """Equal neighbours as one, and how many they are."""
    return [(value, len(list(group))) for value, group in groupby(values)]


def _run(size: int, count: int) -> str:
    return str(size) if count == 1 else f"{size} ({count:,} times)"


def _range(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,}-{last:,}"


def _counted(count: int, noun: str) -> str:
    plural = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{plural}"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
