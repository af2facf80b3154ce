"""Captions that come with the files: sidecars beside a video or image, rows of a manifest.

    film.txt    the caption of the whole file
    film.cls    its label
    film.json   {"caption": ..., "label": ..., "attributes": {...}, "license": ..., "consent": ...,
                 "clips": [{"start_seconds": 0, "end_seconds": 2.5, "caption": ..., "label": ...,
                            "attributes": {...}}]}

`film.mp4.json` is looked for before `film.json`, and so on; what the JSON leaves out comes from the
others. Every key may be left out; keys that are not listed are ignored; what has the wrong type
makes the sidecar an error. A manifest says the same of a file, as the JSON does.
"""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.sources.location import FileTooLarge, ending_of, pieces_of

SIDECAR_ENDINGS = (".json", ".txt", ".cls")
MAX_SIDECAR_BYTES = 16 << 20
_READ_SECONDS = 60.0
MAX_TEXT_CHARACTERS = 100_000
MIN_OVERLAP = 0.5
"""Share of a clip that a described span must cover for its description to count."""


class SidecarError(Exception):
    """A sidecar that cannot be used; the message is one line that names it."""

    kind = "sidecar"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a sidecar says of a file or of a span of it."""

    caption: str | None = None
    label: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DescribedSpan:
    """A description of [start_seconds, end_seconds), counted from the file's first frame."""

    start_seconds: float
    end_seconds: float
    description: Description


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """All that came with a file."""

    whole: Description = Description()
    spans: tuple[DescribedSpan, ...] = ()
    license: str | None = None
    consent: str | None = None

    def for_span(
        self, start_seconds: float, end_seconds: float
    ) -> tuple[str | None, str | None, Mapping[str, str]]:
        """(caption, label, attributes) of a clip: the span that overlaps it most, then the file's.

        A span counts from half of the clip on; of equal ones the first. What it leaves out comes
        from the whole file; attributes are merged key by key.
        """
        chosen = self.whole
        length = end_seconds - start_seconds
        most = 0.0
        for span in self.spans:
            overlap = min(end_seconds, span.end_seconds) - max(start_seconds, span.start_seconds)
            if overlap > most and overlap >= MIN_OVERLAP * length:
                most, chosen = overlap, span.description
        return (
            self.whole.caption if chosen.caption is None else chosen.caption,
            self.whole.label if chosen.label is None else chosen.label,
            {**self.whole.attributes, **chosen.attributes},
        )


def find_sidecars(name: str, is_there: Callable[[str], bool]) -> tuple[str, ...]:
    """The sidecars of a video or image by its name: at most one of each kind, JSON first."""
    stems = (name, posixpath.splitext(name)[0])
    found = []
    for ending in SIDECAR_ENDINGS:
        candidates = (stem + ending for stem in stems)
        found += [each for each in candidates if is_there(each)][:1]
    return tuple(found)


def read_sidecars(locations: Sequence[str]) -> Sidecar:
    """What the sidecars at these locations say of a file; raises SidecarError."""
    sidecar = Sidecar()
    for location in locations:
        other = read_sidecar(location)
        if location == locations[0]:
            sidecar = other
        whole = replace(
            sidecar.whole,
            caption=sidecar.whole.caption or other.whole.caption,
            label=sidecar.whole.label or other.whole.label,
        )
        sidecar = replace(sidecar, whole=whole)
    return sidecar


def read_sidecar(location: str | Path) -> Sidecar:
    """The sidecar at a location, by its ending JSON, a label or a caption; raises SidecarError."""
    location = str(location)
    try:
        content = b"".join(pieces_of(location, MAX_SIDECAR_BYTES, _READ_SECONDS))
    except FileTooLarge:
        raise SidecarError(f"{location}: larger than {MAX_SIDECAR_BYTES} bytes") from None
    except OSError as error:
        raise SidecarError(f"{location}: cannot be read ({error.strerror or error})") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SidecarError(f"{location}: not UTF-8 text") from None
    ending = ending_of(location)
    if ending == ".json":
        return parse_facts(text, location)
    try:
        if ending == ".cls":
            return Sidecar(whole=Description(label=_text(text, "label")))
        return Sidecar(whole=Description(caption=_text(text, "caption")))
    except ValueError as error:
        raise SidecarError(f"{location}: {error}") from None


def parse_facts(text: str, where: str) -> Sidecar:
    """What JSON says of a file; raises SidecarError, which begins with `where`."""
    try:
        return _parse(json.loads(text))
    except RecursionError:
        raise SidecarError(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise SidecarError(f"{where}: {error}") from None


def check_facts(record: Mapping[str, Any], where: str) -> None:
    """SidecarError when this could not be what a JSON sidecar says."""
    try:
        _parse(record)
    except ValueError as error:
        raise SidecarError(f"{where}: {error}") from None


def combined_sha256(digests: Sequence[str]) -> str:
    """The hash of all that describes a file, from the hash of each; of one, its own."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _parse(value: Any) -> Sidecar:
    record = _mapping(value, "the file")
    clips = record.get("clips")
    if clips is None:
        clips = []
    if not isinstance(clips, list):
        raise ValueError("clips must be a list")
    return Sidecar(
        whole=_description(record, ""),
        spans=tuple(_span(clip, f"clips[{index}]") for index, clip in enumerate(clips)),
        license=_text(record.get("license"), "license"),
        consent=_text(record.get("consent"), "consent"),
    )


def _span(value: Any, where: str) -> DescribedSpan:
    record = _mapping(value, where)
    start, end = (_seconds(record, key, where) for key in ("start_seconds", "end_seconds"))
    if end <= start:
        raise ValueError(f"{where}: end_seconds ({end:g}) must be after start_seconds ({start:g})")
    description = _description(record, where + ".")
    return DescribedSpan(start_seconds=start, end_seconds=end, description=description)


def _description(record: Mapping[str, Any], prefix: str) -> Description:
    attributes = record.get("attributes")
    pairs = _mapping({} if attributes is None else attributes, prefix + "attributes").items()
    named = {key: _text(value, f"{prefix}attributes.{key}") for key, value in pairs}
    return Description(
        caption=_text(record.get("caption"), prefix + "caption"),
        label=_text(record.get("label"), prefix + "label"),
        attributes={key: value for key, value in named.items() if value is not None},
    )


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a mapping of keys to values")
    return value


def _text(value: Any, where: str) -> str | None:
    """Text with its white space made single blanks; a number as text; None for nothing at all."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{where} must be text, not {type(value).__name__}")
    if len(value) > MAX_TEXT_CHARACTERS:
        raise ValueError(f"{where} is longer than {MAX_TEXT_CHARACTERS} characters")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{where} holds half of a surrogate pair")
    return " ".join(value.split()) or None


def _seconds(record: Mapping[str, Any], key: str, where: str) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where}: {key} must be a number")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise ValueError(f"{where}: {key} must be finite")
    return seconds
