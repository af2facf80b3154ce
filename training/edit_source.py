"""The clip to edit: frames of a file, or a sample of a dataset with its own codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8

from pipeline.shards import open_dataset
from pipeline.shards.sidecar import key_digest
from tokenizer.settings import UserError
from training.edit_config import EditConfig
from training.run import OpenedRun, Shape
from training.vocabulary import FIELDS

if TYPE_CHECKING:
    from PIL import Image

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
    size: tuple[int, int] | None = None
    """Height and width before it was cut and scaled; None where that is not known."""


def open_source(
    run: OpenedRun, source: str, bucket: str, config: EditConfig, decode: Decode | None
) -> EditSource:
    """The source that a path or a sample's key names; UserError when there is none."""
    shape = run.record.shapes[bucket]
    path = Path(source)
    if not path.exists():
        return _sample(run, source, bucket, config)
    if not path.is_file():
        raise UserError(f"{path}: a folder; give a video, an image or the key of a sample")
    if _is_image(path):
        picture = _opened(path)
        frames = _fitted(picture, shape.height, shape.width)[None]
        return EditSource(name=path.stem, frames=frames, size=(picture.height, picture.width))
    if decode is None:
        raise UserError(
            f"{path}: videos are read by the pipeline: use the command `tessera edit` with PyAV "
            "installed, or give an image or the key of a sample"
        )
    frames = decode(
        path, shape.num_frames, shape.height, shape.width, config.fps, config.start_seconds
    )
    return EditSource(name=path.stem, frames=frames)


def read_mask(
    path: str, shape: Shape, size: tuple[int, int] | None = None
) -> Bool[np.ndarray, "h w"]:
    """Where an image is white, cut and scaled as the source is, which had `size`.

    UserError when it is no image, or neither as wide for its height as the source nor as the clip.
    """
    picture = _opened(Path(path))
    clip = shape.height, shape.width
    height, width = size or clip
    has_shape = any(
        abs(picture.height * w - picture.width * h) <= max(h, w) for h, w in ((height, width), clip)
    )
    if size is not None and not has_shape:
        raise UserError(
            f"{path}: a mask of {picture.height} x {picture.width} pixels does not lie on a source "
            f"of {height} x {width}; draw it on the source, or on the clip's {clip[0]} x {clip[1]}"
        )
    return _fitted(picture, *clip).mean(axis=2) >= 128


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


def _opened(path: Path) -> Image.Image:
    """A picture, upright; UserError when it is none."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not an image that can be read ({error})") from None


def _fitted(picture: Image.Image, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Cut in the middle to the aspect and scaled by areas."""
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.BOX))
