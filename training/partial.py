"""A clip while it is generated: the codes known so far, and the features made from them.

Next-scale prediction asks a scale with what the scales before it say: the partial reconstruction of
its own pyramid, which the quantizer keeps as a state, and the latent frame before that pyramid,
both shrunk to the scale's grid. (Without the latter nothing would carry the finest codes of a
finished pyramid to the next one.) Teacher forcing writes known codes scale by scale, the sampler
writes them as they are drawn; both get the same features.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.scales import Scale, Schedule


class PartialClip:
    """`codes` int64 [b, l] and, with a quantizer, `features` [b, l, c]; what is unknown is zero.

    `num_features` is the c that a generator was made for: see `feature_channels`.
    """

    def __init__(
        self,
        schedule: Schedule,
        batch_size: int,
        device: torch.device,
        quantizer: MultiScaleQuantizer | None,
        num_features: int = 0,
    ) -> None:
        self.schedule = schedule
        self.codes: Int[Tensor, "b l"] = torch.zeros(
            batch_size, schedule.num_tokens, dtype=torch.int64, device=device
        )
        self.features: Float[Tensor, "b l c"] | None = None
        self._missing = np.array([scale.num_tokens for scale in schedule.scales])
        self._next_scale = 0
        if quantizer is not None:
            self._state = quantizer.start(schedule, batch_size)
            self.features = torch.zeros(
                batch_size, schedule.num_tokens, num_features, device=device
            )

    def write(self, cells: Int[Tensor, "#b n"], codes: Int[Tensor, "b n"]) -> None:
        """Puts codes at cells, for every clip as many of each scale; a finished scale makes the
        features of the next one."""
        self.codes.scatter_(1, cells.expand_as(codes), codes)
        if self.features is None:
            return
        np.subtract.at(self._missing, self.schedule.scale_of_token[cells[0].cpu().numpy()], 1)
        offsets = self.schedule.offsets
        while self._next_scale < len(self._missing) and not self._missing[self._next_scale]:
            start, end = offsets[self._next_scale], offsets[self._next_scale + 1]
            self._state.add(self.codes[:, start:end])
            self._next_scale += 1
            if self._next_scale < len(self._missing):
                scale = self.schedule.scales[self._next_scale]
                stop = offsets[self._next_scale + 1]
                own = self._state.next_input()
                self.features[:, end:stop, : own.shape[-1]] = own
                if scale.t0:
                    self.features[:, end:stop, own.shape[-1] :] = self._frame_before(scale)

    @property
    def latents(self) -> Float[Tensor, "b c t h w"]:
        """The last pyramid that has codes, as far as it is known (with a quantizer)."""
        return self._state.last

    def _frame_before(self, scale: Scale) -> Float[Tensor, "b n c"]:
        """The latent frame before a scale's pyramid, on the scale's grid."""
        last = self._state.latents[:, :, -1]
        shrunk = F.interpolate(last, size=(scale.h, scale.w), mode="area")
        return shrunk[:, :, None].expand(-1, -1, scale.t, -1, -1).flatten(2).movedim(1, 2)


def feature_channels(quantizer: MultiScaleQuantizer, schedule: Schedule) -> int:
    """Channels of the features: the partial reconstruction's and, in videos, the frame's before."""
    return quantizer.codebook_dim * (1 if schedule.num_latent_frames == 1 else 2)


@torch.no_grad()
def input_features(
    quantizer: MultiScaleQuantizer,
    codes: Int[Tensor, "b l"],
    schedule: Schedule,
    num_features: int,
) -> Float[Tensor, "b l c"]:
    """The features of all scales of known clips."""
    clip = PartialClip(schedule, len(codes), codes.device, quantizer, num_features)
    for start, stop in zip(schedule.offsets, schedule.offsets[1:]):
        cells = torch.arange(start, stop, device=codes.device)
        clip.write(cells[None], codes[:, start:stop])
    assert clip.features is not None
    return clip.features
