"""The build: every clip accounted for, the same bytes whatever ran it, nothing done twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pipeline.build import build, build_pixels
from pipeline.clip import clips_from_parquet
from pipeline.config import (
    AnnotateSettings,
    BuildConfig,
    ClipSettings,
    SelectSettings,
    TokenizeSettings,
)
from pipeline.shards import open_dataset
from tokenizer.settings import UserError, read_settings


def config(videos: Path, out: Path, **changes: object) -> BuildConfig:
    base = BuildConfig(
        sources=(str(videos),),
        out=str(out),
        executor="inline",
        num_cpus=2,
        annotate=AnnotateSettings(sources_per_unit=3),
        select=SelectSettings(val_share=0.3),
        tokenize=TokenizeSettings(samples_per_shard=16, batch_size=4, clips_per_decode=2),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def dataset_hashes(root: Path) -> dict[str, str]:
    """Every file that a reader may open, by content."""
    names = ["manifest.parquet", "shards.json", "index.bin", "selection.parquet"]
    files = [root / name for name in names] + sorted((root / "parts").iterdir())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture(scope="module")
def built(
    small_videos: Path, random_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("built") / "data"
    settings = TokenizeSettings(
        tokenizer=str(random_tokenizer), samples_per_shard=16, batch_size=4, clips_per_decode=2
    )
    build(config(small_videos, out, tokenize=settings))
    return out


def test_every_file_ends_in_the_manifest(built: Path, small_videos: Path) -> None:
    rows = clips_from_parquet(built / "manifest.parquet")
    files = {str(path.relative_to(small_videos)) for path in small_videos.rglob("*.*")}
    assert {row.uri for row in rows} == files
    assert all(row.outcome.split(":")[0] in ("kept", "dropped", "error") for row in rows)
    assert [row.outcome for row in rows if row.uri == "odd/broken.mp4"] == ["error:open"]
    assert [row.bucket for row in rows if row.uri == "even/still.png"] == ["t1_h64_w64"]


def test_accounts_add_up_in_every_commit(built: Path) -> None:
    commits = [json.loads(path.read_text()) for path in (built / "_commits").iterdir()]
    assert {commit["result"]["phase"] for commit in commits} == {"annotate", "tokenize"}
    for commit in commits:
        result = commit["result"]
        assert result["n_in"] == result["n_kept"] + result["n_dropped"] + result["n_error"]


def test_clips_of_fewer_frames_than_their_target_asks_for_are_scored(
    write_film: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    write_film(tmp_path / "videos" / "slow.mp4", 2)
    settings = ClipSettings(fps=96.0, buckets=("9x64x64",))  # four times the film's own rate
    out = tmp_path / "data"
    build(config(tmp_path / "videos", out, clips=settings), until="select")
    rows = clips_from_parquet(out / "selection.parquet")
    tails = [row for row in rows if row.outcome.startswith("dropped")]
    assert any(row.duration_seconds < 1 / 24 for row in tails)
    assert all(row.scores["brightness"] for row in rows)


def test_three_shots_of_thirty_frames_give_three_clips_and_their_tails(built: Path) -> None:
    rows = [r for r in clips_from_parquet(built / "manifest.parquet") if r.uri == "even/0.mp4"]
    kept = [row for row in rows if row.outcome == "kept"]
    assert [(round(r.start_seconds, 2), r.num_frames) for r in kept] == [
        (0.0, 9),
        (1.25, 9),
        (2.5, 9),
    ]
    assert [row.outcome for row in rows if row.outcome != "kept"] == ["dropped:tail"] * 3
    assert {row.caption for row in kept} == {"a video of even"}


def test_stock_webdataset_reads_every_shard(built: Path) -> None:
    declared = json.loads((built / "shards.json").read_text())
    seen = 0
    for shard in declared["shards"]:
        url = str(built / shard["path"])
        for sample in webdataset.WebDataset(url, shardshuffle=False).decode():
            codes, metadata = sample["codes.npy"], sample["json"]
            assert codes.dtype == np.uint16
            assert codes.shape == (63 if metadata["bucket"] == "t9_h64_w64" else 21,)
            assert metadata["caption"].startswith("a video of")
            assert metadata["split"] == shard["split"]
            seen += 1
    assert seen == sum(shard["num_samples"] for shard in declared["shards"]) == 19


def test_codes_in_the_shards_are_those_of_the_decoded_clip(
    built: Path, random_tokenizer: Path, small_videos: Path
) -> None:
    import torch

    from pipeline.decode import open_decoder
    from tokenizer.folder import load_tokenizer

    samples = open_dataset(built).samples("train")
    key = samples.metadata([0])[0]["key"]
    rows = clips_from_parquet(built / "manifest.parquet")
    row = next(each for each in rows if each.key == key)
    decoder = open_decoder("pyav", BuildConfig(sources=("x",), out="x").limits)
    (frames,) = decoder.clips(str(small_videos / row.uri), [row.request()])
    tokenizer = load_tokenizer(random_tokenizer)
    codes = tokenizer.encode(torch.from_numpy(frames)[None])
    same = float((codes[0].numpy() == samples.gather([0])[0]).mean())
    assert same >= 0.98  # another batch size may flip a tie


def test_a_second_build_does_nothing_and_changes_nothing(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dataset_hashes(built)
    monkeypatch.setattr(
        "pipeline.executor.inline.InlineExecutor.annotate", lambda *_: pytest.fail("annotated")
    )
    monkeypatch.setattr(
        "pipeline.executor.inline.InlineExecutor.run_clips", lambda *_: pytest.fail("encoded")
    )
    build(read_settings(BuildConfig, built / "config.yaml"))
    assert dataset_hashes(built) == before


@pytest.mark.slow
def test_a_build_that_dies_at_each_commit_ends_in_the_same_bytes(
    built: Path, small_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.commit import Store

    again = replace(read_settings(BuildConfig, built / "config.yaml"), out=str(tmp_path / "data"))
    commit, died = Store.commit, set()

    def die_before_or_after(self: Store, unit: str, result: dict, run: dict) -> bool:
        if unit not in died:
            died.add(unit)
            if len(died) % 2:
                commit(self, unit, result, run)
            raise KeyboardInterrupt
        return commit(self, unit, result, run)

    monkeypatch.setattr(Store, "commit", die_before_or_after)
    for _ in range(20):
        try:
            build(again)
            break
        except KeyboardInterrupt:
            continue
    assert len(died) >= 4
    final = dataset_hashes(tmp_path / "data")
    expected = dataset_hashes(built)
    assert {name: final[name] for name in expected} == expected


def test_pixel_shards_hold_the_clips_that_were_selected(small_videos: Path, tmp_path: Path) -> None:
    settings = config(small_videos, tmp_path / "data")
    totals = build(settings, "select")
    pixels = open_dataset(build_pixels(settings))
    clips = pixels.samples("train", "t9_h64_w64")
    assert clips.gather([0]).shape == (1, 9, 64, 64, 3)
    images = [s for s in pixels.shards if s.bucket == "t1_h64_w64"]
    assert sum(s.num_samples for s in pixels.shards) == totals["n_kept"] == 19
    assert len(images) == 1


def test_a_changed_threshold_decodes_no_video_again(
    small_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(small_videos, tmp_path / "data")
    build(settings, "select")
    monkeypatch.setattr(
        "pipeline.executor.inline.InlineExecutor.annotate", lambda *_: pytest.fail("annotated")
    )
    strict = replace(settings, select=SelectSettings(drop={"too_static": "motion < 1000000"}))
    assert build(strict, "select")["n_kept"] == 1  # the image has no motion to judge


def test_a_file_twice_is_one_source(small_videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    data = (small_videos / "even" / "0.mp4").read_bytes()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(data)
    build(config(folder, tmp_path / "data"), "select")
    rows = clips_from_parquet(tmp_path / "data" / "selection.parquet")
    assert [row.outcome for row in rows if row.uri == "b.mp4"] == ["dropped:duplicate"]


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_bytes_of_the_plain_loop_in_several_processes(
    built: Path, tmp_path: Path
) -> None:
    settings = read_settings(
        BuildConfig, built / "config.yaml", {"out": str(tmp_path / "data"), "executor": "ray"}
    )
    build(settings)
    assert dataset_hashes(tmp_path / "data") == dataset_hashes(built)
    commits = [json.loads(p.read_text()) for p in (tmp_path / "data" / "_commits").iterdir()]
    runs = [each["run"] for each in commits if each["result"]["phase"] == "tokenize"]
    decoders = {pid for run in runs for pid in run["decoder_pids"]}
    encoders = {run["encoder_pid"] for run in runs}
    assert len(decoders) >= 2
    assert not (decoders | encoders) & {os.getpid()}
    assert not decoders & encoders


@pytest.mark.parametrize(
    ("changes", "until", "message"),
    [
        ({"sources": ("/nowhere/at/all",)}, "select", "/nowhere/at/all"),
        ({}, "finalize", "no tokenizer here; train one"),
    ],
)
def test_what_is_missing_is_one_clear_line_and_nothing_is_written(
    small_videos: Path, tmp_path: Path, changes: dict, until: str, message: str
) -> None:
    settings = config(small_videos, tmp_path / "data", **changes)
    with pytest.raises(UserError, match=message):
        build(settings, until)
    assert not list((tmp_path / "data").rglob("*.parquet"))


def test_a_build_that_keeps_nothing_says_so(small_videos: Path, tmp_path: Path) -> None:
    settings = config(
        small_videos,
        tmp_path / "data",
        select=SelectSettings(drop={"too_short": "duration_seconds < 1000"}),
    )
    build(settings, "select")
    with pytest.raises(UserError, match="no clip was kept"):
        build_pixels(settings)


def test_a_tokenizer_that_gives_no_numbers_ends_the_build_with_the_clips_name(
    small_videos: Path, random_tokenizer: Path, tmp_path: Path
) -> None:
    import torch

    from tokenizer.folder import load_tokenizer, save_tokenizer

    damaged = load_tokenizer(random_tokenizer)
    next(damaged.autoencoder.encoder.parameters()).fill_(torch.nan)
    save_tokenizer(damaged, tmp_path / "damaged")
    settings = config(
        small_videos / "even",
        tmp_path / "data",
        tokenize=TokenizeSettings(tokenizer=str(tmp_path / "damaged"), batch_size=4),
    )
    message = r"^\d\.mp4, clip [0-9a-f]+: its latents are NaN or infinite: .* weights are damaged"
    with pytest.raises(UserError, match=message):
        build(settings)


@pytest.mark.slow
def test_a_build_into_an_object_store_has_the_bytes_of_one_on_a_disk(
    built: Path, s3: str, tmp_path: Path
) -> None:
    from pipeline.commit import Store

    settings = read_settings(BuildConfig, built / "config.yaml")
    root = f"{s3}/{tmp_path.name}/data"
    for _ in range(2):
        build(replace(settings, out=root))
    storage = Store(root).storage
    for name in ("manifest.parquet", "shards.json", "index.bin", "statistics.json", "_SUCCESS"):
        assert storage.read(name) == (built / name).read_bytes()
    parts = [path.name for path in sorted((built / "parts").iterdir())]
    assert storage.names("parts") == parts
    for name in parts:
        assert storage.read(f"parts/{name}") == (built / "parts" / name).read_bytes()
    assert storage.size("report.html")
    assert storage.names("tmp") == []
