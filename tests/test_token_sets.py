"""Several token sets of the same clips: made by one build, none of them changing another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from pipeline.build import build, build_pixels
from pipeline.cli import main
from pipeline.clip import clips_from_parquet
from pipeline.commit import Store
from pipeline.config import BuildConfig, ClipSettings, SelectSettings, TokenizeSettings
from pipeline.inspection.audit import audit_dataset
from pipeline.inspection.summary import summarize, to_json
from pipeline.shards import open_dataset
from pipeline.submit_cli import SUBMITTABLE, job_settings
from pipeline.upkeep.merge import merge
from pipeline.upkeep.verify import verify
from tokenizer.folder import find_tokenizer, load_tokenizer, save_tokenizer
from tokenizer.model import Tokenizer
from tokenizer.presets import PRESETS
from tokenizer.settings import UserError, read_settings
from training.config import ConditionConfig, DataConfig, GeneratorRun, ModelConfig
from training.evaluate import evaluate
from training.evaluate_config import EvaluateConfig, JudgeConfig
from training.launch.local import launch
from training.loop_config import TrainerConfig
from training.run import open_run
from training.tasks.generator import GeneratorTask

NUM_VIDEOS = 5
SHAPES = {"codes": 63, "grid": 48}
"""Tokens of a clip of 9 x 64 x 64: scales 1, 2, 4, or the last of them alone."""


@pytest.fixture(scope="module")
def grid_tokenizer(random_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scale, random weights."""
    tiny = load_tokenizer(random_tokenizer).config
    folder = tmp_path_factory.mktemp("grid")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        quantizer = replace(tiny.quantizer, scales=(4,))
        save_tokenizer(Tokenizer(replace(tiny, quantizer=quantizer)), folder)
    return folder


@pytest.fixture(scope="module")
def videos(
    write_film: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(NUM_VIDEOS):
        write_film(folder / "films" / f"{seed}.mp4", seed)
    (folder / "films" / "broken.mp4").write_bytes(b"this is not a video" * 50)
    return folder


@pytest.fixture(scope="module")
def settings(videos: Path, random_tokenizer: Path, grid_tokenizer: Path) -> BuildConfig:
    """A build of two token sets."""
    return BuildConfig(
        sources=(str(videos),),
        out="OUT",
        executor="inline",
        num_cpus=2,
        select=SelectSettings(val_share=0.3, drop={}),
        tokenize=TokenizeSettings(
            tokenizer=str(random_tokenizer),
            further={"grid": str(grid_tokenizer)},
            samples_per_shard=2,
            batch_size=4,
        ),
    )


@pytest.fixture(scope="module")
def both(settings: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("both") / "data"
    build(replace(settings, out=str(out)))
    return out


def alone(settings: BuildConfig, out: Path, tokenizer: str | None = None) -> BuildConfig:
    """The same build of one token set, by default the primary one."""
    tokenize = replace(
        settings.tokenize, further={}, tokenizer=tokenizer or settings.tokenize.tokenizer
    )
    return replace(settings, out=str(out), tokenize=tokenize)


@pytest.fixture(scope="module")
def codes_alone(settings: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("codes") / "data"
    build(alone(settings, out))
    return out


@pytest.fixture(scope="module")
def grid_alone(
    settings: BuildConfig, grid_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The further set's tokenizer as the only one."""
    out = tmp_path_factory.mktemp("grid_alone") / "data"
    build(alone(settings, out, str(grid_tokenizer)))
    return out


def arrays(root: Path, token_set: str | None = None) -> dict[str, bytes]:
    """The codes of every sample, by key."""
    samples = open_dataset(root, token_set=token_set).samples()
    everything = range(len(samples))
    described = zip(samples.metadata(everything), samples.gather(everything))
    return {metadata["key"]: codes.tobytes() for metadata, codes in described}


def contents(root: Path) -> dict[str, bytes]:
    """The files that a build makes the same, whatever ran it."""
    names = ["manifest.parquet", "shards.json", "index.bin", "statistics.json", "_SUCCESS"]
    paths = [*(root / name for name in names), *(root / "parts").iterdir()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def num_encoded(root: Path, since: Collection[str] = ()) -> int:
    """Arrays that encoders have made, in commits other than those named."""
    commits = [each for each in (root / "_commits").glob("tokenize-*") if each.name not in since]
    return sum(json.loads(each.read_text())["run"]["num_encoded"] for each in commits)


def tokenize_commits(root: Path) -> set[str]:
    return {each.name for each in (root / "_commits").glob("tokenize-*")}


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.executor.inline.decode_chunk", lambda *_: pytest.fail("decoded"))


def test_a_further_set_changes_nothing_of_the_primary_one(both: Path, codes_alone: Path) -> None:
    assert arrays(codes_alone) == arrays(both)
    keys = [
        {row.clip_id: row.code_key for row in clips_from_parquet(root / "manifest.parquet")}
        for root in (codes_alone, both)
    ]
    assert keys[0] == keys[1]
    assert any(keys[0].values())


def test_the_codes_of_a_further_set_are_those_of_a_build_of_its_own(
    both: Path, grid_alone: Path
) -> None:
    assert arrays(grid_alone) == arrays(both, "grid")
    own, further = open_dataset(grid_alone), open_dataset(both, token_set="grid")
    assert own.primary.tokenizer == further.primary.tokenizer
    assert [b.schedule for b in own.buckets.values()] == [
        b.schedule for b in further.buckets.values()
    ]


def test_a_commit_of_one_token_set_says_nothing_of_further_ones(
    both: Path, codes_alone: Path
) -> None:
    """So that builds of before have the same commits, and their hashes, to the byte."""
    fields = []
    for root in (codes_alone, both):
        name = next(each for each in tokenize_commits(root))
        result = json.loads((root / "_commits" / name).read_text())["result"]
        fields.append(set(result))
        assert ("further" in result["statistics"]) == ("further" in result)
    assert fields[1] - fields[0] == {"further", "further_how", "makings"}


def test_stock_webdataset_reads_every_token_set(both: Path) -> None:
    declared = json.loads((both / "shards.json").read_text())
    seen = 0
    for shard in declared["shards"]:
        url = str(both / shard["path"])
        for sample in webdataset.WebDataset(url, shardshuffle=False).decode():
            for name, num_tokens in SHAPES.items():
                assert sample[f"{name}.npy"].shape == (num_tokens,)
            seen += 1
    assert seen == NUM_VIDEOS


def test_each_set_has_its_tokenizer_in_the_dataset(both: Path) -> None:
    for name, folder in (("codes", "tokenizer"), ("grid", "tokenizers/grid")):
        dataset = open_dataset(both, token_set=name)
        assert dataset.tokenizer_dir == both / folder == find_tokenizer(both / folder)
        assert load_tokenizer(both / folder).fingerprint == dataset.primary.tokenizer
        sealed = json.loads((both / "_SUCCESS").read_text())["sha256"]
        assert f"{folder}/model.safetensors" in sealed


def test_all_sets_show_the_same_clips_in_the_same_order(both: Path) -> None:
    codes, grid = (open_dataset(both, token_set=name).samples("train") for name in SHAPES)
    assert codes.fingerprint == grid.fingerprint
    np.testing.assert_array_equal(codes.gather([0, 1], "grid"), grid.gather([0, 1]))
    np.testing.assert_array_equal(codes.gather([0, 1]), grid.gather([0, 1], "codes"))


@pytest.mark.slow
def test_the_order_of_the_settings_does_not_matter(
    settings: BuildConfig, random_tokenizer: Path, grid_tokenizer: Path, tmp_path: Path
) -> None:
    further = {"grid": str(grid_tokenizer), "again": str(random_tokenizer)}
    found = []
    for number, names in enumerate((further, dict(reversed(further.items())))):
        out = tmp_path / str(number)
        build(replace(settings, out=str(out), tokenize=replace(settings.tokenize, further=names)))
        found.append(contents(out))
    assert found[0] == found[1]


def test_a_set_that_is_added_is_all_that_is_encoded(
    settings: BuildConfig, both: Path, codes_alone: Path, tmp_path: Path
) -> None:
    shutil.copytree(codes_alone, tmp_path / "data")
    before = tokenize_commits(tmp_path / "data")
    build(replace(settings, out=str(tmp_path / "data")))
    assert num_encoded(tmp_path / "data", before) == NUM_VIDEOS
    assert {name: contents(tmp_path / "data")[name] for name in contents(both)} == contents(both)


def test_what_a_dataset_has_of_both_sets_is_copied_whatever_is_wanted(
    settings: BuildConfig, both: Path, grid_tokenizer: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    forbid_decoding(monkeypatch)
    lent = replace(settings, reuse=(str(both),))
    for number, wanted in enumerate(
        [
            replace(lent, out=str(tmp_path / "0")),
            alone(lent, tmp_path / "1"),
            alone(lent, tmp_path / "2", str(grid_tokenizer)),
        ]
    ):
        build(wanted)
        assert num_encoded(tmp_path / str(number)) == 0
    assert contents(tmp_path / "0") == contents(both)
    assert arrays(tmp_path / "2") == arrays(both, "grid")


def test_two_datasets_lend_a_set_each(
    settings: BuildConfig,
    both: Path,
    codes_alone: Path,
    grid_alone: Path,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    forbid_decoding(monkeypatch)
    lenders = (str(codes_alone), str(grid_alone))
    build(replace(settings, out=str(tmp_path / "data"), reuse=lenders))
    assert contents(tmp_path / "data") == contents(both)


def test_a_new_threshold_makes_both_sets_of_the_newly_kept_clips_only(
    settings: BuildConfig, both: Path, tmp_path: Path
) -> None:
    motion = sorted(
        row.scores["motion"] or 0.0
        for row in clips_from_parquet(both / "manifest.parquet")
        if row.outcome == "kept"
    )
    strict = SelectSettings(val_share=0.3, drop={"too_static": f"motion < {motion[2]}"})
    config = replace(settings, out=str(tmp_path / "data"))
    build(replace(config, select=strict))
    before = tokenize_commits(tmp_path / "data")
    build(config)
    assert num_encoded(tmp_path / "data", before) == 2 * 2
    assert {name: contents(tmp_path / "data")[name] for name in contents(both)} == contents(both)


def test_a_build_that_dies_at_each_commit_ends_in_the_same_bytes(
    settings: BuildConfig, both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
            build(replace(settings, out=str(tmp_path / "data")))
            break
        except KeyboardInterrupt:
            continue
    assert len(died) >= 4
    final = contents(tmp_path / "data")
    assert {name: final[name] for name in contents(both)} == contents(both)


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_bytes_of_the_plain_loop(
    settings: BuildConfig, both: Path, tmp_path: Path
) -> None:
    build(replace(settings, out=str(tmp_path / "data"), executor="ray"))
    assert contents(tmp_path / "data") == contents(both)


@pytest.mark.slow
def test_a_dataset_in_an_object_store_has_every_set_and_its_tokenizer(
    settings: BuildConfig, both: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    root = f"{s3}/{tmp_path.name}/data"
    build(replace(settings, out=root))
    storage = Store(root).storage
    for name in ("shards.json", "_SUCCESS"):
        assert storage.read(name) == (both / name).read_bytes()
    grid = open_dataset(root, token_set="grid")
    assert grid.tokenizer_dir is not None
    assert load_tokenizer(grid.tokenizer_dir).fingerprint == grid.primary.tokenizer
    assert main(["sheet", root, "-o", str(tmp_path / "sheet.png"), "--token-set", "grid"]) == 0


def test_pixel_shards_have_no_further_sets(settings: BuildConfig, tmp_path: Path) -> None:
    config = replace(settings, out=str(tmp_path / "data"))
    build(config, "select")
    assert list(open_dataset(build_pixels(config)).token_sets) == ["frames"]


def test_verify_finds_no_fault_and_what_is_wrong_with_a_further_tokenizer(
    settings: BuildConfig, both: Path, tmp_path: Path
) -> None:
    assert verify(both).problems == ()
    build(replace(settings, out=str(tmp_path / "data"), reuse=(str(both),)))
    path = tmp_path / "data" / "tokenizers" / "grid" / "tokenizer.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(description | {"fingerprint": "0" * 64}))
    found = [(each.file, each.kind) for each in verify(tmp_path / "data").problems]
    assert set(found) == {
        ("tokenizers/grid/tokenizer.json", "damaged"),
        ("tokenizers/grid/tokenizer.json", "wrong"),
    }


@pytest.mark.slow
def test_merged_and_rewritten_datasets_keep_every_set(
    settings: BuildConfig, both: Path, videos: Path, tmp_path: Path
) -> None:
    halves = []
    for number in range(2):
        folder = tmp_path / f"videos{number}" / "films"
        folder.mkdir(parents=True)
        for seed in range(number * 2, number * 2 + 3):
            (folder / f"{seed}.mp4").symlink_to(videos / "films" / f"{seed}.mp4")
        halves.append(tmp_path / f"data{number}")
        build(replace(settings, sources=(str(folder.parent),), out=str(halves[-1])))
    merge(halves, tmp_path / "merged")
    assert verify(tmp_path / "merged").problems == ()
    for name in SHAPES:
        assert arrays(tmp_path / "merged", name) == arrays(both, name)
        assert open_dataset(tmp_path / "merged", token_set=name).tokenizer_dir is not None

    first = arrays(halves[0], "grid")
    gone = clips_from_parquet(halves[0] / "manifest.parquet")[0]
    assert main(["remove", str(halves[0]), "--source", gone.source_id]) == 0
    assert main(["gc", str(halves[0]), "--rewrite"]) == 0
    left = arrays(halves[0], "grid")
    assert left == {key: first[key] for key in first if not key.startswith(gone.source_id[:16])}
    assert verify(halves[0]).problems == ()


def test_statistics_tell_each_sets_codes_apart(
    both: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = to_json(summarize(both))
    (further,) = described["further_codebooks"].values()
    for name, rows in (("codes", described["codebook"]), ("grid", further)):
        assert rows[0]["num_tokens"] == NUM_VIDEOS * SHAPES[name]
    assert described["tokens"] == NUM_VIDEOS * SHAPES["codes"]
    assert main(["stats", str(both)]) == 0
    shown = capsys.readouterr().out
    size = PRESETS["tiny"].quantizer.codebook_size
    assert f"codes of {size:,}" in shown
    assert f"grid of {size:,}" in shown
    shard = next((both / "parts").glob("*.tar"))
    assert main(["inspect", str(shard)]) == 0
    assert "grid.npy" in capsys.readouterr().out
    assert "Use of the codebook of grid" in (both / "report.html").read_text()


def test_pictures_are_made_of_the_set_that_is_named(
    both: Path, grid_tokenizer: Path, tmp_path: Path
) -> None:
    sheet = ["sheet", str(both), "-o", str(tmp_path / "sheet.png"), "--clips", "1"]
    assert main([*sheet, "--token-set", "grid"]) == 0
    assert main([*sheet, "--token-set", "raster"]) == 2
    audit = audit_dataset(both, grid_tokenizer, num_samples=2)
    checks = {each.name: each for each in audit.checks}
    assert checks["tokenizer"].is_passed
    assert checks["codes that encoding gives again"].is_passed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("codes", "further: the name 'codes' is taken"),
        ("json", "the name 'json' is taken"),
        ("Grid", "'Grid' must be 1 to 32 small letters"),
        ("a.b", "'a.b' must be 1 to 32 small letters"),
    ],
)
def test_names_that_cannot_be_are_refused(name: str, message: str) -> None:
    overrides = {"tokenize.further": {name: "folder"}, "sources": ["a"], "out": "b"}
    with pytest.raises(UserError, match=message):
        read_settings(BuildConfig, None, overrides)


def test_a_tokenizer_that_is_missing_or_does_not_fit_is_refused_before_anything_is_read(
    settings: BuildConfig, tmp_path: Path
) -> None:
    config = replace(settings, out=str(tmp_path / "data"))
    absent = replace(config.tokenize, further={"grid": str(tmp_path / "nothing")})
    with pytest.raises(UserError, match=r"nothing: no tokenizer here; .* --tokenize.further"):
        build(replace(config, tokenize=absent))
    other = replace(config, clips=ClipSettings(buckets=("9x64x64", "9x66x64")))
    with pytest.raises(UserError, match=r"does not fit the bucket 9x66x64: .*66"):
        build(other)
    tiny = PRESETS["tiny"]
    stride = 2 * tiny.spatial_stride
    coarse = replace(tiny.autoencoder, patch=stride, spatial_stride=stride)
    save_tokenizer(Tokenizer(replace(tiny, autoencoder=coarse)), tmp_path / "coarse")
    unfit = replace(config.tokenize, further={"grid": str(tmp_path / "coarse")})
    odd = ClipSettings(buckets=(f"9x64x{64 + tiny.spatial_stride}",))
    with pytest.raises(UserError, match=r"^tokenize.further.grid: .* does not fit the bucket"):
        build(replace(config, tokenize=unfit, clips=odd))
    assert not (tmp_path / "data" / "plan.parquet").exists()


def test_a_job_names_the_further_tokenizers_as_the_cluster_sees_them(tmp_path: Path) -> None:
    path = tmp_path / "build.yaml"
    path.write_text(
        "sources: [/videos]\nout: /data\ntokenize: {further: {grid: tokenizers/grid}}\n"
    )
    made = job_settings(SUBMITTABLE["build"], path, {})
    assert made.tokenize.further == {"grid": str(Path.cwd() / "tokenizers" / "grid")}


def generator_run(data: Path, out: Path, token_set: str | None) -> GeneratorRun:
    return GeneratorRun(
        out=str(out),
        data=DataConfig(path=str(data), token_set=token_set),
        model=ModelConfig(width=16, depth=1, heads=1),
        condition=ConditionConfig(kind="class"),
        trainer=TrainerConfig(num_steps=2, global_batch_size=2, device="cpu", tensorboard=False),
    )


def test_a_generator_learns_the_set_that_is_named_and_is_judged_by_it(
    settings: BuildConfig, both: Path, tmp_path: Path
) -> None:
    launch(generator_run(both, tmp_path / "run", "grid"))
    run = open_run(tmp_path / "run")
    grid = open_dataset(both, token_set="grid")
    assert run.record.tokenizer == run.tokenizer.fingerprint == grid.primary.tokenizer
    (shape,) = run.record.shapes.values()
    assert run.generator.schedule.num_tokens == SHAPES["grid"]
    assert grid.buckets["t9_h64_w64"].schedule.to_list() == shape.schedule
    config = EvaluateConfig(num_samples=2, num_shown=1, judge=JudgeConfig(num_steps=1))
    report = evaluate(
        tmp_path / "run", config, lambda out: Path(build_pixels(replace(settings, out=out)))
    )
    assert report["copy_share"] >= 0.0


def test_tasks_on_two_sets_see_the_same_clips_and_are_not_the_same_run(both: Path) -> None:
    tasks = [
        GeneratorTask(generator_run(both, Path("run"), name), "cpu") for name in ("codes", "grid")
    ]
    for step in range(3):
        first, second = (task.loader.batch(step) for task in tasks)
        assert [each["key"] for each in first.metadata] == [each["key"] for each in second.metadata]
        assert first.arrays.shape[1:] == (SHAPES["codes"],)
        assert second.arrays.shape[1:] == (SHAPES["grid"],)
    assert tasks[0].identity != tasks[1].identity


def test_a_set_that_the_dataset_has_not_is_refused_with_those_it_has(both: Path) -> None:
    with pytest.raises(UserError, match=r"no token set 'raster'; it has codes, grid"):
        GeneratorTask(generator_run(both, Path("run"), "raster"), "cpu")
