"""Run folders: what `tessera train` leaves, and opening one to sample from.

config.yaml       the settings, which can be given back
run.json          what made it: dataset, tokenizer, method, shapes; see `RunRecord`
vocabulary.json   the classes, word pieces or captions of its condition
captions.safetensors   with a frozen text tower: what it says of the captions
tokenizer/        the tokenizer of its codes, so that the folder suffices to make videos
checkpoints/      weights and optimizer state; of an exported run, model.safetensors instead
metrics.jsonl, tensorboard/, previews/, profile/
bad_steps.jsonl   steps that the guard refused, with their clips
owner             who trains here, by a lock that ends with the process
warm_start.txt    what became of each parameter of the run that it began with
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

import torch

from tokenizer.folder import load_tokenizer
from tokenizer.model import Tokenizer
from tokenizer.scales import Schedule
from tokenizer.settings import UserError, read_settings, save_settings, to_dict
from training.caption_features import FEATURES_FILE, load_features
from training.checkpoint import read_state
from training.config import GeneratorRun
from training.generator import Generator
from training.positions import schedule_for_all
from training.telling import with_new_captions
from training.vocabulary import Vocabulary, load_vocabulary, save_vocabulary
from training.weights import find_weights, load_weights, weights_hash

Settings = TypeVar("Settings")
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Clips of one bucket: frames, pixels, and the schedule of their codes."""

    num_frames: int
    height: int
    width: int
    schedule: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What made a run, as stored in `run.json`; `shapes` lists the longest first."""

    dataset: str
    tokenizer: str
    method: str
    order: str
    codebook_size: int
    feature_channels: int
    num_parameters: int
    shapes: dict[str, Shape]
    source: dict[str, str] = field(default_factory=dict)
    """Of a published checkpoint: file, sha256, layout and part."""
    exported_step: int = 0
    """Of exported weights: after how many steps."""


@dataclass(frozen=True)
class OpenedRun:
    """A run ready to sample: everything frozen, on one device."""

    record: RunRecord
    config: GeneratorRun
    vocabulary: Vocabulary
    generator: Generator
    tokenizer: Tokenizer
    step: int
    fingerprint: str

    @property
    def is_guidable(self) -> bool:
        return _is_guidable(self.config, self.vocabulary)

    def schedule(self, bucket: str) -> Schedule:
        return Schedule.from_list(self.record.shapes[bucket].schedule)


def write_run(
    run: Path,
    config: GeneratorRun,
    record: RunRecord,
    vocabulary: Vocabulary,
    tokenizer_dir: Path,
) -> None:
    """Everything of a run folder but its checkpoints and metrics."""
    save_settings(config, run / "config.yaml")
    content = {"format": _FORMAT, **asdict(record)}
    (run / "run.json").write_text(json.dumps(content, indent=1) + "\n")
    save_vocabulary(vocabulary, run / "vocabulary.json")
    if tokenizer_dir.resolve() != (run / "tokenizer").resolve():
        shutil.copytree(tokenizer_dir, run / "tokenizer", dirs_exist_ok=True)


def open_run(
    run: Path,
    device: str = "cpu",
    checkpoint: Path | None = None,
    *,
    prompts: Sequence[str] = (),
    text_weights: str | None = None,
) -> OpenedRun:
    """The run at its latest checkpoint, or at `checkpoint`.

    A run with a frozen text tower must be told the `prompts` that it was not trained on; the tower
    is read from `text_weights`, or from where training had it. Raises UserError when it is not a
    run, has no checkpoint yet, or the checkpoint or tokenizer is another one's.
    """
    record, config, vocabulary = read_run(run)
    source = checkpoint or find_weights(run)
    if source is None:
        raise UserError(f"{run}: no finished checkpoint yet; run `tessera train` on it first")
    tokenizer = load_tokenizer(run / "tokenizer", device=device)
    if tokenizer.fingerprint != record.tokenizer:
        raise UserError(
            f"{run / 'tokenizer'}: another tokenizer ({tokenizer.fingerprint[:12]}) than the run "
            f"was trained with ({record.tokenizer[:12]})"
        )
    schedules = [Schedule.from_list(each.schedule) for each in record.shapes.values()]
    generator = Generator(
        config.model,
        config.method,
        schedule_for_all(schedules, config.method.name, config.model.block.position),
        vocabulary,
        record.codebook_size,
        record.feature_channels,
    )
    order = generator.layout_for(generator.schedule).order
    if order.fingerprint != record.order:
        raise UserError(f"{run}: the order {record.method} has changed since this run was trained")
    load_weights(source, generator)
    if vocabulary.tower is not None:
        told = load_features(run / FEATURES_FILE)
        weights = text_weights or config.condition.weights
        vocabulary, generator.condition.told = with_new_captions(vocabulary, told, prompts, weights)
    return OpenedRun(
        record=record,
        config=config,
        vocabulary=vocabulary,
        generator=generator.to(device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        step=record.exported_step if source == run else read_state(source)["step"],
        fingerprint=weights_hash(generator),
    )


def read_run(run: Path) -> tuple[RunRecord, GeneratorRun, Vocabulary]:
    """What made a run; UserError when the folder is not one."""
    if not (run / "run.json").exists():
        raise UserError(f"{run}: not a run folder (no run.json); `tessera train` makes one")
    try:
        content: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
        if content.pop("format", None) != _FORMAT:
            raise UserError(f"{run / 'run.json'}: written by another version of this program")
        content["shapes"] = {name: Shape(**each) for name, each in content["shapes"].items()}
        record = RunRecord(**content)
        vocabulary = load_vocabulary(run / "vocabulary.json")
    except (json.JSONDecodeError, KeyError, TypeError, FileNotFoundError) as error:
        raise UserError(f"{run}: damaged run folder ({error})") from None
    return record, read_settings(GeneratorRun, run / "config.yaml"), vocabulary


def sample_settings(
    cls: type[Settings], run: Path, flags: Mapping[str, Any], section: str = ""
) -> Settings:
    """`cls` from flags; how codes are drawn, in `section` or at the top, is as the run says where
    they do not (one that cannot be guided: unguided). UserError for a wrong flag or folder."""
    read_settings(cls, None, flags)  # before files are opened
    _, config, vocabulary = read_run(run)
    drawn = to_dict(config.sampling)
    if not _is_guidable(config, vocabulary):
        drawn["guidance"]["scale"] = 1.0
    of_run = {section + name: value for name, value in drawn.items()}
    return read_settings(cls, None, {**of_run, **flags})


def _is_guidable(config: GeneratorRun, vocabulary: Vocabulary) -> bool:
    """Whether it learned to generate both with a condition and without."""
    return vocabulary.kind != "none" and config.condition.dropout > 0


def writable_folder(path: str | Path) -> Path:
    """The folder, made where it is missing; UserError when it cannot be written."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    return folder


def pick_device(name: str) -> str:
    """`auto` becomes cuda where there is one; UserError for cuda where there is none."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("device is cuda, but this machine has no usable GPU; use cpu or auto")
    return ("cuda" if available else "cpu") if name == "auto" else name
