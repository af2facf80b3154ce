"""A clip while it is generated: the codes known so far, and the feature maps made from them.

Next-scale prediction asks a scale with the partial reconstruction of the scales before it. The
quantizer keeps that reconstruction as a state, so each scale is added once.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.scales import Schedule


class PartialClip:
    """`codes` int64 [b, l] and, with a quantizer, `features` [b, l, c]; what is unknown is zero."""

    def __init__(
        self,
        schedule: Schedule,
        batch_size: int,
        device: torch.device,
        quantizer: MultiScaleQuantizer | None,
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
                batch_size, schedule.num_tokens, quantizer.codebook_dim, device=device
            )

    def write(self, cells: Int[np.ndarray, "n"], codes: Int[Tensor, "b n"]) -> None:
        """Puts codes at cells; a finished scale makes the features of the next one."""
        self.codes[:, torch.as_tensor(cells, device=self.codes.device)] = codes
        np.subtract.at(self._missing, self.schedule.scale_of_token[cells], 1)
        if self.features is None:
            return
        offsets = self.schedule.offsets
        while self._next_scale < len(self._missing) and not self._missing[self._next_scale]:
            start, end = offsets[self._next_scale], offsets[self._next_scale + 1]
            self._state.add(self.codes[:, start:end])
            self._next_scale += 1
            if self._next_scale < len(self._missing):
                self.features[:, end : offsets[self._next_scale + 1]] = self._state.next_input()
