"""Rules: what drops a clip or a file, written as `name: 'score < bound'`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

_RULE = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*(-?[0-9.]+(?:e-?[0-9]+)?)\s*")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Drops a clip whose score compares so with the bound; a missing score never drops."""

    score: str
    comparison: str
    bound: float

    def drops(self, value: float | None) -> bool:
        if value is None:
            return False
        return {
            "<": value < self.bound,
            "<=": value <= self.bound,
            ">": value > self.bound,
            ">=": value >= self.bound,
        }[self.comparison]


def parse_rules(drop: Mapping[str, str], scores: Collection[str]) -> dict[str, Rule]:
    """The rules by name, in order; raises ValueError naming the one that is wrong."""
    parsed = {}
    for name, text in drop.items():
        match = _RULE.fullmatch(text)
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"drop.{name}: a rule's name is lower-case letters, digits and _")
        if match is None or match[1] not in scores:
            raise ValueError(
                f"drop.{name} ({text!r}) must read 'score < bound' with one of "
                f"< <= > >= and a score of {', '.join(scores)}"
            )
        parsed[name] = Rule(score=match[1], comparison=match[2], bound=float(match[3]))
    return parsed
