"""What a sampling loop runs on: the transformer, compiled or not, and an empty cache.

Compiled once for any number of rows; on CUDA every number of them that steps have is then a graph,
recorded when it is first met. Graphs write to fixed addresses, so a static cache is used again by a
later batch of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from training.cache import Cache
from training.transformer import Transformer

Run = Callable[..., list[Tensor]]
"""`Transformer.forward` of some transformer."""

_SPARE: WeakKeyDictionary[Transformer, tuple[object, Cache]] = WeakKeyDictionary()
"""The static cache that was used last, and what it was made for."""


@contextmanager
def run_and_cache(
    transformer: Transformer, batch_size: int, capacity: int, is_cached: bool, is_compiled: bool
) -> Iterator[tuple[Run, Cache | None]]:
    """For as long as a loop runs; without a cache if there is to be none."""
    if not is_compiled:
        yield transformer, transformer.new_cache(batch_size, capacity) if is_cached else None
        return
    weight = next(transformer.parameters())
    key = batch_size, capacity, weight.dtype, weight.device
    spare_key, spare = _SPARE.pop(transformer, (None, None))
    if spare is None or spare_key != key:
        spare = transformer.new_cache(batch_size, capacity, is_static=True)
    spare.cut(0)
    try:
        yield partial(_compiled(weight.is_cuda), transformer), spare
    finally:
        _SPARE[transformer] = key, spare


@cache
def _compiled(on_cuda: bool) -> Callable[..., Any]:
    """Kept apart from the transformers: those are not compiled where they are called themselves."""
    mode = "reduce-overhead" if on_cuda else None
    return torch.compile(Transformer.forward, dynamic=True, mode=mode)


def begin_step(is_compiled: bool) -> None:
    """What a compiled step gave before may be written over from here on."""
    if is_compiled:
        torch.compiler.cudagraph_mark_step_begin()
