"""Checkpoints of a run: weights and optimizer state as safetensors, the rest as JSON; no pickle.

    RUN/checkpoints/step_00000400/model.safetensors      the module's parameters and buffers
                                  optimizer.safetensors  `parameter name/state name`
                                  average.safetensors    the trained part with averaged weights
                                  state.json             step, identity of the run
    RUN/checkpoints/latest                               the name of the newest whole one

A folder is written under a temporary name and renamed; `latest` is replaced last. So a run that is
killed at any moment opens at its last whole checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenizer.settings import UserError
from training.average import WeightAverage

FOLDER = "checkpoints"
_LATEST = "latest"
_AVERAGE = "average.safetensors"


def save_checkpoint(
    run: Path,
    step: int,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    identity: dict[str, Any],
    keep: int,
    average: WeightAverage | None = None,
) -> Path:
    """Writes the state after `step` steps, makes it the latest, and removes all but `keep`."""
    folder = run / FOLDER
    name = f"step_{step:08d}"
    temporary = folder / f".{name}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    weights = {key: value.contiguous() for key, value in module.state_dict().items()}
    save_file(weights, temporary / "model.safetensors")
    save_file(_optimizer_state(module, optimizers), temporary / "optimizer.safetensors")
    state = {"step": step, "identity": identity}
    if average is not None:
        averaged = {key: value.contiguous() for key, value in average.state().items()}
        save_file(averaged, temporary / _AVERAGE)
        state["averaged_steps"] = average.num_updates
    (temporary / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    for file in temporary.iterdir():
        _sync(file)
    shutil.rmtree(folder / name, ignore_errors=True)
    temporary.rename(folder / name)
    _replace(folder / _LATEST, name + "\n")
    for old in sorted(folder.glob("step_*"))[:-keep]:
        shutil.rmtree(old)
    return folder / name


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    pointer = run / FOLDER / _LATEST
    if not pointer.exists():
        return None
    folder = run / FOLDER / pointer.read_text().strip()
    return folder if (folder / "state.json").exists() else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`step` and `identity`; UserError when damaged."""
    try:
        return json.loads((checkpoint / "state.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{checkpoint}: damaged checkpoint ({error})") from None


def check_identity(checkpoint: Path, identity: dict[str, Any]) -> None:
    """UserError naming the first thing in which the checkpoint and this run differ."""
    saved = read_state(checkpoint)["identity"]
    for key, value in identity.items():
        if saved.get(key) != value:
            place, before, now = _difference(key, saved.get(key), value)
            raise UserError(
                f"{checkpoint}: made with another {place} ({_short(before)}) than this run "
                f"({_short(now)}); use the settings and data it was made with, or a new folder"
            )


def load_weights(checkpoint: Path, module: nn.Module, averaged: bool = False) -> None:
    """Fills the module; UserError when the checkpoint is of another model.

    With `averaged` the module is the trained part, and its weights are the averaged ones if the run
    has them.
    """
    path = checkpoint / _AVERAGE
    if not averaged or not path.exists():
        path = checkpoint / "model.safetensors"
    module.load_state_dict(_fitting(path, module))


def load_average(checkpoint: Path, average: WeightAverage) -> None:
    """Goes on averaging where the checkpoint was written, or begins with its weights."""
    path = checkpoint / _AVERAGE
    if path.exists():
        average.load(_fitting(path, average.module), read_state(checkpoint)["averaged_steps"])


def _fitting(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a file; UserError unless they are those of the module."""
    tensors = _read(path)
    wanted = module.state_dict()
    problems = [f"missing {key}" for key in sorted(wanted.keys() - tensors.keys())]
    problems += [f"unexpected {key}" for key in sorted(tensors.keys() - wanted.keys())]
    problems += [
        f"{key} is {list(tensors[key].shape)}, not {list(wanted[key].shape)}"
        for key in sorted(wanted.keys() & tensors.keys())
        if tensors[key].shape != wanted[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{path.parent}: a checkpoint of another model: {'; '.join(problems[:3])}{more}"
        )
    return tensors


def load_optimizers(
    checkpoint: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Fills the optimizers' state, by parameter name."""
    parameters = dict(module.named_parameters())
    owner = {
        each: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for each in group["params"]
    }
    for key, tensor in _read(checkpoint / "optimizer.safetensors").items():
        name, entry = key.rsplit("/", 1)
        if name not in parameters or parameters[name] not in owner:
            raise UserError(f"{checkpoint}: optimizer state of unknown parameter {name}")
        parameter = parameters[name]
        owner[parameter].state[parameter][entry] = tensor.to(parameter.device)


def _optimizer_state(
    module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {
        f"{names[parameter]}/{entry}": value.contiguous()
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        for entry, value in optimizer.state[parameter].items()
    }


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged checkpoint ({error})") from None


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text)
    _sync(temporary)
    os.replace(temporary, path)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _difference(key: str, saved: Any, value: Any) -> tuple[str, Any, Any]:
    """The dotted key of the first thing in which two settings differ, and both."""
    if isinstance(saved, dict) and isinstance(value, dict):
        for name in {**value, **saved}:
            if saved.get(name) != value.get(name):
                return _difference(f"{key}.{name}", saved.get(name), value.get(name))
    return key, saved, value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
