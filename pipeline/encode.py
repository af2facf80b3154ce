"""Encoders: what turns a batch of clips into the arrays of a token set.

    recipe, *further = code_recipes(folder, settings)      # one for each token set of a build
    check_fit(recipe, buckets)
    recipe.load().encode(frames)

Two kinds: `codes` runs a tokenizer, `frames` keeps the pixels (shards that train tokenizers and
judges). Batches have one fixed size, padded, and hold clips of one unit in unit order, so a clip's
codes do not depend on who encoded what beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.commit import fingerprint_of
from pipeline.config import TokenizeSettings
from pipeline.shards.format import Bucket, TokenSet
from tokenizer.config import TokenizerConfig
from tokenizer.scales import Schedule
from tokenizer.settings import UserError, from_dict

ENCODE_VERSION = 1  # raise it when the same clips and tokenizer give other arrays


_PLAIN = {"precision": "float32", "compiled": False}
"""On a CPU, what codes were made with before this could be set; it is left unsaid there."""


class Encoder(Protocol):
    """Turns frames into the arrays of `token_set`."""

    token_set: TokenSet
    batch_size: int

    def schedule(self, bucket: Bucket) -> Schedule | None:
        """How the codes of a bucket's clips are laid out; None for pixels."""
        ...

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Arrays [b, ...] of frames uint8 [b, t, h, w, 3], b <= batch_size.

        Raises NotFinite with the row of a clip for which the model gave no numbers.
        """
        ...


@dataclass(frozen=True)
class EncoderRecipe:
    """How to make an encoder, and its identity; picklable and light: no torch until `load`.

    `how` is what the fingerprint covers: encoders that differ in any of it may differ in bits.
    `name` is that of the token set.
    """

    kind: str
    directory: str | None
    settings: TokenizeSettings
    fingerprint: str
    how: Mapping[str, Any] = field(default_factory=dict)
    name: str = "codes"

    def load(self) -> Encoder:
        if self.kind == "frames":
            return FrameEncoder(self.settings.batch_size)
        assert self.directory is not None
        return CodeEncoder(Path(self.directory), self.settings, self.name)


def frame_recipe(settings: TokenizeSettings) -> EncoderRecipe:
    """Pixel shards."""
    made = fingerprint_of({"frames": ENCODE_VERSION})
    return EncoderRecipe("frames", None, settings, made, name="frames")


def code_recipes(directory: Path, settings: TokenizeSettings) -> tuple[EncoderRecipe, ...]:
    """Code shards of the tokenizer in `directory`, the primary one, and of `settings.further`.

    The further ones are in the order of their names, whatever the order of the settings.
    """
    further = sorted(settings.further.items())
    return (
        code_recipe(directory, settings),
        *(code_recipe(Path(folder), settings, name) for name, folder in further),
    )


def code_recipe(directory: Path, settings: TokenizeSettings, name: str = "codes") -> EncoderRecipe:
    """One token set, of the tokenizer in `directory`.

    UserError when there is none, and when its frames cannot be encoded in tiles that are asked for.
    """
    from importlib.metadata import version

    declared = _declared(directory, name)
    how: dict[str, Any] = {
        "codes": ENCODE_VERSION,
        "tokenizer": str(declared["fingerprint"]),
        "batch_size": settings.batch_size,
        "threads": settings.threads,
        "device": settings.device,
        "torch": version("torch"),
    }
    running = {"precision": settings.autoencoder_precision, "compiled": settings.is_compiled}
    if settings.device != "cpu" or running != _PLAIN:
        how |= running
    if settings.tile is not None:
        _check_tile(declared, directory, settings.tile)
        how["tile"] = settings.tile
    return EncoderRecipe("codes", str(directory), settings, fingerprint_of(how), how, name)


def check_fit(recipe: EncoderRecipe, buckets: Sequence[Bucket]) -> None:
    """UserError when the tokenizer cannot encode the clips of a bucket."""
    assert recipe.directory is not None
    declared = _declared(Path(recipe.directory), recipe.name)
    where = f"{recipe.directory}/tokenizer.json"
    config = from_dict(TokenizerConfig, declared.get("config", {}), where)
    for bucket in buckets:
        try:
            config.schedule_for(bucket.num_frames, bucket.height, bucket.width)
        except UserError as error:
            raise UserError(
                f"{_setting_of(recipe.name)}: {recipe.directory} does not fit the bucket "
                f"{bucket.num_frames}x{bucket.height}x{bucket.width}: {error}"
            ) from None


def _setting_of(name: str) -> str:
    return "tokenize.tokenizer" if name == "codes" else f"tokenize.further.{name}"


def _declared(directory: Path, name: str) -> dict[str, Any]:
    """What `tokenizer.json` says, a fingerprint among it."""
    try:
        declared = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        return {**declared, "fingerprint": str(declared["fingerprint"])}
    except FileNotFoundError:
        flag = _setting_of(name).removesuffix(f".{name}")
        raise UserError(
            f"{directory}: no tokenizer here; train one with `tessera tokenizer train --data OUT`, "
            f"or name one with --{flag}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory}: tokenizer.json is damaged ({error!r})") from None


def _check_tile(declared: Mapping[str, Any], directory: Path, tile: int) -> None:
    path = directory / "tokenizer.json"
    config = from_dict(TokenizerConfig, declared.get("config", {}), str(path))
    try:
        config.in_use.check_tile(tile)
    except UserError as error:
        raise UserError(f"tokenize.tile, with the tokenizer in {directory}: {error}") from None


class FrameEncoder:
    """Keeps pixels as they are."""

    token_set = TokenSet(name="frames", kind="frames", dtype="uint8")

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def schedule(self, bucket: Bucket) -> Schedule | None:
        return None

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return frames


class CodeEncoder:
    """Runs a tokenizer on padded batches: the autoencoder as set, the quantizer in float32."""

    def __init__(self, directory: Path, settings: TokenizeSettings, name: str = "codes") -> None:
        import torch

        from tokenizer.folder import load_tokenizer

        torch.set_num_threads(settings.threads)
        torch.backends.cudnn.allow_tf32 = False
        self.batch_size = settings.batch_size
        self._device = torch.device(settings.device)
        self._precision = settings.autoencoder_precision
        self._tile = settings.tile
        self._tokenizer = load_tokenizer(directory, device=settings.device)
        if settings.is_compiled:
            self._tokenizer.autoencoder.encoder.compile(dynamic=False)
        size = self._tokenizer.codebook_size
        self.token_set = TokenSet(
            name=name,
            kind="codes",
            dtype="uint16" if size <= 65536 else "uint32",
            codebook_size=size,
            tokenizer=self._tokenizer.fingerprint,
        )

    def schedule(self, bucket: Bucket) -> Schedule | None:
        return self._tokenizer.schedule_for(bucket.num_frames, bucket.height, bucket.width)

    def encode(self, frames: np.ndarray) -> np.ndarray:
        import torch

        padded = frames[np.minimum(np.arange(self.batch_size), len(frames) - 1)]
        autocast = torch.autocast(
            self._device.type, torch.bfloat16, enabled=self._precision == "bfloat16"
        )
        with torch.inference_mode(), autocast:
            codes = self._tokenizer.encode(torch.from_numpy(padded).to(self._device), self._tile)
        return codes[: len(frames)].cpu().numpy().astype(self.token_set.dtype)
