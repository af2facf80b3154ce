"""The Frechet distance between two sets of features, which are always somebody's.

    moments = Moments.of(extractor(first)) + Moments.of(extractor(second))      # float [n, d]
    frechet_distance(moments, reference)

A figure means nothing without the network that made the features, so a distance is printed as
"FD-<name of the extractor>" (see `extractors`), never as FID or FVD, which are one network each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Moments:
    """Mean and scatter of a set of features, in float64; sets add up.

    They do as in Chan, Golub and LeVeque (1979), so that a large mean costs no digits.
    """

    count: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]
    """The sum over samples of the outer product of what they differ from the mean."""

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> Moments:
        exact = np.asarray(features, np.float64)
        mean = exact.mean(axis=0) if len(exact) else np.zeros(exact.shape[1])
        centred = exact - mean
        return cls(len(exact), mean, centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        """Those of all samples of both; ValueError when they are of another dimension."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"{len(self.mean)} and {len(other.mean)} features do not add up")
        total = self.count + other.count
        shift = other.mean - self.mean
        share = other.count / max(total, 1)
        between = np.outer(shift, shift) * (self.count * share)
        return Moments(total, self.mean + shift * share, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Divided by n - 1; ValueError for fewer than two samples."""
        if self.count < 2:
            raise ValueError("a Frechet distance needs at least two samples of each set")
        return self.scatter / (self.count - 1)


def frechet_distance(
    features: Moments | Float[np.ndarray, "n d"], reference: Moments | Float[np.ndarray, "m d"]
) -> float:
    """Squared Frechet distance between the Gaussians of two sets (Dowson and Landau, 1982).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); the trace of the root is taken from eigenvalues, so
    a singular covariance (fewer samples than features) does no harm. Few samples still make it
    larger than it is: compare only distances of equally many. ValueError below two samples.
    """
    a, b = (
        each if isinstance(each, Moments) else Moments.of(each) for each in (features, reference)
    )
    covariance_a, covariance_b = a.covariance, b.covariance
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariance_b @ root)
    distance = np.sum((a.mean - b.mean) ** 2)
    traces = np.trace(covariance_a) + np.trace(covariance_b)
    return float(max(distance + traces - 2 * np.sqrt(product.clip(min=0)).sum(), 0.0))
