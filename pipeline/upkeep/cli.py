"""The commands of upkeep: `verify`, `remove`, `gc`, `merge`, `overlap`; without torch and Ray."""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.arguments import add_command, at_least
from pipeline.quantities import counted, duration, size
from tokenizer.settings import UserError

if TYPE_CHECKING:
    from pipeline.upkeep.overlap import ClipPair

_VERIFY_EXAMPLE = """\
examples:
  tessera verify runs/demo/data
  tessera verify runs/demo/data --json | jq '.problems[].file'
  tessera verify runs/demo/data --repair && tessera build runs/demo/data/config.yaml

exit code: 0 all is sound, 1 problems were found, 2 it could not run
"""

_REMOVE_EXAMPLE = """\
examples:
  tessera remove runs/demo/data --source "$(sha256sum film.mp4 | cut -d' ' -f1)"
  tessera remove runs/demo/data --source cats/film.mp4
  tessera remove runs/demo/data --list withdrawn.txt
  tessera gc runs/demo/data --rewrite            then erase the bytes
"""

_GC_EXAMPLE = """\
examples:
  tessera gc runs/demo/data --dry-run
  tessera gc runs/demo/data --history            also what earlier settings made
  tessera gc runs/demo/data --rewrite --dry-run  what is there of removed sources?
  tessera gc runs/demo/data --rewrite            erase it
"""

_MERGE_EXAMPLE = """\
examples:
  tessera merge runs/monday runs/tuesday -o runs/both
  tessera merge runs/both -o runs/clean          without the bytes of removed sources
"""

_OVERLAP_EXAMPLE = """\
examples:
  tessera overlap runs/monday runs/tuesday
  tessera overlap runs/train runs/benchmark --near 28 --csv leaks.csv
  tessera overlap runs/data                      near-duplicates within it
"""
_MAX_LINES = 20


def register(commands: Any) -> None:
    """Adds the commands."""
    verify = add_command(
        commands,
        "verify",
        "hash everything again; name what is damaged, missing or foreign",
        "Checks every byte of a dataset against its commits, and every list against the others.",
        _VERIFY_EXAMPLE,
        _verify,
    )
    verify.add_argument("directory", metavar="DIR", help="the folder that `tessera build` made")
    verify.add_argument("--json", action="store_true", help="the verdict as one JSON object")
    verify.add_argument(
        "--repair",
        action="store_true",
        help="take the commits of damaged or missing parts out, so that a build makes them again",
    )
    remove = add_command(
        commands,
        "remove",
        "take sources out of a dataset: readers leave them out at once",
        "Hides every sample of the sources, for good. Bytes go with `tessera gc DIR --rewrite`.",
        _REMOVE_EXAMPLE,
        _remove,
    )
    remove.add_argument("directory", metavar="DIR", help="the folder that `tessera build` made")
    which = remove.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--source",
        metavar="ID",
        help="the sha256 of the file, its first 8 digits or more, or its uri in the manifest",
    )
    which.add_argument(
        "--list", metavar="FILE", help="a file of such names, one a line; # begins a comment"
    )
    remove.add_argument("--json", action="store_true", help="what was done, as one JSON object")
    gc = add_command(
        commands,
        "gc",
        "delete what no commit names; erase what was removed",
        "Deletes drafts, parts and markers that builds left behind. What is younger than an hour "
        "may belong to a build that runs, and stays.",
        _GC_EXAMPLE,
        _gc,
    )
    gc.add_argument("directory", metavar="DIR", help="the folder that `tessera build` made")
    gc.add_argument("--dry-run", action="store_true", help="say what would go, delete nothing")
    gc.add_argument(
        "--min-age",
        type=at_least(0, float),
        default=3600.0,
        metavar="SECONDS",
        help="default: 3600",
    )
    gc.add_argument(
        "--history",
        action="store_true",
        help="also committed units that the finished dataset does not use: they cannot be used "
        "again then; not while a build runs",
    )
    gc.add_argument(
        "--rewrite",
        action="store_true",
        help="first make the shards anew without removed sources, and erase these everywhere",
    )
    merge = add_command(
        commands,
        "merge",
        "several datasets of the same tokenizer become one",
        "Makes one finished dataset of several. What the first have is not taken from the later "
        "ones again; shards are linked, not copied, where the disk can.",
        _MERGE_EXAMPLE,
        _merge,
    )
    merge.add_argument("directories", metavar="DIR", nargs="+", help="finished datasets")
    merge.add_argument("-o", "--out", metavar="OUT", required=True, help="the new folder")
    overlap = add_command(
        commands,
        "overlap",
        "what two datasets share: sources, clips, and clips that look alike",
        "Compares the manifests of two datasets, or of one with itself; reads no shard.",
        _OVERLAP_EXAMPLE,
        _overlap,
    )
    overlap.add_argument("first", metavar="A", help="a finished dataset")
    overlap.add_argument("second", metavar="B", nargs="?", help="another; default: A itself")
    overlap.add_argument(
        "--near",
        type=int,
        default=20,
        metavar="BITS",
        help="clips look alike when their picture hashes differ in at most so many of 192 bits "
        "(default: 20)",
    )
    overlap.add_argument("--json", action="store_true", help="everything, as one JSON object")
    overlap.add_argument("--csv", metavar="FILE", help="write every pair of clips there")


def _verify(arguments: argparse.Namespace) -> int:
    from pipeline.progress import Progress
    from pipeline.upkeep.repair import repair
    from pipeline.upkeep.verify import verify

    verdict = verify(arguments.directory, Progress())
    repaired = repair(arguments.directory, verdict) if arguments.repair else []
    if arguments.json:
        print(json.dumps(verdict.to_json() | {"repaired": repaired}, indent=1, sort_keys=True))
        return int(bool(verdict.problems))
    for problem in verdict.problems:
        print(problem)
    for line in repaired:
        print(line)
    for note in verdict.notes:
        print(f"note: {note}")
    found = counted(len(verdict.problems), "problem") if verdict.problems else "all sound"
    print(
        f"{verdict.root}: {found}; {counted(verdict.num_units, 'unit')}, "
        f"{counted(verdict.num_samples, 'sample')} in {counted(verdict.num_shards, 'shard')}, "
        f"{size(verdict.size_bytes)}"
    )
    if repaired:
        print(f"now run `tessera build {verdict.root}/config.yaml`")
    return int(bool(verdict.problems))


def _remove(arguments: argparse.Namespace) -> int:
    from pipeline.removal import find_sources, remove_sources

    wanted = [arguments.source] if arguments.source else _listed(arguments.list)
    removal = remove_sources(arguments.directory, find_sources(arguments.directory, wanted))
    if arguments.json:
        print(json.dumps(asdict(removal), indent=1, sort_keys=True))
        return 0
    earlier = removal.num_sources - len(removal.new_sources)
    print(
        f"{arguments.directory}: {counted(len(removal.new_sources), 'source')} removed"
        + (f", {earlier} earlier" if earlier else "")
        + f"; hidden: {counted(removal.num_samples, 'sample')} of "
        f"{counted(removal.num_shards, 'shard')}; "
        f"`tessera gc {arguments.directory} --rewrite` erases what is hidden"
    )
    return 0


def _listed(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a file of source ids") from None
    lines = [re.split(r"(?:^|\s)#", line)[0].strip() for line in text.splitlines()]
    if not any(lines):
        raise UserError(f"{path}: no source ids in it; one a line")
    return [line for line in lines if line]


def _gc(arguments: argparse.Namespace) -> int:
    from pipeline.upkeep.sweep import sweep

    if arguments.rewrite:
        _erase(arguments.directory, arguments.dry_run)
    swept = sweep(
        arguments.directory,
        min_age_seconds=arguments.min_age,
        history=arguments.history,
        dry_run=arguments.dry_run,
    )
    _say(swept, "would go" if arguments.dry_run else "deleted")
    return 0


def _erase(directory: str, dry_run: bool) -> None:
    from pipeline.upkeep.erasure import all_remains, erase_removed

    if dry_run:
        for name, what in all_remains(directory).items():
            print(f"would be erased: {name}: {what}")
        return
    erased = erase_removed(directory)
    _say(erased.swept, "erased")
    for name, what in erased.remains.items():
        print(f"still there: {name}: {what}")


def _merge(arguments: argparse.Namespace) -> int:
    from pipeline.upkeep.merge import merge

    totals = merge(arguments.directories, arguments.out)
    print(
        f"{arguments.out}: {counted(totals['n_kept'], 'sample')}, {totals['n_dropped']:,} dropped, "
        f"{totals['n_error']:,} unreadable"
    )
    return 0


def _overlap(arguments: argparse.Namespace) -> int:
    from pipeline.upkeep.overlap import overlap

    found = overlap(arguments.first, arguments.second or arguments.first, arguments.near)
    if arguments.csv:
        _write_pairs(arguments.csv, found.pairs)
    if arguments.json:
        print(json.dumps(found.to_json(), indent=1, sort_keys=True))
        return 0
    print(f"A {found.first}: {counted(found.first_clips, 'clip')}")
    hours = found.second_hours
    print(f"B {found.second}: {counted(found.second_clips, 'clip')}, {duration(3600 * hours)}")
    for name, count, hours in (
        ("sources of B in A", found.shared_sources, found.shared_source_hours),
        ("clips of B in A", found.shared_clips, found.shared_clip_hours),
        ("clips of B that look like one of A", found.near_clips, found.near_hours),
    ):
        share = hours / found.second_hours if found.second_hours else 0.0
        print(f"{name}: {count:,}, {duration(3600 * hours)}, {share:.1%} of B")
    by_source = found.by_source()
    for first, second, count, bits in by_source[:_MAX_LINES]:
        print(f"  {_shown(first)}  {_shown(second)}  {counted(count, 'pair')}, from {bits} bits")
    if len(by_source) > _MAX_LINES:
        print(f"  and {len(by_source) - _MAX_LINES:,} more pairs of sources (--csv, --json)")
    return 0


def _write_pairs(path: str, pairs: Sequence[ClipPair]) -> None:
    names = ["first_uri", "first_seconds", "second_uri", "second_seconds", "bits"]
    try:
        with open(path, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(names)
            rows.writerows([getattr(pair, name) for name in names] for pair in pairs)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def _shown(name: str) -> str:
    """A name of other people's files, without control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def _say(swept: Any, done: str) -> None:
    for kind, found in swept.items():
        print(f"{done}: {found.num_files} {kind}, {size(found.size_bytes)}")
    if not swept:
        print(f"{done}: nothing")
