"""Packed codes: each in `bits_per_code` bits, least significant bit first, as uint8.

    packed = pack_codes(codes, bits_per_code=12)     # uint8 [..., packed_bytes(3400, 12)]
    codes = unpack_codes(packed, 12, num_codes=3400)  # uint16 [..., 3400]

Code i occupies bits [i * bits, (i + 1) * bits) of the string of bits whose bit j is bit j % 8 of
byte j // 8. The bits behind the last code are zero. Eight codes fill `bits_per_code` whole bytes,
so both ways work on such groups: a few shifts per lane, whatever the number of samples.
"""

from __future__ import annotations

import numpy as np

_GROUP = 8  # codes that end on a byte border, for any number of bits


def packed_bytes(num_codes: int, bits_per_code: int) -> int:
    """Bytes that hold `num_codes` codes."""
    return -(-num_codes * bits_per_code // 8)


def unpacked_dtype(bits_per_code: int) -> np.dtype:
    """uint16 for up to 16 bits a code, else uint32."""
    if not 1 <= bits_per_code <= 32:
        raise ValueError(f"bits_per_code ({bits_per_code}) must be 1 to 32")
    return np.dtype(np.uint16 if bits_per_code <= 16 else np.uint32)


def pack_codes(codes: np.ndarray, bits_per_code: int) -> np.ndarray:
    """uint8 [..., packed_bytes(n, bits)] of integer codes [..., n] in [0, 2**bits)."""
    wide = np.uint32 if unpacked_dtype(bits_per_code).itemsize == 2 else np.uint64
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise ValueError(f"codes must be integers, not {codes.dtype}")
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) >> bits_per_code):
        raise ValueError(f"codes must lie in [0, 2**{bits_per_code})")
    num_codes = codes.shape[-1]
    groups = -(-num_codes // _GROUP)
    lanes = np.zeros((*codes.shape[:-1], groups * _GROUP), dtype=wide)
    lanes[..., :num_codes] = codes
    lanes = lanes.reshape(*codes.shape[:-1], groups, _GROUP)
    packed = np.zeros((*lanes.shape[:-1], bits_per_code), dtype=np.uint8)
    for lane in range(_GROUP):
        for byte, shift in _bytes_of_lane(lane, bits_per_code):
            part = lanes[..., lane] >> shift if shift >= 0 else lanes[..., lane] << -shift
            packed[..., byte] |= part.astype(np.uint8)
    flat = packed.reshape(*codes.shape[:-1], groups * bits_per_code)
    return flat[..., : packed_bytes(num_codes, bits_per_code)]


def unpack_codes(packed: np.ndarray, bits_per_code: int, num_codes: int) -> np.ndarray:
    """uint16 or uint32 [..., num_codes] of packed uint8 [..., packed_bytes(num_codes, bits)]."""
    dtype = unpacked_dtype(bits_per_code)
    expected = packed_bytes(num_codes, bits_per_code)
    if packed.dtype != np.uint8 or packed.shape[-1] != expected:
        raise ValueError(
            f"{num_codes} codes of {bits_per_code} bits are {expected} bytes of uint8, "
            f"not {packed.shape[-1]} of {packed.dtype}"
        )
    groups = -(-num_codes // _GROUP)
    if expected != groups * bits_per_code:
        whole = np.zeros((*packed.shape[:-1], groups * bits_per_code), dtype=np.uint8)
        whole[..., :expected] = packed
        packed = whole
    packed = packed.reshape(*packed.shape[:-1], groups, bits_per_code)
    wide = np.uint32 if dtype.itemsize == 2 else np.uint64
    codes = np.empty((*packed.shape[:-1], _GROUP), dtype=dtype)
    mask = wide((1 << bits_per_code) - 1)
    for lane in range(_GROUP):
        value = np.zeros(packed.shape[:-1], dtype=wide)
        for byte, shift in _bytes_of_lane(lane, bits_per_code):
            part = packed[..., byte].astype(wide)
            value |= np.left_shift(part, shift) if shift >= 0 else np.right_shift(part, -shift)
        codes[..., lane] = value & mask
    flat = codes.reshape(*packed.shape[:-2], groups * _GROUP)
    return flat[..., :num_codes]


def _bytes_of_lane(lane: int, bits: int) -> list[tuple[int, int]]:
    """(byte, shift) of the bytes that hold a lane: byte << shift is its part of the code."""
    first, last = lane * bits, (lane + 1) * bits - 1
    return [(byte, 8 * byte - first) for byte in range(first // 8, last // 8 + 1)]
