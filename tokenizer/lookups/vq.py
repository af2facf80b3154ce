"""A table of codes, each with a vector: VQ.

`metric` says what is near. l2: squared distance. cosine: the angle alone decides, the code's own
vector comes out (VAR's `using_znorm`). sphere: latents and codes have length one (LlamaGen).

`learned_by` says how codes follow the vectors they stand for: by running means (van den Oord et
al. 2017, appendix), or as a parameter, by the gradient of the quantizer's loss. In both, codes
that nobody uses are put where data is (Dhariwal et al. 2020), and the first codes are k-means of
what `observe` kept. All numbers are in the state, so a resumed training continues exactly, and
every rank holds the same ones: sums are added over the ranks, random picks are the first rank's.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tokenizer.lookups.entropy import entropy_over_codes
from tokenizer.lookups.lookup import Lookup, Renewal
from tokenizer.lookups.ranks import add_over_ranks, from_first_rank

OBSERVED_PER_CODE = 16
OBSERVED_VALUES = 1 << 26
"""Observed vectors are limited to so many numbers: 256 MB."""
CLUSTERING_ROUNDS = 10
SCORES_AT_ONCE = 1 << 26
"""Distances held at a time, of some vectors to all codes."""


class VectorLookup(Lookup):
    """`size` codes of `dim` channels; they are zero until `initialise`, `set_codes` or a file."""

    weight: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    observed: Tensor
    num_observed: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        metric: Literal["l2", "cosine", "sphere"] = "l2",
        learned_by: Literal["ema", "gradient"] = "ema",
        first_codes: Literal["data", "random"] = "data",
        ema_decay: float = 0.98,
        restart_share: float = 0.03,
        entropy_weight: float = 0.0,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        self.size = size
        self.dim = dim
        self.metric = metric
        self.has_given_length = metric == "sphere"
        self.learned_by = learned_by
        self.first_codes = first_codes
        self.ema_decay = ema_decay
        self.restart_share = restart_share
        self.entropy_weight = entropy_weight
        self.entropy_temperature = entropy_temperature
        self.capacity = max(1, min(OBSERVED_PER_CODE, OBSERVED_VALUES // (size * dim)))
        if learned_by == "gradient":
            self.weight = nn.Parameter(torch.zeros(size, dim))
        else:
            self.register_buffer("weight", torch.zeros(size, dim))
        self.register_buffer("ema_count", torch.ones(size))
        if learned_by == "ema":
            self.register_buffer("ema_sum", torch.zeros(size, dim))
        self.register_buffer("observed", torch.zeros(self.capacity * size, dim))
        self.register_buffer("num_observed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("is_initialised", torch.zeros((), dtype=torch.bool))
        self._renewal: Renewal | None = None

    def prepared(self, latents: Float[Tensor, "b c *grid"]) -> Float[Tensor, "b c *grid"]:
        return functional.normalize(latents, dim=1) if self.metric == "sphere" else latents

    @torch.no_grad()
    def nearest(self, vectors: Float[Tensor, "n c"]) -> Int[Tensor, " n"]:
        """The code at the smallest squared distance or angle; the first of equals."""
        rows = max(1, SCORES_AT_ONCE // self.size)
        if len(vectors) <= rows:
            return self._nearest(vectors)
        return torch.cat([self._nearest(part) for part in vectors.split(rows)])

    def _nearest(self, vectors: Float[Tensor, "n c"]) -> Int[Tensor, " n"]:
        if self.metric == "l2":
            codes = self.weight
            scores = torch.addmm(codes.square().sum(dim=1), vectors, codes.T, alpha=-2)
            return scores.argmin(dim=1)
        return (vectors @ functional.normalize(self.weight, dim=1).T).argmax(dim=1)

    def lookup(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... c"]:
        return self._placed(functional.embedding(ids, self.weight))

    def losses(self, vectors: Float[Tensor, "n c"]) -> dict[str, Tensor]:
        if not self.entropy_weight:
            return {}
        # cloned: `update` may move the codes before the gradient is taken
        codes, vectors = self._placed(self.weight.clone()), self._placed(vectors)
        distances = vectors.square().sum(dim=1, keepdim=True) + codes.square().sum(dim=1)
        distances = distances - 2 * vectors @ codes.T
        entropy = entropy_over_codes(-distances / self.entropy_temperature)
        return {"entropy": self.entropy_weight * entropy}

    @torch.no_grad()
    def set_codes(self, codes: Float[Tensor, "k c"]) -> None:
        """Puts codes in place as if each had been used once."""
        self.weight.copy_(codes)
        if self.learned_by == "ema":
            self.ema_sum.copy_(codes)
        self.ema_count.fill_(1)
        self.is_initialised.fill_(True)

    def restore(self) -> None:
        self.set_codes(self.weight.detach().clone())

    @torch.no_grad()
    def observe(self, vectors: Float[Tensor, "n c"], generator: torch.Generator) -> None:
        """Keeps some vectors for `initialise`; the oldest make room."""
        picks = self._picks(self._placed(vectors), generator)
        start = int(self.num_observed) % len(self.observed)
        self.observed[start : start + self.size] = picks
        self.num_observed += self.size

    @torch.no_grad()
    def initialise(self, vectors: Float[Tensor, "n c"], generator: torch.Generator) -> None:
        """Codes by k-means of what was observed, or of `vectors` when nothing was.

        With `first_codes` random they are uniform within 1 / size, as VQGAN begins: the plain way.
        """
        if self.first_codes == "random":
            drawn = torch.rand(self.size, self.dim, generator=generator, device=generator.device)
            codes = ((2 * drawn - 1) / self.size).to(self.weight.device)
            self.set_codes(from_first_rank(codes))
            return
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
        self.set_codes(from_first_rank(codes))

    @torch.no_grad()
    def update(
        self, vectors: Float[Tensor, "n c"], ids: Int[Tensor, " n"], generator: torch.Generator
    ) -> Int[Tensor, ""]:
        """Moves codes towards the vectors they were given (unless they learn by gradient), and
        those used less than `restart_share` of the average onto vectors; returns their number.

        Codes that learn by gradient are moved by whoever trains: see `renewed`.
        """
        vectors = self._placed(vectors)
        counts, sums = self._totals(vectors, ids)
        add_over_ranks(counts)
        self.ema_count.lerp_(counts, 1 - self.ema_decay)
        if self.learned_by == "ema":
            add_over_ranks(sums)
            self.ema_sum.lerp_(sums, 1 - self.ema_decay)
            tiny = torch.finfo(torch.float32).tiny
            means = self.ema_sum / self.ema_count.clamp(min=tiny)[:, None]
            self.weight.copy_(torch.where(self.ema_count[:, None] > 0, means, self.weight))
        average = self.ema_count.mean()
        dead = self.ema_count < self.restart_share * average
        picks = self._picks(vectors, generator)
        self.ema_count.copy_(torch.where(dead, average, self.ema_count))
        if self.learned_by == "ema":
            self.weight.copy_(torch.where(dead[:, None], picks, self.weight))
            self.ema_sum.copy_(torch.where(dead[:, None], picks * average, self.ema_sum))
            return dead.sum()
        before = self._renewal
        if before is not None:
            picks = torch.where(dead[:, None], picks, before.values)
            self._renewal = Renewal(dead | before.rows, picks)
        else:
            self._renewal = Renewal(dead, picks)
        return dead.sum()

    def renewed(self) -> dict[nn.Parameter, Renewal]:
        renewal, self._renewal = self._renewal, None
        if renewal is None:
            return {}
        assert isinstance(self.weight, nn.Parameter)
        return {self.weight: renewal}

    def _placed(self, vectors: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        return functional.normalize(vectors, dim=-1) if self.metric == "sphere" else vectors

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
        return from_first_rank(vectors[_draw(len(vectors), self.size, generator, vectors.device)])


def _draw(
    population: int, count: int, generator: torch.Generator, device: torch.device
) -> Int[Tensor, " n"]:
    """Indices below `population`, each at most once where there are enough."""
    if population >= count:
        drawn = torch.randperm(population, generator=generator, device=generator.device)[:count]
    else:
        drawn = torch.randint(population, (count,), generator=generator, device=generator.device)
    return drawn.to(device)
