"""Captions, labels and rights that lie beside a file: `x.txt` or `x.json` beside `x.mp4`.

    {"caption": "...", "label": "...", "attributes": {...}, "license": "...", "consent": "...",
     "clips": [{"start_seconds": 0, "end_seconds": 1.1, "caption": "...", "label": "...",
                "attributes": {"class": "3"}}]}

What `clips` says of a span wins over what is said of the whole file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MAX_SIDECAR_BYTES = 8 << 20


class SidecarError(Exception):
    """A sidecar cannot be read; `kind` goes into the accounts."""

    kind = "sidecar"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is said of a span of seconds; half-open."""

    start_seconds: float = 0.0
    end_seconds: float = float("inf")
    caption: str | None = None
    label: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    whole: Description
    clips: tuple[Description, ...] = ()
    license: str | None = None
    consent: str | None = None

    def for_span(
        self, start_seconds: float, end_seconds: float
    ) -> tuple[str | None, str | None, dict[str, str]]:
        """(caption, label, attributes) of the described span that covers most of this one.

        A span that covers less than half of it does not count.
        """
        best, best_overlap = None, 0.0
        for clip in self.clips:
            overlap = min(end_seconds, clip.end_seconds) - max(start_seconds, clip.start_seconds)
            if overlap > best_overlap:
                best, best_overlap = clip, overlap
        whole = self.whole
        if best is None or best_overlap < 0.5 * (end_seconds - start_seconds):
            return whole.caption, whole.label, dict(whole.attributes)
        return (
            best.caption if best.caption is not None else whole.caption,
            best.label if best.label is not None else whole.label,
            {**whole.attributes, **best.attributes},
        )


def find_sidecar(path: str | Path) -> Path | None:
    """The sidecar of a media file: `.json` before `.txt`; None when there is none."""
    for suffix in (".json", ".txt"):
        candidate = Path(path).with_suffix(suffix)
        if candidate.is_file():
            return candidate
    return None


def read_sidecar(path: Path) -> Sidecar:
    """The sidecar at `path`; raises SidecarError when it is too large or not of the format."""
    try:
        if path.stat().st_size > _MAX_SIDECAR_BYTES:
            raise SidecarError(f"{path}: more than {_MAX_SIDECAR_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".txt":
            return Sidecar(whole=Description(caption=" ".join(text.split()) or None))
        values = json.loads(text)
        return Sidecar(
            whole=_description(values),
            clips=tuple(_description(each) for each in values.get("clips", ())),
            license=_text(values, "license"),
            consent=_text(values, "consent"),
        )
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SidecarError(f"{path}: not a valid sidecar ({error})") from None


def _description(values: Any) -> Description:
    attributes = values.get("attributes", {})
    if not all(isinstance(text, str) for pair in attributes.items() for text in pair):
        raise ValueError("attributes must map text to text")
    return Description(
        start_seconds=float(values.get("start_seconds", 0.0)),
        end_seconds=float(values.get("end_seconds", "inf")),
        caption=_text(values, "caption"),
        label=_text(values, "label"),
        attributes=dict(attributes),
    )


def _text(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} must be text")
    return value
