"""Versions: what older code wrote is brought forward; what this version wrote is read for good.

The folders under `fixtures` were made by `fixtures/make_dataset.py` with the code of their version;
the JSON beside each is what that version's own reader read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.clip import clips_from_parquet
from pipeline.commit import Store
from pipeline.config import BuildConfig
from pipeline.encode import code_recipe
from pipeline.shards import open_dataset
from pipeline.shards.format import ShardError
from pipeline.shards.sidecar import code_key_words, key_digest, parse_sidecar
from pipeline.statistics import merge
from pipeline.storage import LocalStorage
from pipeline.tokenize import TokenizeJob
from pipeline.upkeep.migrate import MARKER, migrate
from pipeline.upkeep.verify import verify
from tokenizer.settings import UserError, read_settings

FIXTURES = Path(__file__).parent / "fixtures"


def copy_of(version: str, folder: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / version, folder / "data"))


def expected(version: str) -> dict[str, Any]:
    return json.loads((FIXTURES / f"{version}.json").read_text(encoding="utf-8"))


def read_all(root: Path) -> dict[str, Any]:
    """Every sample of every split as `make_dataset.py` lists them."""
    found = {}
    dataset = open_dataset(root)
    for split in ("train", "val"):
        samples = dataset.samples(split)
        everything = np.arange(len(samples))
        for codes, metadata in zip(samples.gather(everything), samples.metadata(everything)):
            found[metadata["key"]] = {
                "split": split,
                "codes": codes.tolist(),
                "metadata": metadata,
            }
    return found


def contents(root: Path, suffix: str = "") -> dict[str, str]:
    """sha256 of every file, by path; drafts are `gc`'s."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and path.name.endswith(suffix) and path.parent.name != "tmp"
    }


def test_version_1_is_refused_with_the_way_forward(tmp_path: Path) -> None:
    with pytest.raises(
        ShardError, match=r"format version 1; this code reads 2 \(`tessera migrate`"
    ):
        open_dataset(copy_of("format_v1", tmp_path))


def test_a_migrated_dataset_reads_as_its_own_version_read_it(tmp_path: Path) -> None:
    root = copy_of("format_v1", tmp_path)
    tars = contents(root, ".tar")
    (done,) = migrate(root)
    assert (done.from_version, done.num_shards, done.num_samples) == (1, 3, 6)
    assert read_all(root) == expected("format_v1")
    assert contents(root, ".tar") == tars
    assert not (root / MARKER).exists()


def test_a_migrated_dataset_is_sound_in_every_list(tmp_path: Path) -> None:
    root = copy_of("format_v1", tmp_path)
    migrate(root)
    verdict = verify(root)
    assert verdict.problems == ()
    assert verdict.num_samples == 6
    store = Store(root)
    results = [store.read(unit)["result"] for unit in sorted(store.committed())]
    total = merge(*(result["statistics"] for result in results))
    assert (total["samples"], total["outcomes"]) == (6, {"kept": 6})
    assert set(total["scores"]) == {"brightness", "motion", "sharpness"}
    manifest = pq.read_table(root / "manifest.parquet").to_pylist()
    kept = [row for row in manifest if row["outcome"] == "kept"]
    assert {row["row"] for row in manifest if row["outcome"] != "kept"} == {-1}
    for row in kept:
        place = parse_sidecar((root / row["shard"]).with_suffix(".idx").read_bytes(), "idx")
        with open(root / row["shard"], "rb") as tar:
            tar.seek(int(place.places["offset"][row["row"], 0]) - 512)
            assert tar.read(len(row["key"])).decode() == row["key"]


def code_keys(root: Path) -> dict[str, str]:
    """Of the kept clips, by key; the sidecars must say the same."""
    found = {}
    for row in pq.read_table(root / "manifest.parquet").to_pylist():
        if row["outcome"] == "kept":
            data = (root / row["shard"]).with_suffix(".idx").read_bytes()
            sample = parse_sidecar(data, "idx").samples[row["row"]]
            assert sample["key"].tolist() == list(key_digest(row["key"]))
            assert sample["code_key"].tolist() == list(code_key_words(row["code_key"] or None))
            found[row["key"]] = row["code_key"]
    return found


def test_codes_are_offered_for_reuse_only_where_it_is_proved_how_they_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_version = ["2.15.0"]  # that made the fixture: it is in the fingerprint of its commits
    monkeypatch.setattr("importlib.metadata.version", lambda name: torch_version[0])
    same = copy_of("format_v1", tmp_path / "same")
    migrate(same)
    config = read_settings(BuildConfig, same / "config.yaml")
    job = TokenizeJob(config, str(same), code_recipe(same / "tokenizer", config.tokenize))
    clips = clips_from_parquet(same / "manifest.parquet")
    assert code_keys(same) == {c.key: job.code_key(c) for c in clips if c.outcome == "kept"}
    torch_version[0] = "2.16.0"
    other = copy_of("format_v1", tmp_path / "other")
    migrate(other)
    assert set(code_keys(other).values()) == {""}
    assert verify(other).problems == ()


def test_a_second_migration_changes_nothing(tmp_path: Path) -> None:
    root = copy_of("format_v1", tmp_path)
    migrate(root)
    once = contents(root)
    assert migrate(root)[0].from_version == 2
    assert contents(root) == once


@pytest.mark.slow
def test_a_migration_killed_at_any_step_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy_of("format_v1", tmp_path / "undisturbed")
    migrate(root)
    undisturbed = contents(root)
    left = [0]

    def killing(name: str) -> None:
        whole = getattr(LocalStorage, name)

        def dies(self: LocalStorage, *arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return whole(self, *arguments)

        monkeypatch.setattr(LocalStorage, name, dies)

    for name in ("put", "delete"):
        killing(name)
    steps = 0
    while True:
        root = copy_of("format_v1", tmp_path / str(steps))
        left[0] = steps + 1
        try:
            migrate(root)
        except KeyboardInterrupt:
            pass
        else:
            break
        steps += 1
        left[0] = 0
        migrate(root)
        assert contents(root) == undisturbed
        assert read_all(root) == expected("format_v1")
    assert steps > 10


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("parts/train-t5_h16_w16-b0c67ecf2a35-024933b7a83e.tar", "damaged .sha256"),
        ("manifest.parquet", "no manifest.parquet; was it copied"),
        ("manifest.parquet ", "manifest.parquet: cannot be read"),
        ("_SUCCESS", "this build of version 1 is not finished"),
        ("shards.json", "not a valid shard list"),
    ],
)
def test_a_damaged_or_unfinished_dataset_is_left_alone(
    tmp_path: Path, spoil: str, message: str
) -> None:
    root = copy_of("format_v1", tmp_path)
    path = root / spoil.strip()
    if spoil.endswith((".tar", ".json", " ")):
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.unlink()
    lists = {name: (root / name).read_bytes() for name in ("shards.json", "index.bin")}
    with pytest.raises((ShardError, UserError), match=message):
        migrate(root)
    assert lists == {name: (root / name).read_bytes() for name in lists}


def test_a_declaration_of_version_1_that_was_edited_is_refused(tmp_path: Path) -> None:
    root = copy_of("format_v1", tmp_path)
    values = json.loads((root / "shards.json").read_text())
    values["shards"][0]["path"] = "../outside.tar"
    (root / "shards.json").write_text(json.dumps(values))
    with pytest.raises(ShardError, match="leaves the folder"):
        migrate(root)
    values["shards"][0]["split"] = "val"
    (root / "shards.json").write_text(json.dumps(values))
    with pytest.raises(ShardError, match="its fingerprint is not that"):
        migrate(root)


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy_of("format_v1", tmp_path)
    assert main(["migrate", str(root)]) == 0
    assert "from format version 1 to 2: 6 samples in 3 shards" in capsys.readouterr().out
    assert main(["migrate", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["from_version"] == 2
    assert main(["migrate", str(tmp_path)]) == 2
    assert "no dataset here" in capsys.readouterr().err
