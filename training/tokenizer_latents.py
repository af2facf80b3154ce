"""Statistics of a tokenizer's latents, measured on clips of pixel shards.

statistics = measure_on(tokenizer, choose_clips(dataset, tokenizer, "train", MEASURED_CLIPS))
statistics = measure_folder("tokenizers/var", "runs/demo/data/pixels")     # and kept there
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from pipeline.shards import open_dataset
from tokenizer.folder import find_tokenizer, load_tokenizer
from tokenizer.latents import LatentStatistics, measure_latents, save_statistics
from tokenizer.model import Tokenizer
from training.evaluate_config import LatentsConfig
from training.pixel_clips import Chosen, batches, choose_clips
from training.run import pick_device

PIXELS_AT_ONCE = 1 << 20


def measure_on(
    tokenizer: Tokenizer, chosen: Mapping[str, Chosen], skip_damaged: bool = False
) -> LatentStatistics:
    """The statistics over these clips, of all shapes together; UserError when there are none."""
    return measure_latents(tokenizer, _frames(tokenizer, chosen, skip_damaged))


def measure_folder(
    folder: str | Path,
    data: str | Path,
    config: LatentsConfig | None = None,
    pixels_of: Callable[[Path], Path] = lambda data: data,
) -> LatentStatistics:
    """Measures the tokenizer in a folder and keeps the statistics there; its fingerprint stays.

    `data` and `pixels_of` are those of `evaluate_tokenizer`.
    """
    config = config or LatentsConfig()
    folder = find_tokenizer(folder)
    tokenizer = load_tokenizer(folder, device=pick_device(config.device))
    dataset = open_dataset(pixels_of(Path(data)))
    chosen = choose_clips(dataset, tokenizer, config.split, config.max_clips)
    statistics = measure_on(tokenizer, chosen)
    save_statistics(statistics, folder)
    return statistics


def _frames(
    tokenizer: Tokenizer, chosen: Mapping[str, Chosen], skip_damaged: bool
) -> Iterator[UInt8[Tensor, "b t h w 3"]]:
    device = next(tokenizer.parameters()).device
    for samples, places in chosen.values():
        bucket = samples.bucket
        size = max(1, PIXELS_AT_ONCE // (bucket.num_frames * bucket.height * bucket.width))
        for frames, _ in batches(samples, places, size, skip_damaged):
            yield torch.from_numpy(frames).to(device)
