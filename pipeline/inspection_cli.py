"""The commands that look: `tessera stats DIR` and `tessera inspect SHARD.tar [KEY]`.

They load neither torch nor Ray.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from tokenizer.settings import UserError

GROUPS = ("label", "bucket", "split")

_STATS_EXAMPLE = """\
examples:
  tessera stats runs/demo/data
  tessera stats runs/demo/data --by label
  tessera stats runs/demo/data --json | jq .codebook
"""

_INSPECT_EXAMPLE = """\
examples:
  tessera inspect runs/demo/data/parts/train-t9_h64_w64-1f0c9a.tar
  tessera inspect SHARD.tar 0123abcd_000000000000_000000004608_0
"""


def register(commands: Any) -> None:
    """Adds `stats` and `inspect`."""
    stats = commands.add_parser(
        "stats",
        help="what a dataset holds: outcomes, scores, tokens, use of the codebook",
        description="Prints what is in a dataset folder and what became of every clip, from its "
        "commits alone; reads no shard. Works while the build is still running.",
        epilog=_STATS_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stats.add_argument("directory", metavar="DIR", help="the folder that `tessera build` made")
    stats.add_argument("--by", choices=GROUPS, help="only this grouping, every row of it")
    stats.add_argument("--json", action="store_true", help="everything, as one JSON object")
    stats.set_defaults(run=_stats)
    inspect = commands.add_parser(
        "inspect",
        help="what a shard holds: members, metadata, shapes, codes per scale",
        description="Lists the samples of a shard, or shows one: its JSON, its arrays, its codes "
        "scale by scale. Checks the tar on the way; a damaged or hostile one is one line.",
        epilog=_INSPECT_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inspect.add_argument("shard", metavar="SHARD.tar", help="a shard: a file under DIR/parts")
    inspect.add_argument("key", metavar="KEY", nargs="?", help="show this sample")
    inspect.add_argument(
        "--limit", type=int, default=10, metavar="N", help="samples to list; 0: all (default: 10)"
    )
    inspect.set_defaults(run=_inspect)


def _stats(arguments: argparse.Namespace) -> int:
    from pipeline.shards.format import ShardError
    from pipeline.summary import summarize, to_json
    from pipeline.tables import print_group, print_summary

    try:
        summary = summarize(arguments.directory)
    except ShardError as error:
        raise UserError(str(error)) from None
    if arguments.json:
        print(json.dumps(to_json(summary), indent=1, sort_keys=True))
    elif arguments.by:
        print_group(summary, arguments.by)
    else:
        print_summary(summary)
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from pipeline.inspection import open_shard
    from pipeline.shards.format import ShardError
    from pipeline.tables import print_sample, print_shard

    try:
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
    except ShardError as error:
        raise UserError(str(error)) from None
    return 0
