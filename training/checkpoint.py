"""Checkpoints of a run: what training needs to go on exactly, on any number of ranks.

    RUN/checkpoints/step_00000400/index.json, rank_*.safetensors    see `tensor_parts`; tensors are
                                      model/NAME            parameters and buffers
                                      optimizer/NAME/STATE  what the optimizers remember
                                      average/NAME          averaged parameters
                                  state.json      step, position in the data, identity of the run
    RUN/checkpoints/latest                        the name of the newest whole one

A folder is written under a temporary name and renamed; `latest` is replaced last. So a run that is
killed at any moment opens at its last whole checkpoint. Tensors are copied and then written by a
thread, with a process group of its own, while training goes on: one checkpoint at a time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from tokenizer.settings import UserError
from training.loop_config import TrainerConfig
from training.ranks import rank_and_world_size
from training.tensor_parts import Stored, write_tensors

FOLDER = "checkpoints"
STATE = "state.json"
MODEL, OPTIMIZER, AVERAGE = "model/", "optimizer/", "average/"
_FORMAT = 2
_LATEST = "latest"
_MOST_NAMED = 3


class Checkpoints:
    """Writes the checkpoints of a run. Every rank has one and calls it alike."""

    def __init__(self, run: Path, config: TrainerConfig) -> None:
        self._folder = run / FOLDER
        self._config = config
        self._is_first = rank_and_world_size()[0] == 0
        # Its own group: a checkpoint's messages must not come between those of training.
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        if self._is_first:
            for left in self._folder.glob(".step_*"):
                shutil.rmtree(left, ignore_errors=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Begins to write the state after `step` steps, which becomes the latest.

        Waits for the one before. UserError when that could not be written.
        """
        self.wait()
        copied = {name: each.detach().to("cpu", copy=True) for name, each in tensors.items()}
        self._pending = self._thread.submit(self._write, step, copied, dict(state))
        if not self._config.save_aside:
            self.wait()

    def wait(self) -> None:
        """Until what was begun is written; UserError on every rank when it could not be."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except dcp.CheckpointException as error:
            rank, reason = next(iter(error.failures.items()))
            raise UserError(
                f"{self._folder}: a checkpoint could not be written ({reason[0]}; rank {rank})"
            ) from None

    def close(self) -> None:
        """Waits; nothing can be saved any more."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
        dist.destroy_process_group(self._group)

    def _write(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        name = f"step_{step:08d}"
        temporary = self._folder / f".{name}.writing"

        def begin() -> None:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)

        def end() -> None:
            _write_synced(temporary / STATE, json.dumps({"format": _FORMAT, **state}, indent=1))
            self._publish(temporary, name)

        self._by_the_first(begin)
        write_tensors(temporary, tensors, self._group)
        self._by_the_first(end)

    def _by_the_first(self, act: Callable[[], None]) -> None:
        """What one rank does, after which all go on, or raise the same UserError."""
        reasons: list[str | None] = [None]
        if self._is_first:
            try:
                act()
            except OSError as error:
                reasons = [str(error)]
        dist.broadcast_object_list(reasons, src=0, group=self._group)
        if reasons[0] is not None:
            raise UserError(f"{self._folder}: a checkpoint could not be written ({reasons[0]})")

    def _publish(self, temporary: Path, name: str) -> None:
        before = self._folder / f".{name}.replaced"
        if (self._folder / name).exists():
            (self._folder / name).rename(before)
        temporary.rename(self._folder / name)
        pointer = self._folder / f".{_LATEST}.writing"
        _write_synced(pointer, name)
        os.replace(pointer, self._folder / _LATEST)
        every = self._config.keep_every
        for old in _whole_ones(self._folder)[: -self._config.keep_checkpoints]:
            if not (every and int(old.name.removeprefix("step_")) % every == 0):
                shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    pointer = run / FOLDER / _LATEST
    if not pointer.exists():
        return None
    with suppress(OSError, ValueError):
        folder = run / FOLDER / Path(pointer.read_text().strip()).name
        if (folder / STATE).exists():
            return folder
    # Killed while one of the same name was replaced, deleted by somebody, or a damaged pointer.
    whole = _whole_ones(run / FOLDER)
    return whole[-1] if whole else None


def _whole_ones(folder: Path) -> list[Path]:
    """Whole checkpoints, the one that was written last at the end, whatever its step."""
    states = sorted(folder.glob(f"step_*/{STATE}"), key=lambda each: each.stat().st_mtime_ns)
    return [each.parent for each in states]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What is in `state.json`, of the types that it should have; UserError when damaged."""
    try:
        state = json.loads((checkpoint / STATE).read_text())
        if state["format"] != _FORMAT:
            raise UserError(f"{checkpoint}: written by another version of this program")
        for name in ("step", "position", "averaged_steps"):
            if type(state[name]) is not int or not 0 <= state[name] < 1 << 53:
                raise ValueError(f"{name} is {state[name]!r}")
        for name in ("identity", "guard"):
            if not isinstance(state[name], dict):
                raise ValueError(f"{name} is {state[name]!r}")
        return state
    except (OSError, ValueError, KeyError, TypeError) as error:
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


def check_fit(
    checkpoint: Path,
    stored: Mapping[str, Stored],
    wanted: Mapping[str, Tensor],
    unexpected: Iterable[str] = (),
) -> None:
    """UserError when a wanted tensor is not there or of another shape, and for unexpected ones."""
    problems = [f"missing {_name(name)}" for name in wanted if name not in stored]
    problems += [f"unexpected {_name(name)}" for name in sorted(unexpected)]
    problems += [
        f"{_name(name)} is {list(stored[name].shape)} {stored[name].dtype}, not "
        f"{list(value.shape)} {value.dtype}"
        for name, value in wanted.items()
        if name in stored and (stored[name].shape, stored[name].dtype) != (value.shape, value.dtype)
    ]
    if problems:
        more = f" and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        raise UserError(
            f"{checkpoint}: a checkpoint of another model: "
            f"{'; '.join(problems[:_MOST_NAMED])}{more}"
        )


def _name(name: str) -> str:
    return name.removeprefix(MODEL).replace("torch.", "")


def _write_synced(path: Path, text: str) -> None:
    path.write_text(text + "\n")
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
