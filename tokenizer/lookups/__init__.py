"""Lookups: which code stands for a vector, and which vector a code stands for.

lookup     what every lookup offers
vq         a learned table of codes: VQ by running means or by gradient
fsq        fixed levels per channel: FSQ
binary     signs of the channels: BSQ and LFQ
entropy    a loss for codes that are sure and evenly used
ranks      the same numbers on every rank

lookup = make_lookup(QuantizerConfig(lookup="fsq", levels=(8, 8, 8), codebook_dim=3))
ids = lookup.nearest(vectors)          # [n, c] -> [n]
vectors = lookup.lookup(ids)           # [...] -> [..., c]
"""

from tokenizer.lookups.lookup import Lookup
from tokenizer.lookups.making import make_lookup

__all__ = ["Lookup", "make_lookup"]
