"""The running average of a module's weights, which is often better than any of them.

    average = WeightAverage(module, decay=0.999)
    average.update()                  # after every optimizer step
    with average.applied():           # the module has the averaged weights
        save(module)

Parameters are averaged in float32; buffers are the module's own. The decay begins small, so that
the beginning is soon forgotten: after n updates it is min(decay, (1 + n) / (10 + n)). Averages are
sharded as the parameters are, and nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tokenizer.lookups.lookup import Renewal
from training.parallel import local, own_rows


class WeightAverage:
    """Follows the parameters of `module` from now on."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.averages = {
            name: each.detach().clone(memory_format=torch.contiguous_format).float()
            for name, each in module.named_parameters()
        }
        """By name of the parameter, sharded like it."""
        self.num_updates = 0
        self._decay = decay

    @torch.no_grad()
    def begin(self) -> None:
        """Follows the parameters from now on: nothing is remembered of any before."""
        self.num_updates = 0
        for name, parameter in self.module.named_parameters():
            self.averages[name].copy_(parameter)

    @torch.no_grad()
    def update(self, renewed: Mapping[nn.Parameter, Renewal] | None = None) -> None:
        """Moves the averages towards the parameters as they are now.

        Rows in `renewed` were put somewhere new: their averages begin there.
        """
        self.num_updates += 1
        decay = min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        parameters = dict(self.module.named_parameters())
        averages = [local(each) for each in self.averages.values()]
        current = [local(each.detach()).float() for each in parameters.values()]
        torch._foreach_lerp_(averages, current, 1 - decay)
        renewed = renewed or {}
        for average, now, parameter in zip(averages, current, parameters.values()):
            if parameter in renewed:
                rows = renewed[parameter].rows[own_rows(parameter)]
                average[rows] = now[rows]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters are their averages; afterwards they are what they were."""
        parameters = dict(self.module.named_parameters())
        kept = {name: each.detach().clone() for name, each in parameters.items()}
        try:
            self._put(parameters, self.averages)
            yield
        finally:
            self._put(parameters, kept)

    @torch.no_grad()
    def _put(self, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
