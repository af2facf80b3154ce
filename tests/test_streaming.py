"""Streams: codes as of the whole video, in any chunks, in bounded memory."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokenizer.autoencoder_config import AutoencoderConfig, ImageAutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer, signed
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import UserError
from tokenizer.streaming import (
    join_pyramids,
    split_pyramids,
    stream_decode,
    stream_encode,
    stream_latents,
)

ROOT = Path(__file__).parent.parent
CONFIG = TokenizerConfig(
    autoencoder=AutoencoderConfig(
        patch=4,
        temporal_patch=2,
        spatial_stride=8,
        channels=(8, 12),
        encoder_blocks=(1, 1),
        decoder_blocks=(1, 1),
    ),
    quantizer=QuantizerConfig(
        codebook_size=64, codebook_dim=4, scales=(1, 2, 4), clip_latent_frames=2
    ),
)
TIE = 1e-5


def tokenizer(config=CONFIG):
    """Every layer with weights that matter: the untrained network is zero."""
    generator = torch.Generator().manual_seed(0)
    made = Tokenizer(config).eval().requires_grad_(False)
    for parameter in made.autoencoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    made.quantizer.codebook.set_codes(torch.randn(64, 4, generator=generator))
    return made


def video(num_frames, batch=2, side=32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = batch, num_frames, side, side, 3
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def in_chunks(frames, lengths):
    return list(frames.split(lengths, dim=1))


@pytest.mark.parametrize("clip_latent_frames", [1, 2, 3, None])
@pytest.mark.parametrize("lengths", [[21], [1] * 21, [3, 9, 0, 8, 1]])
def test_streamed_codes_are_those_of_the_whole_video_whatever_the_chunks(
    clip_latent_frames, lengths
):
    quantizer = replace(CONFIG.quantizer, clip_latent_frames=clip_latent_frames)
    made, frames = tokenizer(replace(CONFIG, quantizer=quantizer)), video(21)
    codes, schedule = join_pyramids(stream_encode(made, in_chunks(frames, lengths)))
    assert schedule == made.schedule_for(21, 32, 32)
    assert torch.equal(codes, made.encode(frames))


def test_a_pyramid_comes_when_its_latent_frames_are_complete():
    made, frames = tokenizer(), video(17)
    taken = 0

    def one_by_one():
        nonlocal taken
        for frame in frames.split(1, dim=1):
            taken += 1
            yield frame

    arrivals = [
        (taken, pyramid.scales[0].t0, pyramid.scales[0].t1)
        for pyramid in stream_encode(made, one_by_one())
    ]
    assert arrivals == [(1, 0, 1), (9, 1, 3), (17, 3, 5)]


def test_streamed_frames_are_those_of_the_whole_clip():
    made, frames = tokenizer(), video(21)
    codes, schedule = made.encode(frames), made.schedule_for(21, 32, 32)
    for num_scales in (None, 1):
        parts = list(stream_decode(made, split_pyramids(codes, schedule), num_scales))
        assert [part.shape[1] for part in parts] == [1, 4, 4, 4, 4, 4]
        assert torch.equal(torch.cat(parts, dim=1), made.decode(codes, schedule, num_scales))


def test_a_stream_in_tiles_has_the_same_codes():
    made, frames = tokenizer(), video(9, side=64)
    codes, _ = join_pyramids(stream_encode(made, in_chunks(frames, [5, 4]), tile=24))
    assert torch.equal(codes, made.encode(frames))
    pyramids = list(split_pyramids(codes, made.schedule_for(9, 64, 64)))
    whole = torch.cat(list(stream_decode(made, pyramids)), dim=1)
    tiled = torch.cat(list(stream_decode(made, pyramids, tile=32)), dim=1)
    assert (whole.int() - tiled.int()).abs().max() <= 1


def test_splitting_and_joining_pyramids_are_inverse():
    schedule = CONFIG.schedule_for(17, 32, 32)
    codes = torch.randint(64, (2, schedule.num_tokens))
    joined, again = join_pyramids(split_pyramids(codes, schedule))
    assert torch.equal(joined, codes)
    assert again == schedule


@pytest.mark.parametrize("pieces", [[21], [1, 20], [5, 16], [1, 8, 12], [9, 4, 4, 4]])
def test_other_pieces_give_the_same_ids_except_at_ties(pieces):
    made, frames = tokenizer(), video(21, batch=8)
    schedule = made.schedule_for(21, 32, 32)
    canonical = made.encode_latents(signed(frames))
    past, parts = None, []
    for piece in signed(frames).split(pieces, dim=2):
        latents, past = made.autoencoder.encode_piece(piece, past)
        parts.append(latents)
    other = torch.cat(parts, dim=2)
    size = canonical.abs().max()
    torch.testing.assert_close(other / size, canonical / size, rtol=0, atol=1e-5)
    codes, changed = made.quantize(canonical, schedule), made.quantize(other, schedule)
    assert (codes != changed).float().mean() < 1e-3
    assert_ties(made, canonical, schedule, codes, changed)


def assert_ties(made, latents, schedule, codes, changed):
    """Where ids first differ in a clip's pyramid, its two nearest codes are equally near."""
    state = made.quantizer.start(schedule, len(latents))
    differ = schedule.split(codes != changed)
    undecided = {}
    for scale, here, ids in zip(schedule.scales, differ, schedule.split(codes)):
        sought = state.residual(latents[:, :, scale.t0 : scale.t1])
        before = undecided.setdefault((scale.t0, scale.t1), torch.zeros(len(latents)).bool())
        first = here.flatten(1) & ~before[:, None]
        distances = torch.cdist(sought, made.quantizer.codebook.weight[None]) ** 2
        nearest = distances.topk(2, largest=False).values
        gap = (nearest[..., 1] - nearest[..., 0]) / nearest[..., 0].clamp(min=1e-12)
        assert (gap[first] <= TIE).all()
        before |= here.flatten(1).any(dim=1)
        state.add(ids.flatten(1))


def test_an_image_has_the_codes_of_a_videos_first_frame():
    made, frames = tokenizer(), video(9)
    image = made.encode(frames[:, :1])
    assert torch.equal(image, made.encode(frames)[:, : image.shape[1]])


def test_an_image_tokenizer_streams_a_pyramid_for_every_frame():
    config = TokenizerConfig(
        architecture="image",
        image=ImageAutoencoderConfig(
            channels=32, channel_multipliers=(1, 1), num_blocks=1, z_channels=4
        ),
        quantizer=QuantizerConfig(codebook_size=64, codebook_dim=4, scales=(1, 2, 4)),
    )
    made, frames = tokenizer(config), video(3, side=16)
    pyramids = list(stream_encode(made, in_chunks(frames, [2, 1])))
    assert [(each.scales[0].t0, each.scales[0].t1) for each in pyramids] == [(0, 1), (1, 2), (2, 3)]
    codes, schedule = join_pyramids(pyramids)
    assert torch.equal(codes, made.encode(frames))
    decoded = torch.cat(list(stream_decode(made, pyramids)), dim=1)
    assert torch.equal(decoded, made.decode(codes, schedule))
    with pytest.raises(UserError, match="cannot be tiled; encode whole frames"):
        made.encode(frames, tile=8)


@pytest.mark.parametrize("changed", [0, 1, 4, 5, 12, 16])
def test_a_change_in_a_frame_changes_no_code_of_an_earlier_clip(changed):
    made, frames = tokenizer(), video(17)
    other = frames.clone()
    other[:, changed] = 255 - other[:, changed]
    schedule = made.schedule_for(17, 32, 32)
    latent_frame = -(-changed // 4)
    for before, after in zip(
        split_pyramids(made.encode(frames), schedule), split_pyramids(made.encode(other), schedule)
    ):
        if before.scales[0].t1 <= latent_frame:
            assert torch.equal(before.codes, after.codes)
        elif before.scales[0].t0 <= latent_frame:
            assert not torch.equal(before.codes, after.codes)


def test_permuting_the_clips_of_a_batch_permutes_their_codes():
    made, frames = tokenizer(), video(9, batch=8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(made.encode(frames[order]), made.encode(frames)[order])


def test_what_else_is_in_the_batch_changes_no_code():
    made, frames = tokenizer(), video(9, batch=8)
    padded = frames.clone()
    padded[3:] = 0
    assert torch.equal(made.encode(padded)[:3], made.encode(frames)[:3])


def test_a_tail_is_refused_at_the_end_or_left_out():
    made, frames = tokenizer(), video(11)
    with pytest.raises(UserError, match=r"num_frames \(11\) must be 1 \+ a multiple of 4; .* 9 an"):
        list(stream_encode(made, [frames]))
    codes, schedule = join_pyramids(stream_encode(made, [frames], drop_tail=True))
    assert schedule == made.schedule_for(9, 32, 32)
    assert torch.equal(codes, made.encode(frames[:, :9]))


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "the stream has no frames"),
        ([video(1, side=36)], r"height \(36\) must be a multiple of 8"),
        ([video(1), video(4, side=40)], r"\(2 of 40 x 40\) differ from those before \(2 of 32 x"),
        ([video(1).float()], r"must be uint8 \[b, t, h, w, 3\]"),
    ],
)
def test_a_stream_of_the_wrong_kind_is_refused(chunks, message):
    with pytest.raises(UserError, match=message):
        list(stream_latents(tokenizer(), chunks))


def test_codes_of_the_wrong_number_are_refused():
    made = tokenizer()
    schedule = made.schedule_for(9, 32, 32)
    pyramids = list(split_pyramids(made.encode(video(9)), schedule))
    cut = replace(pyramids[1], codes=pyramids[1].codes[:, 1:])
    with pytest.raises(UserError, match=r"codes of shape \[2, 41\] do not fit"):
        list(stream_decode(made, [pyramids[0], cut]))


@pytest.fixture
def _older_is_frozen() -> None:
    """The collector does not list what other tests left behind."""
    gc.collect()
    gc.freeze()


def live_bytes() -> int:
    """What all tensors made since the freeze take that anybody holds, shared memory once."""
    storages = {}
    for each in gc.get_objects():
        # isinstance asks lazy modules; a sparse tensor has no storage and is in no stream
        if issubclass(type(each), torch.Tensor) and each.layout is torch.strided:
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.usefixtures("_older_is_frozen")
@pytest.mark.parametrize("keeps", [False, True])
def test_what_a_stream_holds_does_not_grow_with_it(keeps):
    """Asked after every fourth pyramid; and it would be seen if all of them were kept."""
    made, kept, held = tokenizer(), [], []
    lengths = [1, *([8] * 24)]
    pyramids = stream_encode(made, (video(n, batch=1, seed=i) for i, n in enumerate(lengths)))
    seen = (kept.append(each) or each if keeps else each for each in pyramids)
    for number, _ in enumerate(stream_decode(made, seen)):
        if number % 8 == 1:
            held.append(live_bytes())
    assert len(held) == 6
    assert (len(set(held[1:])) == 1) != keeps


TEN_MINUTES = """
import json, resource
import torch
from tests.test_streaming import tokenizer, video
from tokenizer.streaming import stream_decode, stream_encode

torch.set_num_threads(1)
made = tokenizer()

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def run(num_frames):
    chunks = (video(min(50, num_frames - start), batch=1) for start in range(0, num_frames, 50))
    pyramids = stream_encode(made, chunks)
    return sum(each.shape[1] for each in stream_decode(made, pyramids)), peak()

_, before = run(401)
frames, after = run(4801)
print(json.dumps({"frames": frames, "growth_mib": after - before}))
"""


@pytest.mark.slow
def test_ten_minutes_of_video_take_no_more_memory_than_one():
    """Their pixels alone, 4,400 frames more of 32 x 32, are 13 MiB."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TEN_MINUTES],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    assert result["frames"] == 4801
    assert result["growth_mib"] < 4
