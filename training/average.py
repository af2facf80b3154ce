"""The running average of a module's weights, which is often better than any of them.

    average = WeightAverage(module, decay=0.999)
    average.update()                  # after every optimizer step
    with average.applied():           # the module has the averaged weights
        save(module)

Parameters are averaged in float32; buffers are the module's own. The decay begins small, so that
the beginning is soon forgotten: after n updates it is min(decay, (1 + n) / (10 + n)).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Bool
from torch import Tensor, nn


class WeightAverage:
    """Follows the parameters of `module` from now on."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self._decay = decay
        self.num_updates = 0
        self._averages = {
            name: each.detach().clone(memory_format=torch.contiguous_format).float()
            for name, each in module.named_parameters()
        }

    @torch.no_grad()
    def update(self, renewed: Mapping[nn.Parameter, Bool[Tensor, " n"]] | None = None) -> None:
        """Moves the averages towards the parameters as they are now.

        Rows in `renewed` were put somewhere new: their averages begin there.
        """
        self.num_updates += 1
        decay = min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        current = [each.detach().float() for each in self.module.parameters()]
        torch._foreach_lerp_(list(self._averages.values()), current, 1 - decay)
        renewed = renewed or {}
        for name, parameter in self.module.named_parameters():
            if parameter in renewed:
                rows = renewed[parameter]
                self._averages[name][rows] = parameter.detach()[rows].float()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters are their averages; afterwards they are what they were."""
        parameters = dict(self.module.named_parameters())
        kept = {name: each.detach().clone() for name, each in parameters.items()}
        try:
            self._put(parameters, self._averages)
            yield
        finally:
            self._put(parameters, kept)

    def state(self) -> dict[str, Tensor]:
        """The whole module with averaged parameters, as a checkpoint keeps it."""
        return {**self.module.state_dict(), **self._averages}

    def load(self, state: Mapping[str, Tensor], num_updates: int) -> None:
        """Goes on from what `state` gave after so many updates."""
        self.num_updates = num_updates
        for name, average in self._averages.items():
            average.copy_(state[name])

    @torch.no_grad()
    def _put(self, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
