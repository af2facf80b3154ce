"""Quantities: numbers as people read them, in the unit that suits their size."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`1.13 s`, `19.3 min`, `2.1 h`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def size(size_bytes: float) -> str:
    """`512 bytes`, `2.65 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} bytes" if unit == "bytes" else f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} TB"


def large(number: int) -> str:
    """`63,735`, `3.4 M`, `1.20 B`."""
    if number < 1_000_000:
        return f"{number:,}"
    return f"{number / 1e6:,.1f} M" if number < 1e9 else f"{number / 1e9:,.2f} B"


def counted(number: int, noun: str) -> str:
    """`1 clip`, `2,000 clips`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
