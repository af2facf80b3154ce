"""The generator under teacher forcing: nothing sees the future, and a cache changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.scales import Schedule, image_and_clip
from tokenizer.settings import UserError
from training.config import BlockConfig, ModelConfig
from training.generator import FedRows, Generator
from training.methods import METHODS
from training.partial import input_features
from training.vocabulary import Vocabulary, build_vocabulary

SCHEDULE = image_and_clip(3, (1, 2))
CODEBOOK_SIZE = 16
PROMPTS = {
    "none": [None, None, None],
    "class": ["seven", None, "three"],
    "text": ["a red seven", None, "three moving left"],
}


@pytest.fixture(scope="module")
def quantizer() -> MultiScaleQuantizer:
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(
        QuantizerConfig(codebook_size=CODEBOOK_SIZE, codebook_dim=4, num_phi=1)
    )
    quantizer.codebook.set_codes(torch.randn(CODEBOOK_SIZE, 4))
    return quantizer.eval()


def make_vocabulary(kind: str) -> Vocabulary:
    prompts = [each for each in PROMPTS[kind] if each] or ["unused"]
    return build_vocabulary(kind, prompts, max_pieces=8)


def make_generator(
    method: str, kind: str, block: BlockConfig | None = None, schedule: Schedule = SCHEDULE
) -> Generator:
    """A small generator whose weights are all random (zero ones would hide mistakes)."""
    torch.manual_seed(1)
    config = ModelConfig(width=16, depth=2, heads=2, block=block or BlockConfig())
    vocabulary = make_vocabulary(kind)
    generator = Generator(config, method, schedule, vocabulary, CODEBOOK_SIZE, 8)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return generator.eval()


def encoded(kind: str) -> torch.Tensor:
    vocabulary = make_vocabulary(kind)
    rows = [vocabulary.encode(each) for each in PROMPTS[kind]]
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), vocabulary.length)


def random_codes(seed: int = 2) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(CODEBOOK_SIZE, (3, SCHEDULE.num_tokens), generator=drawn)


BLOCKS = [
    BlockConfig(),
    BlockConfig(norm="rms", mlp="gelu_tanh", qk_norm=False, bias=True, dropout=0.1),
]


@pytest.mark.parametrize("block", BLOCKS, ids=["default", "other"])
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_rows_fed_step_by_step_with_a_cache_give_the_logits_of_one_pass(
    method: str, kind: str, block: BlockConfig, quantizer: MultiScaleQuantizer
) -> None:
    generator, codes, prompts = make_generator(method, kind, block), random_codes(), encoded(kind)
    features = input_features(quantizer, codes, SCHEDULE)
    whole = generator(codes, features, prompts, SCHEDULE)
    layout = generator.layout_for(SCHEDULE)
    cache = generator.transformer.new_cache(len(codes), layout.num_rows)
    condition = generator.condition(prompts)
    seen = np.empty(0, dtype=np.int64)
    for loop_step in range(layout.order.num_steps):
        fed = layout.fed(loop_step)
        seen = np.concatenate([seen, fed])
        rows, known = (FedRows.of(layout, each, codes.device) for each in (fed, seen))
        hidden = generator.hidden(rows, known, condition, codes, features, cache)
        cells = layout.due(loop_step)
        places = np.searchsorted(fed, layout.source[cells])
        torch.testing.assert_close(
            generator.logits(hidden, places), whole[:, cells], atol=1e-4, rtol=1e-4
        )
    assert cache.length == layout.num_rows


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_changing_a_code_changes_no_logit_up_to_its_own_step(
    method: str, kind: str, quantizer: MultiScaleQuantizer
) -> None:
    generator, codes, prompts = make_generator(method, kind), random_codes(), encoded(kind)
    order = generator.layout_for(SCHEDULE).order

    def logits(codes: torch.Tensor) -> torch.Tensor:
        return generator(codes, input_features(quantizer, codes, SCHEDULE), prompts, SCHEDULE)

    before = logits(codes)
    changes_later = 0
    for cell in range(SCHEDULE.num_tokens):
        changed = codes.clone()
        changed[:, cell] = (changed[:, cell] + 1) % CODEBOOK_SIZE
        moved = (logits(changed) - before).abs().amax(dim=(0, 2)) > 1e-5
        assert not moved[torch.from_numpy(order.step <= order.step[cell])].any()
        changes_later += int(moved.any())
    # Only the last step's codes are seen by nothing.
    assert changes_later == SCHEDULE.num_tokens - len(order.cells(order.num_steps))


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_padding_of_a_caption_changes_nothing(method: str, quantizer: MultiScaleQuantizer) -> None:
    generator, codes, prompts = make_generator(method, "text"), random_codes(), encoded("text")
    features = input_features(quantizer, codes, SCHEDULE)
    before = generator(codes, features, prompts, SCHEDULE)
    generator.condition.pieces.weight[0] += 100.0  # what padding is looked up as
    generator.condition.pooled.weight[0] += 100.0
    after = generator(codes, features, prompts, SCHEDULE)
    unaffected = ~(prompts == 0).any(dim=1)
    assert unaffected.any()
    assert torch.equal(before[unaffected], after[unaffected])


@pytest.mark.parametrize("kind", ["class", "text"])
@torch.no_grad()
def test_the_condition_matters(kind: str, quantizer: MultiScaleQuantizer) -> None:
    generator, codes, prompts = make_generator("next_scale", kind), random_codes(), encoded(kind)
    features = input_features(quantizer, codes, SCHEDULE)
    with_prompt = generator(codes, features, prompts, SCHEDULE)
    without = generator(codes, features, torch.full_like(prompts, -1), SCHEDULE)
    assert not torch.allclose(with_prompt[0], without[0])
    assert torch.allclose(with_prompt[1], without[1])


@torch.no_grad()
def test_the_images_of_a_video_generator_are_the_beginning_of_its_videos(
    quantizer: MultiScaleQuantizer,
) -> None:
    generator, codes, prompts = (
        make_generator("next_scale", "text"),
        random_codes(),
        encoded("text"),
    )
    image = image_and_clip(1, (1, 2))
    features = input_features(quantizer, codes, SCHEDULE)
    video = generator(codes, features, prompts, SCHEDULE)
    still = generator(codes[:, : image.num_tokens], features[:, : image.num_tokens], prompts, image)
    torch.testing.assert_close(still, video[:, : image.num_tokens], atol=1e-5, rtol=1e-5)


def test_a_schedule_that_is_no_beginning_of_the_generators_is_refused() -> None:
    generator = make_generator("raster", "none")
    with pytest.raises(UserError, match="is not the beginning"):
        generator.layout_for(image_and_clip(3, (1, 3)))
