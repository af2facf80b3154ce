"""Health of codes per scale: counts, shares of the residual, batches that add up."""

from __future__ import annotations

import pytest
import torch

from tokenizer.health import HealthTally, codebook_health, measure_health
from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.scales import image_and_clip

SCHEDULE = image_and_clip(3, (1, 2, 4))


def test_health_counts_codes_and_their_evenness():
    even = codebook_health(torch.arange(8).repeat(5), 16)
    assert (even.usage, even.num_dead, even.num_tokens) == (0.5, 8, 40)
    assert even.perplexity == pytest.approx(8)
    assert even.entropy_share == pytest.approx(3 / 4)
    one_code = codebook_health(torch.zeros(9, dtype=torch.int64), 16)
    assert one_code.perplexity == pytest.approx(1)
    assert one_code.num_dead == 15


@pytest.mark.parametrize("num_codes", [16, 512, 8192])
def test_effective_bits_allow_for_codes_that_have_not_come_yet(num_codes):
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(num_codes, generator=generator, dtype=torch.float64)
    share /= share.sum()
    entropy = -float((share * share.log2()).sum())
    drawn = torch.multinomial(share, 4000, replacement=True, generator=generator)
    health = codebook_health(drawn, num_codes)
    assert health.effective_bits == pytest.approx(entropy, rel=0.01)
    if num_codes == 8192:
        assert health.entropy_bits < entropy - 1


def test_effective_bits_lie_between_nothing_and_the_codebook():
    assert codebook_health(torch.zeros(100).long(), 8).effective_bits == 0
    assert codebook_health(torch.arange(8), 8).effective_bits == 3
    assert codebook_health(torch.zeros(1).long(), 8).effective_bits == 0


def test_batches_add_up_scale_by_scale_even_with_a_codebook_that_no_memory_holds():
    schedule = image_and_clip(1, (1, 2))
    tally = HealthTally(schedule, 1 << 32)
    tally.add(torch.tensor([[0, 0, 1, 2, 3]]), torch.tensor([0.5, 0.1]))
    tally.add(torch.tensor([[7, 0, 1, 2, (1 << 32) - 1]] * 3), torch.tensor([0.7, 0.2]))
    first, second = tally.per_scale()
    assert (first.num_tokens, first.num_used) == (4, 2)
    assert (second.num_tokens, second.num_used) == (16, 5)
    assert first.residual_share == pytest.approx((0.5 + 3 * 0.7) / 4)
    assert tally.overall().num_used == 6
    assert tally.overall().residual_share is None


def test_every_scale_of_a_begun_quantizer_lowers_the_residual_and_the_last_uses_its_codes():
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(QuantizerConfig(codebook_size=64, codebook_dim=4))
    latents = torch.randn(32, 4, 3, 1, 1) + 0.5 * torch.randn(32, 4, 3, 4, 4)
    quantizer.begin(latents, SCHEDULE, torch.Generator().manual_seed(0))
    health = measure_health(quantizer, latents, SCHEDULE)
    for first, second, third in (health[:3], health[3:]):
        assert 1 > first.residual_share > second.residual_share > third.residual_share > 0
    assert health[-1].usage > 0.7
    codes = quantizer.encode(latents, SCHEDULE)
    tally = HealthTally(SCHEDULE, 64)
    tally.add(codes)
    assert [each.perplexity for each in tally.per_scale()] == [each.perplexity for each in health]


def test_a_step_that_was_not_quantized_has_no_health():
    quantizer = MultiScaleQuantizer(QuantizerConfig(codebook_size=8, codebook_dim=4))
    tally = HealthTally(SCHEDULE, 8)
    tally.add_step(quantizer(torch.randn(2, 4, 3, 4, 4), SCHEDULE, quantize=False))
    assert tally.overall().num_tokens == 0
    assert tally.per_scale()[0].residual_share is None


def test_a_level_joins_the_pyramids_and_tallies_of_other_shapes_join_too():
    tally, image = HealthTally(SCHEDULE, 64), HealthTally(image_and_clip(1, (1, 2)), 64)
    codes = torch.arange(SCHEDULE.num_tokens)[None] % 32
    tally.add(codes)
    image.add(torch.tensor([[40, 41, 42, 43, 44]]))
    parts = SCHEDULE.split(codes)
    for level, health in enumerate(tally.per_level()):
        joint = torch.cat([parts[level].flatten(), parts[level + 3].flatten()])
        assert health == codebook_health(joint, 64)
    assert tally.overall([image]).num_used == 32 + 5
    assert tally.overall().num_used == 32
