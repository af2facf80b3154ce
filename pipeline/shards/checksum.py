"""crc32, by the fastest means at hand: ISA-L where it is installed, else zlib; the same numbers."""

from __future__ import annotations

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
