"""Findings on a terminal: what `diff`, `outliers`, `audit` and `stats --sql` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.inspection.terminal import print_line, print_table

if TYPE_CHECKING:
    from pipeline.inspection.audit import Audit
    from pipeline.inspection.diff import Difference
    from pipeline.inspection.outliers import OutlyingClip, OutlyingShard
    from pipeline.inspection.sql import Result

MAX_SETTINGS, MAX_SCALES, MAX_EXAMPLES = 40, 40, 5


def print_difference(difference: Difference) -> None:
    """What changed from A to B."""
    if difference.is_empty:
        print_line("no difference: the same settings, clips, captions and codes")
        return
    settings = list(difference.settings.items())[:MAX_SETTINGS]
    print_table(["setting", "A", "B"], [[name, str(a), str(b)] for name, (a, b) in settings])
    rows = [[name, f"{a:,}", f"{b:,}", f"{b - a:+,}"] for name, (a, b) in _counts(difference)]
    print_table(["", "#A", "#B", "#change"], rows)
    print_table(["clips", "#number"], [[name, f"{n:,}"] for name, n in difference.clips.items()])
    for name, examples in difference.examples.items():
        for each in examples[:MAX_EXAMPLES]:
            print_line(f"  {name}: {each}")
    for title, drifts in (
        ("of kept samples", difference.kept),
        ("of clips considered", difference.considered),
    ):
        rows = [
            [name, _number(row.mean_a), _number(row.mean_b), _number(row.drift, "+.2f")]
            for name, row in drifts.items()
            if row.mean_a != row.mean_b
        ]
        print_table([title, "#mean of A", "#mean of B", "#drift in deviations"], rows)
    scales = [
        [row.bucket, str(row.scale), f"{row.used_a:,}", f"{row.used_b:,}", f"{row.distance:.3f}"]
        for row in difference.codebook[:MAX_SCALES]
    ]
    print_table(["codes", "#scale", "#used in A", "#used in B", "#distance"], scales)


def print_outliers(by: str, clips: list[OutlyingClip], shards: list[OutlyingShard]) -> None:
    """The clips at the ends of a score, and the shards that stand apart."""
    rows = [
        [
            f"{each.value:.4g}",
            f"{each.z:+.1f}",
            each.uri,
            f"{each.start_seconds:.2f} to {each.end_seconds:.2f}",
            each.outcome,
            each.caption,
        ]
        for each in clips
    ]
    print_table([f"#{by}", "#z", "file", "seconds", "outcome", "caption"], rows)
    apart = [
        [each.shard, each.figure, f"{each.value:.4g}", f"{each.median:.4g}", f"{each.z:+.1f}"]
        for each in shards
    ]
    print_table(["shard that stands apart", "figure", "#value", "#of all", "#z"], apart)


def print_audit(audit: Audit) -> None:
    """Every check, and a verdict."""
    marks = {True: "passed", False: "FAILED", None: "not known"}
    rows = [[each.name, each.found, each.wanted, marks[each.is_passed]] for each in audit.checks]
    print_table(["check", "found", "wanted", ""], rows)
    print_line("")
    print_line("FAILED" if audit.failures else "passed")


def print_result(result: Result) -> None:
    """The answer to a question in SQL."""
    numeric = [
        any(isinstance(row[place], (int, float)) for row in result.rows[:100])
        for place in range(len(result.columns))
    ]
    header = [f"#{name}" if flag else name for name, flag in zip(result.columns, numeric)]
    print_table(header, [["" if cell is None else _cell(cell) for cell in r] for r in result.rows])
    if not result.rows:
        print_line("no rows")
    if result.is_cut:
        print_line(f"and more: only the first {len(result.rows):,} rows")


def _counts(difference: Difference) -> list[tuple[str, tuple[int, int]]]:
    changed = [(name, pair) for name, pair in difference.totals.items() if pair[0] != pair[1]]
    return [*difference.outcomes.items(), *changed]


def _number(value: float | None, form: str = ".4g") -> str:
    return "" if value is None else format(value, form)


def _cell(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
