"""Streams: video of any length to codes and back, in bounded memory and without seams.

    for pyramid in stream_encode(tokenizer, chunks):      # chunks of uint8 [b, t, h, w, 3], any t
        write(pyramid.codes, pyramid.scales)
    for frames in stream_decode(tokenizer, pyramids):     # uint8 [b, t, h, w, 3] as they come
        show(frames)

The codes are those of `tokenizer.encode` on the whole video: a pyramid is given out when its last
latent frame is there, so no more than `quantizer.clip_latent_frames` latents are held, and of the
frames what the convolutions look back on. (Without that setting everything after the first frame is
one pyramid, which comes when the stream ends; its latents are held until then.) An image tokenizer
gives a pyramid for every frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tokenizer.causal import Past
from tokenizer.door import check_codes, check_num_scales, check_pixels, check_places
from tokenizer.model import Tokenizer, signed, unsigned
from tokenizer.scales import Scale, Schedule
from tokenizer.settings import UserError
from tokenizer.tiles import Step, tiled_decoder, tiled_encoder


@dataclass(frozen=True)
class CodedPyramid:
    """The codes of one pyramid of a stream."""

    codes: Int[Tensor, "b l"]
    """In the order of `scales`, each in C order."""
    scales: tuple[Scale, ...]
    """Coarse to fine; t0 and t1 are latent frames of the stream."""


def stream_latents(
    tokenizer: Tokenizer,
    chunks: Iterable[UInt8[Tensor, "b t h w 3"]],
    tile: int | None = None,
    drop_tail: bool = False,
) -> Iterator[Float[Tensor, "b c 1 h w"]]:
    """The latent frames of a video by the canonical encoding, one after another.

    Chunks may have any number of frames. With `tile`, frames are encoded in squares of so many
    pixels (see `tokenizer.tiles`). A video has 1 + k * stride frames: of any other number the last
    ones are left out with `drop_tail`, and are a UserError at the end of the stream without.
    """
    step = _encoding_step(tokenizer, tile)
    past: Past = None
    for piece in _pieces(chunks, tokenizer, drop_tail):
        with torch.no_grad():
            latents, past = step(signed(piece), past)
        yield latents


def stream_encode(
    tokenizer: Tokenizer,
    chunks: Iterable[UInt8[Tensor, "b t h w 3"]],
    tile: int | None = None,
    drop_tail: bool = False,
) -> Iterator[CodedPyramid]:
    """The codes of a video, pyramid by pyramid; see `stream_latents` for the rest."""
    is_image = tokenizer.config.architecture == "image"
    clip_length = 1 if is_image else tokenizer.config.quantizer.clip_latent_frames
    held: list[Tensor] = []
    t0 = 0
    for latents in stream_latents(tokenizer, chunks, tile, drop_tail):
        held.append(latents)
        if t0 == 0 or len(held) == clip_length:
            yield _coded(tokenizer, held, t0)
            t0 += len(held)
            held = []
    if held:
        yield _coded(tokenizer, held, t0)


def stream_decode(
    tokenizer: Tokenizer,
    pyramids: Iterable[CodedPyramid],
    num_scales: int | None = None,
    tile: int | None = None,
) -> Iterator[UInt8[Tensor, "b t h w 3"]]:
    """The frames of a stream of pyramids: the first alone, then a stride at a time.

    Each pyramid is decoded from its first `num_scales` scales (default: all). UserError for codes
    of another codebook, and for a pyramid that does not continue the stream.
    """
    check_num_scales(num_scales)
    step = _decoding_step(tokenizer, tile)
    past: Past = None
    for pyramid in _in_order(pyramids):
        schedule = _by_itself(pyramid.scales)
        check_codes(pyramid.codes, schedule, tokenizer.codebook_size)
        with torch.no_grad():
            latents = tokenizer.quantizer.decode(pyramid.codes, schedule, num_scales)
        for index in range(latents.shape[2]):
            with torch.no_grad():
                frames, past = step(latents[:, :, index : index + 1], past)
            yield unsigned(frames)


def split_pyramids(codes: Int[Tensor, "b l"], schedule: Schedule) -> Iterator[CodedPyramid]:
    """A clip's codes as the pyramids that `stream_decode` takes; UserError when they do not fit."""
    check_places(codes, schedule)
    start = 0
    for scales in schedule.pyramids:
        stop = start + sum(scale.num_tokens for scale in scales)
        yield CodedPyramid(codes[:, start:stop], scales)
        start = stop


def join_pyramids(pyramids: Iterable[CodedPyramid]) -> tuple[Int[Tensor, "b l"], Schedule]:
    """The codes and the schedule of a whole clip: the inverse of `split_pyramids`.

    UserError when there are none, and when one does not continue those before it.
    """
    parts = list(_in_order(pyramids))
    if not parts:
        raise UserError("no pyramids to join; a stream has at least that of its first frame")
    scales = tuple(scale for part in parts for scale in part.scales)
    return torch.cat([part.codes for part in parts], dim=1), Schedule(scales)


def _in_order(pyramids: Iterable[CodedPyramid]) -> Iterator[CodedPyramid]:
    """The pyramids as they come; UserError for one that does not continue those before it."""
    expected: tuple[int, ...] | None = None
    for pyramid in pyramids:
        finest = pyramid.scales[-1]
        grid = len(pyramid.codes), finest.h, finest.w
        found = (finest.t0, *grid)
        if found != (expected or (0, *grid)):
            raise UserError(
                f"a pyramid of {_shown(grid)} codes from latent frame {finest.t0} does not "
                "continue the stream; give all pyramids of one stream in their order"
            )
        expected = (finest.t1, *grid)
        yield pyramid


def _coded(tokenizer: Tokenizer, held: list[Tensor], t0: int) -> CodedPyramid:
    latents = torch.cat(held, dim=2)
    stride = tokenizer.autoencoder.spatial_stride
    num_frames = 1 + tokenizer.autoencoder.temporal_stride * (len(held) if t0 else 0)
    height, width = (side * stride for side in latents.shape[3:])
    pyramid = tokenizer.schedule_for(num_frames, height, width).pyramids[-1]
    scales = tuple(replace(scale, t0=t0, t1=t0 + len(held)) for scale in pyramid)
    return CodedPyramid(tokenizer.quantize(latents, _by_itself(scales)), scales)


def _by_itself(scales: tuple[Scale, ...]) -> Schedule:
    """The schedule of one pyramid alone, moved to latent frame 0."""
    start = scales[0].t0
    return Schedule(tuple(replace(scale, t0=0, t1=scale.t1 - start) for scale in scales))


def _pieces(
    chunks: Iterable[Tensor], tokenizer: Tokenizer, drop_tail: bool
) -> Iterator[UInt8[Tensor, "b t h w 3"]]:
    """Frame 0, then a stride of frames at a time, whatever the chunks' lengths."""
    stride = tokenizer.autoencoder.temporal_stride
    shape: tuple[int, ...] | None = None
    waiting: Tensor | None = None
    num_frames, wanted = 0, 1
    for chunk in chunks:
        check_pixels(chunk)
        found = (len(chunk), *chunk.shape[2:])
        if shape is None:
            tokenizer.schedule_for(1, *chunk.shape[2:4])
            shape = found
        if found != shape:
            raise UserError(
                f"a chunk's frames ({_shown(found)}) differ from those before ({_shown(shape)}); "
                "a stream has one size"
            )
        num_frames += chunk.shape[1]
        waiting = chunk if waiting is None else torch.cat([waiting, chunk], dim=1)
        while waiting.shape[1] >= wanted:
            yield waiting[:, :wanted]
            waiting, wanted = waiting[:, wanted:], stride
    if shape is None or num_frames == 0:
        raise UserError("the stream has no frames; it needs at least one")
    if waiting is not None and waiting.shape[1] and not drop_tail:
        tokenizer.schedule_for(num_frames, *shape[1:3])


def _shown(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} of {shape[1]} x {shape[2]}"


def _encoding_step(tokenizer: Tokenizer, tile: int | None) -> Step:
    autoencoder = tokenizer.autoencoder
    return autoencoder.encode_piece if tile is None else tiled_encoder(autoencoder, tile)


def _decoding_step(tokenizer: Tokenizer, tile: int | None) -> Step:
    autoencoder = tokenizer.autoencoder
    return autoencoder.decode_piece if tile is None else tiled_decoder(autoencoder, tile)
