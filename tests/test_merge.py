"""Merge: exactly the samples of all, each once, in a dataset like any other."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.build import build
from pipeline.cli import main
from pipeline.clip import Clip, clips_from_parquet
from pipeline.commit import Store
from pipeline.config import AnnotateSettings, BuildConfig, SelectSettings, TokenizeSettings
from pipeline.inspection.summary import summarize
from pipeline.removal import remove_sources
from pipeline.shards import open_dataset
from pipeline.upkeep.merge import merge
from pipeline.upkeep.union import unite
from pipeline.upkeep.verify import verify
from tokenizer.settings import UserError


@pytest.fixture(scope="module")
def config(
    write_film: Callable[[Path, int], Path],
    random_tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> BuildConfig:
    """Settings; `videos/0` to `videos/3` have two films each, `videos/broken` one broken file."""
    folder = tmp_path_factory.mktemp("merge")
    for seed in range(8):
        write_film(folder / "videos" / str(seed // 2) / "films" / f"{seed}.mp4", seed)
    (folder / "videos" / "broken").mkdir()
    (folder / "videos" / "broken" / "b.mp4").write_bytes(b"no video" * 99)
    return BuildConfig(
        sources=(str(folder / "videos"),),
        out=str(folder / "data"),
        executor="inline",
        annotate=AnnotateSettings(sources_per_unit=2),
        select=SelectSettings(val_share=0.3),
        tokenize=TokenizeSettings(
            tokenizer=str(random_tokenizer), samples_per_shard=3, batch_size=3
        ),
    )


@pytest.fixture(scope="module")
def halves(config: BuildConfig) -> tuple[str, str, str]:
    """Datasets of films 0 to 3 with a broken file, of 4 to 7, and of 2 to 5."""
    videos, made = config.sources[0], []
    for name, parts in {"a": "01", "b": "23", "overlapping": "12"}.items():
        sources = tuple(f"{videos}/{part}" for part in parts)
        sources += (f"{videos}/broken",) if name == "a" else ()
        made.append(str(Path(config.out).parent / name))
        build(replace(config, sources=sources, out=made[-1]))
    return made[0], made[1], made[2]


def samples_of(out: str | Path) -> dict[str, tuple]:
    """Every sample by key: split, caption, codes; asserts that no key comes twice."""
    dataset = open_dataset(out)
    found: dict[str, tuple] = {}
    for split in ("train", "val"):
        for bucket in {each.bucket for each in dataset.shards if each.split == split}:
            samples = dataset.samples(split, bucket)
            everything = np.arange(len(samples))
            codes = samples.gather(everything)
            for array, metadata in zip(codes, samples.metadata(everything)):
                assert metadata["key"] not in found
                found[metadata["key"]] = (split, metadata["caption"], array.tobytes())
    return found


def outcomes(out: str | Path) -> Counter[str]:
    return Counter(row.outcome for row in clips_from_parquet(Path(out) / "manifest.parquet"))


def contents(root: Path) -> dict[str, bytes]:
    made = {p for p in root.rglob("*") if p.is_file() and p.parent.name != "_commits"}
    return {str(p.relative_to(root)): p.read_bytes() for p in made if p.name != "report.html"}


def test_disjoint_halves_have_exactly_the_samples_of_both(
    halves: tuple[str, str, str], tmp_path: Path
) -> None:
    a, b, _ = halves
    totals = merge([a, b], tmp_path / "out")
    assert samples_of(tmp_path / "out") == samples_of(a) | samples_of(b)
    assert outcomes(tmp_path / "out") == outcomes(a) + outcomes(b)
    assert totals["n_in"] == sum(outcomes(a).values()) + sum(outcomes(b).values())
    verdict = verify(tmp_path / "out")
    assert (verdict.problems, verdict.notes) == ((), ())
    assert summarize(tmp_path / "out").statistics["samples"] == totals["n_kept"]


def test_whole_shards_are_the_same_bytes_and_not_copied(
    halves: tuple[str, str, str], tmp_path: Path
) -> None:
    a, b, _ = halves
    merge([a, b], tmp_path / "out")
    for root in (a, b):
        for part in Path(root).glob("parts/*.tar"):
            assert (tmp_path / "out" / "parts" / part.name).samefile(part)


def test_samples_that_both_have_are_taken_once(
    halves: tuple[str, str, str], tmp_path: Path
) -> None:
    a, b, overlapping = halves
    merge([a, overlapping], tmp_path / "out")
    expected = samples_of(a) | {
        key: sample for key, sample in samples_of(overlapping).items() if key not in samples_of(a)
    }
    assert samples_of(tmp_path / "out") == expected
    assert verify(tmp_path / "out").problems == ()
    merge([tmp_path / "out", b, overlapping], tmp_path / "all")
    assert samples_of(tmp_path / "all") == samples_of(a) | samples_of(b)
    assert verify(tmp_path / "all").problems == ()
    rows = clips_from_parquet(tmp_path / "all" / "manifest.parquet")
    assert len({row.clip_id for row in rows}) == len(rows)


def test_merging_one_dataset_gives_its_samples(
    halves: tuple[str, str, str], tmp_path: Path
) -> None:
    merge([halves[0]], tmp_path / "out")
    for name in ("manifest.parquet", "shards.json", "index.bin", "statistics.json"):
        assert (tmp_path / "out" / name).read_bytes() == (Path(halves[0]) / name).read_bytes()


def test_removed_sources_are_left_out_and_stay_removed(
    halves: tuple[str, str, str], tmp_path: Path
) -> None:
    shutil.copytree(halves[0], tmp_path / "a")
    rows = clips_from_parquet(tmp_path / "a" / "manifest.parquet")
    source = next(row.source_id for row in rows if row.uri == "films/2.mp4")
    remove_sources(tmp_path / "a", [source])
    merge([tmp_path / "a", halves[2]], tmp_path / "out")  # the second has it, not removed
    gone = {key for key in samples_of(halves[2]) if key.startswith(source[:16])}
    assert gone
    assert not gone & samples_of(tmp_path / "out").keys()
    verdict = verify(tmp_path / "out")
    assert (verdict.problems, verdict.remains) == ((), {})
    assert verdict.notes == ("1 removed sources: nothing of them is left",)
    assert main(["gc", str(tmp_path / "out"), "--rewrite"]) == 2


def test_a_merged_dataset_lends_its_scans_and_codes(
    config: BuildConfig,
    halves: tuple[str, str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merge(halves[:2], tmp_path / "out")
    for name in ("annotate.open_decoder", "executor.inline.decode_chunk"):
        monkeypatch.setattr(f"pipeline.{name}", lambda *_: pytest.fail("decoded"))
    sources = tuple(f"{config.sources[0]}/{part}" for part in "0123")
    again = replace(
        config, sources=sources, out=str(tmp_path / "x"), reuse=(str(tmp_path / "out"),)
    )
    build(again)
    assert samples_of(tmp_path / "x") == samples_of(tmp_path / "out")


def test_a_merge_that_dies_at_each_commit_ends_in_the_same_bytes(
    halves: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge([halves[0], halves[2]], tmp_path / "undisturbed")
    commit, died = Store.commit, set()

    def die_before_or_after(self: Store, unit: str, result: dict, run: dict) -> bool:
        if unit not in died:
            died.add(unit)
            if len(died) % 2:
                commit(self, unit, result, run)
            raise KeyboardInterrupt
        return commit(self, unit, result, run)

    monkeypatch.setattr(Store, "commit", die_before_or_after)
    for _ in range(30):
        try:
            merge([halves[0], halves[2]], tmp_path / "out")
            break
        except KeyboardInterrupt:
            continue
    assert len(died) > 4
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    assert verify(tmp_path / "out").problems == ()


def test_object_stores_are_merged_like_folders(
    halves: tuple[str, str, str], tmp_path: Path
) -> None:
    import fsspec

    files, root = fsspec.filesystem("memory"), f"/{tmp_path.name}-merge"
    files.put(f"{halves[1]}/", f"{root}/b", recursive=True)
    merge([halves[0], f"memory:/{root}/b"], f"memory:/{root}/out")
    merge([halves[0], halves[1]], tmp_path / "out")
    assert verify(f"memory:/{root}/out").problems == ()
    for name in ("manifest.parquet", "shards.json", "index.bin", "statistics.json", "merge.json"):
        assert files.cat_file(f"{root}/out/{name}") == (tmp_path / "out" / name).read_bytes()


def test_another_tokenizer_is_refused_with_both_named(
    config: BuildConfig, halves: tuple[str, str, str], tmp_path: Path
) -> None:
    import torch

    from tokenizer.folder import save_tokenizer
    from tokenizer.model import Tokenizer
    from tokenizer.presets import PRESETS

    torch.manual_seed(1)
    other = Tokenizer(PRESETS["tiny"])
    save_tokenizer(other, tmp_path / "tokenizer")
    tokenize = replace(config.tokenize, tokenizer=str(tmp_path / "tokenizer"))
    build(replace(config, out=str(tmp_path / "data"), tokenize=tokenize))
    first = open_dataset(halves[0]).primary.tokenizer
    assert first is not None
    with pytest.raises(UserError, match=f"{first[:16]}.*{other.fingerprint[:16]}"):
        merge([halves[0], tmp_path / "data"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_in_two_splits_is_refused_by_name(
    config: BuildConfig, halves: tuple[str, str, str], tmp_path: Path
) -> None:
    other = replace(
        config,
        out=str(tmp_path / "data"),
        select=SelectSettings(val_share=0.99),
        reuse=(halves[0],),
    )
    build(other)
    with pytest.raises(UserError, match=r"source [0-9a-f]{64} is 'train' in .*films/\d.mp4"):
        merge([halves[0], other.out], tmp_path / "out")


def test_what_cannot_be_merged_is_one_line(
    halves: tuple[str, str, str], code_shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="name a new folder"):
        merge([halves[0], halves[1]], halves[1])
    with pytest.raises(UserError, match="holds a build already"):
        merge([halves[0], halves[1]], halves[2])
    with pytest.raises(UserError, match="made by no build"):
        merge([halves[0], code_shards], tmp_path / "out")
    with pytest.raises(UserError, match="not a finished dataset"):
        merge([halves[0], tmp_path], tmp_path / "out")
    merge([halves[0]], tmp_path / "out")
    with pytest.raises(UserError, match="a merge of other datasets"):
        merge([halves[1]], tmp_path / "out")


def test_a_damaged_part_is_not_merged(halves: tuple[str, str, str], tmp_path: Path) -> None:
    shutil.copytree(halves[0], tmp_path / "a")
    tar = sorted((tmp_path / "a" / "parts").glob("*.tar"))[0]
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(bytes(data))
    with pytest.raises(UserError, match=f"{tar.name}: damaged; see `tessera verify"):
        merge([tmp_path / "a"], tmp_path / "out")
    with pytest.raises(UserError, match="at byte 512: damaged"):
        merge([halves[2], tmp_path / "a"], tmp_path / "other")


def test_the_command_merges(
    halves: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", halves[0], halves[1], "-o", str(tmp_path / "out")]) == 0
    assert f"{len(samples_of(tmp_path / 'out'))} samples" in capsys.readouterr().out
    assert main(["stats", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"]


ROWS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(0, 2),
        st.sampled_from(["kept", "kept", "dropped:tail", "error:open"]),
    ),
    max_size=12,
    unique_by=lambda row: row[:2],
)


def manifest_of(rows: list[tuple[int, int, str]], number: int) -> list[Clip]:
    clips = []
    for row, (source, start, outcome) in enumerate(rows):
        place = {"shard": f"s{number}", "row": row} if outcome == "kept" else {}
        clips.append(
            Clip(
                clip_id=f"{source}-{start}",
                source_id=str(source) * 64,
                uri=f"{source}.mp4",
                kind="video",
                start_pts=start,
                outcome=outcome,
                **place,  # type: ignore[arg-type]
            )
        )
    return clips


@given(st.lists(ROWS, min_size=1, max_size=3), st.sets(st.integers(0, 5), max_size=2))
def test_a_union_has_each_clip_once_and_keeps_what_any_kept(
    datasets: list[list[tuple[int, int, str]]], removed: set[int]
) -> None:
    manifests = [manifest_of(rows, number) for number, rows in enumerate(datasets)]
    gone = {str(source) * 64 for source in removed}
    union = unite(manifests, gone)
    rows = [clip for _, clip in union.rows]
    everything = [clip for manifest in manifests for clip in manifest]
    others = [clip for clip in everything if clip.source_id not in gone]
    assert Counter(clip.clip_id for clip in rows if clip.source_id not in gone) == Counter(
        {clip.clip_id for clip in others}
    )
    kept = {clip.clip_id for clip in others if clip.outcome == "kept"}
    assert {clip.clip_id for clip in rows if clip.outcome == "kept"} == kept
    assert sum(map(len, union.taken.values())) == len(kept)
    assert [clip.outcome for clip in rows if clip.source_id in gone] == ["dropped:removed"] * len(
        {clip.source_id for clip in everything} & gone
    )
    for number, clip in union.rows:
        if clip.outcome == "kept":
            assert clip in manifests[number]
            assert not any(
                clip.clip_id == other.clip_id and other.outcome == "kept"
                for manifest in manifests[:number]
                for other in manifest
            )
