"""Removal: hidden at once, erased by a rewrite, and then as if the source had never been there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.build import build, build_pixels
from pipeline.cli import main
from pipeline.clip import clips_from_parquet
from pipeline.commit import Store
from pipeline.config import AnnotateSettings, BuildConfig, SelectSettings, TokenizeSettings
from pipeline.finalize import finalize
from pipeline.plan import read_plan
from pipeline.removal import hidden_rows, remove_sources, removed_sources
from pipeline.shards import open_dataset
from pipeline.storage import LocalStorage
from pipeline.upkeep.verify import verify
from tokenizer.settings import UserError

NUM_FILMS = 6


@pytest.fixture(scope="module")
def config(
    write_film: Callable[[Path, int], Path],
    random_tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> BuildConfig:
    """The settings of a finished dataset of a few films, each with a caption of its own."""
    folder = tmp_path_factory.mktemp("removal")
    for seed in range(NUM_FILMS):
        write_film(folder / "videos" / "films" / f"{seed}.mp4", seed)
        (folder / "videos" / "films" / f"{seed}.txt").write_text(f"film {seed}")
    settings = BuildConfig(
        sources=(str(folder / "videos"),),
        out=str(folder / "data"),
        executor="inline",
        annotate=AnnotateSettings(sources_per_unit=2),
        select=SelectSettings(val_share=0.3),
        tokenize=TokenizeSettings(
            tokenizer=str(random_tokenizer), samples_per_shard=2, batch_size=2
        ),
    )
    build(settings)
    return settings


@pytest.fixture
def made(config: BuildConfig, tmp_path: Path) -> BuildConfig:
    """A copy of the dataset, and its settings."""
    shutil.copytree(config.out, tmp_path / "data")
    return replace(config, out=str(tmp_path / "data"))


def source_of(out: str, film: int) -> str:
    rows = clips_from_parquet(Path(out) / "manifest.parquet")
    return next(row.source_id for row in rows if row.uri.endswith(f"{film}.mp4"))


def shown_sources(out: str) -> list[str]:
    dataset = open_dataset(out)
    shown = []
    for split in ("train", "val"):
        samples = dataset.samples(split)
        shown += [each["source_id"] for each in samples.metadata(range(len(samples)))]
    return sorted(shown)


def shards(out: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (Path(out) / "parts").glob("*.tar")}


def test_readers_leave_a_removed_source_out_at_once(made: BuildConfig) -> None:
    source = source_of(made.out, 2)
    before = shown_sources(made.out)
    removal = remove_sources(made.out, [source])
    assert removal.new_sources == (source,)
    assert removal.num_samples == before.count(source) > 0
    assert shown_sources(made.out) == [each for each in before if each != source]


def test_removing_twice_is_removing_once(made: BuildConfig) -> None:
    sources = [source_of(made.out, 1), source_of(made.out, 4)]
    first = remove_sources(made.out, sources)
    names = sorted((Path(made.out) / "_removed").iterdir())
    again = remove_sources(made.out, sources[::-1])
    assert sorted((Path(made.out) / "_removed").iterdir()) == names
    assert again == replace(first, new_sources=())


def test_an_unknown_source_is_named_and_nothing_is_removed(made: BuildConfig) -> None:
    with pytest.raises(UserError, match=f"no source {'a' * 64}; nothing was removed"):
        remove_sources(made.out, [source_of(made.out, 1), "a" * 64])
    with pytest.raises(UserError, match="is no source id"):
        remove_sources(made.out, ["../x"])
    assert not list((Path(made.out) / "_removed").iterdir())


@pytest.mark.parametrize("films", [[2], [0, 5], [1, 2, 3]])
def test_erased_is_as_if_it_had_never_been_there(
    config: BuildConfig, made: BuildConfig, tmp_path: Path, films: list[int]
) -> None:
    removed = {source_of(made.out, film) for film in films}
    remove_sources(made.out, removed)
    assert main(["gc", made.out, "--rewrite"]) == 0
    verdict = verify(made.out)
    assert (verdict.problems, verdict.remains) == ((), {})
    assert verdict.notes == (f"{len(films)} removed sources: nothing of them is left",)
    shutil.copytree(config.sources[0], tmp_path / "videos")
    for film in films:
        (tmp_path / "videos" / "films" / f"{film}.mp4").unlink()
    never = replace(config, sources=(str(tmp_path / "videos"),), out=str(tmp_path / "never"))
    build(never)
    assert shown_sources(made.out) == shown_sources(never.out)
    of_rewritten, of_never = (
        clips_from_parquet(Path(out) / "manifest.parquet") for out in (made.out, never.out)
    )
    gone = [row for row in of_rewritten if row.source_id in removed]
    assert [(row.outcome, row.uri, row.caption) for row in gone] == [
        ("dropped:removed", "", None)
    ] * len(films)
    facts = lambda row: replace(row, shard="", row=-1)  # noqa: E731
    assert {row.clip_id: facts(row) for row in of_rewritten if row not in gone} == {
        row.clip_id: facts(row) for row in of_never
    }


def test_where_the_same_shards_result_they_are_the_same_bytes(
    config: BuildConfig, made: BuildConfig
) -> None:
    before = shards(made.out)
    source = source_of(made.out, NUM_FILMS - 1)  # the last of its split: no shard before it moves
    with_source = {
        row.shard
        for row in clips_from_parquet(Path(made.out) / "manifest.parquet")
        if row.source_id == source and row.shard
    }
    remove_sources(made.out, [source])
    main(["gc", made.out, "--rewrite"])
    after = shards(made.out)
    same = {name: data for name, data in before.items() if f"parts/{name}" not in with_source}
    assert same.items() <= after.items()
    assert not {Path(name).name for name in with_source} & set(after)


def test_no_byte_of_a_name_or_caption_is_left(made: BuildConfig) -> None:
    source = source_of(made.out, 3)
    remove_sources(made.out, [source])
    main(["gc", made.out, "--rewrite"])
    for path in Path(made.out).rglob("*"):
        if path.is_file() and path.parent.name != "_removed":
            data = path.read_bytes()
            assert b"film 3" not in data, path
            assert b"films/3.mp4" not in data, path


@pytest.mark.slow
def test_an_erasure_that_is_stopped_at_each_file_ends_the_same(
    made: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [source_of(made.out, 1), source_of(made.out, 4)]
    remove_sources(made.out, sources)
    undisturbed = f"{made.out}-undisturbed"
    shutil.copytree(made.out, undisturbed)
    assert main(["gc", undisturbed, "--rewrite"]) == 0
    steps = {"left": 0}

    def stopping(name: str) -> None:
        original = getattr(LocalStorage, name)

        def step(self: LocalStorage, *arguments: object) -> object:
            if not str(arguments[0]).startswith("_status"):  # written when its time has come
                steps["left"] -= 1
                if steps["left"] < 0:
                    raise KeyboardInterrupt
            return original(self, *arguments)

        monkeypatch.setattr(LocalStorage, name, step)

    for name in ("create", "put", "delete", "delete_older"):
        stopping(name)
    for attempt in range(60):
        steps["left"] = attempt
        if main(["gc", made.out, "--rewrite"]) == 0:
            break
    assert attempt > 10
    monkeypatch.undo()
    assert (verify(made.out).problems, verify(made.out).remains) == ((), {})
    for name in ("manifest.parquet", "shards.json", "index.bin", "_SUCCESS"):
        assert (Path(made.out) / name).read_bytes() == (Path(undisturbed) / name).read_bytes()
    for folder in ("parts", "_commits", "tmp"):
        left = {path.name for path in (Path(made.out) / folder).iterdir()}
        assert left == {path.name for path in (Path(undisturbed) / folder).iterdir()}


def test_hidden_is_not_erased_and_verify_says_so(made: BuildConfig) -> None:
    remove_sources(made.out, [source_of(made.out, 2)])
    verdict = verify(made.out)
    assert verdict.problems == ()
    assert "hidden, not yet erased" in verdict.notes[0]
    assert any(name.startswith("parts/train") for name in verdict.remains)
    assert "manifest.parquet" in verdict.remains
    assert "plan.parquet" in verdict.remains
    assert "report.html" in verdict.remains


def test_what_is_left_in_a_part_that_no_commit_names_is_found_and_erased(
    made: BuildConfig,
) -> None:
    source = source_of(made.out, 2)
    held = next(iter(shards_of(made.out, source)))
    remove_sources(made.out, [source])
    lost = Path(made.out) / "parts" / "train-t9_h64_w64-0123456789ab-0123456789ab.tar"
    shutil.copy(Path(made.out) / held, lost)
    main(["gc", made.out, "--rewrite"])
    assert not lost.exists()
    shutil.copy(Path(made.out) / next(iter(shards_of(made.out, None))), lost)
    assert verify(made.out).remains == {}


def shards_of(out: str, source: str | None) -> set[str]:
    rows = clips_from_parquet(Path(out) / "manifest.parquet")
    return {row.shard for row in rows if row.shard and source in (None, row.source_id)}


def test_a_later_build_leaves_a_removed_source_out(made: BuildConfig) -> None:
    source = source_of(made.out, 2)
    remove_sources(made.out, [source])
    build(made)
    rows = clips_from_parquet(Path(made.out) / "manifest.parquet")
    assert {row.outcome for row in rows if row.source_id == source} == {"dropped:removed"}
    assert source not in shown_sources(made.out)


def test_a_source_removed_while_a_build_runs_is_not_in_what_it_makes(
    config: BuildConfig, made: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(made.out, 2)
    grown = replace(made, select=replace(made.select, drop={"odd": "motion < 1"}))

    def remove_then_finalize(*arguments: object) -> dict[str, int]:
        remove_sources(made.out, [source])
        return finalize(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("pipeline.build.finalize", remove_then_finalize)
    with pytest.raises(UserError, match="were removed after it was planned"):
        build(grown)
    assert not (Path(made.out) / "_SUCCESS").exists()
    monkeypatch.undo()
    build(grown)
    assert source not in shown_sources(made.out)


def test_a_build_that_ends_while_sources_are_removed_hides_them_too(
    made: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(made.out, 2)
    create, done = Store(made.out).storage.__class__.create, []

    def grow_after_the_first(self: object, name: str, content: object) -> bool:
        created = create(self, name, content)  # type: ignore[arg-type]
        if name.startswith("_removed/") and not done:
            done.append(name)
            tombstone = Path(made.out) / name
            text = tombstone.read_text()
            tombstone.unlink()  # a build that never saw it ends now
            build(replace(made, tokenize=replace(made.tokenize, samples_per_shard=3)))
            tombstone.write_text(text)
        return created

    monkeypatch.setattr("pipeline.storage.LocalStorage.create", grow_after_the_first)
    remove_sources(made.out, [source])
    monkeypatch.undo()
    assert source not in shown_sources(made.out)
    assert set(hidden_rows(Store(made.out))) >= shards_of(made.out, source)


@pytest.mark.slow
def test_pixel_shards_are_hidden_and_erased_with_their_dataset(made: BuildConfig) -> None:
    build_pixels(made)
    source = source_of(made.out, 2)
    remove_sources(made.out, [source])
    assert removed_sources(Store(f"{made.out}/pixels")) == {source}
    samples = open_dataset(f"{made.out}/pixels").samples("train")
    assert source not in {each["source_id"] for each in samples.metadata(range(len(samples)))}
    with pytest.raises(UserError, match="were removed"):
        build_pixels(made)
    main(["gc", made.out, "--rewrite"])
    verdict = verify(made.out)
    assert (verdict.problems, verdict.remains) == ((), {})
    assert (Path(made.out) / "pixels" / "_SUCCESS").exists()


@pytest.mark.slow
def test_in_an_object_store_sources_are_hidden_and_erased_too(
    made: BuildConfig, tmp_path: Path
) -> None:
    import fsspec

    root = f"memory://{tmp_path.name}-removal"
    fsspec.filesystem("memory").put(f"{made.out}/", root.removeprefix("memory:/"), recursive=True)
    remove_sources(root, [source_of(made.out, 2)])
    assert "parts" in str(verify(root).remains)
    assert main(["gc", root, "--rewrite"]) == 0
    assert (verify(root).problems, verify(root).remains) == ((), {})
    remove_sources(made.out, [source_of(made.out, 2)])
    main(["gc", made.out, "--rewrite"])
    manifest = fsspec.filesystem("memory").cat_file(f"{root}/manifest.parquet")
    assert manifest == (Path(made.out) / "manifest.parquet").read_bytes()


def test_an_unfinished_dataset_leaves_a_planned_source_out(
    config: BuildConfig, tmp_path: Path
) -> None:
    begun = replace(config, out=str(tmp_path / "data"))
    build(begun, "plan")
    source = source_of(config.out, 2)
    removal = remove_sources(begun.out, [source])
    assert (removal.new_sources, removal.num_samples) == ((source,), 0)
    build(begun)
    assert source not in shown_sources(begun.out)


def test_the_command_takes_ids_or_a_list(
    made: BuildConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [source_of(made.out, film) for film in (0, 1, 2)]
    assert main(["remove", made.out, "--source", ids[0]]) == 0
    assert "1 source removed; " in capsys.readouterr().out
    uri = next(row.uri for row in read_plan(Store(made.out)) if row.source_id == ids[2])
    names = f"# withdrawn\n{ids[0]}  # earlier\n\n{ids[1][:10]}\n{uri}\n"
    (tmp_path / "list.txt").write_text(names)
    assert main(["remove", made.out, "--list", str(tmp_path / "list.txt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["new_sources"] == sorted(ids[1:])
    assert main(["remove", made.out, "--source", "films/none.mp4"]) == 2
    assert "no source is named 'films/none.mp4'" in capsys.readouterr().err
    assert main(["remove", made.out, "--list", str(tmp_path / "none.txt")]) == 2
    assert main(["remove", str(tmp_path), "--source", ids[0]]) == 2
    assert main(["gc", made.out, "--rewrite", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "would be erased: " in told
    assert main(["gc", made.out, "--rewrite", "--dry-run"]) == 0  # nothing has changed
    assert capsys.readouterr().out == told
