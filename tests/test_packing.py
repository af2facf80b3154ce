"""Packed codes: what is packed is unpacked, and the bits lie where the specification says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shards.packing import pack_codes, packed_bytes, unpack_codes, unpacked_dtype


def slow_pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """The specification, word for word: bit j of the string is bit j % 8 of byte j // 8."""
    packed = np.zeros(packed_bytes(len(codes), bits), dtype=np.uint8)
    for index, code in enumerate(codes.tolist()):
        for bit in range(bits):
            place = index * bits + bit
            packed[place // 8] |= (code >> bit & 1) << place % 8
    return packed


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 32), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_packing_is_the_specification_and_unpacking_its_inverse(
    bits: int, num_codes: int, seed: int
) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, num_codes, dtype=np.uint64)
    codes = codes.astype(unpacked_dtype(bits))
    packed = pack_codes(codes, bits)
    assert np.array_equal(packed, slow_pack(codes, bits))
    unpacked = unpack_codes(packed, bits, num_codes)
    assert unpacked.dtype == codes.dtype
    assert np.array_equal(unpacked, codes)


@pytest.mark.parametrize("bits", [1, 5, 12, 17])
def test_a_batch_is_its_rows(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 2**bits, (3, 2, 21), dtype=np.uint32)
    packed = pack_codes(codes, bits)
    assert packed.shape == (3, 2, packed_bytes(21, bits))
    assert np.array_equal(packed[1, 1], pack_codes(codes[1, 1], bits))
    assert np.array_equal(unpack_codes(packed, bits, 21), codes)


def test_largest_codes_survive() -> None:
    codes = np.array([2**32 - 1, 0, 2**32 - 1], dtype=np.uint32)
    assert np.array_equal(unpack_codes(pack_codes(codes, 32), 32, 3), codes)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 2\*\*4\)"):
        pack_codes(np.array([16]), 4)
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 2\*\*4\)"):
        pack_codes(np.array([-1]), 4)
    with pytest.raises(ValueError, match="must be 1 to 32"):
        pack_codes(np.array([1]), 33)
    with pytest.raises(ValueError, match="codes must be integers, not float32"):
        pack_codes(np.zeros(3, dtype=np.float32), 4)
    with pytest.raises(ValueError, match="5 codes of 12 bits are 8 bytes of uint8, not 9 of uint8"):
        unpack_codes(np.zeros(9, dtype=np.uint8), 12, 5)
