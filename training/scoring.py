"""Scores of a tokenizer over the clips of one shape, added up batch by batch.

    score = Score(tokenizer, Bucket(...), extractors)
    for frames in batches:                           # uint8 [b, t, h, w, 3]
        score.add(frames)
    score.report()                                   # plain JSON values

Scales are told apart by their *level*: their place in their pyramid, coarse to fine. A clip of two
pyramids of three scales has three levels, and "after two levels" decodes two scales of each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tokenizer.extractors import Extractor
from tokenizer.frechet import Moments, frechet_distance
from tokenizer.health import CodebookHealth, HealthTally
from tokenizer.metrics import frame_psnr, mean_color, ms_ssim, ssim, temporal_psnr
from tokenizer.model import Tokenizer, signed
from tokenizer.perceptual import SMALLEST_SIDE
from tokenizer.similarity import WINDOW
from training.rate_distortion import Point

Lpips = Callable[[Float[Tensor, "b 3 t h w"], Float[Tensor, "b 3 t h w"]], Float[Tensor, " b"]]


@dataclass(frozen=True)
class Decoded:
    """A batch and what its codes give back, after each level."""

    frames: UInt8[Tensor, "b t h w 3"]
    after: list[UInt8[Tensor, "b t h w 3"]]
    psnr: Float[Tensor, " b"]


class Score:
    """Sums over clips of one shape; every figure is a mean over the clips added so far."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        shape: tuple[int, int, int],
        extractors: Sequence[Extractor] = (),
        lpips: Lpips | None = None,
    ) -> None:
        self.schedule = tokenizer.schedule_for(*shape)
        self.num_clips = 0
        self._tokenizer = tokenizer
        self._shape = shape
        self._levels = self.schedule.levels
        self._extractors = extractors
        self._lpips = lpips
        self._device = next(tokenizer.parameters()).device
        self._sums: dict[str, float] = {}
        self._frame_psnr = torch.zeros(shape[0], dtype=torch.float64)
        self._after: list[dict[str, float]] = [{} for _ in self._levels]
        self._energy = 0.0
        self._left = [0.0] * len(self._levels)
        self.tally = HealthTally(self.schedule, tokenizer.codebook_size)
        self._moments: dict[str, dict[str, Moments]] = {each.name: {} for each in extractors}
        self._seconds: dict[str, list[float]] = {"encode": [], "decode": []}

    @torch.no_grad()
    def add(self, frames: UInt8[Tensor, "b t h w 3"]) -> Decoded:
        """Encodes, decodes after every level, and adds what came out."""
        frames = frames.to(self._device)
        tokenizer, schedule = self._tokenizer, self.schedule
        started = self._now()
        latents = tokenizer.encode_latents(signed(frames))
        codes = tokenizer.quantizer.encode(latents, schedule)
        encoded = self._now()
        whole = tokenizer.decode(codes, schedule)
        decoded = self._now()
        self._seconds["encode"].append((encoded - started) / len(frames))
        self._seconds["decode"].append((decoded - encoded) / len(frames))
        after = [
            tokenizer.decode(codes, schedule, count) for count in range(1, len(self._levels))
        ] + [whole]
        self.num_clips += len(frames)
        self.tally.add(codes)
        self._add_residuals(latents, codes)
        by_level = [_basic(part, frames) for part in after]
        for sums, values in zip(self._after, by_level):
            _add(sums, values)
        _add(self._sums, by_level[-1])
        self._add_whole(whole, frames)
        for extractor in self._extractors:
            kinds = {"source": frames, "decoded": whole, "flat": mean_color(frames)}
            known = self._moments[extractor.name]
            for kind, clips in kinds.items():
                found = Moments.of(extractor(clips))
                known[kind] = known[kind] + found if kind in known else found
        psnr = frame_psnr(whole, frames).mean(dim=1)
        return Decoded(frames.cpu(), [each.cpu() for each in after], psnr.cpu())

    def report(self) -> dict[str, Any]:
        """All figures as plain JSON values; None where a figure does not exist."""
        pixels = math.prod(self._shape)
        points = self.points()
        return {
            "num_clips": self.num_clips,
            "shape": list(self._shape),
            "tokens_per_clip": self.schedule.num_tokens,
            "nominal_bits_per_pixel": points[-1].nominal_bits_per_pixel,
            "effective_bits_per_pixel": points[-1].effective_bits_per_pixel,
            "pixels_per_token": pixels / self.schedule.num_tokens,
            **self.means(),
            "psnr_by_frame": [round(v, 4) for v in (self._frame_psnr / self.num_clips).tolist()],
            "frechet": distances(self._moments),
            "levels": self.levels(),
            "after_levels": [asdict(each) for each in points],
            "clips_per_second": self.speed(),
        }

    def means(self) -> dict[str, float | None]:
        """Each measure of whole reconstructions, the mean over clips."""
        names = ("psnr", "psnr_mean_color", "ssim", "ms_ssim", "temporal_psnr", "lpips")
        return {
            name: self._sums[name] / self.num_clips if name in self._sums else None
            for name in names
        }

    def points(self) -> list[Point]:
        """The rate-distortion curve of this shape."""
        pixels = math.prod(self._shape)
        nominal = effective = 0.0
        points = []
        health = self.tally.per_level()
        for level, sums in enumerate(self._after):
            tokens = sum(self.schedule.scales[each].num_tokens for each in self._levels[level])
            nominal += tokens * math.log2(self._tokenizer.codebook_size)
            effective += tokens * health[level].effective_bits
            points.append(
                Point(
                    num_scales=level + 1,
                    nominal_bits_per_pixel=nominal / pixels,
                    effective_bits_per_pixel=effective / pixels,
                    psnr=sums["psnr"] / self.num_clips,
                    ssim=sums["ssim"] / self.num_clips if "ssim" in sums else None,
                )
            )
        return points

    def levels(self) -> list[dict[str, Any]]:
        """Size, residual and use of the codebook at each level."""
        found = []
        health = self.tally.per_level()
        for level, indices in enumerate(self._levels):
            scales = [self.schedule.scales[each] for each in indices]
            found.append(
                {
                    "grid": [scales[-1].h, scales[-1].w],
                    "tokens_per_clip": sum(each.num_tokens for each in scales),
                    "residual": self._left[level] / self._energy if self._energy else 0.0,
                    **use_of(health[level]),
                }
            )
        return found

    @property
    def pixels_per_clip(self) -> int:
        return math.prod(self._shape)

    @property
    def moments(self) -> dict[str, dict[str, Moments]]:
        """By extractor and kind of clip (source, decoded, flat)."""
        return self._moments

    def speed(self) -> dict[str, float]:
        """Clips per second, the median over batches; the first of several only warms up."""
        rates = {
            name: 1 / median(seconds[1:] or seconds) for name, seconds in self._seconds.items()
        }
        both = [sum(pair) for pair in zip(*self._seconds.values())]
        return rates | {"both": 1 / median(both[1:] or both)}

    def _add_residuals(
        self, latents: Float[Tensor, "b c t h w"], codes: Int[Tensor, "b l"]
    ) -> None:
        quantizer = self._tokenizer.quantizer
        target = quantizer.codebook.prepared(latents).double()
        self._energy += float(target.square().sum())
        for level in range(len(self._levels)):
            partial = quantizer.decode(codes, self.schedule, level + 1)
            self._left[level] += float((target - partial).square().sum())

    def _add_whole(
        self, decoded: UInt8[Tensor, "b t h w 3"], frames: UInt8[Tensor, "b t h w 3"]
    ) -> None:
        by_frame = frame_psnr(decoded, frames)
        self._frame_psnr += by_frame.sum(dim=0).cpu()
        found = {"psnr_mean_color": frame_psnr(mean_color(frames), frames).mean(dim=1)}
        if min(frames.shape[2:4]) >= WINDOW:
            found["ms_ssim"] = ms_ssim(decoded, frames)
        if frames.shape[1] > 1:
            found["temporal_psnr"] = temporal_psnr(decoded, frames)
        if self._lpips is not None and min(frames.shape[2:4]) >= SMALLEST_SIDE:
            found["lpips"] = self._lpips(signed(decoded), signed(frames))
        _add(self._sums, found)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def use_of(health: CodebookHealth) -> dict[str, Any]:
    """How codes use their codebook, as plain values.

    The entropy is that of the frequencies found, which is too low where tokens are few: it cannot
    be more than the logarithm of their number.
    """
    return {
        "num_tokens": health.num_tokens,
        "usage": health.usage,
        "num_dead": health.num_dead,
        "perplexity": health.perplexity,
        "entropy_bits": health.entropy_bits,
    }


def distances(moments: dict[str, dict[str, Moments]]) -> dict[str, dict[str, Any]]:
    """Frechet distances to the source, by extractor: of reconstructions and of flat colours."""
    found = {}
    for name, kinds in moments.items():
        if not kinds or kinds["source"].count < 2:
            continue
        found[f"FD-{name}"] = {
            "decoded": frechet_distance(kinds["decoded"], kinds["source"]),
            "mean_color": frechet_distance(kinds["flat"], kinds["source"]),
            "num_samples": kinds["source"].count,
            "num_features": len(kinds["source"].mean),
        }
    return found


def _basic(
    decoded: UInt8[Tensor, "b t h w 3"], frames: UInt8[Tensor, "b t h w 3"]
) -> dict[str, Float[Tensor, " b"]]:
    found = {"psnr": frame_psnr(decoded, frames).mean(dim=1)}
    if min(frames.shape[2:4]) >= WINDOW:
        found["ssim"] = ssim(decoded, frames)
    return found


def _add(sums: dict[str, float], values: dict[str, Float[Tensor, " b"]]) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + float(value.double().sum())
