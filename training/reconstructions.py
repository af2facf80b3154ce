"""What a tokenizer makes of some clips: pictures to look at, and how well its codes are used.

    preview = preview_tokenizer(tokenizer, {"t9_h64_w64": frames})     # uint8 [n, t, h, w, 3]

A picture has a column of frames per clip (first, middle, last), the source above its
reconstruction. Values are named `what/bucket scale`, so TensorBoard draws one chart per `what`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import UInt8

from tokenizer.health import HealthTally
from tokenizer.metrics import psnr
from tokenizer.model import Tokenizer, signed
from training.tasks.task import Preview

SHOWN_CLIPS = 4
_TOGETHER = 8
_GAP = 4
_PAPER = 40


@torch.no_grad()
def preview_tokenizer(
    tokenizer: Tokenizer, clips: Mapping[str, UInt8[np.ndarray, "n t h w 3"]]
) -> Preview:
    """Pictures of the first clips of each bucket, and PSNR and health of the codes over all."""
    device = next(tokenizer.parameters()).device
    pictures: dict[str, np.ndarray] = {}
    values: dict[str, float] = {}
    for bucket, arrays in clips.items():
        schedule = tokenizer.schedule_for(*arrays.shape[1:4])
        tally = HealthTally(schedule, tokenizer.codebook_size)
        shown: list[torch.Tensor] = []
        likeness = []
        for frames in torch.from_numpy(arrays).split(_TOGETHER):
            latents = tokenizer.encode_latents(signed(frames.to(device)))
            tally.add_step(tokenizer.quantizer(latents, schedule))
            codes = tokenizer.quantizer.encode(latents, schedule)
            decoded = tokenizer.decode(codes, schedule).cpu()
            likeness.append(psnr(decoded, frames))
            if len(shown) * _TOGETHER < SHOWN_CLIPS:
                shown.append(decoded)
        first = torch.cat(shown)[:SHOWN_CLIPS].numpy()
        pictures[f"reconstructions/{bucket}"] = side_by_side(arrays[:SHOWN_CLIPS], first)
        values[f"psnr/{bucket}"] = float(torch.cat(likeness).mean())
        values |= _health(tally, bucket)
    return Preview(pictures=pictures, values=values)


def side_by_side(
    frames: UInt8[np.ndarray, "n t h w 3"], decoded: UInt8[np.ndarray, "n t h w 3"]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """First, middle and last frame of each clip in a row, sources above reconstructions."""
    chosen = sorted({0, frames.shape[1] // 2, frames.shape[1] - 1})
    rows = [_row(each[:, chosen]) for each in (frames, decoded)]
    gap = np.full((_GAP, rows[0].shape[1], 3), _PAPER, dtype=np.uint8)
    return np.concatenate([rows[0], gap, rows[1]])


def _row(frames: UInt8[np.ndarray, "n t h w 3"]) -> UInt8[np.ndarray, "h w2 3"]:
    gap = np.full((frames.shape[2], _GAP, 3), _PAPER, dtype=np.uint8)
    strips = [np.concatenate(list(clip), axis=1) for clip in frames]
    return np.concatenate([each for strip in strips for each in (strip, gap)][:-1], axis=1)


def _health(tally: HealthTally, bucket: str) -> dict[str, float]:
    """Usage, perplexity and unused codes of each scale, and the share of the latents it leaves."""
    values: dict[str, float] = {}
    for number, (scale, health) in enumerate(zip(tally.schedule.scales, tally.per_scale())):
        name = f"{bucket}_{number:02d}_{scale.t}x{scale.h}x{scale.w}"
        assert health.residual_share is not None
        values |= {
            f"usage/{name}": health.usage,
            f"perplexity/{name}": health.perplexity,
            f"unused/{name}": health.num_dead,
            f"left/{name}": health.residual_share,
        }
    return values
