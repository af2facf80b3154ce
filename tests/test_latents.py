"""Statistics of latents: exact in any batches, kept in the tokenizer's folder, refused damaged."""

from __future__ import annotations

import json

import pytest
import torch

from tokenizer.finite import NotFinite
from tokenizer.folder import load_tokenizer, save_tokenizer
from tokenizer.latents import (
    LatentMoments,
    LatentStatistics,
    measure_latents,
    read_statistics,
    save_statistics,
)
from tokenizer.model import signed
from tokenizer.settings import UserError

STATISTICS = LatentStatistics(mean=(0.5, -1.0), std=(2.0, 0.0), num_values=7)


@pytest.fixture
def folder(tmp_path, untrained):
    save_tokenizer(untrained, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def untrained():
    from tokenizer.autoencoder_config import AutoencoderConfig
    from tokenizer.config import TokenizerConfig
    from tokenizer.model import Tokenizer
    from tokenizer.quantizer_config import QuantizerConfig

    torch.manual_seed(0)
    return Tokenizer(
        TokenizerConfig(
            autoencoder=AutoencoderConfig(patch=8, spatial_stride=8, channels=(8,)),
            quantizer=QuantizerConfig(codebook_size=16, codebook_dim=4, scales=(1, 2), num_phi=1),
        )
    ).eval()


def clips(batch=6, num_frames=5):
    generator = torch.Generator().manual_seed(0)
    shape = batch, num_frames, 16, 24, 3
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def test_the_statistics_are_those_of_all_latents_whatever_the_batches(untrained):
    frames, images = clips(), clips(3, 1)
    latents = [untrained.encode_latents(signed(each)) for each in (frames, images)]
    values = torch.cat([each.double().movedim(1, 0).flatten(1) for each in latents], dim=1)
    for batches in ([frames, images], [images, *frames.split(1)], [*frames.split(4), images]):
        measured = measure_latents(untrained, batches)
        assert measured.num_values == values.shape[1] == 6 * 2 * 6 + 3 * 6
        torch.testing.assert_close(
            torch.tensor(measured.mean).double(), values.mean(1), rtol=0, atol=1e-6
        )
        torch.testing.assert_close(
            torch.tensor(measured.std).double(), values.std(1, correction=0), rtol=1e-6, atol=0
        )


def test_sums_of_several_workers_add_and_a_far_mean_costs_no_digits():
    values = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64) + 1e6
    whole, parts = LatentMoments(3), LatentMoments(3)
    whole.add(values)
    for part in values.split(1):
        other = LatentMoments(3)
        other.add(part)
        parts.merge(other)
    parts.merge(LatentMoments(3))
    expected = values.movedim(1, 0).flatten(1).std(1, correction=0)
    for moments in (whole, parts):
        found = torch.tensor(moments.statistics().std, dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_normalised_latents_have_mean_0_and_size_1_and_are_restored(untrained):
    latents = untrained.encode_latents(signed(clips()))
    statistics = measure_latents(untrained, [clips()])
    normalised = statistics.normalize(latents)
    channels = normalised.movedim(1, 0).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(statistics.restore(normalised), latents, rtol=1e-5, atol=1e-5)


def test_a_channel_that_never_changes_stays_finite():
    latents = torch.tensor([0.5, -1.0])[None, :, None, None, None]
    normalised = STATISTICS.normalize(latents)
    assert torch.equal(normalised, torch.zeros(1, 2, 1, 1, 1))
    assert torch.equal(STATISTICS.restore(normalised), latents)


def test_statistics_are_kept_in_the_folder_beside_codes_that_stay_the_same(folder):
    before = load_tokenizer(folder).fingerprint
    with pytest.raises(UserError, match="were not measured"):
        read_statistics(folder)
    save_statistics(STATISTICS, folder)
    assert read_statistics(folder) == STATISTICS
    assert load_tokenizer(folder).fingerprint == before


@pytest.mark.parametrize(
    "damage",
    [
        {"mean": [0.0]},
        {"std": [1.0, -1.0]},
        {"mean": [0.0, float("nan")]},
        {"num_values": 0},
        {"num_values": "many"},
        {"mean": "no"},
    ],
)
def test_damaged_statistics_are_refused_in_one_line(folder, damage):
    save_statistics(STATISTICS, folder)
    path = folder / "tokenizer.json"
    description = json.loads(path.read_text())
    description["latents"] |= damage
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match="latents is damaged") as error:
        read_statistics(folder)
    assert "\n" not in str(error.value)


def test_what_is_no_number_is_not_counted():
    with pytest.raises(NotFinite, match="clip 0 of the batch: its latents are NaN or infinite"):
        LatentMoments(1).add(torch.full((1, 1, 1, 1, 1), torch.nan))


def test_without_clips_there_are_no_statistics(untrained):
    with pytest.raises(UserError, match="at least one"):
        measure_latents(untrained, [])
