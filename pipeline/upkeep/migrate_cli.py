"""The command `tessera migrate DIR`: datasets of older format versions."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from pipeline.arguments import add_command

_EXAMPLE = """\
examples:
  tessera migrate runs/demo/data
  tessera verify runs/demo/data                  afterwards, hash everything once more

The tars are not touched; sidecars, index, manifest and shard list are made anew from them. When it
is interrupted, run it again.
"""


def register(commands: Any) -> None:
    """Adds `migrate`."""
    parser = add_command(
        commands,
        "migrate",
        "bring a dataset of an older format version forward, in place",
        "Makes the index and the lists of a dataset anew in this version's format. Shards stay as "
        "they are, byte for byte.",
        _EXAMPLE,
        _migrate,
    )
    parser.add_argument("directory", metavar="DIR", help="the folder that `tessera build` made")
    parser.add_argument("--json", action="store_true", help="what was done, as one JSON list")


def _migrate(arguments: argparse.Namespace) -> int:
    from pipeline.shards.format import FORMAT_VERSION
    from pipeline.upkeep.migrate import migrate

    done = migrate(arguments.directory)
    if arguments.json:
        print(json.dumps([asdict(each) for each in done], indent=1, sort_keys=True))
        return 0
    for each in done:
        if each.from_version == FORMAT_VERSION:
            print(f"{each.root}: is of format version {FORMAT_VERSION} already")
        else:
            print(
                f"{each.root}: from format version {each.from_version} to {FORMAT_VERSION}: "
                f"{each.num_samples} samples in {each.num_shards} shards"
            )
    return 0
