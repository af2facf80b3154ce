"""The lookup that settings ask for."""

from __future__ import annotations

from tokenizer.lookups.binary import BinaryLookup
from tokenizer.lookups.fsq import ScalarLookup
from tokenizer.lookups.lookup import Lookup
from tokenizer.lookups.vq import VectorLookup
from tokenizer.quantizer_config import QuantizerConfig


def make_lookup(config: QuantizerConfig) -> Lookup:
    """A new lookup, without codes as yet where these come from data."""
    if config.lookup == "fsq":
        return ScalarLookup(config.levels)
    if config.lookup == "vq":
        return VectorLookup(
            config.codebook_size,
            config.codebook_dim,
            metric=config.metric,
            learned_by=config.learned_by,
            first_codes=config.first_codes,
            ema_decay=config.ema_decay,
            restart_share=config.restart_share,
            entropy_weight=config.entropy_weight,
            entropy_temperature=config.entropy_temperature,
        )
    return BinaryLookup(
        config.codebook_dim,
        on_sphere=config.lookup == "bsq",
        entropy_weight=config.entropy_weight,
        entropy_temperature=config.entropy_temperature,
        entropy_group=config.entropy_group,
    )
