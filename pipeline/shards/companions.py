"""Companions: further token sets of the same samples, in a dataset of their own.

    dataset = open_dataset("codes", companions=["latents"])
    samples = dataset.samples("train")
    samples.gather([5, 17, 2], token_set="latents")

Samples are joined by the digest of their keys, wherever they lie in either dataset.
"""

from __future__ import annotations

import numpy as np

from pipeline.shards.samples import Companion, Samples
from tokenizer.settings import UserError


def join(samples: Samples, other: Samples, where: str) -> Companion:
    """For each of `samples` its partner in `other`; UserError that counts those without one."""
    own, theirs = samples.keys(), other.keys()
    order = np.argsort(theirs[:, 0], kind="stable")
    places = np.searchsorted(theirs[order, 0], own[:, 0])
    partner = order[np.minimum(places, len(order) - 1)]
    missing = np.flatnonzero((theirs[partner] != own).any(axis=1))
    if len(missing):
        first = samples.select(missing[:1]).names()[0]
        raise UserError(
            f"{where}: {len(missing)} of {len(own)} samples in bucket {samples.bucket.name} are "
            f"not in it (the first is {first}); a companion must have every sample"
        )
    return Companion(other, partner)
