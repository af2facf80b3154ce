"""Lookups: round trips, nearness, gradients, and the same codes on every rank."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.distributed

from tokenizer.lookups import make_lookup
from tokenizer.lookups.binary import BinaryLookup
from tokenizer.lookups.entropy import entropy_over_bits, entropy_over_codes
from tokenizer.lookups.fsq import ScalarLookup
from tokenizer.lookups.vq import VectorLookup
from tokenizer.quantizer_config import QuantizerConfig

FIXED = {
    "fsq": ScalarLookup((8, 5, 4, 3)),
    "fsq of odd levels": ScalarLookup((7, 5, 5)),
    "bsq": BinaryLookup(9, on_sphere=True),
    "lfq": BinaryLookup(9, on_sphere=False),
}


def random_codes(size, dim, **settings):
    lookup = VectorLookup(size, dim, **settings)
    lookup.set_codes(torch.randn(size, dim, generator=torch.Generator().manual_seed(0)))
    return lookup


def random_vectors(count, dim, seed=1):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FIXED)
def test_every_code_is_nearest_to_its_own_vector(name):
    lookup = FIXED[name]
    ids = torch.arange(lookup.size)
    vectors = lookup.lookup(ids)
    assert vectors.shape == (lookup.size, lookup.dim)
    assert torch.equal(lookup.nearest(vectors), ids)
    assert len(vectors.unique(dim=0)) == lookup.size


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_lookup_finds_what_a_search_through_all_its_codes_finds(name):
    lookup = FIXED[name]
    vectors = random_vectors(300, lookup.dim)
    distances = torch.cdist(vectors, lookup.lookup(torch.arange(lookup.size)))
    torch.testing.assert_close(
        distances.gather(1, lookup.nearest(vectors)[:, None])[:, 0], distances.amin(1)
    )


@pytest.mark.parametrize("metric", ["l2", "cosine", "sphere"])
def test_every_code_of_a_table_is_nearest_to_its_own_vector(metric):
    lookup = random_codes(200, 6, metric=metric)
    assert torch.equal(lookup.nearest(lookup.lookup(torch.arange(200))), torch.arange(200))


def test_the_nearest_code_is_the_one_at_the_smallest_distance():
    lookup, vectors = random_codes(64, 8), random_vectors(500, 8)
    slow = (vectors[:, None] - lookup.weight).square().sum(-1).argmin(1)
    assert torch.equal(lookup.nearest(vectors), slow)


@pytest.mark.parametrize("metric", ["cosine", "sphere"])
def test_by_angle_the_length_of_vectors_and_codes_does_not_matter(metric):
    lookup, vectors = random_codes(64, 8, metric=metric), random_vectors(500, 8)
    slow = torch.cosine_similarity(vectors[:, None], lookup.weight, dim=-1).argmax(1)
    assert torch.equal(lookup.nearest(vectors), slow)
    lengths = torch.rand(500, 1) + 0.1
    assert torch.equal(lookup.nearest(vectors * lengths), slow)


def test_only_a_sphere_changes_the_vector_that_comes_out():
    ids = torch.tensor([[3, 1], [0, 2]])
    for metric in ("l2", "cosine"):
        lookup = random_codes(4, 3, metric=metric)
        assert torch.equal(lookup.lookup(ids), lookup.weight[ids])
    codes = random_codes(4, 3, metric="sphere").lookup(ids)
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(2, 2))


def test_the_first_of_equal_codes_is_taken():
    for metric in ("l2", "cosine"):
        lookup = VectorLookup(4, 2, metric=metric)
        lookup.set_codes(torch.tensor([[0.0, 1], [1, 0], [1, 0], [0, 1]]))
        assert lookup.nearest(torch.eye(2)).tolist() == [1, 0]


def test_a_large_search_is_done_in_parts(monkeypatch):
    lookup, vectors = random_codes(64, 8), random_vectors(500, 8)
    whole = lookup.nearest(vectors)
    monkeypatch.setattr("tokenizer.lookups.vq.SCORES_AT_ONCE", 64 * 7)
    assert torch.equal(lookup.nearest(vectors), whole)


@pytest.mark.parametrize("name", FIXED)
def test_a_vector_has_the_same_code_at_any_place_of_a_batch_of_any_size(name):
    lookup = FIXED[name]
    vectors = random_vectors(301, lookup.dim)
    order = torch.randperm(301, generator=torch.Generator().manual_seed(0))
    whole = lookup.nearest(vectors)
    assert torch.equal(lookup.nearest(vectors[order]), whole[order])
    assert torch.equal(lookup.nearest(vectors[:3]), whole[:3])


@pytest.mark.parametrize("name", FIXED)
def test_what_is_prepared_lies_among_the_codes_and_has_a_gradient(name):
    lookup = FIXED[name]
    latents = random_vectors(400, lookup.dim).T.reshape(1, lookup.dim, 2, 10, 20)
    latents.requires_grad_()
    prepared = lookup.prepared(latents)
    (gradient,) = torch.autograd.grad(prepared.square().sum() + prepared.sum(), latents)
    assert gradient.abs().sum() > 0
    if isinstance(lookup, ScalarLookup):
        used = lookup.nearest(prepared.flatten(2)[0].T).unique()
        assert len(used) > 0.5 * lookup.size
        assert prepared.abs().max() < 1.3
    elif lookup.on_sphere:
        torch.testing.assert_close(prepared.norm(dim=1), torch.ones(1, 2, 10, 20))


def test_the_signs_of_32_channels_are_an_id_of_32_bits():
    lookup = make_lookup(
        QuantizerConfig(lookup="bsq", codebook_dim=32, codebook_size=2**32, num_phi=1)
    )
    ids = torch.tensor([0, 1, 2**31, 2**32 - 1, 123_456_789])
    assert torch.equal(lookup.nearest(lookup.lookup(ids)), ids)
    assert lookup.size == 2**32


def test_the_entropy_of_bits_in_one_group_is_the_entropy_over_all_codes():
    logits = 3 * random_vectors(50, 5)
    signs = torch.tensor(list(product((0.0, 1.0), repeat=5)))
    over_codes = entropy_over_codes(logits @ signs.T)
    torch.testing.assert_close(entropy_over_bits(logits, 5), over_codes)
    assert entropy_over_bits(logits, 1) <= over_codes + 1e-5


def test_the_entropy_is_lowest_when_every_vector_is_sure_and_all_codes_are_used():
    sure = 100 * torch.tensor(list(product((-1.0, 1.0), repeat=4)))
    best = -4 * torch.log(torch.tensor(2.0))
    for group in (1, 2, 4):
        assert entropy_over_bits(sure, group) == pytest.approx(float(best), abs=1e-3)
    assert entropy_over_bits(sure[:1].repeat(16, 1), 1) == pytest.approx(0, abs=1e-3)
    assert entropy_over_bits(torch.zeros(16, 4), 4) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("vq", {"codebook_size": 32, "learned_by": "gradient", "metric": "sphere"}),
        ("vq", {"codebook_size": 32, "learned_by": "gradient"}),
        ("bsq", {"codebook_size": 64}),
        ("lfq", {"codebook_size": 64, "entropy_group": 2}),
    ],
)
def test_descending_the_entropy_term_makes_more_codes_used(kind, settings):
    config = QuantizerConfig(
        lookup=kind, codebook_dim=6, entropy_weight=1.0, entropy_temperature=0.5, **settings
    )
    lookup = make_lookup(config)
    vectors = 0.3 * random_vectors(256, 6) + torch.tensor([2.0, 1, 0, 0, 0, 0])
    if kind == "vq":
        lookup.set_codes(random_vectors(32, 6))
    vectors.requires_grad_()
    before = len(lookup.nearest(vectors).unique())
    first = lookup.losses(vectors)["entropy"]
    optimizer = torch.optim.Adam([vectors, *lookup.parameters()], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        lookup.losses(vectors)["entropy"].backward()
        optimizer.step()
    assert lookup.losses(vectors)["entropy"] < first - 0.1
    assert len(lookup.nearest(vectors).unique()) > before


def test_without_weight_there_is_no_entropy_term():
    for config in (QuantizerConfig(), QuantizerConfig(lookup="lfq", codebook_dim=9)):
        assert make_lookup(config).losses(random_vectors(4, config.codebook_dim)) == {}


@pytest.mark.parametrize("metric", ["l2", "cosine", "sphere"])
def test_codes_converge_to_the_means_of_their_vectors(metric):
    centers = torch.tensor([[1.0, 0.0], [4.0, 3.0], [0.0, 4.0], [-4.0, 4.0]])
    draw = torch.Generator().manual_seed(0)
    lookup = VectorLookup(4, 2, metric=metric, ema_decay=0.9)
    for step in range(100):
        vectors = centers.repeat(16, 1) + 0.1 * torch.randn(64, 2, generator=draw)
        if step == 0:
            lookup.initialise(vectors, draw)
        lookup.update(vectors, lookup.nearest(vectors), draw)
    found = lookup.lookup(lookup.nearest(centers))
    expected = lookup.prepared(centers.T[None])[0].T
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("learned_by", ["ema", "gradient"])
def test_a_code_that_nobody_uses_moves_to_where_data_is(learned_by):
    lookup = VectorLookup(8, 2, learned_by=learned_by, ema_decay=0.5, restart_share=0.1)
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(4, 2, generator=draw)
    lookup.set_codes(torch.cat([first, torch.full((4, 2), 100.0)]))
    restarted = 0
    for _ in range(10):
        vectors = torch.randn(256, 2, generator=draw)
        count = int(lookup.update(vectors, lookup.nearest(vectors), draw))
        restarted += count
        renewed = lookup.renewed()
        assert len(renewed) == (learned_by == "gradient")
        for parameter, (rows, values) in renewed.items():
            assert parameter is lookup.weight
            assert rows.sum() == count
            with torch.no_grad():
                parameter[rows] = values[rows]
        assert not lookup.renewed()
    assert restarted >= 4
    assert lookup.weight.abs().max() < 5
    assert (torch.bincount(lookup.nearest(vectors), minlength=8) > 0).all()


def test_codes_that_learn_by_gradient_move_by_nothing_else():
    lookup = VectorLookup(8, 2, learned_by="gradient", restart_share=0.0)
    draw = torch.Generator().manual_seed(0)
    lookup.initialise(torch.randn(100, 2, generator=draw), draw)
    before = lookup.weight.detach().clone()
    lookup.update(torch.full((50, 2), 9.0), torch.zeros(50, dtype=torch.int64), draw)
    assert torch.equal(lookup.weight, before)
    lookup.lookup(torch.tensor([1])).sum().backward()
    assert lookup.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [1]


@pytest.mark.multiprocess
def test_ranks_that_see_other_vectors_keep_the_same_codes(two_ranks):
    states = two_ranks.run(_learn_as_rank)
    assert set(states[0]) >= {"gradient.weight", "ema.weight", "ema.ema_sum", "ema.observed"}
    assert states[0]["restarted"].any()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def _learn_as_rank():
    draw = torch.Generator().manual_seed(torch.distributed.get_rank())
    lookups, restarted = torch.nn.ModuleDict(), []
    for kind in ("ema", "gradient"):
        settings = {"learned_by": kind, "restart_share": 0.5, "ema_decay": 0.5}
        lookup = VectorLookup(16, 4, metric="sphere", **settings)
        for _ in range(3):
            lookup.observe(torch.randn(40, 4, generator=draw), draw)
        lookup.initialise(torch.randn(40, 4, generator=draw), draw)
        for _ in range(5):
            vectors = torch.randn(40, 4, generator=draw)
            lookup.update(vectors, lookup.nearest(vectors), draw)
            restarted += [rows for rows, _ in lookup.renewed().values()]
        lookups[kind] = lookup
    return lookups.state_dict() | {"restarted": torch.stack(restarted)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lookup": "fsq"}, r"levels belong to lookup fsq, which needs them, e.g. \[8, 8, 8, 5\]"),
        ({"levels": (8, 8)}, "levels belong to lookup fsq"),
        (
            {"lookup": "fsq", "levels": (8, 8)},
            r"codebook_size \(512\) and codebook_dim \(12\) of this fsq must be 64 and 2",
        ),
        (
            {"lookup": "fsq", "levels": (8, 1)},
            r"levels \(\[8, 1\]\) must be at least 3 each; lfq has 2",
        ),
        ({"lookup": "bsq"}, r"of this bsq must be 4096 and 12"),
        ({"lookup": "lfq", "metric": "cosine"}, "belong to lookup vq, not to lfq"),
        ({"codebook_size": 2**32 + 1}, "must fit 32 bits"),
        ({"entropy_temperature": 0.0}, "entropy_temperature be positive"),
        ({"entropy_group": 15}, r"entropy_group \(15\) must be 1 to 14 bits"),
        ({"phi_ratio": 1.5}, r"phi_ratio \(1.5\) must lie in \[0, 1\]"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        QuantizerConfig(**settings)


def test_the_plain_way_begins_with_small_random_codes_that_the_generator_draws():
    books = [VectorLookup(64, 8, first_codes="random") for _ in range(3)]
    for book, seed in zip(books, (0, 0, 1)):
        book.initialise(torch.randn(500, 8), torch.Generator().manual_seed(seed))
    assert bool(books[0].is_initialised)
    assert torch.equal(books[0].weight, books[1].weight)
    assert not torch.equal(books[0].weight, books[2].weight)
    assert 0.9 / 64 < books[0].weight.abs().max() <= 1 / 64
