"""Means of metrics over the steps since they were last told, and over all ranks."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from training.ranks import summed
from training.tasks.task import Mean


class Sums:
    """What a rank adds up; ranks exchange it only when it is told."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.clear()

    def clear(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}
        self._loss = torch.zeros((), dtype=torch.float64, device=self._device)
        self._units = self._flops = self._waited = self._seconds = 0.0

    def add(self, metrics: Mapping[str, Mean]) -> None:
        for name, (total, count) in metrics.items():
            self._totals[name] = self._totals.get(name, 0) + total.double()
            self._counts[name] = self._counts.get(name, 0.0) + count

    def add_loss(self, loss: Tensor) -> None:
        """This rank's part of a loss whose units `spent` counts."""
        self._loss += loss.double()

    def spent(self, units: int, flops: float, waited: float, seconds: float) -> None:
        """A step of this rank: units of loss, operations, and seconds in all and for data."""
        self._units += units
        self._flops += flops
        self._waited += waited
        self._seconds += seconds

    def means(self) -> dict[str, float]:
        """The mean loss and metrics over all ranks; starts anew."""
        return self._taken()[0]

    def take(self, unit: str) -> dict[str, float]:
        """The means, and how fast it went; starts anew."""
        seconds = self._seconds
        values, units, flops, wait_share = self._taken()
        values[f"{unit}_per_second"] = units / seconds
        if flops:
            values["teraflops"] = flops / seconds / 1e12
        values["data_wait_share"] = wait_share
        return values

    def _taken(self) -> tuple[dict[str, float], float, float, float]:
        """Means, and of all ranks units, operations and the share of time spent waiting."""
        names = sorted(self._totals)
        counts = [self._counts[name] for name in names]
        spent = [self._units, self._flops, self._waited, self._seconds]
        own = torch.tensor([*spent, *counts], dtype=torch.float64)
        totals = [self._loss, *(self._totals[name] for name in names)]
        joined = summed(torch.cat([own.to(self._device), torch.stack(totals)])).tolist()
        self.clear()
        units, flops, waited, seconds, *counted = joined[: len(own)]
        sums = joined[len(own) :]
        values = {"loss": sums[0] / units}
        values |= {name: each / count for name, each, count in zip(names, sums[1:], counted)}
        return values, units, flops, waited / seconds if seconds else 0.0


def memory_bytes(device: torch.device) -> int:
    """The most that this process has held so far: on its GPU, or of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024
