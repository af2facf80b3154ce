"""What a tokenizer refuses: each wrong thing is one clear line, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.conftest import tiny_tokenizer
from tokenizer.finite import NotFinite
from tokenizer.latents import LatentStatistics
from tokenizer.model import Tokenizer, signed
from tokenizer.scales import Scale, Schedule, single_grid
from tokenizer.settings import UserError
from tokenizer.streaming import (
    CodedPyramid,
    join_pyramids,
    split_pyramids,
    stream_decode,
    stream_encode,
)

SHAPE = 5, 16, 16
PIXELS = torch.zeros(2, *SHAPE, 3, dtype=torch.uint8)
FRAMES = signed(PIXELS)
LATENTS = torch.zeros(2, 4, 2, 2, 2)
CODES = torch.zeros(2, 10, dtype=torch.int64)
MADE = tiny_tokenizer()
FIT = MADE.schedule_for(*SHAPE)


def changed(values: torch.Tensor, value: float) -> torch.Tensor:
    """With one value of the second clip replaced."""
    values = values.clone(memory_format=torch.contiguous_format)
    values[1].view(-1)[3] = value
    return values


def stream(made: Tokenizer, codes: torch.Tensor = CODES) -> list[CodedPyramid]:
    return list(split_pyramids(codes, FIT))


WRONG_FRAMES: dict[str, tuple[Callable[[Tokenizer], Any], str]] = {
    "pixels for numbers": (
        lambda made: made.encode_latents(PIXELS.movedim(-1, 1)),
        r"frames \(uint8 \[2, 3, 5, 16, 16\]\) must be float32 \[b, 3, t, h, w\] in \[-1, 1\]",
    ),
    "numbers for pixels": (
        lambda made: made.encode(FRAMES.movedim(1, -1)),
        r"frames \(float32 \[2, 5, 16, 16, 3\]\) must be uint8 \[b, t, h, w, 3\]",
    ),
    "half precision": (lambda made: made.encode_latents(FRAMES.half()), "must be float32"),
    "channels last": (
        lambda made: made.encode_latents(FRAMES.movedim(1, -1)),
        r"frames \(float32 \[2, 5, 16, 16, 3\]\) must be float32 \[b, 3,",
    ),
    "one channel": (lambda made: made.encode_latents(FRAMES[:, :1]), r"\[2, 1, 5, 16, 16\]"),
    "no batch": (lambda made: made.encode_latents(FRAMES[0]), r"\[3, 5, 16, 16\]"),
    "four channels of pixels": (
        lambda made: made.encode(PIXELS[..., [0, 1, 2, 2]]),
        r"frames \(uint8 \[2, 5, 16, 16, 4\]\)",
    ),
    "a frame too many": (
        lambda made: made.encode_latents(FRAMES[:, :, [0, 1, 2, 3, 4, 4]]),
        r"num_frames \(6\) must be 1 \+ a multiple of 4; nearest are 5 and 9",
    ),
    "no frames": (lambda made: made.encode(PIXELS[:, :0]), r"num_frames \(0\) .*nearest are 1 and"),
    "a side off the grid": (
        lambda made: made.encode_latents(FRAMES[..., :-1]),
        r"width \(15\) must be a multiple of 8; nearest are 8 and 16",
    ),
    "a stream of numbers": (lambda made: list(stream_encode(made, [FRAMES])), "must be uint8"),
    "a tile off the grid": (lambda made: made.encode(PIXELS, tile=12), "nearest are 8 and 16"),
}
WRONG_LATENTS: dict[str, tuple[Callable[[Tokenizer], Any], str]] = {
    "whole numbers": (
        lambda made: made.quantize(LATENTS.long(), FIT),
        r"latents \(int64 \[2, 4, 2, 2, 2\]\) must be float \[b, 4, t, h, w\]",
    ),
    "another tokenizer's channels": (
        lambda made: made.quantize(LATENTS[:, :3], FIT),
        r"latents \(float32 \[2, 3, 2, 2, 2\]\) must be float \[b, 4, t, h, w\]: those of another",
    ),
    "a schedule larger than the grid": (
        lambda made: made.quantize(LATENTS, made.schedule_for(5, 16, 24)),
        r"finest scale \(2 x 3\) is larger than the latent grid \(2 x 2\)",
    ),
    "a schedule smaller than the grid": (
        lambda made: made.quantize(LATENTS, made.schedule_for(5, 8, 16)),
        r"finest scale \(1 x 2\) is smaller than the latent grid \(2 x 2\)",
    ),
    "a schedule of longer clips": (
        lambda made: made.quantize(LATENTS, made.schedule_for(9, 16, 16)),
        "the schedule is for 3 latent frames, there are 2",
    ),
    "statistics of other channels": (
        lambda made: LatentStatistics(mean=(0.0,), std=(1.0,), num_values=1).normalize(LATENTS),
        r"latents of shape \[2, 4, 2, 2, 2\] do not fit the statistics: \[b, 1, t, h, w\]",
    ),
}
WRONG_CODES: dict[str, tuple[Callable[[Tokenizer], Any], str]] = {
    "of a larger codebook": (
        lambda made: made.decode(changed(CODES, 16), FIT),
        r"codes \(0 to 16\) must lie in \[0, 16\): they are another tokenizer's",
    ),
    "negative": (lambda made: made.decode(changed(CODES, -1), FIT), r"codes \(-1 to 0\)"),
    "numbers": (
        lambda made: made.decode(CODES.float(), FIT),
        r"codes \(float32 \[2, 10\]\) must be int64 or int32",
    ),
    "uint16, as shards keep them": (
        lambda made: made.decode(CODES.to(torch.uint16), FIT),
        r"codes \(uint16 \[2, 10\]\) must be int64 or int32",
    ),
    "of another schedule": (
        lambda made: made.decode(CODES, single_grid(2, 2, 2)),
        r"codes of shape \[2, 10\] do not fit the schedule: \[b, 8\] is needed",
    ),
    "no scales": (lambda made: made.decode(CODES, FIT, 0), r"num_scales \(0\) must be at least 1"),
    "no scales of a stream": (
        lambda made: list(stream_decode(made, stream(made), num_scales=0)),
        r"num_scales \(0\) must be at least 1",
    ),
    "of a larger codebook, in a stream": (
        lambda made: list(stream_decode(made, stream(made, changed(CODES, 16)))),
        r"must lie in \[0, 16\)",
    ),
    "a stream without its beginning": (
        lambda made: list(stream_decode(made, stream(made)[1:])),
        r"a pyramid of 2 of 2 x 2 codes from latent frame 1 does not continue the stream",
    ),
    "a pyramid twice": (
        lambda made: join_pyramids([*stream(made), stream(made)[1]]),
        "from latent frame 1 does not continue the stream",
    ),
    "a pyramid of another size": (
        lambda made: list(
            stream_decode(
                made,
                [stream(made)[0], CodedPyramid(CODES[:, :6], (Scale(1, 2, 1, 2, 3),))],
            )
        ),
        "a pyramid of 2 of 2 x 3 codes from latent frame 1 does not continue the stream",
    ),
    "a pyramid of fewer clips": (
        lambda made: join_pyramids(
            [stream(made)[0], replace(stream(made)[1], codes=stream(made)[1].codes[:1])]
        ),
        "a pyramid of 1 of 2 x 2 codes",
    ),
    "nothing to join": (lambda made: join_pyramids([]), "no pyramids to join"),
    "more codes than a schedule to split has": (
        lambda made: list(split_pyramids(CODES, Schedule(FIT.scales[:2]))),
        r"\[b, 5\] is needed",
    ),
}


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [
        pytest.param(*case, id=f"{what}: {name}")
        for what, cases in (
            ("frames", WRONG_FRAMES),
            ("latents", WRONG_LATENTS),
            ("codes", WRONG_CODES),
        )
        for name, case in cases.items()
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    attempt: Callable[[Tokenizer], Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected) as error:
        attempt(MADE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_refused_with_the_clips_place(value: float) -> None:
    with pytest.raises(NotFinite, match="clip 1 of the batch: its frames are NaN or inf") as error:
        MADE.encode_latents(changed(FRAMES, value))
    assert error.value.row == 1
    with pytest.raises(NotFinite, match="clip 1 of the batch: its latents are NaN or inf") as error:
        MADE.quantize(changed(LATENTS, value), FIT)
    assert error.value.row == 1


def test_damaged_weights_are_noticed_by_whole_clips_and_by_streams() -> None:
    damaged = tiny_tokenizer()
    with torch.no_grad():
        next(damaged.autoencoder.encoder.parameters()).view(-1)[0] = torch.nan
    for attempt in (
        lambda: damaged.encode(PIXELS),
        lambda: list(stream_encode(damaged, PIXELS.split(2, dim=1))),
    ):
        with pytest.raises(NotFinite, match="weights are damaged"):
            attempt()


def test_what_fits_is_taken() -> None:
    codes = MADE.quantize(MADE.encode_latents(FRAMES), FIT)
    assert torch.equal(codes, MADE.encode(PIXELS))
    assert torch.equal(MADE.decode(codes, FIT), MADE.decode(codes.int(), FIT))
    joined, schedule = join_pyramids(split_pyramids(codes, FIT))
    assert torch.equal(joined, codes)
    assert schedule == FIT
    double = tiny_tokenizer().double()
    assert double.encode_latents(FRAMES.double()).dtype == torch.float64
