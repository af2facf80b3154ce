"""How well the codes of each scale are used, and how much each scale leaves over.

    tally = HealthTally(schedule, tokenizer.codebook_size)
    tally.add(codes, residual_share)                 # batch after batch
    for scale in tally.per_scale():
        scale.usage, scale.perplexity, scale.num_dead, scale.residual_share

`measure_health` does it for one batch of latents. Figures of few tokens flatter or shame a
codebook: usage cannot exceed tokens / codebook_size, so judge over a fixed set of clips.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import log2

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.quantizer import MultiScaleQuantizer, Quantized
from tokenizer.scales import Schedule


@dataclass(frozen=True, kw_only=True)
class CodebookHealth:
    """How some codes spread over the codebook."""

    codebook_size: int
    num_tokens: int
    num_used: int
    """Codes that occur."""
    entropy_bits: float
    """Of the frequencies of the codes; of few tokens it is too small."""
    effective_bits: float
    """The bits that a token really carries, by `effective_bits`."""
    residual_share: float | None = None
    """The share of the latents' mean square that is left after this scale; None: not measured."""

    @property
    def usage(self) -> float:
        """The share of the codes that occur."""
        return self.num_used / self.codebook_size

    @property
    def num_dead(self) -> int:
        """Codes that do not occur."""
        return self.codebook_size - self.num_used

    @property
    def perplexity(self) -> float:
        """As many equally frequent codes would carry the same information."""
        return 2.0**self.entropy_bits

    @property
    def entropy_share(self) -> float:
        """Entropy over that of a codebook whose codes are all equally frequent."""
        return self.entropy_bits / log2(self.codebook_size)


class HealthTally:
    """Adds up the codes of batches of one schedule; memory grows with the codes that occur."""

    def __init__(self, schedule: Schedule, codebook_size: int) -> None:
        self.schedule = schedule
        self.codebook_size = codebook_size
        self._counts = [_Counts() for _ in schedule.scales]
        self._left = torch.zeros(len(schedule.scales), dtype=torch.float64)
        self._num_measured = 0

    def add(
        self, codes: Int[Tensor, "b l"], residual_share: Float[Tensor, " s"] | None = None
    ) -> None:
        """A batch, and what each scale left of it."""
        self._add([part.flatten() for part in self.schedule.split(codes)], residual_share)

    def add_step(self, quantized: Quantized) -> None:
        """The batch of a training step; nothing when it was not quantized."""
        if quantized.codes is None:
            return
        batch_size = len(quantized.codes) // self.schedule.num_tokens
        sizes = [batch_size * scale.num_tokens for scale in self.schedule.scales]
        self._add(list(quantized.codes.split(sizes)), quantized.residual_share)

    def per_scale(self) -> list[CodebookHealth]:
        """Health of each scale, in the order of the schedule."""
        shares: list[float | None] = [None] * len(self._counts)
        if self._num_measured:
            shares = list((self._left / self._num_measured).tolist())
        return [
            counts.health(self.codebook_size, share) for counts, share in zip(self._counts, shares)
        ]

    def per_level(self) -> list[CodebookHealth]:
        """Health at each place in the pyramids, coarse to fine, of all pyramids together."""
        return [
            _joint(self._counts[index] for index in level).health(self.codebook_size)
            for level in self.schedule.levels
        ]

    def overall(self, others: Iterable[HealthTally] = ()) -> CodebookHealth:
        """Health of all scales together, with those of `others` of the same codebook."""
        tallies = [self, *others]
        return _joint(each for tally in tallies for each in tally._counts).health(
            self.codebook_size
        )

    def _add(self, parts: list[Tensor], residual_share: Float[Tensor, " s"] | None) -> None:
        batch_size = len(parts[0]) // self.schedule.scales[0].num_tokens
        for counts, part in zip(self._counts, parts):
            ids = part.to("cpu", torch.int64)
            counts.add(ids, torch.ones_like(ids))
        if residual_share is not None:
            self._left += batch_size * residual_share.detach().double().cpu()
            self._num_measured += batch_size


@torch.no_grad()
def measure_health(
    quantizer: MultiScaleQuantizer, latents: Float[Tensor, "b c t h w"], schedule: Schedule
) -> list[CodebookHealth]:
    """Health of each scale over one batch of latents."""
    tally = HealthTally(schedule, quantizer.codebook_size)
    tally.add_step(quantizer(latents, schedule))
    return tally.per_scale()


def codebook_health(codes: Int[Tensor, "..."], codebook_size: int) -> CodebookHealth:
    """Health over all `codes`."""
    counts = _Counts()
    ids = codes.flatten().to("cpu", torch.int64)
    counts.add(ids, torch.ones_like(ids))
    return counts.health(codebook_size)


def effective_bits(times: Int[Tensor, " n"], codebook_size: int) -> float:
    """The entropy in bits of codes that occurred so many `times`, each at least once.

    By the estimator of Chao and Shen (2003), which allows for the codes that have not come yet: the
    entropy of the frequencies alone would make a large codebook look cheap on few tokens.
    """
    num_tokens = int(times.sum())
    if num_tokens < 2:
        return 0.0
    num_once = min(int((times == 1).sum()), num_tokens - 1)
    share = (1 - num_once / num_tokens) * times.double() / num_tokens
    chance_to_occur = 1 - (1 - share) ** num_tokens
    bits = abs(float((share * share.log2() / chance_to_occur).sum()))
    return min(bits, log2(codebook_size))


def _joint(parts: Iterable[_Counts]) -> _Counts:
    total = _Counts()
    for each in parts:
        total.add(each.ids, each.times)
    return total


class _Counts:
    """How often each code that occurs does."""

    def __init__(self) -> None:
        self.ids = torch.zeros(0, dtype=torch.int64)
        self.times = torch.zeros(0, dtype=torch.int64)

    def add(self, ids: Int[Tensor, " n"], times: Int[Tensor, " n"]) -> None:
        both = torch.cat([self.times, times])
        self.ids, places = torch.unique(torch.cat([self.ids, ids]), return_inverse=True)
        self.times = torch.zeros_like(self.ids).index_add_(0, places, both)

    def health(self, codebook_size: int, residual_share: float | None = None) -> CodebookHealth:
        share = self.times.double() / self.times.sum().clamp(min=1)
        return CodebookHealth(
            codebook_size=codebook_size,
            num_tokens=int(self.times.sum()),
            num_used=len(self.ids),
            entropy_bits=abs(float((share * share.log2()).sum())),
            effective_bits=effective_bits(self.times, codebook_size),
            residual_share=residual_share,
        )
