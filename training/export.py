"""Weights of a run in one piece, for whoever samples, converts or publishes them.

    export(Path("runs/demo/run"), Path("exported"))

An exported generator is a run's folder with `model.safetensors` in place of checkpoints; an
exported tokenizer is a tokenizer's folder.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tokenizer.folder import save_tokenizer
from tokenizer.model import Tokenizer
from tokenizer.settings import UserError, read_settings
from training.caption_features import FEATURES_FILE
from training.checkpoint import FOLDER, STATE, latest_checkpoint, read_state
from training.config import TokenizerRun
from training.run import read_run, write_run
from training.weights import read_weights, write_exported

_OF_TOKENIZER = "tokenizer."


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    step: int
    num_parameters: int


def export(
    run: Path,
    folder: Path,
    *,
    checkpoint: str | None = None,
    is_averaged: bool = True,
    dtype: str = "float32",
) -> Exported:
    """Writes the weights of a run's checkpoint (default: the latest) into `folder`.

    UserError when there is no such checkpoint, when it is damaged, or when the folder holds
    something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; name a new folder")
    source = _checkpoint(run, checkpoint)
    step = int(read_state(source)["step"])
    weights = read_weights(source, is_averaged)
    if read_state(source)["identity"].get("task") == "tokenizer":
        return Exported(folder, step, _write_tokenizer(run, weights, folder))
    record, config, vocabulary = read_run(run)
    folder.mkdir(parents=True, exist_ok=True)
    write_run(
        folder,
        replace(config, out=str(folder)),
        replace(record, exported_step=step),
        vocabulary,
        run / "tokenizer",
    )
    if (run / FEATURES_FILE).exists():
        shutil.copyfile(run / FEATURES_FILE, folder / FEATURES_FILE)
    kind = getattr(torch, dtype)
    cast = {name: each.to(kind) for name, each in weights.items() if each.is_floating_point()}
    write_exported(folder, weights | cast)
    return Exported(folder, step, record.num_parameters)


def _checkpoint(run: Path, name: str | None) -> Path:
    found = latest_checkpoint(run) if name is None else run / FOLDER / Path(name).name
    if found is None or not (found / STATE).is_file():
        there = sorted(each.name for each in (run / FOLDER).glob("step_*"))
        raise UserError(
            f"{run}: no {'checkpoint' if name is None else name} to export; "
            + (f"there are {', '.join(there)}" if there else "it is no run, or has none yet")
        )
    return found


def _write_tokenizer(run: Path, weights: dict[str, Tensor], folder: Path) -> int:
    config = read_settings(TokenizerRun, run / "config.yaml")
    tokenizer = Tokenizer(config.tokenizer)
    own = {
        name.removeprefix(_OF_TOKENIZER): each
        for name, each in weights.items()
        if name.startswith(_OF_TOKENIZER)
    }
    try:
        tokenizer.load_state_dict(own)
    except RuntimeError as error:
        raise UserError(f"{run}: its checkpoint is not of its settings ({error})") from None
    save_tokenizer(tokenizer, folder)
    return sum(each.numel() for each in tokenizer.parameters())
