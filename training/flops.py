"""The floating-point operations of training a generator, counted: for TFLOP/s and MFU.

    flops = training_flops(generator, schedule)                # of one clip, forward and backward
    mfu = flops.total * clips_per_second / peak_flops(device, torch.bfloat16)

A multiplication with its addition is two operations. The forward pass of a clip has

    2 * rows * inputs * outputs     in every linear map, for the rows that pass through it
    4 * pairs * width               in every attention: queries with keys, weights with values

and its backward pass twice that, for the gradients of both factors of every product (PaLM, arXiv
2204.02311, appendix B). Pairs are those that the one mask rule lets see each other: what a kernel
saves by skipping the others is no work done. P pieces of the condition and L cells pass as follows:

    method        rows of the first blocks                   further blocks            heads
    raster, par   P, start, codes, transitions: P + L        none                      1 at L places
    nar           P, start, codes: P + L; frame by frame     the same rows in those    2 or 3
                  a query for each but the first             before further heads
    arpg          P, start, codes: P + L; they make keys     second stack: L queries,  1
                  and values of the second stack once        which see contexts only
    next_scale    P, start, features: P + L; with an inner   none                      1
                  order also codes and queries

A text tower's answers are projected for each of P pieces and once more; modulations (adaln) are
made once a clip. All P pieces count as valid, and a head at all places, also where its share is 0.

Not counted are embeddings, norms, softmax and activations, the frozen tokenizer and text tower, the
optimizer, and what is computed a second time (activation checkpointing); nor are blocks that no
head is asked behind, which run forward for nothing: those of t when images train NAR's generator of
videos. Features and a tower's answers need no gradient: there one product less is computed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from tokenizer.scales import Schedule
from training.attention import Sight, dense_mask
from training.generator import Generator
from training.layout import Embedding, Layout, Role

_PASSES = 3  # forward, and backward to the one and to the other factor of every product
_SLAB = 2**19  # pairs that are looked at at a time: some 5 MB
# Source: NVIDIA's data sheets; of GeForce its white papers on GA102, AD102 and GB202. Dense, which
# is half of what they say with sparsity; summed in float32; float32 itself without TF32.
_PEAKS = {
    "A10": (125.0, 31.2),
    "A100-PCIE-40GB": (312.0, 19.5),
    "A100-SXM4-40GB": (312.0, 19.5),
    "A100-SXM4-80GB": (312.0, 19.5),
    "A100 80GB PCIe": (312.0, 19.5),
    "L4": (121.0, 30.3),
    "L40S": (362.05, 91.6),
    "H100 PCIe": (756.5, 51.2),
    "H100 NVL": (835.5, 60.0),
    "H100 80GB HBM3": (989.5, 67.0),  # SXM
    "H200": (989.5, 67.0),
    "H200 NVL": (835.5, 60.0),
    "B200": (2250.0, 75.0),
    "GB200": (2500.0, 80.0),
    "GeForce RTX 3090": (71.0, 35.6),
    "GeForce RTX 4090": (165.2, 82.6),
    "GeForce RTX 5090": (209.5, 104.8),
}
"""TFLOP/s of bfloat16 and of float32, by what CUDA calls a device."""


@dataclass(frozen=True)
class ClipFlops:
    """Floating-point operations of one clip, forward and backward."""

    matmul: int
    attention: int
    """Of the pairs of rows that see each other."""
    dense_attention: int
    """Of all pairs: what a kernel does that skips none."""

    @property
    def total(self) -> int:
        """What MFU counts."""
        return self.matmul + self.attention


class Pairs(NamedTuple):
    """Rows that ask in some blocks, rows that they ask, and the pairs that the mask leaves."""

    asking: int
    asked: int
    visible: int


def training_flops(generator: Generator, schedule: Schedule) -> ClipFlops:
    """What one clip of `schedule` costs; UserError when the generator is not for it."""
    layout = generator.layout_for(schedule)
    transformer, condition = generator.transformer, generator.condition
    num_places, num_heads = layout.source.shape
    num_behind = sum(transformer.stacks.head_blocks[: num_heads - 1])
    first = [*transformer.blocks, *transformer.head_blocks[:num_behind]]
    stacks = zip((first, [*transformer.second]), visible_pairs(layout))
    passed = [(block, pairs) for stack, pairs in stacks for block in stack]
    with_features = np.isin(layout.embedding, (Embedding.FEATURE, Embedding.MASKED_FEATURE))
    maps: list[tuple[nn.Module | None, int]] = [
        (generator.features, int(with_features.sum())),
        (transformer.modulation, 1),
        (transformer.shared, layout.num_context),
        *((block, pairs.asking) for block, pairs in passed),
        *((norm, 1) for norm in transformer.norms[:num_heads]),
        *((head, num_places) for head in generator.heads[:num_heads]),
    ]
    if condition.from_tower:
        maps += [(condition.pooled_in, 1), (condition.pieces_in, condition.num_prefix)]
    of_pair = _PASSES * 4 * generator.config.width
    return ClipFlops(
        matmul=_PASSES * sum(_of_maps(module, num_rows) for module, num_rows in maps),
        attention=of_pair * sum(pairs.visible for _, pairs in passed),
        dense_attention=of_pair * sum(pairs.asking * pairs.asked for _, pairs in passed),
    )


@lru_cache(maxsize=64)
def visible_pairs(layout: Layout) -> tuple[Pairs, ...]:
    """Of all rows or, where queries do not meet, of contexts and of queries, which ask contexts.

    Rows of one role and step see alike: they are looked at as one. For 20,480 cells in raster
    order, each a step of its own, that takes 3 s on one core.
    """
    alike, counts = np.unique(np.stack([layout.role, layout.step]), axis=1, return_counts=True)
    role, step, count = (torch.from_numpy(each) for each in (*alike, counts))
    sight, num_context = Sight(step, role), int((role == Role.CONTEXT).sum())
    contexts, queries = slice(num_context), slice(num_context, None)  # they come sorted
    parts = [slice(None)] if layout.queries_meet else [contexts, queries]
    return tuple(
        _pairs(sight.rows(part), count[part], sight.rows(parts[0]), count[parts[0]])
        for part in parts
    )


def _pairs(
    asking: Sight, count: Int[Tensor, " q"], asked: Sight, count_asked: Int[Tensor, " k"]
) -> Pairs:
    """Those of rows of which there are `count` each, a slab of `asking` at a time, in float64:
    whole numbers are exact there, and autocast leaves it alone.
    """
    height = max(1, _SLAB // max(1, len(count_asked)))
    visible = 0
    for start in range(0, len(count), height):
        slab = slice(start, start + height)
        seen = dense_mask(asking.rows(slab), asked)[0, 0].double() @ count_asked.double()
        visible += int(seen @ count[slab].double())
    return Pairs(int(count.sum()), int(count_asked.sum()), visible)


def _of_maps(module: nn.Module | None, num_rows: int) -> int:
    """Forward operations of the linear maps in a module; modulations are made once a clip."""
    return sum(
        2 * each.in_features * each.out_features * (1 if name.endswith("modulation") else num_rows)
        for name, each in (() if module is None else module.named_modules())
        if isinstance(each, nn.Linear)
    )


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations a second of bfloat16 or float32 matrices, as published for a GPU.

    None where nothing is known to be right: other devices and types, laptops, slices of a GPU.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float32):
        return None
    peaks = _PEAKS.get(torch.cuda.get_device_name(device).removeprefix("NVIDIA "))
    return None if peaks is None else 1e12 * peaks[dtype == torch.float32]


def measured_matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Operations a second of the fastest of some products of large matrices, at least four.

    The matrices are random, the same each time. Whether float32 means TF32 is torch's setting.
    """
    size = 8192 if device.type == "cuda" else 1024
    drawn = torch.Generator(device).manual_seed(0)
    left, right = torch.randn(2, size, size, generator=drawn, device=device).to(dtype)
    durations: list[float] = []
    while len(durations) < 4 or sum(durations) < seconds:
        started = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - started)
    return 2 * size**3 / min(durations[1:])  # the first one warms up
