"""Published tokenizers: checkpoints of VAR and LlamaGen as tokenizers of ours, whole or not at all.

    published = load_published("vae_ch160v4096z32.pth")
    published.tokenizer.encode(frames)                     # the reference's very ids
    convert("vq_ds16_c2i.pt", "runs/llamagen")             # what `tessera tokenizer convert` does

Sizes follow from the shapes in the file and are compared with what was asked for; what shapes do
not tell (scales, metric, `phi_ratio`) is asked for or the family's default. Then every key must
be there, none too many, each of its shape: one error names all that is not so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizer import key_report
from tokenizer.checkpoint import Checkpoint, read_checkpoint
from tokenizer.config import TokenizerConfig
from tokenizer.folder import CONFIG_FILE, place_weights, read_description, save_tokenizer
from tokenizer.key_report import CheckpointMismatch
from tokenizer.layouts import PUBLISHED, TRAINING_ONLY, Names, settings_of
from tokenizer.model import Tokenizer
from tokenizer.settings import UserError, from_dict
from tokenizer.shapes import detect_layout, read_names, read_sizes

__all__ = [
    "CheckpointMismatch",
    "Published",
    "check_keys",
    "convert",
    "from_published",
    "load_published",
    "to_published",
    "weights_in",
]

IMAGE_SIDE = 256
"""Side of the images for which a converted single-grid tokenizer names its scale."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A loaded checkpoint."""

    tokenizer: Tokenizer
    """Frozen, in eval mode, float32."""
    names: Names
    source: dict[str, str]
    """File name, SHA-256, layout and part: what `tokenizer.json` keeps."""
    left_out: tuple[str, ...]
    """Keys of the file that no code and no pixel depends on."""


def convert(
    path: str | Path,
    directory: str | Path,
    asked: Mapping[str, Any] | None = None,
    *,
    layout: str | None = None,
    part: str | None = None,
) -> Published:
    """Loads a checkpoint as `load_published` does and writes it as a tokenizer's folder.

    UserError as well when another tokenizer is there: codes may need it.
    """
    published = load_published(path, asked, layout=layout, part=part)
    if (Path(directory) / CONFIG_FILE).is_file():
        found = read_description(Path(directory))["fingerprint"]
        if found != published.tokenizer.fingerprint:
            raise UserError(
                f"{directory}: holds another tokenizer ({found[:12]}), which codes may need; name "
                "another folder, or remove that one"
            )
    save_tokenizer(published.tokenizer, directory, published.source)
    return published


def load_published(
    path: str | Path,
    asked: Mapping[str, Any] | None = None,
    *,
    layout: str | None = None,
    part: str | None = None,
) -> Published:
    """The tokenizer in a checkpoint.

    `asked` are settings by dotted name (`{"quantizer.scales": [1, 2, 3]}`); `layout` and `part`
    are found when not given. Raises UserError as `read_checkpoint` does and when sizes differ from
    what was asked for, CheckpointMismatch when keys or shapes are not exactly the model's.
    """
    checkpoint = read_checkpoint(path, part, prefer="trainer.vae_local")
    layout = layout or detect_layout(checkpoint)
    names = read_names(checkpoint, layout)
    config = _config(checkpoint, layout, names, asked or {})
    with torch.device("meta"):
        ours = Tokenizer(config).weights()
    kept = weights_in(checkpoint, names)
    check_keys(checkpoint.path, names, ours, kept)
    weights = from_published(names, ours, kept)
    broken = [name for name, value in weights.items() if not bool(value.isfinite().all())]
    if broken:
        theirs = ", ".join(piece for name in broken for piece in names.of(name))
        raise UserError(f"{path}: holds numbers that are not finite, in {theirs}")
    tokenizer = Tokenizer(config)
    place_weights(tokenizer, weights)
    source = {"checkpoint": checkpoint.path.name, "sha256": checkpoint.sha256, "layout": layout}
    if checkpoint.part is not None:
        source["part"] = checkpoint.part
    ignored = tuple(key for key in checkpoint.tensors if key not in kept)
    return Published(
        tokenizer=tokenizer.eval().requires_grad_(False),
        names=names,
        source=source,
        left_out=(*ignored, *checkpoint.left_out),
    )


def weights_in(checkpoint: Checkpoint, names: Names) -> dict[str, Tensor]:
    """The checkpoint's tensors without those that are known to be no part of a model."""
    return {
        key: value
        for key, value in checkpoint.tensors.items()
        if key != names.layout.usage and not re.match(TRAINING_ONLY, key)
    }


def check_keys(
    path: Path, names: Names, ours: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """CheckpointMismatch unless `found` has exactly the tensors that `ours` are made of."""
    expected: dict[str, list[int]] = {}
    for name, value in ours.items():
        pieces = names.of(name)
        shape = [value.shape[0] // len(pieces), *value.shape[1:]]
        expected.update((piece, shape) for piece in pieces)
    key_report.check_keys(path, expected, found)


def to_published(names: Names, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors (weights, or gradients of them) under their names."""
    theirs: dict[str, Tensor] = {}
    for name, value in tensors.items():
        pieces = names.of(name)
        theirs.update(zip(pieces, value.chunk(len(pieces))))
    return theirs


def from_published(
    names: Names, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Their tensors under the names of `ours`, copied, as float32; every piece must be there."""
    return {
        name: torch.cat([theirs[piece] for piece in names.of(name)]).detach().to(torch.float32)
        for name in ours
    }


def _config(
    checkpoint: Checkpoint, layout: str, names: Names, asked: Mapping[str, Any]
) -> TokenizerConfig:
    """The settings of the tokenizer in a file; UserError when they are not those asked for."""
    asked = {
        key: list(value) if isinstance(value, tuple) else value for key, value in asked.items()
    }
    sizes = read_sizes(checkpoint, names)
    differing = [
        f"{key} is {sizes[key]}, not {value} as asked for"
        for key, value in asked.items()
        if key in sizes and value != sizes[key]
    ]
    if differing:
        raise UserError(f"{checkpoint.path}: {'; '.join(differing)}")
    nested: dict[str, Any] = {"architecture": "image"}
    for key, value in {**_defaults(layout, names), **sizes, **asked}.items():
        section, _, last = key.rpartition(".")
        nested.setdefault(section, {})[last] = value
    config = from_dict(TokenizerConfig, nested, str(checkpoint.path))
    _check_quantizer(checkpoint, names, config, asked)
    return config


def _defaults(layout: str, names: Names) -> dict[str, Any]:
    """What shapes do not tell, as the family's published tokenizers have it."""
    if layout == "var":
        return settings_of("var-vqvae")
    side = max(1, IMAGE_SIDE >> (names.num_levels - 1))
    return {**settings_of("llamagen-vq16"), "quantizer.scales": [side]}


def _check_quantizer(
    checkpoint: Checkpoint, names: Names, config: TokenizerConfig, asked: Mapping[str, Any]
) -> None:
    """UserError where a file hints at scales or convolutions that nobody asked for.

    A missing convolution would otherwise look like a model that has fewer of them.
    """
    if not names.layout.phi:
        return
    settings, path = config.quantizer, checkpoint.path
    num_scales, num_phi = len(settings.scales), settings.num_phi
    usage = checkpoint.tensors.get(names.layout.usage)
    if usage is not None and (usage.ndim != 2 or usage.shape[1] != settings.codebook_size):
        raise UserError(
            f"{path}: {names.layout.usage} is {list(usage.shape)} where there are "
            f"{settings.codebook_size} codes"
        )
    if usage is not None and len(usage) != num_scales and "quantizer.scales" not in asked:
        raise UserError(
            f"{path}: has {len(usage)} scales, not the published {num_scales}; name them with "
            "--schedule or --quantizer.scales"
        )
    if "quantizer.num_phi" in asked:
        return
    if names.sharing == "each" and num_phi != num_scales:
        raise UserError(
            f"{path}: has {num_phi} convolutions, one per scale, for {num_scales} scales"
        )
    published = PUBLISHED["var-vqvae"].quantizer.num_phi
    if names.sharing == "some" and num_phi != published:
        raise UserError(
            f"{path}: has {num_phi} shared convolutions, not the published {published}; if that is "
            f"so, ask for them with --quantizer.num_phi {num_phi}"
        )
