"""Tensors in a folder, in the parts that ranks hold: safetensors and an index; no pickle.

    FOLDER/index.json                 every tensor: dtype, shape, and its parts with file and crc32
           rank_00000.safetensors     the parts that rank 0 wrote, named `tensor@row,column`

It is the storage under `torch.distributed.checkpoint`, which plans who writes and reads what: a
tensor on several ranks is written once, and read by any number of ranks, sharded in any way.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from pipeline.shards.checksum import crc32
from tokenizer.settings import UserError

INDEX = "index.json"
_FORMAT = 1
_DTYPES = {
    str(each).removeprefix("torch."): each
    for each in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


@dataclass(frozen=True)
class Part:
    """A box of a tensor: where it begins, its shape, the file that holds it."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    crc: int

    def key(self, name: str) -> str:
        return _key(name, self.offset)


@dataclass(frozen=True)
class Stored:
    """A tensor in a folder."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[Part, ...] = ()


def write_tensors(
    folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
) -> None:
    """Writes the tensors of all ranks of `group`; the folder must be there.

    Every rank must call it with the same names. What fails on one rank fails on all of them.
    """
    _quietly()
    dcp.save(dict(tensors), storage_writer=_Writer(folder), process_group=group)


def read_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills these tensors, or what this rank holds of them, by name; ranks do not talk.

    Names, shapes and types must be those of `stored_tensors`. UserError when a file is damaged.
    """
    if not tensors:
        return
    _quietly()
    try:
        dcp.load(dict(tensors), storage_reader=_Reader(folder), no_dist=True)
    except dcp.CheckpointException as error:
        reasons = list(error.failures.values())
        raise UserError(str(reasons[0][0])) from None


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """What there is, by name; UserError when the index is missing or damaged."""
    path = folder / INDEX
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise UserError(f"{path}: written by another version of this program")
        stored = {str(name): _stored(each) for name, each in content["tensors"].items()}
        _check_size(folder, stored)
        return stored
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged checkpoint ({_reason(error)})") from None


def _check_size(folder: Path, stored: Mapping[str, Stored]) -> None:
    """ValueError when files are missing or too small: nothing is allocated for their tensors."""
    files = {part.file for each in stored.values() for part in each.parts}
    missing = sorted(each for each in files if not (folder / each).is_file())
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    there = sum((folder / each).stat().st_size for each in files)
    told = sum(prod(each.shape) * each.dtype.itemsize for each in stored.values())
    if told > there:
        raise ValueError(f"tensors of {told:,} bytes in files of {there:,}")


def _stored(content: Mapping[str, Any]) -> Stored:
    shape = _sizes(content["shape"])
    parts = []
    for each in content["parts"]:
        part = Part(_sizes(each["offset"]), _sizes(each["shape"]), each["file"], int(each["crc"]))
        if Path(part.file).name != part.file or not part.file.endswith(".safetensors"):
            raise ValueError(f"a part in {part.file!r}")
        parts.append(part)
    if not _is_whole(shape, sorted(parts, key=lambda part: part.offset)):
        raise ValueError("parts that are not the whole of their tensor")
    return Stored(_DTYPES[content["dtype"]], shape, tuple(parts))


def _is_whole(shape: tuple[int, ...], parts: Sequence[Part]) -> bool:
    """Whether the parts are the tensor's rows, one after another; that is how they are sharded."""
    if not shape:
        return len(parts) == 1 and parts[0].shape == ()
    row = 0
    for part in parts:
        if part.offset != (row, *[0] * (len(shape) - 1)) or part.shape[1:] != shape[1:]:
            return False
        row += part.shape[0] if part.shape else 0
    return row == shape[0] or not prod(shape)


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(each) is int and each >= 0 for each in values):
        raise ValueError(f"{values!r} is no shape")
    return tuple(values)


class _Writer(StorageWriter):
    """Each rank's parts in a file of its own, then the index by the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Names the files: a rank is not told its number."""
        return [
            SavePlan(each.items, f"rank_{rank:05d}.safetensors", each.planner_data)
            for rank, each in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        parts, results = {}, []
        for item in plan.items:
            tensor = planner.resolve_data(item)
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{item.index.fqn} is no tensor")
            offset = tuple(item.index.offset or [0] * tensor.ndim)
            value = tensor.detach().cpu().contiguous()
            parts[_key(item.index.fqn, offset)] = value
            stored = Part(offset, tuple(value.shape), plan.storage_data, _crc(value))
            results.append(WriteResult(item.index, value.nbytes, stored))
        if parts:
            path = self._folder / plan.storage_data
            save_file(parts, path)
            _synced(path)
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        parts: dict[str, list[Part]] = {}
        for each in (result for of_rank in results for result in of_rank):
            parts.setdefault(each.index.fqn, []).append(each.storage_data)
        tensors = {}
        for name, stored in metadata.state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata)
            tensors[name] = {
                "dtype": str(stored.properties.dtype).removeprefix("torch."),
                "shape": list(stored.size),
                "parts": [
                    {"offset": part.offset, "shape": part.shape, "file": part.file, "crc": part.crc}
                    for part in sorted(parts.get(name, ()), key=lambda part: part.offset)
                ],
            }
        path = self._folder / INDEX
        path.write_text(json.dumps({"format": _FORMAT, "tensors": tensors}) + "\n")
        _synced(path)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True


class _Reader(StorageReader):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stored: dict[str, Stored] = {}

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None: ...

    def read_metadata(self, *args: Any) -> Metadata:
        self._stored = stored_tensors(self._folder)
        return Metadata({name: _metadata(each) for name, each in self._stored.items()})

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """A part is read whole and its crc32 compared, however little of it is wanted."""
        by_file: dict[str, list[tuple[Part, Any]]] = {}
        for item in plan.items:
            part = self._part(item.storage_index)
            by_file.setdefault(part.file, []).append((part, item))
        for name, wanted in by_file.items():
            path = self._folder / name
            try:
                with safe_open(path, "pt") as file:
                    for part, item in wanted:
                        _fill(planner, item, _checked(file, part, item.storage_index.fqn, path))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path}: damaged checkpoint ({_reason(error)})") from None
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _part(self, index: MetadataIndex) -> Part:
        offset = tuple(index.offset or ())
        stored = self._stored[index.fqn]
        if not offset:
            return stored.parts[0]
        return next(each for each in stored.parts if each.offset == offset)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True


def _metadata(stored: Stored) -> TensorStorageMetadata:
    chunks = [
        ChunkStorageMetadata(torch.Size(each.offset), torch.Size(each.shape))
        for each in stored.parts
    ]
    return TensorStorageMetadata(
        TensorProperties(dtype=stored.dtype), torch.Size(stored.shape), chunks
    )


def _checked(file: Any, part: Part, name: str, path: Path) -> Tensor:
    value = file.get_tensor(part.key(name))
    if tuple(value.shape) != part.shape or _crc(value) != part.crc:
        raise UserError(f"{path}: damaged checkpoint (the bytes of {name} have changed)")
    return value


def _fill(planner: LoadPlanner, item: Any, value: Tensor) -> None:
    for axis, (start, length) in enumerate(zip(item.storage_offsets, item.lengths)):
        value = value.narrow(axis, start, length)
    place = planner.resolve_tensor(item).detach()
    place.copy_(value)
    planner.commit_tensor(item, place)


def _key(name: str, offset: Sequence[int]) -> str:
    return f"{name}@{','.join(map(str, offset))}"


def _crc(value: Tensor) -> int:
    return crc32(value.reshape(-1).view(torch.uint8).numpy()) if value.numel() else 0


def _synced(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _quietly() -> None:
    """DCP warns of a single process, which is none of its business."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable")
