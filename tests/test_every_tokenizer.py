"""What must hold for every preset, norm and architecture, in its real strides and stages.

Widths are small, so that it takes seconds; all weights matter, as an untrained network's do not.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from tests.test_streaming import assert_ties, in_chunks, video
from tokenizer.config import TokenizerConfig
from tokenizer.layouts import PUBLISHED
from tokenizer.model import Tokenizer, signed
from tokenizer.presets import PRESETS
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.scales import Schedule
from tokenizer.streaming import join_pyramids, stream_decode, stream_encode
from tokenizer.tiles import decoder_halo, encoder_halo

CODES = {"codebook_size": 256, "codebook_dim": 8}


def narrow(config: TokenizerConfig, norm: str) -> TokenizerConfig:
    """The same strides, stages, blocks and scales with 8 channels, two latent frames a pyramid."""
    stages = len(config.autoencoder.channels)
    return replace(
        config,
        autoencoder=replace(config.autoencoder, channels=(8,) * stages, norm=norm, norm_groups=4),
        quantizer=replace(config.quantizer, **CODES, clip_latent_frames=2),
    )


CAUSAL = {name: narrow(config, "rms") for name, config in PRESETS.items()}
CAUSAL |= {f"{name}, group": narrow(PRESETS[name], "group") for name in ("small", "tiny-s8")}
LONGER = replace(
    CAUSAL["small-s8"].autoencoder,
    temporal_stride=8,
    channels=(8, 8, 8),
    encoder_blocks=(1, 0, 1),
    decoder_blocks=(1, 0, 1),
)
CAUSAL["time stride 8"] = replace(CAUSAL["small-s8"], autoencoder=LONGER)
IMAGE = {
    name: TokenizerConfig(
        architecture="image",
        image=replace(config.image, channels=32, z_channels=8, channel_multipliers=(1, 1, 1)),
        quantizer=replace(config.quantizer, **CODES),
    )
    for name, config in PUBLISHED.items()
}
CAUSAL["fsq"] = replace(
    CAUSAL["tiny-s8"],
    quantizer=QuantizerConfig(
        lookup="fsq", levels=(8, 8, 8), codebook_size=512, codebook_dim=3, clip_latent_frames=2
    ),
)
CONFIGS = CAUSAL | IMAGE


@cache
def made_of(name: str, dtype: torch.dtype = torch.float32) -> Tokenizer:
    """The tokenizer with codes among its latents of noise, so that ids differ from cell to cell."""
    draw = torch.Generator().manual_seed(0)
    made = Tokenizer(CONFIGS[name]).eval().requires_grad_(False)
    for parameter in made.autoencoder.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 16
        torch.nn.init.normal_(parameter, std=fan_in**-0.5, generator=draw)
    frames = clips_for(made, batch=6, seed=2)
    latents = made.encode_latents(signed(frames))
    made.quantizer.begin(latents, made.schedule_for(*frames.shape[1:4]), draw)
    made.autoencoder.to(dtype)
    return made


def clips_for(
    made: Tokenizer, batch: int = 2, num_latent_frames: int = 4, seed: int = 1
) -> torch.Tensor:
    """Random pixels, two cells high and three wide."""
    stride = made.config.spatial_stride
    num_frames = 1 + (num_latent_frames - 1) * made.config.temporal_stride
    return video(num_frames, batch, side=3 * stride, seed=seed)[:, :, : 2 * stride]


def in_pieces(made: Tokenizer, frames: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Latents by pieces of so many latent frames each."""
    stride = made.config.temporal_stride
    sizes = [1 + stride * (lengths[0] - 1), *(stride * length for length in lengths[1:])]
    past, parts = None, []
    for piece in frames.split(sizes, dim=2):
        latents, past = made.autoencoder.encode_piece(piece, past)
        parts.append(latents)
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize(
    ("name", "lengths"), [("tiny", [4]), *((name, [2, 1, 1]) for name in CAUSAL)]
)
def test_other_pieces_give_the_same_latents_and_the_same_ids_except_at_ties(
    name: str, lengths: list[int]
) -> None:
    made = made_of(name)
    frames = signed(clips_for(made))
    canonical = made.encode_latents(frames)
    other = in_pieces(made, frames, lengths)
    size = canonical.abs().max()
    torch.testing.assert_close(other / size, canonical / size, rtol=0, atol=1e-5)
    schedule = made.schedule_for(*frames.shape[2:])
    codes, changed = (made.quantize(each, schedule) for each in (canonical, other))
    if made.config.quantizer.lookup == "vq":
        assert_ties(made, canonical, schedule, codes, changed)
    assert len(codes.unique()) > 50
    assert (codes != changed).float().mean() < 1e-2
    exact, frames = made_of(name, torch.float64), frames.double()
    canonical = exact.autoencoder.encode_canonically(frames)
    other = in_pieces(exact, frames, lengths)
    torch.testing.assert_close(other, canonical, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_stream_has_the_codes_and_frames_of_the_whole_video(name: str) -> None:
    made = made_of(name)
    frames = clips_for(made)
    codes = made.encode(frames)
    lengths = [2, 0, frames.shape[1] - 2]
    pyramids = list(stream_encode(made, in_chunks(frames, lengths)))
    streamed, schedule = join_pyramids(pyramids)
    assert schedule == made.schedule_for(*frames.shape[1:4])
    assert torch.equal(streamed, codes)
    decoded = torch.cat(list(stream_decode(made, pyramids)), dim=1)
    assert torch.equal(decoded, made.decode(codes, schedule))


@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_has_the_codes_of_the_first_frame_and_the_future_changes_no_code_of_the_past(
    name: str,
) -> None:
    made = made_of(name)
    frames = clips_for(made)
    schedule, stride = made.schedule_for(*frames.shape[1:4]), made.config.temporal_stride
    codes = made.encode(frames)
    image = made.encode(frames[:, :1])
    assert torch.equal(image, codes[:, : image.shape[1]])
    first_scales = dict(zip(schedule.pyramids, first_places(schedule)))
    for changed in (1, 1 + stride, frames.shape[1] - 1):
        other = frames.clone()
        other[:, changed] = 255 - other[:, changed]
        latent_frame = -(-changed // stride)
        start = next(
            first_scales[pyramid]
            for pyramid in schedule.pyramids
            if pyramid[0].t0 <= latent_frame < pyramid[0].t1
        )
        found = made.encode(other)
        assert torch.equal(found[:, :start], codes[:, :start])
        assert not torch.equal(found[:, start:], codes[:, start:])


def first_places(schedule: Schedule) -> list[int]:
    """Where the codes of each pyramid start."""
    scales = [len(pyramid) for pyramid in schedule.pyramids]
    return [schedule.offsets[sum(scales[:index])] for index in range(len(scales))]


@pytest.mark.parametrize("name", CONFIGS)
def test_neither_the_order_of_a_batch_nor_what_pads_it_changes_an_id(name: str) -> None:
    made = made_of(name)
    frames = clips_for(made, batch=5, num_latent_frames=2)
    codes = made.encode(frames)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.equal(made.encode(frames[order]), codes[order])
    padded = torch.cat([frames[:2], torch.zeros_like(frames[2:])])
    assert torch.equal(made.encode(padded)[:2], codes[:2])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith("base") else ())
        for name in CAUSAL
        if "group" not in name
    ],
)
def test_tiles_give_the_latents_and_ids_of_whole_frames(name: str) -> None:
    made = made_of(name)
    config = made.config.autoencoder
    cells = 2 * max(encoder_halo(config), decoder_halo(config)) + 3
    tile = config.spatial_stride
    frames = video(1 + config.temporal_stride, batch=1, side=cells * tile)[:, :, :tile]
    whole = made.encode_latents(signed(frames))
    in_tiles = made.encode_latents(signed(frames), tile)
    size = whole.abs().max()
    torch.testing.assert_close(in_tiles / size, whole / size, rtol=0, atol=1e-5)
    codes, schedule = made.encode(frames), made.schedule_for(*frames.shape[1:4])
    assert torch.equal(made.encode(frames, tile), codes)
    decoded, again = made.decode(codes, schedule), made.decode(codes, schedule, tile=tile)
    assert (decoded.int() - again.int()).abs().max() <= 1
