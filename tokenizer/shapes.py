"""What the names and shapes of a checkpoint say about the model in it.

    names = read_names(checkpoint, "var")
    read_sizes(checkpoint, names)          # {"image.channels": 160, "quantizer.codebook_size": ...}

Every size is what most tensors say that depend on it: one wrong tensor must not hide what is wrong
with it. Whether all of them agree is for `tokenizer.published` to check, key by key.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizer.checkpoint import Checkpoint
from tokenizer.layouts import LAYOUTS, Names
from tokenizer.settings import UserError
from tokenizer.told_sizes import agreed_size, count_numbered

MAX_LEVELS = 8
MAX_BLOCKS = 64


def detect_layout(checkpoint: Checkpoint) -> str:
    """The one layout whose prefix keys have; UserError when that is none or several."""
    found = [
        name
        for name, layout in LAYOUTS.items()
        if any(key.startswith(layout.detected_by) for key in checkpoint.tensors)
    ]
    if len(found) != 1:
        first = ", ".join(list(checkpoint.tensors)[:3])
        raise UserError(
            f"{checkpoint.path}: its keys ({first}, ...) are of neither layout: "
            f"{', '.join(f'{name} has {each.detected_by}*' for name, each in LAYOUTS.items())}"
        )
    return found[0]


def read_names(checkpoint: Checkpoint, layout: str) -> Names:
    """Counts the levels, and finds how the quantizer's convolutions are shared."""
    family = LAYOUTS[layout]
    first = Names(layout=family, num_levels=1)
    num_levels = _count(checkpoint, first, "autoencoder.encoder.levels.{}.", MAX_LEVELS)
    if not num_levels:
        raise UserError(f"{checkpoint.path}: has no {family.detected_by}0; is it of {layout}?")
    found = [
        way for way, prefix in family.phi.items() if count_numbered(checkpoint, prefix, MAX_BLOCKS)
    ]
    return Names(layout=family, num_levels=num_levels, sharing=found[0] if found else "some")


def read_sizes(checkpoint: Checkpoint, names: Names) -> dict[str, Any]:
    """Settings of a tokenizer by dotted name, all those that shapes tell."""
    seen = _Seen(checkpoint, names)
    channels = seen.agreed("image.channels", seen.sizes("autoencoder.encoder.enter", 0))
    encoder, decoder = (_multipliers(seen, half, channels) for half in ("encoder", "decoder"))
    sizes: dict[str, Any] = {
        "image.channels": channels,
        "image.channel_multipliers": encoder,
        "image.num_blocks": seen.agreed(
            "image.num_blocks",
            [
                seen.num_blocks(half, level) - (half == "decoder")
                for half in ("encoder", "decoder")
                for level in range(names.num_levels)
            ],
        ),
        "image.z_channels": seen.agreed(
            "image.z_channels",
            [
                *seen.sizes("autoencoder.encoder.leave", 0),
                *seen.sizes("autoencoder.decoder.enter", 1),
                *seen.sizes("autoencoder.to_latents", 1),
                *seen.sizes("autoencoder.from_latents", 0),
            ],
        ),
        "image.kernel_size": seen.agreed(
            "image.kernel_size",
            [*seen.sizes("autoencoder.to_latents", 3), *seen.sizes("autoencoder.from_latents", 3)],
        ),
        "quantizer.codebook_size": seen.agreed(
            "quantizer.codebook_size", seen.sizes("quantizer.codebook", 0)
        ),
        "quantizer.codebook_dim": seen.agreed(
            "quantizer.codebook_dim",
            [
                *seen.sizes("quantizer.codebook", 1),
                *seen.sizes("autoencoder.to_latents", 0),
                *seen.sizes("autoencoder.from_latents", 1),
            ],
        ),
    }
    if decoder[::-1] != encoder:
        sizes["image.decoder_multipliers"] = decoder[::-1]
    if names.layout.phi:
        num_phi = count_numbered(checkpoint, names.layout.phi[names.sharing], MAX_BLOCKS)
        if num_phi:
            sizes["quantizer.num_phi"] = num_phi
    return sizes


def _multipliers(seen: _Seen, half: str, channels: int) -> list[int]:
    """Widths over `channels`, in our order of levels."""
    widths = []
    for level in range(seen.names.num_levels):
        prefix = f"autoencoder.{half}.levels.{level}.blocks."
        layers = [
            f"{prefix}{block}.{layer}"
            for block in range(seen.num_blocks(half, level))
            for layer in ("conv1", "norm2", "conv2")
        ]
        sizes = [size for layer in layers for size in seen.sizes(layer, 0)]
        widths.append(seen.agreed(f"the width of level {level} of the {half}", sizes))
        if widths[-1] % channels:
            raise UserError(
                f"{seen.checkpoint.path}: level {level} of the {half} has {widths[-1]} channels, "
                f"not a multiple of {channels}"
            )
    return [width // channels for width in widths]


class _Seen:
    """The tensors of a checkpoint, called by our names."""

    def __init__(self, checkpoint: Checkpoint, names: Names) -> None:
        self.checkpoint = checkpoint
        self.names = names

    def sizes(self, layer: str, axis: int) -> list[int]:
        """A layer's weight and bias along an axis, as far as they are there and have it."""
        keys = [*self.names.of(f"{layer}.weight"), *self.names.of(f"{layer}.bias")]
        found = [self.checkpoint.tensors[key] for key in keys if key in self.checkpoint.tensors]
        return [value.shape[axis] for value in found if value.ndim > axis]

    def num_blocks(self, half: str, level: int) -> int:
        template = f"autoencoder.{half}.levels.{level}.blocks.{{}}."
        return _count(self.checkpoint, self.names, template, MAX_BLOCKS)

    def agreed(self, what: str, sizes: Iterable[int]) -> int:
        """The size that most have; UserError when none has one, or one beyond reason."""
        return agreed_size(self.checkpoint.path, what, sizes)


def _count(checkpoint: Checkpoint, names: Names, template: str, limit: int) -> int:
    """One more than the highest number at {} of our template, among the file's keys."""
    return count_numbered(checkpoint, names.of(template)[0], limit)
