"""The ranks of a run, whoever started them: who this one is, and what all of them agree on.

Every run is one of `torch.distributed`; that of a single process is a group of one, which `alone`
makes. Ranks that draw different conclusions wait for each other for ever, so what may differ from
rank to rank (an error, a signal) is decided together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch.distributed as dist
from torch import Tensor

from tokenizer.settings import UserError

Made = TypeVar("Made")


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without `torch.distributed`."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def backend(on_gpu: bool) -> str:
    """What the ranks talk by: gloo is there on GPUs too, for what is said by processors."""
    return "cpu:gloo,cuda:nccl" if on_gpu else "gloo"


@contextmanager
def alone(on_gpu: bool = False) -> Iterator[None]:
    """A group of this process only, unless it is in one already."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group(backend(on_gpu), store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Waits for all ranks."""
    if rank_and_world_size()[1] > 1:
        dist.barrier()


def summed(value: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(value)
    return value


def together(make: Callable[[], Made]) -> Made:
    """What `make` returns on this rank, if no rank fails.

    Where one does, every rank raises the same UserError, that of the first that did, with its
    number unless all have it; an error of another kind is raised as it is by the rank that has it.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return make()
    made, failure = None, None
    try:
        made = make()
    except Exception as error:
        failure = error
    told: list[str | None] = [None] * world_size
    dist.all_gather_object(told, None if failure is None else _said(failure))
    if failure is not None and not isinstance(failure, UserError):
        raise failure
    for number, reason in enumerate(told):
        if reason is not None:
            is_shared = all(each == reason for each in told)
            raise UserError(reason if is_shared else f"{reason} (rank {number})") from failure
    return cast(Made, made)


def from_first(value: Made) -> Made:
    """The first rank's value, a plain Python object, on every rank."""
    told = [value]
    if rank_and_world_size()[1] > 1:
        dist.broadcast_object_list(told, src=0)
    return told[0]


def gathered(value: Made) -> list[Made]:
    """The value of each rank; plain Python objects."""
    _, world_size = rank_and_world_size()
    values = [value] * world_size
    if world_size > 1:
        dist.all_gather_object(values, value)
    return values


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
