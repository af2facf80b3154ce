"""The commands that look: `tessera stats`, `inspect`, `diff` and `outliers`.

They load neither torch nor Ray.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from pipeline.arguments import add_command, at_least
from pipeline.inspection import pictures_cli
from tokenizer.settings import UserError

GROUPS = ("label", "bucket", "split", "source")

_STATS_EXAMPLE = """\
examples:
  tessera stats runs/demo/data
  tessera stats runs/demo/data --by label
  tessera stats runs/demo/data --json | jq .codebook
  tessera stats runs/demo/data --sql "select outcome, avg(motion) from manifest group by outcome"
"""

_INSPECT_EXAMPLE = """\
examples:
  tessera inspect runs/demo/data/parts/train-t9_h64_w64-1f0c9a.tar
  tessera inspect SHARD.tar 0123abcd_000000000000_000000004608_0
"""


def register(commands: Any) -> None:
    """Adds the commands, and those that show pictures."""
    stats = add_command(
        commands,
        "stats",
        "what a dataset holds: outcomes, scores, tokens, use of the codebook",
        "Prints what is in a dataset folder and what became of every clip, from its statistics and "
        "accounts; reads no shard. Works while the build is still running.",
        _STATS_EXAMPLE,
        _stats,
    )
    stats.add_argument("directory", metavar="DIR", help="the folder that `tessera build` made")
    stats.add_argument("--by", choices=GROUPS, help="only this grouping, every row of it")
    stats.add_argument("--json", action="store_true", help="everything, as one JSON object")
    stats.add_argument(
        "--sql", metavar="SELECT", help="a question over the tables manifest, shards, commits"
    )
    inspect = add_command(
        commands,
        "inspect",
        "what a shard holds: members, metadata, shapes, codes per scale",
        "Lists the samples of a shard, or shows one: its JSON, its arrays, its codes scale by "
        "scale. Checks the tar on the way; a damaged or hostile one is one line.",
        _INSPECT_EXAMPLE,
        _inspect,
    )
    inspect.add_argument("shard", metavar="SHARD.tar", help="a shard: a file under DIR/parts")
    inspect.add_argument("key", metavar="KEY", nargs="?", help="show this sample")
    inspect.add_argument(
        "--limit",
        type=at_least(0),
        default=10,
        metavar="N",
        help="samples to list; 0: all (default: 10)",
    )
    diff = add_command(
        commands,
        "diff",
        "what changed between two datasets",
        "Compares settings, clips, outcomes, captions, codes, scores and the use of the codebook. "
        "Exit code 1 when something differs.",
        "tessera diff runs/monday runs/tuesday",
        _diff,
    )
    diff.add_argument("a", metavar="A", help="a dataset folder")
    diff.add_argument("b", metavar="B", help="another")
    diff.add_argument("--json", action="store_true", help="everything, as one JSON object")
    outliers = add_command(
        commands,
        "outliers",
        "the clips farthest from the median of a score, and shards that stand apart",
        "Lists extreme clips with file, time and robust z-score, and the shards whose size or mean "
        "scores are unlike those of the others.",
        "tessera outliers runs/demo/data --by motion -k 20",
        _outliers,
    )
    outliers.add_argument("directory", metavar="DIR", help="a dataset folder")
    outliers.add_argument("--by", required=True, metavar="SCORE", help="such as motion")
    outliers.add_argument("-k", type=at_least(1), default=20, help="clips to list (default: 20)")
    outliers.add_argument("--kept", action="store_true", help="only clips that were kept")
    outliers.add_argument("--json", action="store_true", help="everything, as one JSON object")
    pictures_cli.register(commands)


def _stats(arguments: argparse.Namespace) -> int:
    from pipeline.inspection.by_source import by_source
    from pipeline.inspection.summary import summarize, to_json
    from pipeline.inspection.tables import print_group, print_sources, print_summary

    if arguments.sql is not None:
        return _answer(arguments)
    if arguments.by == "source" and not arguments.json:
        print_sources(by_source(arguments.directory))
        return 0
    summary = summarize(arguments.directory)
    if arguments.json:
        values = to_json(summary)
        if arguments.by == "source":
            values["sources"] = [asdict(row) for row in by_source(arguments.directory)]
        print(json.dumps(values, indent=1, sort_keys=True))
    elif arguments.by:
        print_group(summary, arguments.by)
    else:
        print_summary(summary)
    return 0


def _answer(arguments: argparse.Namespace) -> int:
    from pipeline.inspection.sql import plain, query
    from pipeline.upkeep.findings import print_result

    if arguments.by:
        raise UserError("--sql and --by do not go together: group in the SELECT")
    result = query(arguments.directory, arguments.sql)
    if arguments.json:
        rows = [dict(zip(result.columns, map(plain, row))) for row in result.rows]
        print(json.dumps(rows, indent=1))
    else:
        print_result(result)
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from pipeline.inspection.members import open_shard
    from pipeline.inspection.shard_tables import print_sample, print_shard

    shard = open_shard(arguments.shard)
    if arguments.key is None:
        print_shard(shard, arguments.limit)
        return 0
    if arguments.key not in shard.members:
        raise UserError(
            f"{shard.path}: no sample {arguments.key!r}; the first of {len(shard.keys)} is "
            f"{shard.keys[0]!r}"
        )
    print_sample(shard, arguments.key)
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from pipeline.inspection.diff import diff_datasets
    from pipeline.upkeep.findings import print_difference

    difference = diff_datasets(arguments.a, arguments.b)
    if arguments.json:
        print(json.dumps(difference.to_json(), indent=1, sort_keys=True, default=str))
    else:
        print_difference(difference)
    return 0 if difference.is_empty else 1


def _outliers(arguments: argparse.Namespace) -> int:
    from pipeline.inspection.outliers import outlying_clips, outlying_shards
    from pipeline.upkeep.findings import print_outliers

    clips = outlying_clips(arguments.directory, arguments.by, arguments.k, kept_only=arguments.kept)
    shards = outlying_shards(arguments.directory)
    if arguments.json:
        values = {"clips": [asdict(row) for row in clips], "shards": [asdict(s) for s in shards]}
        print(json.dumps(values, indent=1, sort_keys=True))
    else:
        print_outliers(arguments.by, clips, shards)
    return 0
