"""The command `tessera status`: a running build, looked at from another shell."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

from pipeline.arguments import add_command, at_least
from pipeline.quantities import counted, duration

if TYPE_CHECKING:
    from pipeline.status import Report

_EXAMPLE = """\
examples:
  tessera status runs/data
  tessera status runs/data --watch 5
  tessera status s3://lab/films --json

busy share: the part of the time between an encoder's first and last batch that it was encoding
"""


def register(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "status",
        "how far a build is: units, clips per second, time left",
        "Shows the state of a build that runs elsewhere, or how it was left.",
        _EXAMPLE,
        _status,
    )
    parser.add_argument("dir", metavar="DIR", help="the dataset folder, or its URL")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--watch",
        type=at_least(0.1, float),
        metavar="SECONDS",
        help="show it again every so often, until it ends",
    )


def _status(arguments: argparse.Namespace) -> int:
    from pipeline.status import look

    while True:
        report = look(arguments.dir)
        if arguments.json:
            print(json.dumps(report.to_dict(), indent=1, sort_keys=True))
        else:
            print("\n".join(_lines(report)), flush=True)
        if not arguments.watch or report.state in ("finished", "stopped"):
            return 0
        time.sleep(arguments.watch)


def _lines(report: Report) -> list[str]:
    committed = ", ".join(f"{phase} {count:,}" for phase, count in report.committed.items())
    lines = [f"{report.root}: {report.state}; units committed: {committed or 'none'}"]
    status = report.status
    if status is not None:
        ago = max(time.time() - status.updated_at, 0.0)
        lines.append(
            f"{status.phase}: {status.num_done:,} of {counted(status.num_units, 'unit')}, "
            f"{len(status.leased):,} leased, {status.num_returned:,} given back "
            f"({status.host}, process {status.pid}, {duration(ago)} ago)"
        )
        facts = [f"{status.clips_per_second:.1f} clips/s"] if status.clips else []
        if status.encoder_busy is not None:
            facts.append(f"encoders busy {status.encoder_busy:.0%}")
        if report.state == "running" and status.seconds_left is not None:
            facts.append(f"{duration(status.seconds_left)} left in this phase")
        lines += [", ".join(facts)] if facts else []
    for unit, count in list(report.attempts.items())[:10]:
        lines.append(f"begun {counted(count, 'time')}, not ended: {unit}")
    return lines
