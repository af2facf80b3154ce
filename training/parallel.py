"""A model over ranks: FSDP2 shards it from outside, and it need not know.

    mesh = make_mesh(ParallelConfig(replicate=2), "cuda")     # 2 groups of world_size / 2 ranks
    distribute(module, blocks, mesh, config, torch.bfloat16)

Parameters become DTensors, split along their first axis over the `shard` ranks of a group; groups
hold the same (HSDP). A block is gathered when it is computed. Optimizers, averages and checkpoints
work on the shards; `local` and `own_rows` are this rank's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from tokenizer.settings import UserError
from training.loop_config import ParallelConfig
from training.ranks import rank_and_world_size


def make_mesh(config: ParallelConfig, device: torch.device) -> DeviceMesh:
    """The ranks as (replicate, shard); UserError when there are not as many."""
    _, world_size = rank_and_world_size()
    shard = config.shard or max(world_size // config.replicate, 1)
    if config.replicate * shard != world_size:
        asked = f"parallel.replicate ({config.replicate})"
        if config.shard is not None:
            asked += f" x parallel.shard ({config.shard})"
        fitting = [n for n in range(1, world_size + 1) if world_size % n == 0]
        raise UserError(
            f"{asked} does not fit {world_size} ranks: their product must be the number of ranks; "
            f"replicate can be {', '.join(map(str, fitting))}, and shard left to itself"
        )
    return init_device_mesh(
        device.type, (config.replicate, shard), mesh_dim_names=("replicate", "shard")
    )


def distribute(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    mesh: DeviceMesh,
    config: ParallelConfig,
    dtype: torch.dtype | None = None,
) -> None:
    """Changes `module` so that its forward pass is that of all ranks of `mesh`.

    `blocks` are parts of it that are gathered, recomputed and compiled one by one; the rest is one
    more. With `dtype` they compute with weights of that type; gradients are added in float32. A
    single rank that computes in float32 is left as it is: there is nothing to share.
    """
    if not blocks and (config.recompute != "none" or config.compile):
        name = "compile" if config.compile else "recompute"
        raise UserError(f"parallel.{name}: a tokenizer has no blocks for it; leave it out")
    for block in blocks:
        if config.recompute != "none":
            block.forward = _recomputed(block.forward, config.recompute)
        if config.compile:
            block.forward = torch.compile(block.forward, dynamic=False)
    if config.compile:
        _allow_a_graph_for_each_shape()
    if mesh.size() == 1 and dtype is None:
        return
    reduced = None if dtype is None else torch.float32
    policy = MixedPrecisionPolicy(dtype, reduced, cast_forward_inputs=False)
    plain = mesh["shard"] if mesh.size(0) == 1 else mesh
    for block in blocks:
        fully_shard(block, mesh=plain, mp_policy=policy, reshard_after_forward=config.gather_twice)
    fully_shard(module, mesh=plain, mp_policy=policy)


def add_up_gradients(module: nn.Module, config: ParallelConfig, is_last: bool) -> None:
    """Whether the next forward and backward pass are the last of a step.

    Before the last, gradients are not exchanged and gathered weights are kept, so several cost no
    more communication than one. They cost memory: all weights and gradients at once.
    """
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(is_last)
        module.set_reshard_after_backward(is_last)
        module.set_is_last_backward(is_last)
        for block in _sharded(module):
            if block is not module:
                block.set_reshard_after_forward(is_last and config.gather_twice, recurse=False)


def drop_gathered(module: nn.Module) -> None:
    """Drops what a forward pass without a backward pass has left gathered."""
    for each in _sharded(module):
        each.reshard()


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, which it shares its memory with."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered if it is sharded: every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor) -> slice:
    """The rows of a tensor that this rank holds: a half-open part of its first axis."""
    if not isinstance(tensor, DTensor):
        return slice(None)
    number = tensor.device_mesh.get_local_rank(tensor.device_mesh.ndim - 1)
    return rows_of(number, tensor.shape[0], tensor.device_mesh.size(tensor.device_mesh.ndim - 1))


def rows_of(number: int, num_rows: int, num_shards: int) -> slice:
    """The rows of shard `number` as DTensors are split: equal parts, the last ones smaller."""
    each = -(-num_rows // num_shards)
    return slice(min(number * each, num_rows), min((number + 1) * each, num_rows))


class Skeleton:
    """A copy of a module without its weights, from before it was sharded.

    Previews and results want the module in one piece on the first rank; methods of a sharded one
    cannot be called there alone.
    """

    def __init__(self, module: nn.Module) -> None:
        state = module.state_dict(keep_vars=True)
        without: dict[int, Any] = {
            id(each): nn.Parameter(each.to("meta"), requires_grad=False)
            if isinstance(each, nn.Parameter)
            else each.to("meta")
            for each in state.values()
        }
        self._module = copy.deepcopy(module, without)

    def filled(self, state: Mapping[str, Tensor]) -> nn.Module | None:
        """The module with these weights, in eval mode, on the first rank; None on the others.

        Every rank must call it with its shards.
        """
        is_first = rank_and_world_size()[0] == 0
        values = {}
        for name, tensor in state.items():
            value = whole(tensor.detach())
            if is_first:
                values[name] = value
        if not is_first:
            return None
        module = copy.deepcopy(self._module)
        module.load_state_dict(values, assign=True)
        return module.eval().requires_grad_(False)


def _sharded(module: nn.Module) -> list[FSDPModule]:
    return [each for each in module.modules() if isinstance(each, FSDPModule)]


def _recomputed(forward: Callable[..., Any], kind: str) -> Callable[..., Any]:
    if kind == "full":
        return partial(checkpoint, forward, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, _keeps)
    return partial(checkpoint, forward, use_reentrant=False, context_fn=contexts)


def _keeps(context: Any, function: Any, *arguments: Any, **more: Any) -> CheckpointPolicy:
    """What is dear to compute is kept: matrix products and attention."""
    if str(function).partition(".default")[0] in _DEAR:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


_DEAR = frozenset(
    {
        "aten.mm",
        "aten.addmm",
        "aten.bmm",
        "aten._scaled_dot_product_flash_attention",
        "aten._scaled_dot_product_flash_attention_for_cpu",
        "aten._scaled_dot_product_efficient_attention",
        "aten._scaled_dot_product_cudnn_attention",
        "flex_attention",
    }
)


def _allow_a_graph_for_each_shape() -> None:
    """Each bucket has a shape, and so a graph, of its own."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
