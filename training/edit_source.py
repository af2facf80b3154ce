"""The clip to edit: frames of a file, or a sample of a dataset with its own codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8

from pipeline.shards import open_dataset
from pipeline.shards.sidecar import key_digest
from tokenizer.settings import UserError
from training.edit_config import EditConfig
from training.run import OpenedRun, Shape
from training.vocabulary import FIELDS

Decode = Callable[[Path, int, int, int, float, float], np.ndarray]
"""(path, num_frames, height, width, fps, start_seconds) to uint8 frames, at most `num_frames`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EditSource:
    """What is edited, in the size of the clips that the run makes."""

    name: str
    frames: UInt8[np.ndarray, "n h w 3"]
    """From the first on; fewer than the clip has where the source is shorter."""
    codes: Int[np.ndarray, " l"] | None = None
    """Of a sample; those of files are made from their known pixels."""
    prompt: str | None = None


def open_source(
    run: OpenedRun, source: str, bucket: str, config: EditConfig, decode: Decode | None
) -> EditSource:
    """The source that a path or a sample's key names; UserError when there is none."""
    shape = run.record.shapes[bucket]
    path = Path(source)
    if not path.exists():
        return _sample(run, source, bucket, config)
    if _is_image(path):
        return EditSource(name=path.stem, frames=_image(path, shape.height, shape.width)[None])
    if decode is None:
        raise UserError(
            f"{path}: videos are read by the pipeline: use the command `tessera edit` with PyAV "
            "installed, or give an image or the key of a sample"
        )
    frames = decode(
        path, shape.num_frames, shape.height, shape.width, config.fps, config.start_seconds
    )
    return EditSource(name=path.stem, frames=frames)


def read_mask(path: str, shape: Shape) -> Bool[np.ndarray, "h w"]:
    """Where an image is white, cut and scaled as the source is; UserError when it is no image."""
    return _image(Path(path), shape.height, shape.width).mean(axis=2) >= 128


def _sample(run: OpenedRun, key: str, bucket: str, config: EditConfig) -> EditSource:
    folder = config.data or run.config.data.path
    if folder is None or not Path(folder).exists():
        raise UserError(
            f"{key}: no such file; for a sample by its key, --data names its dataset "
            f"({folder} is not there)"
        )
    dataset = open_dataset(folder, token_set=run.config.data.token_set)
    if dataset.primary.tokenizer != run.record.tokenizer:
        raise UserError(f"{folder}: its codes are of another tokenizer than the run's")
    if bucket not in dataset.buckets:
        raise UserError(
            f"bucket {bucket!r}: {folder} has {', '.join(dataset.buckets)}; choose with --bucket"
        )
    samples = dataset.samples(bucket=bucket)
    found = np.flatnonzero((samples.keys() == np.array(key_digest(key), np.uint64)).all(axis=1))
    if not len(found):
        raise UserError(
            f"{key}: neither a file nor the key of a sample of {bucket} in {folder}; "
            "`tessera inspect` shows keys"
        )
    codes = samples.gather(found)[0].astype(np.int64)
    schedule = run.schedule(bucket)
    device = next(run.generator.parameters()).device
    frames = run.tokenizer.decode(torch.from_numpy(codes)[None].to(device), schedule)[0]
    return EditSource(
        name=key,
        frames=frames.cpu().numpy(),
        codes=codes,
        prompt=samples.metadata(found)[0].get(FIELDS.get(run.vocabulary.kind, "")),
    )


def _is_image(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(12)
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (
        head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    )


def _image(path: Path, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """A picture, cut in the middle to the aspect and scaled by areas."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not an image that can be read ({error})") from None
    return np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.BOX))
