"""The loop beside which the trainer is measured: one model, one device, batches in memory.

It is what someone who knows torch writes for this model alone. There are no shards, ranks, guard,
metrics or checkpoints; draws come from torch's own state; in bfloat16 weights stay float32 under
autocast, where the trainer casts them. Nothing may be slower here than it need be: see `bench`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from training.fed_rows import FedRows, Sources
from training.generator import Generator, Known
from training.loop_config import OptimizerConfig
from training.order import Order


def plain_loop(
    generator: Generator,
    batches: Sequence[tuple[Int[Tensor, "b l"], Int[Tensor, "b n"]]],
    config: OptimizerConfig,
    *,
    every: int,
    half: bool = False,
    compile: bool = False,
) -> Iterator[tuple[int, float]]:
    """Trains without end on `batches` of codes and prompts, in turns, by AdamW.

    Gives the number of steps and the last one's loss `every` so many steps: only then the device
    is asked. `half` computes in bfloat16.
    """
    transformer, cross_entropy = generator.transformer, _cross_entropy
    if compile:
        for block in (*transformer.blocks, *transformer.head_blocks, *transformer.second):
            block.forward = torch.compile(block.forward, dynamic=False)
        cross_entropy = torch.compile(_cross_entropy, dynamic=False)
    parameters = list(generator.parameters())
    matrices = {each for each in transformer.parameters() if each.ndim == 2}
    groups: list[dict[str, Any]] = [
        {"params": [each for each in parameters if each not in matrices], "weight_decay": 0.0},
        {"params": [each for each in parameters if each in matrices]},
    ]
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    optimizer = torch.optim.AdamW(
        groups, config.learning_rate, betas, weight_decay=decay, fused=True
    )
    device, layout = parameters[0].device, generator.layout_for(generator.schedule)
    rows = FedRows.of(layout, np.arange(layout.num_rows), device)
    sources = Sources.of(layout.source, device)
    fixed = torch.from_numpy(layout.order.sequence)[None].to(device)

    def loss_of(codes: Int[Tensor, "b l"], prompts: Int[Tensor, "b n"]) -> Float[Tensor, ""]:
        """By place, so that logits stay where they are; nothing holds them behind it."""
        sequence = _sequence(layout.order, fixed, len(codes))
        condition = generator.condition(prompts)
        hidden = generator.hidden(rows, rows, condition, Known(sequence, codes))
        return cross_entropy(generator.logits(hidden, sources), codes.gather(1, sequence))

    generator.train()
    step = 0
    while True:
        with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            loss = loss_of(*batches[step % len(batches)])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % every == 0:
            yield step, float(loss.detach())


def _cross_entropy(logits: Float[Tensor, "b l k"], codes: Int[Tensor, "b l"]) -> Float[Tensor, ""]:
    return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())


def _sequence(order: Order, fixed: Int[Tensor, "1 l"], count: int) -> Int[Tensor, "b l"]:
    """The cell at each place of so many clips, drawn where the order is random."""
    if not order.shuffled:
        return fixed.expand(count, -1)
    sequence = fixed.repeat(count, 1)
    for start, stop in order.shuffled:
        drawn = torch.rand(count, stop - start, device=fixed.device).argsort(dim=1)
        sequence[:, start:stop] = sequence[:, start:stop].gather(1, drawn)
    return sequence
