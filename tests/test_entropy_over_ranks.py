"""The entropy term of several ranks is that of one: how evenly the whole batch uses the codes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed

from tests.ranks import Ranks
from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.scales import image_and_clip

SCHEDULE = image_and_clip(1, (1, 2, 4))
PARTS = ((0, 3), (3, 4))
CONFIGS = {
    "vq": QuantizerConfig(
        codebook_size=16,
        codebook_dim=5,
        scales=(1, 2, 4),
        num_phi=1,
        learned_by="gradient",
        entropy_weight=1.0,
        entropy_temperature=0.5,
    ),
    "bsq": QuantizerConfig(
        lookup="bsq",
        codebook_size=32,
        codebook_dim=5,
        scales=(1, 2, 4),
        num_phi=1,
        entropy_weight=1.0,
        entropy_temperature=0.5,
        entropy_group=2,
    ),
}


def gradients(name: str, start: int, stop: int) -> dict[str, torch.Tensor]:
    """Of the entropy term of some of four clips, by weight; `latents` is a weight as well."""
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(CONFIGS[name])
    if name == "vq":
        quantizer.codebook.set_codes(torch.randn(16, 5))  # type: ignore[operator]
    scale = torch.ones(5, requires_grad=True)
    latents = (torch.randn(4, 5, 1, 4, 4) + 0.5) * scale[:, None, None, None]
    entropy = quantizer(latents[start:stop], SCHEDULE).extra["entropy"]
    entropy.backward()
    grown = {key: each.grad for key, each in quantizer.named_parameters() if each.grad is not None}
    assert scale.grad is not None
    return {"entropy": entropy.detach(), "scale": scale.grad, **grown}


@pytest.mark.multiprocess
def test_the_term_and_its_gradient_are_those_of_one_rank_with_the_whole_batch(
    two_ranks: Ranks,
) -> None:
    ranks = two_ranks.run(_learn_as_rank)
    for name in CONFIGS:
        expected = gradients(name, 0, 4)
        assert expected["scale"].abs().max() > 1e-3
        assert ("codebook.weight" in expected) == (name == "vq")
        for key, value in expected.items():
            # as the loop weighs them: a rank's loss by its share of the clips
            found = sum(
                rank[name][key] * (stop - start) / 4 for rank, (start, stop) in zip(ranks, PARTS)
            )
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6, msg=f"{name} {key}")
        alone = sum(gradients(name, *part)["entropy"] * (part[1] - part[0]) / 4 for part in PARTS)
        assert abs(float(alone - expected["entropy"])) > 1e-2


def _learn_as_rank() -> dict[str, dict[str, torch.Tensor]]:
    rank = torch.distributed.get_rank()
    found = {name: gradients(name, *PARTS[rank]) for name in CONFIGS}
    if rank == 0:
        _look_alone()
    torch.distributed.barrier()
    return found


@torch.no_grad()
def _look_alone() -> None:
    """One rank may look at its clips while the others do something else."""
    quantizer = MultiScaleQuantizer(CONFIGS["bsq"])
    quantizer(torch.randn(2, 5, 1, 4, 4), SCHEDULE)
