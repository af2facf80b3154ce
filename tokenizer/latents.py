"""Statistics of latents: mean and standard deviation of each channel over a dataset.

A model of latents learns best when every channel has mean 0 and size 1; a tokenizer's folder keeps
the two numbers that make it so.

    measured = measure_latents(tokenizer, batches)             # uint8 [b, t, h, w, 3] each
    save_statistics(measured, "runs/demo/tokenizer")           # into its tokenizer.json
    statistics = read_statistics("runs/demo/tokenizer")
    x = statistics.normalize(tokenizer.encode_latents(frames))
    latents = statistics.restore(x)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tokenizer.door import check_finite, check_pixels
from tokenizer.folder import CONFIG_FILE, publish, read_description
from tokenizer.model import Tokenizer, signed
from tokenizer.settings import UserError

KEY = "latents"
"""Where in `tokenizer.json` the statistics are."""
SMALLEST_STD = 1e-6
"""What a channel that never changes is divided by."""


@dataclass(frozen=True, kw_only=True)
class LatentStatistics:
    """Mean and standard deviation of each channel of the latents before the quantizer."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_values: int
    """Latent cells that each channel was measured over."""

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{len(self.mean)} channels of mean {min(self.mean):.3g} to {max(self.mean):.3g}, "
            f"standard deviation {min(self.std):.3g} to {max(self.std):.3g}, "
            f"over {self.num_values:,} cells"
        )

    def normalize(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Latents with channels of mean 0 and standard deviation 1 over the dataset."""
        std = _channels(self.std, latents).clamp(min=SMALLEST_STD)
        return (latents - _channels(self.mean, latents)) / std

    def restore(self, normalized: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """The inverse of `normalize`."""
        return normalized * _channels(self.std, normalized) + _channels(self.mean, normalized)


class LatentMoments:
    """Running sums over batches, float64; those of several workers can be added.

    Squares are summed about the running mean (Chan, Golub and LeVeque 1983), so that a mean far
    from zero costs no digits.
    """

    def __init__(self, num_channels: int) -> None:
        self.num_values = 0
        self._mean = torch.zeros(num_channels, dtype=torch.float64)
        self._squares = torch.zeros(num_channels, dtype=torch.float64)

    def add(self, latents: Float[Tensor, "b c t h w"]) -> None:
        """Counts every cell; NotFinite for the first clip with one that is no number."""
        check_finite(latents)
        values = latents.detach().movedim(1, 0).flatten(1).to("cpu", torch.float64)
        mean = values.mean(dim=1)
        squares = (values - mean[:, None]).square().sum(dim=1)
        self._merge(values.shape[1], mean, squares)

    def merge(self, other: LatentMoments) -> None:
        """Adds what another worker saw."""
        self._merge(other.num_values, other._mean, other._squares)

    def statistics(self) -> LatentStatistics:
        """What was seen so far; ValueError before the first latents."""
        if self.num_values == 0:
            raise ValueError("no latents were measured")
        std = (self._squares / self.num_values).sqrt()
        return LatentStatistics(
            mean=tuple(self._mean.tolist()), std=tuple(std.tolist()), num_values=self.num_values
        )

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if count == 0:
            return
        total = self.num_values + count
        change = mean - self._mean
        self._mean = self._mean + change * (count / total)
        self._squares = (
            self._squares + squares + change.square() * (self.num_values * count / total)
        )
        self.num_values = total


def measure_latents(
    tokenizer: Tokenizer, batches: Iterable[UInt8[Tensor, "b t h w 3"]]
) -> LatentStatistics:
    """The statistics over batches of clips, of any shapes; UserError when there are none."""
    moments = LatentMoments(tokenizer.quantizer.codebook_dim)
    for frames in batches:
        check_pixels(frames)
        moments.add(tokenizer.encode_latents(signed(frames)))
    if moments.num_values == 0:
        raise UserError("no clips: the statistics of latents need at least one")
    return moments.statistics()


def save_statistics(statistics: LatentStatistics, directory: str | Path) -> None:
    """Puts the statistics into a tokenizer's folder; codes and fingerprint stay what they are."""
    directory = Path(directory)
    description = read_description(directory)
    description[KEY] = asdict(statistics)
    publish(directory / CONFIG_FILE, (json.dumps(description, indent=1) + "\n").encode())


def read_statistics(directory: str | Path) -> LatentStatistics:
    """The statistics in a tokenizer's folder; UserError when there are none or they are damaged."""
    directory = Path(directory)
    description = read_description(directory)
    if KEY not in description:
        raise UserError(
            f"{directory}: the latents of this tokenizer were not measured; "
            f"run `tessera tokenizer latents {directory} --data DATA`"
        )
    try:
        return _parsed(description[KEY])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory / CONFIG_FILE}: {KEY} is damaged ({error}); measure them again"
        ) from None


def _parsed(record: Mapping[str, Any]) -> LatentStatistics:
    mean = tuple(float(value) for value in record["mean"])
    std = tuple(float(value) for value in record["std"])
    num_values = record["num_values"]
    if not mean or len(mean) != len(std):
        raise ValueError(f"{len(mean)} means for {len(std)} standard deviations")
    if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) < 0:
        raise ValueError("means must be finite and stds finite and not negative")
    if type(num_values) is not int or num_values < 1:
        raise ValueError(f"num_values ({num_values!r}) must be a positive integer")
    return LatentStatistics(mean=mean, std=std, num_values=num_values)


def _channels(values: tuple[float, ...], like: Float[Tensor, "b c t h w"]) -> Tensor:
    if like.ndim != 5 or like.shape[1] != len(values):
        raise UserError(
            f"latents of shape {list(like.shape)} do not fit the statistics: "
            f"[b, {len(values)}, t, h, w] is needed"
        )
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None, None]
