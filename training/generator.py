"""The generator: embeds the rows of a layout, runs the transformer, reads logits at places.

It is the same for every method; what differs is the layout. Teacher forcing (`forward`) feeds all
rows of a clip at once, the sampler feeds them step by step through the same `hidden`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenizer.scales import Schedule
from tokenizer.settings import UserError
from training.cache import Cache
from training.condition import Condition, ConditionEncoder
from training.config import ModelConfig
from training.fed_rows import FedRows, Run, Sources
from training.layout import Embedding, Layout
from training.method_config import MethodConfig
from training.methods import METHODS
from training.packing import Group, Packing
from training.positions import cells_of_table, check_schedule, level_of_cells, rotations
from training.rotary import Rotation
from training.transformer import Stacks, Transformer, Vectors
from training.vocabulary import Vocabulary


@dataclass
class Known:
    """What is known of clips: their orders, their codes so far and features made from these."""

    sequence: Int[Tensor, "#b l"]
    """The cell at each place."""
    codes: Int[Tensor, "b l"]
    """By cell; anything where they are not known yet."""
    features: Float[Tensor, "b l c"] | None = None

    def doubled(self) -> Known:
        """Twice, for guidance."""
        both = self.sequence if len(self.sequence) == 1 else self.sequence.repeat(2, 1)
        features = None if self.features is None else self.features.repeat(2, 1, 1)
        return Known(both, self.codes.repeat(2, 1), features)


class Generator(nn.Module):
    """Predicts codes of clips of `schedule`, and of others that `positions` says it knows."""

    def __init__(
        self,
        config: ModelConfig,
        method: MethodConfig,
        schedule: Schedule,
        vocabulary: Vocabulary,
        codebook_size: int,
        feature_channels: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.method = method
        self.schedule = schedule
        self.codebook_size = codebook_size
        width, block = config.width, config.block
        self.condition = ConditionEncoder(vocabulary, width)
        layout = _layout(schedule, self.condition.num_prefix, method, True, None)
        kinds = self._kinds = layout.kinds
        self.start = nn.Parameter(torch.zeros(width)) if block.condition == "add" else None
        self.codes = _table(codebook_size, width) if Embedding.TOKEN in kinds else None
        self.transitions = None
        if Embedding.TRANSITION in kinds:
            self.transitions = _table(_count(layout, Embedding.TRANSITION), width)
        self.features = None
        if kinds & {Embedding.FEATURE, Embedding.MASKED_FEATURE}:
            self.features = nn.Linear(feature_channels, width)
        self.mask = None
        if kinds & {Embedding.MASK, Embedding.MASKED_FEATURE}:
            self.mask = nn.Parameter(torch.randn(width) * 0.02)
        self.positions = self.levels = None
        if block.position == "table":
            self.positions = _table(schedule.num_tokens, width)
        elif len(schedule.levels) > 1:
            self.levels = _table(len(schedule.levels), width)
        self.transformer = Transformer(width, config.heads, self._stacks(layout), block)
        self.heads = nn.ModuleList(
            nn.Linear(width, codebook_size, bias=config.head_bias) for _ in range(layout.num_heads)
        )
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def _stacks(self, layout: Layout) -> Stacks:
        config = self.config
        if layout.queries_meet:
            further = config.head_blocks[: layout.num_heads - 1]
            if len(further) < layout.num_heads - 1:
                raise UserError(
                    f"model.head_blocks ({list(further)}): {layout.num_heads} heads need a number "
                    "for each but the first"
                )
            return Stacks(config.depth, further)
        second = config.depth // 2 if config.second_stack is None else config.second_stack
        if second == 0:
            raise UserError(
                f"model.second_stack (0 of {config.depth} blocks): the queries of arpg have blocks "
                "of their own; give at least 1, and model.depth at least 2"
            )
        return Stacks(config.depth - second, second=second)

    @property
    def num_features(self) -> int:
        """Channels of `Known.features`, the partial reconstructions; 0: they are not needed."""
        return 0 if self.features is None else self.features.in_features

    def layout_for(
        self,
        schedule: Schedule,
        training: bool = True,
        method: MethodConfig | None = None,
        given: np.ndarray | None = None,
    ) -> Layout:
        """The rows for clips of `schedule`; UserError when this generator cannot make them.

        `method` stands in for its own: the same one in other steps. `given`, bool [num_tokens],
        are cells that need not be generated.
        """
        method = method or self.method
        check_schedule(schedule, self.schedule, method.name, self.config.block.position)
        cells = None if given is None else given.tobytes()
        layout = _layout(schedule, self.condition.num_prefix, method, training, cells)
        self._check_parts(layout)
        return layout

    def _check_parts(self, layout: Layout) -> None:
        """UserError where its own schedule has left out what another one needs."""
        lacking = [f"vectors of kind {kind.name}" for kind in sorted(layout.kinds - self._kinds)]
        if layout.num_heads > len(self.heads):
            lacking.append(f"{layout.num_heads} heads, not {len(self.heads)}")
        if lacking:
            grids = [each.grid or () for each in (layout.order.schedule, self.schedule)]
            other, own = (" x ".join(map(str, grid)) for grid in grids)
            raise UserError(
                f"{self.method.name}: clips of {other} cells need {' and '.join(lacking)}; this "
                f"generator was made for {own}: train one on both"
            )

    def forward(
        self, known: Known, prompts: Int[Tensor, "b n"], schedule: Schedule
    ) -> Float[Tensor, "b l k"]:
        """Teacher forcing: the logits of every place, each from what its step may see."""
        layout = self.layout_for(schedule)
        rows, sources = _all_rows(layout, known.codes.device)
        hidden = self.hidden(rows, rows, self.condition(prompts), known)
        return self.logits(hidden, sources)

    def by_cell(
        self, known: Known, prompts: Int[Tensor, "b n"], schedule: Schedule
    ) -> Float[Tensor, "b l k"]:
        """Those of `forward` in the order of the cells."""
        return by_cell(self(known, prompts, schedule), known.sequence)

    def packed(
        self, groups: Sequence[tuple[Known, Int[Tensor, "b n"], Schedule]]
    ) -> list[Float[Tensor, "b l k"]]:
        """`by_cell` of clips of each of several schedules, as one sequence (see `packing`)."""
        knowns, device = [known for known, _, _ in groups], groups[0][0].codes.device
        layouts = [_all_rows(self.layout_for(schedule), device) for _, _, schedule in groups]
        conditions = [self.condition(prompts) for _, prompts, _ in groups]
        packing = Packing([
            Group(rows, condition.valid) for (rows, _), condition in zip(layouts, conditions)
        ])  # fmt: skip
        inputs = list(zip(packing.groups, conditions, knowns))
        x = packing.joined([self._embedded(group.rows, *given) for group, *given in inputs])
        turned = [self._rotation(group.rows, known, x) for group, _, known in inputs]
        vectors = Vectors(torch.cat([each.pooled for each in conditions]), packing.clip)
        hidden = self.transformer(
            x[None],
            packing.masks(),
            _joined(packing, turned),
            vectors,
            None,
            packing.num_context,
        )
        of_groups = zip(*(packing.parted(each[0]) for each in hidden))
        return [
            by_cell(self.logits(list(outputs), sources), known.sequence)
            for outputs, (_, sources), known in zip(of_groups, layouts, knowns)
        ]

    def hidden(
        self,
        rows: FedRows,
        seen: FedRows,
        condition: Condition,
        known: Known,
        cache: Cache | None = None,
        run: Callable[..., list[Float[Tensor, "b r d"]]] | None = None,
    ) -> list[Float[Tensor, "b r d"]]:
        """The transformer's outputs at `rows`, which are the last of the rows `seen`.

        `run` stands in for the transformer: the same, compiled.
        """
        x = self._embedded(rows, condition, known)
        shown = None if cache is None else cache.shown
        masks = seen.masks(len(rows.step), condition.valid, shown)
        vectors = Vectors(condition.pooled)
        run = run or self.transformer
        return run(x, masks, self._rotation(rows, known, x), vectors, cache, rows.num_context)

    def logits(
        self, hidden: list[Float[Tensor, "b r d"]], sources: Sources
    ) -> Float[Tensor, "b places k"]:
        """Logits of places: the mean over the heads that reach each of them."""
        total = None
        for number, (head, output) in enumerate(zip(self.heads, hidden)):
            if number == len(sources.rows):
                break  # images have no axis t
            answer = head(output[:, sources.rows[number]])
            if sources.share is not None:
                answer = answer * sources.share[number]
            total = answer if total is None else total + answer
        assert total is not None
        return total

    def _embedded(
        self, rows: FedRows, condition: Condition, known: Known
    ) -> Float[Tensor, "b r d"]:
        parts = [self._run(run, rows.schedule, condition, known) for run in rows.runs]
        return torch.cat([part.expand(len(condition.pooled), -1, -1) for part in parts], dim=1)

    def _run(
        self, run: Run, schedule: Schedule, condition: Condition, known: Known
    ) -> Float[Tensor, "#b r d"]:
        """Consecutive rows of one kind."""
        if run.embedding == Embedding.PREFIX:
            return condition.prefix[:, run.index]
        everywhere = self.config.block.condition == "add"
        x = condition.pooled[:, None] * (everywhere or run.embedding == Embedding.START)
        cells = known.sequence[:, run.index] if run.is_placed else None
        if cells is not None:
            x = x + self._place(cells, schedule)
        if run.embedding == Embedding.START:
            x = x if self.start is None else x + self.start
            return x.expand(-1, len(run.index), -1)
        if run.embedding == Embedding.TRANSITION:
            assert self.transitions is not None
            return x + self.transitions(run.index)
        if run.embedding in (Embedding.MASK, Embedding.MASKED_FEATURE):
            assert self.mask is not None
            x = x + self.mask
        assert cells is not None
        cells = cells.expand(len(known.codes), -1)
        if run.embedding == Embedding.TOKEN:
            assert self.codes is not None
            x = x + self.codes(known.codes.gather(1, cells))
        if run.embedding in (Embedding.FEATURE, Embedding.MASKED_FEATURE):
            assert self.features is not None
            assert known.features is not None
            index = cells[..., None].expand(-1, -1, known.features.shape[-1])
            features = known.features.gather(1, index).to(self.features.weight.dtype)
            x = x + self.features(features)
        return x.expand(len(known.codes), len(run.index), -1)

    def _place(
        self, cells: Int[Tensor, "#b r"], schedule: Schedule
    ) -> Float[Tensor, "#b r d"] | float:
        if self.positions is not None:
            return self.positions(cells_of_table(cells, schedule, self.schedule))
        if self.levels is None:
            return 0.0
        return self.levels(level_of_cells(self.schedule, cells.device)[cells])

    def _rotation(self, rows: FedRows, known: Known, x: Float[Tensor, "..."]) -> Rotation | None:
        if self.config.block.position == "table":
            return None
        cosines, sines = rotations(rows.schedule, self.schedule, self.config, x)
        outside = rows.position < 0
        cells = known.sequence[:, rows.position.clamp(min=0)]
        cells = torch.where(outside, len(cosines) - 1, cells)
        return Rotation(cosines[cells], sines[cells])


def by_cell(
    logits: Float[Tensor, "b l k"], sequence: Int[Tensor, "#b l"]
) -> Float[Tensor, "b l k"]:
    """Logits by place in the order of the cells; `sequence` is the cell at each place."""
    sequence = sequence.expand(len(logits), -1)
    return torch.zeros_like(logits).scatter(1, sequence[..., None].expand_as(logits), logits)


def _joined(packing: Packing, rotations: Sequence[Rotation | None]) -> Rotation | None:
    cos = [each.cos for each in rotations if each is not None]
    sin = [each.sin for each in rotations if each is not None]
    return Rotation(packing.joined(cos)[None], packing.joined(sin)[None]) if cos else None


@lru_cache(maxsize=64)
def _layout(
    schedule: Schedule, num_prefix: int, method: MethodConfig, training: bool, given: bytes | None
) -> Layout:
    """One for all who ask alike: what is made from a layout is kept by it."""
    cells = None if given is None else np.frombuffer(given, dtype=bool)
    return METHODS[method.name](schedule, num_prefix, method, training, cells)


@lru_cache(maxsize=64)
def _all_rows(layout: Layout, device: torch.device) -> tuple[FedRows, Sources]:
    rows = FedRows.of(layout, np.arange(layout.num_rows), device)
    return rows, Sources.of(layout.source, device)


def _table(count: int, width: int) -> nn.Embedding:
    table = nn.Embedding(count, width)
    nn.init.normal_(table.weight, std=0.02)
    return table


def _count(layout: Layout, kind: Embedding) -> int:
    return int((layout.embedding == kind).sum())
