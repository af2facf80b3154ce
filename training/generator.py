"""The generator: embeds the rows of a layout, runs the transformer, reads logits at cells.

It is the same for every method; what differs is the layout. Teacher forcing (`forward`) feeds all
rows of a clip at once, the sampler feeds them step by step through the same `hidden`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenizer.scales import Schedule
from tokenizer.settings import UserError
from training.attention import dense_mask
from training.condition import Condition, ConditionEncoder
from training.config import ModelConfig
from training.layout import Embedding, Layout
from training.methods import METHODS
from training.transformer import Cache, Transformer
from training.vocabulary import Vocabulary


class Generator(nn.Module):
    """Predicts codes of clips of `schedule`, or of a beginning of it (an image of a video's)."""

    def __init__(
        self,
        config: ModelConfig,
        method: str,
        schedule: Schedule,
        vocabulary: Vocabulary,
        codebook_size: int,
        feature_channels: int,
    ) -> None:
        super().__init__()
        self.method = method
        self.schedule = schedule
        self.codebook_size = codebook_size
        self.condition = ConditionEncoder(vocabulary, config.width)
        self._layouts: dict[Schedule, Layout] = {}
        layout = self.layout_for(schedule)
        kinds = set(layout.embedding.tolist())
        self.positions = nn.Embedding(layout.num_positions, config.width)
        self.start = nn.Parameter(torch.zeros(config.width))
        self.codes = nn.Embedding(codebook_size, config.width) if Embedding.TOKEN in kinds else None
        self.features = (
            nn.Linear(feature_channels, config.width) if Embedding.FEATURE in kinds else None
        )
        self.transformer = Transformer(config)
        self.head = nn.Linear(config.width, layout.num_heads * codebook_size)
        nn.init.normal_(self.positions.weight, std=0.02)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if self.codes is not None:
            nn.init.normal_(self.codes.weight, std=0.02)

    @property
    def uses_features(self) -> bool:
        """Whether rows are made from partial reconstructions (`hidden` then needs `features`)."""
        return self.features is not None

    def layout_for(self, schedule: Schedule) -> Layout:
        """The rows for clips of `schedule`; UserError when this generator cannot make them."""
        if schedule not in self._layouts:
            if schedule.scales != self.schedule.scales[: len(schedule.scales)]:
                raise UserError(
                    f"this generator was made for scales {self.schedule.to_list()}; "
                    f"{schedule.to_list()} is not the beginning of them"
                )
            self._layouts[schedule] = METHODS[self.method](schedule, self.condition.num_prefix)
        return self._layouts[schedule]

    def forward(
        self,
        codes: Int[Tensor, "b l"],
        features: Float[Tensor, "b l c"] | None,
        prompts: Int[Tensor, "b n"],
        schedule: Schedule,
    ) -> Float[Tensor, "b l k"]:
        """Teacher forcing: the logits of every cell, each from what its step may see."""
        layout = self.layout_for(schedule)
        rows = FedRows.of(layout, np.arange(layout.num_rows), codes.device)
        hidden = self.hidden(rows, rows, self.condition(prompts), codes, features)
        return self.logits(hidden, layout.source)

    def hidden(
        self,
        rows: FedRows,
        seen: FedRows,
        condition: Condition,
        codes: Int[Tensor, "b l"],
        features: Float[Tensor, "b l c"] | None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b r d"]:
        """The transformer's output at `rows`, which are the last of the rows `seen`."""
        x = self._embedded(rows, condition, codes, features)
        valid = None
        if condition.valid.shape[1]:
            known = condition.valid.new_ones(len(x), 1)
            padded = torch.cat([condition.valid, known], dim=1)
            valid = padded[:, seen.prefix_piece]
        mask = dense_mask(seen.step, seen.role, len(rows.step), valid)
        return self.transformer(x, mask, cache, rows.num_context)

    def logits(
        self, hidden: Float[Tensor, "b r d"], source: Int[np.ndarray, "cells heads"]
    ) -> Float[Tensor, "b cells k"]:
        """Logits of cells whose head h reads row `source[cell, h]` of `hidden` (-1: none)."""
        weights = self.head.weight.view(-1, self.codebook_size, hidden.shape[-1])
        biases = self.head.bias.view(-1, self.codebook_size)
        answers = []
        for head, (weight, bias) in enumerate(zip(weights, biases)):
            rows = torch.as_tensor(source[:, head], device=hidden.device)
            answer = nn.functional.linear(hidden[:, rows.clamp(min=0)], weight, bias)
            answers.append(answer if (rows >= 0).all() else answer * (rows >= 0)[:, None])
        if len(answers) == 1:
            return answers[0]
        count = torch.as_tensor((source >= 0).sum(axis=1), device=hidden.device)
        return torch.stack(answers).sum(dim=0) / count[:, None]

    def _embedded(
        self,
        rows: FedRows,
        condition: Condition,
        codes: Int[Tensor, "b l"],
        features: Float[Tensor, "b l c"] | None,
    ) -> Float[Tensor, "b r d"]:
        parts = []
        for run in rows.runs:
            if run.embedding == Embedding.PREFIX:
                parts.append(condition.prefix[:, run.index])
                continue
            shared = self.positions(run.position) + condition.pooled[:, None]
            if run.embedding == Embedding.START:
                parts.append(shared + self.start)
            elif run.embedding == Embedding.TOKEN:
                assert self.codes is not None
                parts.append(shared + self.codes(codes[:, run.index]))
            else:
                assert self.features is not None
                assert features is not None
                parts.append(shared + self.features(features[:, run.index]))
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class Run:
    """Consecutive rows with the same kind of embedding."""

    embedding: Embedding
    index: Int[Tensor, " r"]
    position: Int[Tensor, " r"]


@dataclass(frozen=True)
class FedRows:
    """Some rows of a layout as tensors: what `Generator.hidden` needs to know of them."""

    runs: tuple[Run, ...]
    step: Int[Tensor, " r"]
    role: Int[Tensor, " r"]
    prefix_piece: Int[Tensor, " r"]  # which piece of the condition a row is, -1 for other rows
    num_context: int

    @classmethod
    def of(cls, layout: Layout, rows: Int[np.ndarray, " r"], device: torch.device) -> FedRows:
        """The given rows, in the given order; contexts must come before queries."""

        def tensor(values: np.ndarray) -> Tensor:
            return torch.as_tensor(values, dtype=torch.int64, device=device)

        runs = []
        for kind, group in groupby(rows.tolist(), key=lambda row: layout.embedding[row]):
            members = np.array(list(group))
            runs.append(
                Run(
                    Embedding(kind), tensor(layout.index[members]), tensor(layout.position[members])
                )
            )
        is_prefix = layout.embedding[rows] == Embedding.PREFIX
        return cls(
            runs=tuple(runs),
            step=tensor(layout.step[rows]),
            role=tensor(layout.role[rows]),
            prefix_piece=tensor(np.where(is_prefix, layout.index[rows], -1)),
            num_context=int((layout.role[rows] == 0).sum()),
        )
