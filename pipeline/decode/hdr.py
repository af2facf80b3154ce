"""HDR to standard range: PQ and HLG pictures in BT.2020 become what a BT.709 display would show.

PQ: SMPTE ST 2084 (BT.2100, table 4); HLG: BT.2100, table 5, with its system gamma for a display of
1000 cd/m2. The range is compressed by the electrical-electrical transfer function of BT.2390-10
(5.4.1, equations 4 to 9) from 1000 cd/m2 to reference white (203 cd/m2, BT.2408), applied to the
largest of the three components so that hues stay; what lies outside BT.709 is clipped; the result
is coded for a display of gamma 2.4 (BT.1886).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

TRANSFERS: dict[int, Literal["pq", "hlg"]] = {16: "pq", 18: "hlg"}
"""By FFmpeg's number of the transfer characteristic (ITU-T H.273)."""

_PEAK = 1000.0  # cd/m2 of the mastering display
_WHITE = 203.0
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)
_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
"""Linear BT.2020 to linear BT.709 (BT.2087)."""


def tone_map(pixels: np.ndarray, transfer: Literal["pq", "hlg"]) -> np.ndarray:
    """uint8 RGB (h, w, 3) of uint16 RGB (h, w, 3) in BT.2020."""
    if transfer == "pq":
        light = _pq_table()[pixels]
    else:
        scene = _hlg_table()[pixels]
        light = _PEAK * scene * (scene @ _LUMA_2020)[..., None] ** np.float32(0.2)
    brightest = light.max(axis=-1, keepdims=True)
    light *= _compressed(brightest) / np.maximum(brightest, 1e-6)
    shown = np.clip(light @ _TO_709.T / _WHITE, 0, 1)
    return np.rint(255 * shown ** (1 / 2.4)).astype(np.uint8)


def pq_to_light(code: np.ndarray) -> np.ndarray:
    """cd/m2 of PQ values in [0, 1]."""
    root = np.power(code, 1 / _M2)
    return 10_000 * np.power(np.maximum(root - _C1, 0) / (_C2 - _C3 * root), 1 / _M1)


def light_to_pq(light: np.ndarray) -> np.ndarray:
    """PQ values of cd/m2: the inverse."""
    power = np.power(np.maximum(light, 0) / 10_000, _M1)
    return np.power((_C1 + _C2 * power) / (1 + _C3 * power), _M2)


def _compressed(light: np.ndarray) -> np.ndarray:
    """cd/m2 up to reference white, of cd/m2 up to the peak: the knee of BT.2390."""
    peak = light_to_pq(np.array(_PEAK))
    target = light_to_pq(np.array(_WHITE)) / peak
    knee = 1.5 * target - 0.5
    code = np.minimum(light_to_pq(light) / peak, 1)
    t = (code - knee) / (1 - knee)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (-2 * t**3 + 3 * t**2) * target
    )
    return pq_to_light(np.where(code < knee, code, spline) * peak)


@lru_cache(maxsize=1)
def _pq_table() -> np.ndarray:
    return pq_to_light(np.arange(65536) / 65535).astype(np.float32)


@lru_cache(maxsize=1)
def _hlg_table() -> np.ndarray:
    """Scene light in [0, 1] of HLG values: the inverse of the OETF."""
    code = np.arange(65536) / 65535
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)
