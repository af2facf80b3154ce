"""What is found in a film: shots, and the transitions between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple


@dataclass(frozen=True)
class Shot:
    """One take: frames [start_index, end_index), on display over [start_pts, end_pts)."""

    start_pts: int
    end_pts: int
    start_index: int
    end_index: int


@dataclass(frozen=True)
class Transition:
    """Frames [start_index, end_index) that show two takes at once, or one that comes or goes.

    They are on display over [start_pts, end_pts). A fade through black or white is one transition,
    with what is black or white between.
    """

    kind: Literal["fade", "dissolve"]
    start_index: int
    end_index: int
    start_pts: int
    end_pts: int


class Gradual(NamedTuple):
    """A transition by frames only: [start, end)."""

    kind: Literal["fade", "dissolve"]
    start: int
    end: int


def apart(cuts: Sequence[int], graduals: Sequence[Gradual]) -> tuple[list[int], list[Gradual]]:
    """Cuts without those that are part of a transition, which reaches as far as a cut beside it.

    Both are in order, and the transitions do not overlap.
    """
    kept = set(cuts)
    reaching: list[Gradual] = []
    for kind, start, end in graduals:
        start = start - 1 if start - 1 in kept else start
        start = max(start, reaching[-1].end) if reaching else start
        end = end + 1 if end + 1 in kept else end
        kept.difference_update(range(start, end + 1))
        reaching.append(Gradual(kind, start, end))
    return sorted(kept), reaching
