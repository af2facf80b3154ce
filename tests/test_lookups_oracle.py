"""Single-scale lookups against vector-quantize-pytorch, an independent implementation."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tokenizer.lookups.binary import BinaryLookup
from tokenizer.lookups.fsq import ScalarLookup
from tokenizer.lookups.vq import VectorLookup

oracle = pytest.importorskip("vector_quantize_pytorch")


def vectors(dim: int) -> torch.Tensor:
    return torch.randn(1, 500, dim, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("levels", [(8, 8, 8), (8, 5, 5, 5), (3, 4, 9)])
def test_fsq_bounds_rounds_and_counts_as_the_oracle_does(levels: tuple[int, ...]) -> None:
    ours, theirs, z = ScalarLookup(levels), oracle.FSQ(list(levels)), 2 * vectors(len(levels))
    quantized, ids = theirs(z)
    found = ours.nearest(ours.prepared(z[0].T[None])[0].T)
    assert torch.equal(found, ids[0].long())
    torch.testing.assert_close(ours.lookup(found), quantized[0])


@pytest.mark.parametrize("on_sphere", [False, True])
def test_signs_and_their_entropy_are_the_oracles(on_sphere: bool) -> None:
    ours = BinaryLookup(6, on_sphere=on_sphere, entropy_weight=1.0, entropy_group=6)
    ours.entropy_temperature = 1.0
    theirs = oracle.LFQ(
        codebook_size=64,
        dim=6,
        entropy_loss_weight=1.0,
        commitment_loss_weight=0.0,
        diversity_gamma=1.0,
        spherical=on_sphere,
    )
    theirs.train()
    z = vectors(6)
    quantized, ids, loss = theirs(z, inv_temperature=1.0)
    found = ours.nearest(z[0])
    assert torch.equal(found, ids[0].long())
    torch.testing.assert_close(ours.lookup(found), quantized[0].detach())
    torch.testing.assert_close(ours.losses(z[0])["entropy"], loss, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cosine", [False, True])
def test_a_table_of_codes_is_searched_as_the_oracle_searches(cosine: bool) -> None:
    ours = VectorLookup(64, 8, metric="sphere" if cosine else "l2")
    codes = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    ours.set_codes(codes)
    theirs = oracle.VectorQuantize(dim=8, codebook_size=64, use_cosine_sim=cosine).eval()
    theirs.codebook = functional.normalize(codes, dim=1) if cosine else codes
    quantized, ids, _ = theirs(vectors(8))
    found = ours.nearest(vectors(8)[0])
    assert torch.equal(found, ids[0].long())
    torch.testing.assert_close(ours.lookup(found), quantized[0])
