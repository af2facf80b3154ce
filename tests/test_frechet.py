"""The Frechet distance against its definition, and features that come in pieces."""

from __future__ import annotations

import numpy as np
import pytest

from tokenizer.frechet import Moments, frechet_distance


def test_the_frechet_distance_of_gaussians_with_diagonal_covariances_is_as_computed_by_hand():
    random = np.random.default_rng(0)
    a = random.standard_normal((200_000, 2)) * [1, 2] + [0, 0]
    b = random.standard_normal((200_000, 2)) * [3, 2] + [1, 0]
    assert frechet_distance(a, b) == pytest.approx(1 + (3 - 1) ** 2, rel=0.02)


def test_the_frechet_distance_to_itself_is_zero_even_with_few_samples():
    features = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(features, features + 1) == pytest.approx(32, rel=1e-4)


def test_a_frechet_distance_needs_two_samples():
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))


def test_the_distance_is_the_formula_with_the_root_of_a_matrix() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    random = np.random.default_rng(1)
    a = random.standard_normal((60, 8)) @ random.standard_normal((8, 8))
    b = random.standard_normal((50, 8)) @ random.standard_normal((8, 8)) + 0.5
    root = linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(
        np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root.real
    )
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


def test_features_may_come_in_pieces_and_far_from_zero() -> None:
    features = np.random.default_rng(2).standard_normal((101, 5)).astype(np.float32) + 1e4
    moments = Moments.of(features[:0])
    for start in range(0, 101, 7):
        moments += Moments.of(features[start : start + 7])
    exact = features.astype(np.float64)
    assert moments.count == 101
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(exact, rowvar=False), rtol=1e-9)


def test_features_of_another_network_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="4 and 5 features"):
        Moments.of(np.zeros((3, 4))) + Moments.of(np.zeros((3, 5)))
