"""The cache of a sampling loop and, where steps are compiled, the transformer that runs on it.

Compiled once for any number of rows; on CUDA every number of them that steps have is then a graph,
recorded when it is first met. Graphs write to fixed addresses, so static caches are used again by
later batches of the same shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch

from training.cache import Cache
from training.transformer import Transformer

_SPARE: WeakKeyDictionary[Transformer, dict[tuple[int, int], list[Cache]]] = WeakKeyDictionary()


@contextmanager
def cache_for(
    transformer: Transformer, batch_size: int, capacity: int, is_cached: bool, is_compiled: bool
) -> Iterator[Cache | None]:
    """An empty cache for as long as a loop runs, or none."""
    if not is_compiled:
        yield transformer.new_cache(batch_size, capacity) if is_cached else None
        return
    if transformer not in _SPARE:
        on_cuda = next(transformer.parameters()).is_cuda
        transformer.compile(dynamic=True, mode="reduce-overhead" if on_cuda else None)
    spare = _SPARE.setdefault(transformer, {}).setdefault((batch_size, capacity), [])
    cache = spare.pop() if spare else transformer.new_cache(batch_size, capacity, is_static=True)
    cache.cut(0)
    try:
        yield cache
    finally:
        spare.append(cache)


def begin_step(is_compiled: bool) -> None:
    """What a compiled step gave before may be written over from here on."""
    if is_compiled:
        torch.compiler.cudagraph_mark_step_begin()
