"""Cross-entropy of clips' codes under teacher forcing: the loss of training, and bits of clips.

    logits = code_logits(generator, quantizer, codes, prompts, sequence, schedule)
    code_losses(logits, codes, sequence)                   # nats, of the code at each place
    bits_of(run, open_dataset(DATA).samples("val"))        # Bits(per_clip=412.3, ...)

Where the order is random its cells come in one order a clip, drawn by the clip's number, so that
the bits of a run are always the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.shards import Samples
from tokenizer.door import check_codes
from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.scales import Schedule
from tokenizer.settings import UserError
from training.draws import numpy_generator
from training.generator import Generator, Known
from training.partial import input_features
from training.run import OpenedRun
from training.vocabulary import FIELDS, Vocabulary

_BATCH = 32


def code_logits(
    generator: Generator,
    quantizer: MultiScaleQuantizer,
    codes: Int[Tensor, "b l"],
    prompts: Int[Tensor, "b n"],
    sequence: Int[Tensor, "#b l"],
    schedule: Schedule,
) -> Float[Tensor, "b l k"]:
    """The logits of every place, each asked from the real codes before it.

    `sequence` is the cell at each place, in the order in which they are asked for.
    """
    features = None
    if generator.num_features:
        features = input_features(quantizer, codes, schedule, generator.num_features)
    return generator(Known(sequence, codes, features), prompts, schedule)


def code_losses(
    logits: Float[Tensor, "b l k"], codes: Int[Tensor, "b l"], sequence: Int[Tensor, "#b l"]
) -> Float[Tensor, "b l"]:
    """The cross-entropy of the code at each place, in nats, in float32.

    Logits stay where they are; it is codes that are put in the order of places.
    """
    targets = codes.gather(1, sequence.expand(len(codes), -1))
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view_as(codes)


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Mean cross-entropy of clips, in bits, each under its own prompt."""

    per_clip: float
    per_code: float
    num_clips: int
    num_left_out: int
    """With a class or words that the run does not know."""


@torch.no_grad()
def bits_of(run: OpenedRun, samples: Samples, most: int | None = None) -> Bits:
    """The bits of clips of one of the run's shapes, of `most` spread evenly over them.

    Raises UserError when they are no codes of the run's tokenizer, or the run takes no prompt of
    theirs.
    """
    schedule = run.schedule(samples.bucket.name)
    device = next(run.generator.parameters()).device
    order = run.generator.layout_for(schedule).order
    count = min(len(samples), most or len(samples))
    chosen = np.arange(count) * len(samples) // count
    nats, num_clips = 0.0, 0
    field = FIELDS.get(run.vocabulary.kind, "caption")
    for start in range(0, count, _BATCH):
        part = chosen[start : start + _BATCH]
        encoded = [_encoded(run.vocabulary, each.get(field)) for each in samples.metadata(part)]
        prompts = [each for each in encoded if each is not None]
        part = part[[each is not None for each in encoded]]
        if not prompts:
            continue
        codes = torch.from_numpy(samples.gather(part).astype(np.int64))
        check_codes(codes, schedule, run.generator.codebook_size)
        codes = codes.to(device)
        drawn = [order.drawn(numpy_generator(0, "bits", int(number))) for number in part]
        sequence = torch.from_numpy(np.stack(drawn)).to(device)
        logits = code_logits(
            run.generator,
            run.tokenizer.quantizer,
            codes,
            torch.tensor(prompts, dtype=torch.int64, device=device),
            sequence,
            schedule,
        )
        losses = code_losses(logits, codes, sequence)
        nats += float(losses.double().sum())
        num_clips += len(part)
    if not num_clips:
        raise UserError(f"none of the {count} clips has a prompt that this run takes")
    per_clip = nats / num_clips / math.log(2)
    return Bits(
        per_clip=per_clip,
        per_code=per_clip / schedule.num_tokens,
        num_clips=num_clips,
        num_left_out=count - num_clips,
    )


def _encoded(vocabulary: Vocabulary, prompt: str | None) -> list[int] | None:
    """As in training, which cuts what is too long; None where the run does not take it."""
    try:
        return vocabulary.encode(prompt, cut=True)
    except UserError:
        return None
