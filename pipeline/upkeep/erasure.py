"""Erasure: the bytes of removed sources go, the dataset stays whole. `tessera gc DIR --rewrite`.

    erased = erase_removed("runs/demo/data")
    erased.remains                      # {} when nothing of them is left anywhere in the folder

The shards are made anew by copying what stays: nothing is decoded or encoded. Then every unit and
part that still holds anything of the removed sources is deleted, whatever its age. Stopped at any
point and run again, it ends the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.build import build_pixels, rewrite_without_removed
from pipeline.commit import COMMITS, MERGE_FILE, Store, with_pixels
from pipeline.config import BuildConfig
from pipeline.inspection.report import REPORT_FILE
from pipeline.removal import removed_sources
from pipeline.storage import local_file
from pipeline.upkeep.ledger import PART
from pipeline.upkeep.remains import find_remains
from pipeline.upkeep.sweep import UNCOMMITTED, Sweeper, Swept, add, live_units, sound_results
from tokenizer.settings import UserError, read_settings


@dataclass(frozen=True)
class Erased:
    """What was deleted, by kind, and what could not be."""

    swept: dict[str, Swept] = field(default_factory=dict)
    remains: Mapping[str, str] = field(default_factory=dict)


def erase_removed(root: str | Path) -> Erased:
    """Makes a dataset, and its pixel shards, anew without removed sources; deletes their bytes.

    UserError when no sample would be left: then the whole folder is to be deleted.
    """
    store, *pixels = with_pixels(root)
    if store.storage.size(MERGE_FILE) is not None:
        raise UserError(
            f"{store.root}: made by a merge; `tessera merge {store.root} -o NEW` makes it anew "
            "without what was removed, then delete this one"
        )
    store.storage.delete(REPORT_FILE)  # it shows clips; the rewrite ends with a new one
    rewrite_without_removed(str(root))
    if pixels:
        with local_file(store.storage, "config.yaml") as path:
            config = read_settings(BuildConfig, path, {"out": store.root})
        build_pixels(replace(config, executor="inline"))
    swept: dict[str, Swept] = {}
    for each in (store, *pixels):
        swept = add(swept, _erase(each))
    return Erased(swept, all_remains(root))


def all_remains(root: str | Path) -> dict[str, str]:
    """What is left of removed sources in a dataset and its pixel shards, by file."""
    remains: dict[str, str] = {}
    for each in with_pixels(root):
        left = find_remains(each, removed_sources(each), each.storage.walk())
        remains |= {f"{each.root}/{name}": what for name, what in left.items()}
    return remains


def _erase(store: Store) -> dict[str, Swept]:
    """Deletes units that the dataset is not made of any more, and lost parts, where they hold any.

    The commit goes first: it never names what is not there.
    """
    remains = set(find_remains(store, removed_sources(store), store.storage.walk()))
    sweeper = Sweeper(store, 0.0, dry_run=False)
    results, live = sound_results(store), live_units(store)
    units = {
        unit
        for unit, result in results.items()
        if remains & {f"{COMMITS}/{unit}.json", *(part["path"] for part in result["parts"])}
    }
    sweeper.take_units(units - live)
    committed = {part["path"] for each in sound_results(store).values() for part in each["parts"]}
    for name in sorted(remains - committed):
        if PART.fullmatch(name):
            sweeper.take(UNCOMMITTED, name)
    return sweeper.found
