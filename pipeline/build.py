"""Build: the five phases in order, each resumable, each saying what it did.

    build(config, until="select")         plan, annotate, select
    build_pixels(config)                  pixel shards in OUT/pixels, for tokenizers and judges
    build(config)                         all five; needs a tokenizer

Whatever is committed is not done again, so the same call continues a build that was killed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.annotate import AnnotateJob, accounts
from pipeline.caption import CaptionJob, check_weights
from pipeline.clip import Clip, failed_source, make_buckets
from pipeline.commit import PIXELS_FOLDER, Store
from pipeline.config import PHASES, BuildConfig, parse_bucket
from pipeline.encode import EncoderRecipe, check_fit, code_recipes, frame_recipe
from pipeline.executor import Executor, make_executor
from pipeline.finalize import finalize
from pipeline.inspection.report import write_report
from pipeline.plan import (
    PlannedSource,
    make_plan,
    read_plan,
    units_of,
    without_removed,
    write_plan,
)
from pipeline.progress import Progress
from pipeline.quantities import counted
from pipeline.removal import refuse_removed
from pipeline.reuse import (
    CodeKeys,
    earlier_stores,
    find_codes,
    find_failures,
    find_scans,
    why_unlike,
)
from pipeline.select import read_selection, select_clips, write_selection
from pipeline.shards.format import tokenizer_folders
from pipeline.shots import check_detector
from pipeline.sources.listing import list_sources
from pipeline.status import Watch, watched
from pipeline.storage import is_remote, light_copy
from pipeline.tokenize import TokenizeJob
from tokenizer.settings import UserError, dump_settings, read_settings


def build(config: BuildConfig, until: str = "finalize") -> dict[str, int]:
    """Runs the phases up to and including `until`; returns the accounts so far.

    Raises UserError, before anything is decoded, when a tokenizer, a captioner's weights or a shot
    detector are needed and missing, or when the output folder cannot be written.
    """
    weights = check_weights(config.captions)
    detector = check_detector(config.shots)
    recipes: tuple[EncoderRecipe, ...] = ()
    if PHASES.index(until) >= PHASES.index("tokenize"):
        recipes = tokenizer_recipes(config)
    files = list_sources(config.sources, config.limits)
    store = _open_store(config)
    progress = Progress()
    plan = make_plan(config, files, store, progress.note)
    units = units_of(plan)
    skipped = Counter(row.skipped for row in plan if row.skipped)
    listed = "".join(f", {count} {why}" for why, count in sorted(skipped.items()))
    progress.note(f"plan: {counted(len(plan), 'file')}{listed}, in {counted(len(units), 'unit')}")
    if until == "plan":
        return {"n_in": len(plan)}
    if detector:
        progress.note(f"annotate: shots by {detector}")
    with _LazyExecutor(make_executor(config)) as executor:
        clips = _annotate(config, store, plan, executor, weights, progress)
        if until == "annotate":
            return _count(clips)
        selection = _select(config, store, clips, progress)
        if not recipes:
            return _count(selection)
        return _make_shards(
            config, store, selection, plan, recipes, executor, progress, until == "finalize"
        )


def build_pixels(config: BuildConfig) -> str:
    """Pixel shards of the selection in OUT: OUT/pixels, a dataset of its own."""
    store = Store(config.out)
    selection = read_selection(store)
    if selection is None:
        raise UserError(f"{config.out}: no selection; run `tessera build CONFIG --until select`")
    refuse_removed(store, selection)
    pixels = replace(config, out=f"{store.root}/{PIXELS_FOLDER}", reuse=())
    pixel_store = _open_store(pixels)
    with _LazyExecutor(make_executor(pixels)) as executor:
        _make_shards(
            pixels,
            pixel_store,
            selection,
            read_plan(store),
            (frame_recipe(config.tokenize),),
            executor,
            Progress(),
            finish=True,
        )
    return pixel_store.root


def rewrite_without_removed(root: str) -> dict[str, int]:
    """Makes the shards of a finished dataset anew without what was removed; returns its accounts.

    All other bytes are copied from the shards that exist: nothing is decoded or encoded, and the
    videos need not be there. The superseded parts stay until they are swept.
    """
    store = Store(root)
    plan = read_plan(store)
    with light_copy(root) as folder:
        if not plan or not (folder / "config.yaml").exists():
            raise UserError(f"{root}: no build here that could be made anew; name its folder")
        config = read_settings(BuildConfig, folder / "config.yaml", {"out": root})
        is_pixels = not (folder / "tokenizer" / "tokenizer.json").exists()
        further = {name: str(folder / "tokenizers" / name) for name in config.tokenize.further}
        recipes = (
            (frame_recipe(config.tokenize),)
            if is_pixels
            else code_recipes(folder / "tokenizer", replace(config.tokenize, further=further))
        )
        progress = Progress()
        with _LazyExecutor(make_executor(replace(config, executor="inline"))) as executor:
            plan = write_plan(without_removed(plan, store), store)
            clips = _annotate(
                config, store, plan, executor, check_weights(config.captions), progress
            )
            selection = _select(config, store, clips, progress)
            return _make_shards(config, store, selection, plan, recipes, executor, progress, True)


def tokenizer_recipes(config: BuildConfig) -> tuple[EncoderRecipe, ...]:
    """How to make each token set; UserError when a tokenizer is missing or fits no such clips."""
    recipes = code_recipes(tokenizer_folder(config), config.tokenize)
    buckets = make_buckets(map(parse_bucket, config.clips.buckets))
    for recipe in recipes:
        check_fit(recipe, buckets)
    return recipes


def tokenizer_folder(config: BuildConfig) -> Path:
    """Where the tokenizer is, or will be put by `tessera tokenizer train`."""
    if config.tokenize.tokenizer is None and is_remote(config.out):
        raise UserError(
            f"{config.out}: a remote dataset needs tokenize.tokenizer, a folder that every worker "
            "can read"
        )
    return Path(config.tokenize.tokenizer or Path(config.out) / "tokenizer")


def _open_store(config: BuildConfig) -> Store:
    store = Store(config.out)
    store.prepare()
    store.storage.put("config.yaml", dump_settings(config).encode())
    return store


def _annotate(
    config: BuildConfig,
    store: Store,
    plan: list[PlannedSource],
    executor: _LazyExecutor,
    weights: str | None,
    progress: Progress,
) -> list[Clip]:
    """The rows of all files, captions included, in plan order."""
    job = AnnotateJob(config, store.root)
    units = [job.unit(sources) for sources in units_of(plan)]
    committed = store.committed()
    todo = [unit for unit in units if unit.id not in committed]
    if todo and (committed or config.reuse):
        sources = [source.source_id for unit in todo for source in unit.sources]
        history = earlier_stores(store, config.reuse)
        job.earlier = find_scans(history, job.scan_fingerprint, sources)
    with _phase("annotate", store, progress, units, todo) as watch:
        for unit_id in executor.get().annotate(job, todo, watch) if todo else ():
            watch.done(unit_id)
    clips = [clip for unit in units for clip in job.rows(unit)]
    if weights is not None:
        captioner = CaptionJob(config, store.root, weights)
        caption_units = captioner.units(clips, plan)
        waiting = [unit for unit in caption_units if unit.id not in committed]
        with _phase("caption", store, progress, caption_units, waiting) as watch:
            for unit_id in executor.get().run_clips(captioner, waiting, watch) if waiting else ():
                watch.done(unit_id)
        clips = captioner.captioned(clips, caption_units)
    return clips + [
        failed_source(row.source_id, row.uri, row.outcome) for row in plan if row.skipped
    ]


def _select(
    config: BuildConfig, store: Store, clips: Sequence[Clip], progress: Progress
) -> list[Clip]:
    selection = select_clips(clips, config.select)
    write_selection(selection, store)
    counts = Counter(clip.outcome for clip in selection)
    listed = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    progress.note(f"select: {counted(len(selection), 'clip')} considered: {listed or 'none'}")
    return selection


def _make_shards(
    config: BuildConfig,
    store: Store,
    selection: Sequence[Clip],
    plan: Sequence[PlannedSource],
    recipes: Sequence[EncoderRecipe],
    executor: _LazyExecutor,
    progress: Progress,
    finish: bool,
) -> dict[str, int]:
    """The tokenize phase, and finalize when `finish`."""
    if not any(clip.outcome == "kept" for clip in selection):
        raise UserError(
            f"{config.out}: no clip was kept of {len(selection)}; "
            "loosen the rules under select.drop, or look at manifest with `tessera stats`"
        )
    primary, *further = recipes
    job = TokenizeJob(config, store.root, primary, further)
    units = job.units(selection, plan)
    committed = store.committed()
    todo = [unit for unit in units if unit.id not in committed]
    if todo:
        keys = CodeKeys(
            [clip for unit in todo for clip in unit.clips], job.code_key, job.makings.values()
        )
        history = earlier_stores(store, config.reuse)
        known = find_codes(history, keys)
        todo = job.fed(todo, plan, known, find_failures(history, job.fingerprint))
        for name, making in job.makings.items() if known else ():
            wanted = keys.of(making)
            found = sum(key in known for key in wanted)
            progress.note(f"tokenize: {found} of {len(wanted)} clips have {name} already")
        for other in history[:-1]:
            if not any(place.root == other.root for place in known.values()):
                progress.note(f"reuse: nothing of {other.root}: {why_unlike(other, primary.how)}")
    with _phase("tokenize", store, progress, units, todo) as watch:
        for unit_id in executor.get().run_clips(job, todo, watch) if todo else ():
            watch.done(unit_id)
    if not finish:
        return _count(selection)
    folders = tokenizer_folders([each.name for each in recipes])
    tokenizers = {
        folders[each.name]: Path(each.directory) for each in recipes if each.directory is not None
    }
    totals = finalize(config, store, selection, units, job.code_key, tokenizers)
    with light_copy(store.root) as folder:
        write_report(folder)
        if is_remote(store.root):
            store.storage.put("report.html", folder / "report.html")
    progress.note(
        f"finalize: {counted(totals['n_kept'], 'sample')} in {counted(len(units), 'shard')} under "
        f"{store.root}, {totals['n_dropped']:,} dropped, {totals['n_error']:,} unreadable"
    )
    return totals


@contextmanager
def _phase(
    name: str, store: Store, progress: Progress, units: Sequence[Any], todo: Sequence[Any]
) -> Iterator[Watch]:
    """A phase in progress: on the terminal here, and in the dataset's status for others."""
    with (
        progress.phase(name, len(units), len(units) - len(todo)) as advance,
        watched(store, name, len(units), len(units) - len(todo)) as watch,
    ):
        watch.advance = advance
        yield watch


def _count(clips: Sequence[Clip]) -> dict[str, int]:
    return accounts(Counter(clip.outcome or "kept" for clip in clips))


class _LazyExecutor:
    """Starts the executor for the first unit that needs it: no work, no Ray."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._entered = False

    def get(self) -> Executor:
        if not self._entered:
            self._executor.__enter__()
            self._entered = True
        return self._executor

    def __enter__(self) -> _LazyExecutor:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._entered:
            self._executor.__exit__(*error)
