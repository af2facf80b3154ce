"""The tokenizer: pixels to multi-scale codes and back, whichever architecture it has.

    tokenizer = load_tokenizer("runs/demo/tokenizer")      # tokenizer.folder; frozen, float32
    codes = tokenizer.encode(frames)                       # uint8 [b, t, h, w, 3] -> int64 [b, l]
    schedule = tokenizer.schedule_for(t, h, w)
    frames = tokenizer.decode(codes, schedule)

A causal tokenizer codes clips over time; an image tokenizer codes every frame by itself.
"""

from __future__ import annotations

import hashlib
import json

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from tokenizer.autoencoder3d import CausalAutoencoder
from tokenizer.config import TokenizerConfig
from tokenizer.door import check_codes, check_frames, check_latents, check_num_scales, check_pixels
from tokenizer.image import ImageAutoencoder
from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.scales import Schedule
from tokenizer.settings import to_dict
from tokenizer.tiles import decode_in_tiles, encode_in_tiles

TRAINING_ONLY = ("ema_count", "ema_sum", "observed", "num_observed", "is_initialised")
"""Codebook statistics that training needs and a finished tokenizer does not."""


class Tokenizer(nn.Module):
    """An autoencoder with a multi-scale quantizer between its halves."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = _autoencoder(config)
        self.quantizer = MultiScaleQuantizer(config.quantizer)

    @property
    def codebook_size(self) -> int:
        return self.quantizer.codebook_size

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: float32, unless someone changed it."""
        return next(self.parameters()).dtype

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the settings and of every weight that codes or pixels depend on."""
        settings = {
            "architecture": self.config.architecture,
            "autoencoder": to_dict(self.config.in_use),
            "quantizer": to_dict(self.config.quantizer),
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, value in sorted(self.weights().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def schedule_for(self, num_frames: int, height: int, width: int) -> Schedule:
        """The scales of a clip of this shape in pixels."""
        return self.config.schedule_for(num_frames, height, width)

    @torch.no_grad()
    def encode(
        self, frames: UInt8[Tensor, "b t h w 3"], tile: int | None = None
    ) -> Int[Tensor, "b l"]:
        """Codes in the order of `schedule_for(t, h, w)`; UserError on any other kind of frames.

        With `tile` the frames are encoded in squares of so many pixels, for the same codes. Raises
        NotFinite for the first clip whose latents are not numbers.
        """
        check_pixels(frames)
        schedule = self.schedule_for(*frames.shape[1:4])
        return self.quantize(self._encode_latents(signed(frames), tile), schedule)

    @torch.no_grad()
    def quantize(
        self, latents: Float[Tensor, "b c t h w"], schedule: Schedule
    ) -> Int[Tensor, "b l"]:
        """Codes of latents; UserError unless they are this tokenizer's, on the schedule's grid.

        Raises NotFinite for the first clip whose latents are not numbers.
        """
        check_latents(latents, self.quantizer.codebook_dim, schedule)
        return self.quantizer.encode(latents, schedule)

    @torch.no_grad()
    def decode(
        self,
        codes: Int[Tensor, "b l"],
        schedule: Schedule,
        num_scales: int | None = None,
        tile: int | None = None,
    ) -> UInt8[Tensor, "b t h w 3"]:
        """Frames of codes, from the first `num_scales` scales of each pyramid (default: all).

        UserError unless these are codes of this codebook, one for each place of the schedule.
        """
        check_codes(codes, schedule, self.codebook_size)
        check_num_scales(num_scales)
        latents = self.quantizer.decode(codes, schedule, num_scales)
        if tile is not None:
            return unsigned(decode_in_tiles(self.autoencoder, latents, tile))
        return unsigned(self.autoencoder.decode_canonically(latents))

    @torch.no_grad()
    def encode_latents(
        self, frames: Float[Tensor, "b 3 t h w"], tile: int | None = None
    ) -> Float[Tensor, "b c t2 h2 w2"]:
        """Latents before the quantizer, of frames in [-1, 1], by the canonical encoding.

        Nothing is drawn: the same frames give the same latents. `tokenizer.latents` measures their
        channels. UserError on any other kind of frames, NotFinite for the first clip that is not
        all numbers.
        """
        check_frames(frames, self.dtype)
        self.config.check_clip_shape(*frames.shape[2:])
        return self._encode_latents(frames, tile)

    def _encode_latents(
        self, frames: Float[Tensor, "b 3 t h w"], tile: int | None
    ) -> Float[Tensor, "b c t2 h2 w2"]:
        if tile is not None:
            return encode_in_tiles(self.autoencoder, frames, tile)
        return self.autoencoder.encode_canonically(frames)

    def weights(self) -> dict[str, Tensor]:
        """The state that a finished tokenizer consists of, by name."""
        return {
            name: value
            for name, value in self.state_dict().items()
            if name.rpartition(".")[2] not in TRAINING_ONLY
        }


def signed(frames: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b 3 t h w"]:
    """uint8 frames as the float32 in [-1, 1] that models take."""
    return frames.permute(0, 4, 1, 2, 3).to(torch.float32) / 127.5 - 1


def unsigned(frames: Float[Tensor, "b 3 t h w"]) -> UInt8[Tensor, "b t h w 3"]:
    """The inverse of `signed`, clipped and rounded."""
    pixels = ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).contiguous()


def _autoencoder(config: TokenizerConfig) -> CausalAutoencoder | ImageAutoencoder:
    channels = config.quantizer.codebook_dim
    if config.architecture == "image":
        return ImageAutoencoder(config.image, channels)
    return CausalAutoencoder(config.autoencoder, channels)
