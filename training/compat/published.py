"""Published generators: checkpoints of VAR, LlamaGen, PAR, NAR and ARPG as runs of ours.

    published = load_published("c2i_L_4x.pt", "tokenizers/llamagen", shape=(1, 384, 384))
    convert("var_d16.pth", "runs/var", "tokenizers/var")       # what `tessera convert` does

Sizes follow from the shapes in the file and are compared with what was asked for. Then every key
must be there, none too many, each of its shape: one error names all that is not so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.shards.format import bucket_name
from tokenizer.checkpoint import Checkpoint, read_checkpoint
from tokenizer.folder import find_tokenizer, load_tokenizer
from tokenizer.key_report import check_keys
from tokenizer.model import Tokenizer
from tokenizer.scales import Schedule
from tokenizer.settings import UserError, from_dict, read_settings, to_dict
from training.compat import llamagen
from training.compat.models import (
    LLAMAGEN_BLOCK,
    METHODS,
    RECIPES,
    VAR_BLOCK,
    block_of,
    regions_of,
)
from training.compat.reading import CARRIES_NOTHING, detect_layout, read_sizes
from training.compat.sizes import KEYS, Sizes
from training.compat.var import var
from training.config import ConditionConfig, GeneratorRun
from training.generator import Generator
from training.partial import feature_channels
from training.run import RunRecord, Shape, write_run
from training.vocabulary import Vocabulary
from training.weights import write_exported

_PRESETS = Path(__file__).parent.parent / "presets"
NAR_HEADS = {"nar-image": (1,), "nar-video": (1, 1)}
"""Further blocks before NAR's heads, as published; keys do not tell which block is whose."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A loaded checkpoint."""

    generator: Generator
    config: GeneratorRun
    record: RunRecord
    vocabulary: Vocabulary
    tokenizer_dir: Path
    left_out: tuple[str, ...]
    """Keys of the file that carry nothing."""


def convert(
    path: str | Path, run: str | Path, tokenizer_dir: str | Path, **options: Any
) -> Published:
    """Loads a checkpoint as `load_published` does and writes it as a run's folder.

    UserError as well when there is a run already.
    """
    run = Path(run)
    if (run / "run.json").exists():
        raise UserError(f"{run}: holds a run already; name another folder, or remove that one")
    published = load_published(path, tokenizer_dir, **options)
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_run(
            run,
            replace(published.config, out=str(run)),
            published.record,
            published.vocabulary,
            published.tokenizer_dir,
        )
        write_exported(run, published.generator.state_dict())
    except OSError as error:
        raise UserError(f"{run}: cannot be written ({error})") from None
    return published


def load_published(
    path: str | Path,
    tokenizer_dir: str | Path,
    asked: Mapping[str, Any] | None = None,
    *,
    layout: str | None = None,
    part: str | None = None,
    shape: tuple[int, int, int] | None = None,
    classes: Sequence[str] | None = None,
) -> Published:
    """The generator in a checkpoint, for clips of `shape` (frames, height, width in pixels).

    `asked` are settings by dotted name (`{"model.width": 1024}`), `classes` the names of its
    classes in order (default: their numbers); `layout` and `part` are found when not given, and the
    shape of a square image is that of the tokenizer's scales. Raises UserError as `read_checkpoint`
    does and when sizes differ from what was asked for or the tokenizer is not the generator's;
    CheckpointMismatch when keys or shapes are not exactly the model's.
    """
    tokenizer_dir = find_tokenizer(tokenizer_dir)
    tokenizer = load_tokenizer(tokenizer_dir)
    checkpoint = read_checkpoint(path, part, prefer="trainer.var_wo_ddp")
    layout = layout or detect_layout(checkpoint)
    asked = dict(asked or {})
    further = tuple(asked.get("model.head_blocks", NAR_HEADS.get(layout, ())))
    sizes = read_sizes(checkpoint, layout, sum(further) if layout in NAR_HEADS else 0)
    config = _config(checkpoint.path, layout, sizes, asked)
    kept, left_out = weights_in(checkpoint, layout)
    check_keys(checkpoint.path, KEYS[layout](sizes), kept)
    shape = shape or _square(tokenizer)
    schedule = tokenizer.schedule_for(*shape)
    _check_tokenizer(checkpoint, layout, sizes, tokenizer, schedule)
    vocabulary = _vocabulary(checkpoint.path, sizes.num_classes, classes)
    num_features = feature_channels(tokenizer.quantizer, schedule)
    with torch.device("meta"):
        generator = Generator(
            config.model, config.method, schedule, vocabulary, sizes.codebook_size, num_features
        )
    weights = _ours(layout, sizes, kept, schedule)
    broken = [name for name, value in weights.items() if not bool(value.isfinite().all())]
    if broken:
        raise UserError(f"{path}: holds numbers that are not finite, in {', '.join(broken)}")
    generator.load_state_dict(weights, assign=True)
    source = {"checkpoint": checkpoint.path.name, "sha256": checkpoint.sha256, "layout": layout}
    if checkpoint.part is not None:
        source["part"] = checkpoint.part
    record = RunRecord(
        dataset=f"published {checkpoint.sha256}",
        tokenizer=tokenizer.fingerprint,
        method=config.method.name,
        order=generator.layout_for(schedule).order.fingerprint,
        codebook_size=sizes.codebook_size,
        feature_channels=num_features,
        num_parameters=sum(each.numel() for each in generator.parameters()),
        shapes={
            bucket_name(*shape): Shape(
                num_frames=shape[0], height=shape[1], width=shape[2], schedule=schedule.to_list()
            )
        },
        source=source,
    )
    return Published(
        generator=generator.eval().requires_grad_(False),
        config=config,
        record=record,
        vocabulary=vocabulary,
        tokenizer_dir=tokenizer_dir,
        left_out=(*left_out, *checkpoint.left_out),
    )


def _config(path: Path, layout: str, sizes: Sizes, asked: Mapping[str, Any]) -> GeneratorRun:
    """The settings of the model in a file; UserError when they are not those asked for."""
    told: dict[str, Any] = {
        "model.width": sizes.width,
        "model.depth": sizes.depth,
        "method.name": METHODS[layout],
        **{f"model.block.{key}": value for key, value in block_of(layout, sizes).items()},
    }
    if sizes.heads and (layout == "var" or "model.heads" not in asked):
        told["model.heads"] = sizes.heads
    elif "model.heads" not in asked:
        raise UserError(
            f"{path}: a model of width {sizes.width} is not one of the published, and shapes do "
            "not tell its attention heads; give their number with --model.heads"
        )
    if layout == "nar-video":
        told["method.time_head"] = True
    if layout == "par":
        told |= _regions(path, sizes.transitions + 1, asked)
    plain = {key: list(each) if isinstance(each, tuple) else each for key, each in asked.items()}
    differing = [
        f"{key} is {told[key]}, not {value} as asked for"
        for key, value in plain.items()
        if key in told and value != told[key]
    ]
    if differing:
        raise UserError(f"{path}: {'; '.join(differing)}")
    block = VAR_BLOCK if layout == "var" else LLAMAGEN_BLOCK
    if layout == "nar-video":
        block = replace(block, position="table")
    recipe = read_settings(GeneratorRun, _PRESETS / f"{RECIPES[layout]}.yaml")
    values: dict[str, Any] = {
        "condition": to_dict(ConditionConfig(kind="class")),
        "model": {"block": to_dict(block), "head_bias": layout == "var"},
        "sampling": to_dict(recipe.sampling),
    }
    if recipe.method.is_random:
        values["method"] = {"num_steps": recipe.method.num_steps, "sizes": recipe.method.sizes}
    if layout in NAR_HEADS:
        values["model"]["head_blocks"] = list(NAR_HEADS[layout])
    for key, value in {**told, **plain}.items():
        *sections, last = key.split(".")
        place = values
        for name in sections:
            place = place.setdefault(name, {})
        place[last] = value
    return from_dict(GeneratorRun, values, str(path))


def _regions(path: Path, group: int, asked: Mapping[str, Any]) -> dict[str, Any]:
    """PAR's regions: those asked for, if there are as many as the file says, else a square."""
    wanted = asked.get("method.regions", regions_of(group))
    if wanted is None:
        raise UserError(
            f"{path}: asks for {group} cells a step, which is no square of regions; say how t, h, "
            "w are cut with --method.regions"
        )
    if prod(wanted) != group:
        raise UserError(
            f"{path}: method.regions {list(wanted)} are {prod(wanted)} regions; its "
            f"{group - 1} special tokens are for {group}"
        )
    return {"method.regions": list(wanted)}


def weights_in(checkpoint: Checkpoint, layout: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that are a model's, and the keys of the buffers that carry nothing."""
    ignored = [key for key in checkpoint.tensors if re.fullmatch(CARRIES_NOTHING[layout], key)]
    kept = {key: value for key, value in checkpoint.tensors.items() if key not in ignored}
    return kept, ignored


def _ours(
    layout: str, sizes: Sizes, kept: Mapping[str, Tensor], schedule: Schedule
) -> dict[str, Tensor]:
    """The weights under our names, copied, as float32."""
    theirs = {key: value.to(torch.float32) for key, value in kept.items()}
    if layout == "var":
        ours = var(theirs | {"lvl_1L": _levels(schedule)})
    elif layout == "arpg":
        ours = llamagen.arpg(theirs, sizes.codebook_size)
    elif layout == "nar-image":
        ours = llamagen.nar_image(theirs, sizes.depth)
    elif layout == "nar-video":
        ours = llamagen.nar_video(theirs, sizes.depth)
    else:
        ours = llamagen.par(theirs, sizes.depth)
    return {name: value.detach().clone() for name, value in ours.items()}


def _check_tokenizer(
    checkpoint: Checkpoint, layout: str, sizes: Sizes, tokenizer: Tokenizer, schedule: Schedule
) -> None:
    """UserError unless this tokenizer has the generator's codes, on the generator's cells."""
    path = checkpoint.path
    if tokenizer.codebook_size != sizes.codebook_size:
        raise UserError(
            f"{path}: predicts {sizes.codebook_size} different codes, the tokenizer has "
            f"{tokenizer.codebook_size}; it was trained on another one's"
        )
    scales = [" x ".join(map(str, scale.shape)) for scale in schedule.scales]
    if layout == "var":
        if tokenizer.quantizer.codebook_dim != sizes.channels:
            raise UserError(
                f"{path}: takes reconstructions of {sizes.channels} channels, the tokenizer's "
                f"codes have {tokenizer.quantizer.codebook_dim}; it was trained on another one's"
            )
        level = checkpoint.tensors.get("lvl_1L", _levels(schedule)[None]).flatten()
        if (
            (sizes.num_scales, sizes.num_cells) != (len(scales), schedule.num_tokens)
            or sizes.first_cells != schedule.offsets[1]
            or level.tolist() != _levels(schedule).tolist()
        ):
            raise UserError(
                f"{path}: was made for {sizes.num_scales} scales of {sizes.num_cells} codes in "
                f"all, the tokenizer's are {', '.join(scales)} ({schedule.num_tokens} codes); "
                "convert the tokenizer with its scales (tessera tokenizer convert --schedule)"
            )
    elif schedule.grid is None:
        raise UserError(
            f"{path}: generates codes on one grid, the tokenizer's scales are {', '.join(scales)}; "
            "it was trained on a tokenizer of one scale"
        )
    elif layout != "nar-video" and schedule.num_latent_frames > 1:
        raise UserError(f"{path}: generates images, not videos of {scales[-1]} codes; see --shape")
    elif layout == "nar-video" and sizes.num_cells != schedule.num_tokens:
        raise UserError(
            f"{path}: has positions for {sizes.num_cells} codes, clips of this shape have "
            f"{schedule.num_tokens}; name another with --shape FRAMES HEIGHT WIDTH"
        )


def _levels(schedule: Schedule) -> Tensor:
    """The number of the scale of each code."""
    return torch.from_numpy(schedule.scale_of_token)


def _square(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """An image whose codes are on the tokenizer's very scales."""
    settings = tokenizer.config
    side = settings.quantizer.scales[-1] * settings.spatial_stride
    return 1, side, side


def _vocabulary(path: Path, num_classes: int, classes: Sequence[str] | None) -> Vocabulary:
    """The classes by name, or by number."""
    names = tuple(classes) if classes else tuple(str(each) for each in range(num_classes))
    if len(names) != num_classes:
        raise UserError(f"{path}: has {num_classes} classes; {len(names)} names are given")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"names of classes must differ; given twice: {', '.join(twice[:5])}")
    return Vocabulary("class", names, length=1, examples=names)
