"""The weights of a run as plain tensors: of its latest checkpoint, or of an exported one.

weights_of(Path("runs/demo/run"))    # averaged ones where the run has them
weights_hash(module)                 # of names, types, shapes and bytes
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenizer.settings import UserError
from training.checkpoint import AVERAGE, MODEL, check_fit, latest_checkpoint
from training.tensor_parts import Stored, read_tensors, stored_tensors

EXPORTED = "model.safetensors"


def find_weights(run: Path) -> Path | None:
    """The newest checkpoint, or the run's folder itself if it was exported."""
    return run if (run / EXPORTED).is_file() else latest_checkpoint(run)


def load_weights(source: Path, module: nn.Module) -> None:
    """Fills a module from what `find_weights` found; UserError when it is of another model.

    Parameters are the averaged ones where the run has them.
    """
    state = module.state_dict()
    if (source / EXPORTED).is_file():
        tensors = {
            name: each.to(state[name].dtype) if name in state else each
            for name, each in _read_exported(source).items()
        }
        there = {name: Stored(each.dtype, tuple(each.shape)) for name, each in tensors.items()}
        check_fit(source, there, state, there.keys() - state.keys())
        module.load_state_dict(tensors)
        return
    stored = stored_tensors(source)
    names = {name: _best(stored, name) for name in state}
    unexpected = {name for name in stored if name.startswith(MODEL)}
    unexpected -= {MODEL + name for name in state}
    wanted = {names[name]: value for name, value in state.items()}
    check_fit(source, stored, wanted, unexpected)
    read_tensors(source, wanted)


def weights_of(run: Path) -> dict[str, Tensor]:
    """Those of a run by name, averaged ones where it has them; UserError when there are none."""
    source = find_weights(run)
    if source is None:
        raise UserError(
            f"{run}: neither a run with a finished checkpoint nor an exported one ({EXPORTED})"
        )
    return _read_exported(run) if source == run else read_weights(source)


def read_weights(checkpoint: Path, is_averaged: bool = True) -> dict[str, Tensor]:
    """The tensors of a checkpoint's model by name, averaged or as they are trained."""
    stored = stored_tensors(checkpoint)
    names = [each.removeprefix(MODEL) for each in stored if each.startswith(MODEL)]
    sources = {name: _best(stored, name) if is_averaged else MODEL + name for name in names}
    tensors = {
        each: torch.empty(stored[each].shape, dtype=stored[each].dtype) for each in sources.values()
    }
    read_tensors(checkpoint, tensors)
    return {name: tensors[each] for name, each in sources.items()}


def _best(stored: Mapping[str, Stored], name: str) -> str:
    """The average of a tensor where there is one."""
    return AVERAGE + name if AVERAGE + name in stored else MODEL + name


def _read_exported(run: Path) -> dict[str, Tensor]:
    """The tensors of `RUN/model.safetensors`; UserError when it is damaged."""
    path = run / EXPORTED
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged weights ({error})") from None


def write_exported(run: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Writes `RUN/model.safetensors` aside and renames it."""
    path = run / EXPORTED
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: each.detach().cpu().contiguous() for name, each in tensors.items()}, partial)
    partial.replace(path)
    return path


def weights_hash(module: nn.Module) -> str:
    """sha256 of a module's state, wherever and in what parts it is stored."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()
