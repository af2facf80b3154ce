"""Brace ranges as WebDataset writes them: shards/{0000..0099}.tar, {train,val}/*.mp4."""

from __future__ import annotations

import re
from itertools import product

from tokenizer.settings import UserError

MAX_NAMES = 1_000_000
_GROUP = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")


def expand_braces(pattern: str) -> list[str]:
    """Every name that a pattern stands for, in order; itself, when it has no braces.

    Numbers of a range are as wide as its first. UserError for braces that are neither a range nor
    a list, ranges that run backwards, and more than a million names.
    """
    parts: list[list[str]] = []
    count, position = 1, 0
    for group in _GROUP.finditer(pattern):
        choices = _choices(group[1], pattern, MAX_NAMES // count)
        count *= len(choices)
        parts += [[pattern[position : group.start()]], choices]
        position = group.end()
    parts.append([pattern[position:]])
    if any(mark in fixed for (fixed,) in parts[::2] for mark in "{}"):
        raise UserError(f"{pattern}: its braces do not match; ranges are {{000..099}} or {{a,b}}")
    return ["".join(names) for names in product(*parts)]


def _choices(text: str, pattern: str, most: int) -> list[str]:
    ends = _RANGE.fullmatch(text)
    if ends is None:
        choices = text.split(",")
        if len(choices) < 2:
            raise UserError(f"{pattern}: {{{text}}} must be a range {{000..099}} or a list {{a,b}}")
        return choices
    first, last = int(ends[1]), int(ends[2])
    if last < first:
        raise UserError(f"{pattern}: the range {{{text}}} runs backwards")
    if last - first >= most:
        raise UserError(f"{pattern}: stands for more than {MAX_NAMES:,} names; give several ranges")
    return [str(number).zfill(len(ends[1])) for number in range(first, last + 1)]
