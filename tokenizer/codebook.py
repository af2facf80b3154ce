"""A codebook: nearest code by squared distance, codes as running means of what they stand for.

All of it is float32. While the autoencoder warms up, `observe` keeps recent vectors; `initialise`
clusters them into the first codes; `update` then follows the data and moves codes that nobody uses
onto vectors that somebody needs (van den Oord et al. 2017, appendix; Dhariwal et al. 2020).

Every number is a buffer, so a resumed training continues exactly, and every rank of a process group
holds the same ones: sums are added over the ranks, random picks come from the first rank.
"""

from __future__ import annotations

import torch
import torch.distributed
from jaxtyping import Float, Int
from torch import Tensor, nn

OBSERVED_PER_CODE = 16
CLUSTERING_ROUNDS = 10


class Codebook(nn.Module):
    """`size` codes of `dim` channels."""

    weight: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    observed: Tensor
    num_observed: Tensor
    is_initialised: Tensor

    def __init__(self, size: int, dim: int, ema_decay: float, restart_share: float) -> None:
        super().__init__()
        self.ema_decay = ema_decay
        self.restart_share = restart_share
        self.register_buffer("weight", torch.zeros(size, dim))
        self.register_buffer("ema_count", torch.ones(size))
        self.register_buffer("ema_sum", torch.zeros(size, dim))
        self.register_buffer("observed", torch.zeros(OBSERVED_PER_CODE * size, dim))
        self.register_buffer("num_observed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("is_initialised", torch.zeros((), dtype=torch.bool))

    @property
    def size(self) -> int:
        return self.weight.shape[0]

    @property
    def dim(self) -> int:
        return self.weight.shape[1]

    def nearest(self, vectors: Float[Tensor, "n c"]) -> Int[Tensor, " n"]:
        """The code at the smallest squared distance; the first of equals."""
        codes = self.weight
        scores = torch.addmm(codes.square().sum(dim=1), vectors, codes.T, alpha=-2)
        return scores.argmin(dim=1)

    def lookup(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... c"]:
        return nn.functional.embedding(ids, self.weight)

    def set_codes(self, codes: Float[Tensor, "k c"]) -> None:
        """Puts codes in place as if each had been used once."""
        self.weight.copy_(codes)
        self.ema_sum.copy_(codes)
        self.ema_count.fill_(1)
        self.is_initialised.fill_(True)

    @property
    def capacity(self) -> int:
        """How many calls of `observe` are remembered."""
        return len(self.observed) // self.size

    @torch.no_grad()
    def observe(self, vectors: Float[Tensor, "n c"], generator: torch.Generator) -> None:
        """Keeps some vectors for `initialise`; the oldest make room."""
        picks = self._picks(vectors, generator)
        start = int(self.num_observed) % len(self.observed)
        self.observed[start : start + self.size] = picks
        self.num_observed += self.size

    @torch.no_grad()
    def initialise(self, vectors: Float[Tensor, "n c"], generator: torch.Generator) -> None:
        """Codes by k-means of what was observed, or of `vectors` when nothing was."""
        if not self.num_observed:
            self.observe(vectors, generator)
        data = self.observed[: min(int(self.num_observed), len(self.observed))]
        codes = data[_draw(len(data), self.size, generator, data.device)]
        jitter = torch.randn(codes.shape, generator=generator, device=generator.device)
        codes = codes + 1e-3 * data.std() * jitter.to(codes.device)
        for _ in range(CLUSTERING_ROUNDS):
            self.weight.copy_(codes)
            counts, sums = self._totals(data, self.nearest(data))
            codes = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), codes)
        self.set_codes(_from_first_rank(codes))

    @torch.no_grad()
    def update(
        self,
        vectors: Float[Tensor, "n c"],
        ids: Int[Tensor, " n"],
        generator: torch.Generator,
    ) -> Int[Tensor, ""]:
        """Moves codes towards the vectors they were given; returns how many were restarted."""
        counts, sums = self._totals(vectors, ids)
        _add_over_ranks(counts)
        _add_over_ranks(sums)
        self.ema_count.lerp_(counts, 1 - self.ema_decay)
        self.ema_sum.lerp_(sums, 1 - self.ema_decay)
        used = self.ema_count > 0
        means = self.ema_sum / self.ema_count.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        self.weight.copy_(torch.where(used[:, None], means, self.weight))
        average = self.ema_count.mean()
        dead = self.ema_count < self.restart_share * average
        picks = self._picks(vectors, generator)
        self.weight.copy_(torch.where(dead[:, None], picks, self.weight))
        self.ema_count.copy_(torch.where(dead, average, self.ema_count))
        self.ema_sum.copy_(torch.where(dead[:, None], picks * average, self.ema_sum))
        return dead.sum()

    def _totals(
        self, vectors: Float[Tensor, "n c"], ids: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, "k c"]]:
        """How many vectors each code has, and their sums."""
        counts = torch.bincount(ids, minlength=self.size).to(torch.float32)
        return counts, torch.zeros_like(self.weight).index_add_(0, ids, vectors)

    def _picks(
        self, vectors: Float[Tensor, "n c"], generator: torch.Generator
    ) -> Float[Tensor, "k c"]:
        """One vector per code, drawn on the first rank."""
        return _from_first_rank(vectors[_draw(len(vectors), self.size, generator, vectors.device)])


def _draw(
    population: int, count: int, generator: torch.Generator, device: torch.device
) -> Int[Tensor, " n"]:
    """Indices below `population`, each at most once where there are enough."""
    if population >= count:
        drawn = torch.randperm(population, generator=generator, device=generator.device)[:count]
    else:
        drawn = torch.randint(population, (count,), generator=generator, device=generator.device)
    return drawn.to(device)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _add_over_ranks(values: Tensor) -> None:
    if _is_distributed():
        torch.distributed.all_reduce(values)


def _from_first_rank(values: Tensor) -> Tensor:
    values = values.contiguous()
    if _is_distributed():
        torch.distributed.broadcast(values, src=0)
    return values
