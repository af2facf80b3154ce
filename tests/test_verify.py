"""Verify: a sound dataset has no problems, and every kind of damage is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.build import build
from pipeline.cli import main
from pipeline.commit import Store
from pipeline.config import AnnotateSettings, BuildConfig, SelectSettings, TokenizeSettings
from pipeline.removal import remove_sources, write_tombstone
from pipeline.shards.table import read_table
from pipeline.upkeep.repair import repair
from pipeline.upkeep.verify import verify
from tokenizer.settings import UserError, read_settings


@pytest.fixture(scope="module")
def built(
    small_videos: Path, random_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished dataset of several shards, one broken file among its sources."""
    out = tmp_path_factory.mktemp("built") / "data"
    build(
        BuildConfig(
            sources=(str(small_videos),),
            out=str(out),
            executor="inline",
            annotate=AnnotateSettings(sources_per_unit=3),
            select=SelectSettings(val_share=0.3),
            tokenize=TokenizeSettings(
                tokenizer=str(random_tokenizer), samples_per_shard=6, batch_size=6
            ),
        )
    )
    return out


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "data")
    return tmp_path / "data"


def flip(path: Path, at_byte: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at_byte] ^= mask
    path.write_bytes(bytes(data))


def edit(path: Path, change: Callable[[dict], None]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def first(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


def test_a_sound_dataset_has_no_problems(built: Path) -> None:
    verdict = verify(built)
    assert verdict.problems == ()
    assert verdict.notes == ()
    assert verdict.is_finished
    assert verdict.num_samples == 19
    assert verdict.num_shards == len(list((built / "parts").glob("*.tar"))) > 3


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def flip_codes(root: Path) -> tuple[str, str]:
    tar = first(root, "parts/*.tar")
    flip(tar, 512 + 200)
    return name_of(tar), r"at byte 512: damaged: row 0, '\w+': codes.npy \(crc32\)"


def flip_metadata(root: Path) -> tuple[str, str]:
    tar = first(root, "parts/*.tar")
    flip(tar, tar.read_bytes().index(b'"source_id"') + 14)
    return name_of(tar), r"damaged: row 0, '\w+': json \(crc32\)"


def flip_header(root: Path) -> tuple[str, str]:
    tar = first(root, "parts/*.tar")
    flip(tar, 3)
    return name_of(tar), "at byte 0: damaged: a header whose checksum is wrong"


def flip_padding(root: Path) -> tuple[str, str]:
    tar = first(root, "parts/*.tar")
    flip(tar, 1023)
    return name_of(tar), "damaged: .* not what was committed, though every member is sound"


def cut_short(root: Path) -> tuple[str, str]:
    tar = first(root, "parts/*.tar")
    tar.write_bytes(tar.read_bytes()[:-600])
    return name_of(tar), "at byte .*: damaged: no end mark"


def lose_shard(root: Path) -> tuple[str, str]:
    tar = first(root, "parts/*.tar")
    tar.unlink()
    return name_of(tar), "missing: a commit names it"


def swap_shards(root: Path) -> tuple[str, str]:
    tars = sorted(root.glob("parts/*.tar"))
    tars[0].write_bytes(tars[1].read_bytes())
    return name_of(tars[0]), "damaged"


def flip_sidecar(root: Path) -> tuple[str, str]:
    idx = first(root, "parts/*.idx")
    flip(idx, -5)
    return name_of(idx), "damaged: .* not what was committed"


def lose_sidecar(root: Path) -> tuple[str, str]:
    idx = first(root, "parts/*.idx")
    idx.unlink()
    return name_of(idx), "missing"


def flip_annotations(root: Path) -> tuple[str, str]:
    part = first(root, "parts/*.parquet")
    flip(part, 100)
    return name_of(part), "damaged: .* not what was committed"


def lose_annotations(root: Path) -> tuple[str, str]:
    part = first(root, "parts/*.parquet")
    part.unlink()
    return name_of(part), "missing"


def commit_miscounts(root: Path) -> tuple[str, str]:
    commit = first(root, "_commits/tokenize-*.json")
    edit(commit, lambda record: record["result"].update(n_kept=99))
    return name_of(commit), "damaged: n_in .* is not kept"


def commit_lies_of_bytes(root: Path) -> tuple[str, str]:
    commit = first(root, "_commits/tokenize-*.json")
    record = json.loads(commit.read_text())
    record["result"]["parts"][0]["sha256"] = "0" * 64
    del record["sha256"]  # as in commits of format version 1
    commit.write_text(json.dumps(record))
    return name_of(commit), "damaged: it says of parts/.*tar what its name and bytes do not"


def commit_leaves_the_folder(root: Path) -> tuple[str, str]:
    commit = first(root, "_commits/tokenize-*.json")
    edit(commit, lambda record: record["result"]["parts"][0].update(path="parts/../../x.tar"))
    return name_of(commit), "damaged: it names 'parts/../../x.tar', which is no part"


def commit_says_something_else(root: Path) -> tuple[str, str]:
    commit = first(root, "_commits/annotate-*.json")
    edit(commit, lambda record: record["result"].update(scanned=[]))
    return name_of(commit), "damaged: its result was changed"


def commit_of_another(root: Path) -> tuple[str, str]:
    commits = sorted(root.glob("_commits/tokenize-*.json"))
    commits[0].write_bytes(commits[1].read_bytes())
    return name_of(commits[0]), "damaged: it is the commit of 'tokenize-"


def commit_is_half(root: Path) -> tuple[str, str]:
    commit = first(root, "_commits/annotate-*.json")
    commit.write_bytes(commit.read_bytes()[:100])
    return name_of(commit), "damaged: not the JSON of a commit"


def lose_commit(root: Path) -> tuple[str, str]:
    commit = first(root, "_commits/tokenize-*.json")
    commit.unlink()
    return "shards.json", "wrong: no commit names parts/"


def flip_index(root: Path) -> tuple[str, str]:
    flip(root / "index.bin", 20)
    return "index.bin", "at byte 0: wrong: what it has for parts/.*.tar is not parts/.*.idx"


def longer_index(root: Path) -> tuple[str, str]:
    (root / "index.bin").write_bytes((root / "index.bin").read_bytes() + b"x")
    return "index.bin", "wrong: bytes behind the last sidecar"


def lose_index(root: Path) -> tuple[str, str]:
    (root / "index.bin").unlink()
    return "index.bin", "missing"


def shard_list_miscounts(root: Path) -> tuple[str, str]:
    edit(root / "shards.json", lambda record: record["shards"][0].update(num_samples=2))
    return "shards.json", "wrong: parts/.*, its commit says"


def shard_list_lacks_one(root: Path) -> tuple[str, str]:
    edit(root / "shards.json", lambda record: record["shards"].pop())
    return "shards.json", "damaged: its fingerprint is not that of what it declares"


def manifest_lacks_a_row(root: Path) -> tuple[str, str]:
    table = pq.read_table(root / "manifest.parquet")
    kept = [i for i, outcome in enumerate(table["outcome"].to_pylist()) if outcome == "kept"]
    rows = [i for i in range(table.num_rows) if i != kept[0]]
    pq.write_table(table.take(rows), root / "manifest.parquet")
    return "manifest.parquet", "wrong: the rows of parts/.* are not 0 to n - 1"


def manifest_renames_a_sample(root: Path) -> tuple[str, str]:
    table = pq.read_table(root / "manifest.parquet")
    keys = [key.replace("_0", "_1", 1) for key in table["key"].to_pylist()]
    at = table.schema.get_field_index("key")
    pq.write_table(table.set_column(at, "key", [keys]), root / "manifest.parquet")
    return "", "wrong: manifest.parquet lists other samples for it"


def manifest_has_other_code_keys(root: Path) -> tuple[str, str]:
    table = pq.read_table(root / "manifest.parquet")
    keys = [key[::-1] for key in table["code_key"].to_pylist()]
    at = table.schema.get_field_index("code_key")
    pq.write_table(table.set_column(at, "code_key", [keys]), root / "manifest.parquet")
    return "", "wrong: its code keys are not those of manifest.parquet"


def manifest_is_rubbish(root: Path) -> tuple[str, str]:
    (root / "manifest.parquet").write_bytes(b"rubbish" * 100)
    return "manifest.parquet", "damaged: missing or cannot be read"


def statistics_differ(root: Path) -> tuple[str, str]:
    edit(root / "statistics.json", lambda record: record.update(samples=1))
    return "statistics.json", "wrong: not the sum of the commits'"


def tokenizer_of_another(root: Path) -> tuple[str, str]:
    edit(root / "tokenizer/tokenizer.json", lambda record: record.update(fingerprint="0" * 64))
    return "tokenizer/tokenizer.json", "wrong: fingerprint 0000"


def flip_weights(root: Path) -> tuple[str, str]:
    flip(root / "tokenizer/model.safetensors", -1)
    return "tokenizer/model.safetensors", "damaged: sha256"


def success_miscounts(root: Path) -> tuple[str, str]:
    edit(root / "_SUCCESS", lambda record: record.update(n_kept=1))
    return "_SUCCESS", "wrong: its counts do not add up"


def foreign_part(root: Path) -> tuple[str, str]:
    (root / "parts" / "extra.tar").write_bytes(b"")
    return "parts/extra.tar", "foreign"


def flip_plan(root: Path) -> tuple[str, str]:
    flip(root / "plan.parquet", 100)
    return "plan.parquet", "damaged: .*CRC"


def flip_selection(root: Path) -> tuple[str, str]:
    flip(root / "selection.parquet", 100)
    return "selection.parquet", "damaged: .*CRC"


def foreign_commit(root: Path) -> tuple[str, str]:
    (root / "_commits" / "notes.json").write_text("{}")
    return "_commits/notes.json", "foreign"


def foreign_folder(root: Path) -> tuple[str, str]:
    (root / "mine").mkdir()
    (root / "mine" / "x").write_text("")
    return "mine/x", "foreign"


def foreign_link(root: Path) -> tuple[str, str]:
    (root / "parts" / "link").symlink_to("/")
    return "parts/link", "foreign"


def damaged_tombstone(root: Path) -> tuple[str, str]:
    (root / "_removed" / f"{'0' * 24}.json").write_text("{}")
    return f"_removed/{'0' * 24}.json", "damaged: its name is not the hash"


DAMAGES = [
    *(flip_codes, flip_metadata, flip_header, flip_padding, cut_short, lose_shard, swap_shards),
    *(flip_sidecar, lose_sidecar, flip_annotations, lose_annotations, commit_miscounts),
    *(commit_lies_of_bytes, commit_leaves_the_folder, commit_says_something_else),
    *(commit_of_another, commit_is_half),
    *(lose_commit, flip_index, longer_index, lose_index, shard_list_miscounts),
    *(shard_list_lacks_one, manifest_lacks_a_row, manifest_renames_a_sample),
    *(manifest_has_other_code_keys, manifest_is_rubbish, statistics_differ),
    *(
        tokenizer_of_another,
        flip_plan,
        flip_selection,
        flip_weights,
        success_miscounts,
        foreign_part,
        foreign_commit,
    ),
    *(foreign_part, foreign_commit, foreign_folder, foreign_link, damaged_tombstone),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named(copy: Path, damage: Callable[[Path], tuple[str, str]]) -> None:
    file, pattern = damage(copy)
    lines = [str(problem) for problem in verify(copy).problems]
    assert any(line.startswith(file) and re.search(pattern, line) for line in lines), lines
    assert all(line.count("\n") == 0 for line in lines)


NOT_SEALED = {"config.yaml", "report.html", "_status.json"}
"""What is for people."""


@pytest.mark.parametrize("per_file", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_any_flipped_bit_of_any_file_is_noticed(copy: Path, per_file: int) -> None:
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    generator = np.random.default_rng(0)
    for path in files:
        if path.name in NOT_SEALED:
            continue
        sound = path.read_bytes()
        for at_byte in generator.integers(0, len(sound), per_file).tolist():
            flip(path, at_byte, 1 << int(generator.integers(8)))
            if not is_meaningless(path, sound):
                assert verify(copy).problems, (path, at_byte)
            path.write_bytes(sound)
    assert verify(copy).problems == ()


def is_meaningless(path: Path, sound: bytes) -> bool:
    """The damage is in what nobody reads: facts of a run, spare bits of a parquet file's header."""
    try:
        if path.name in ("plan.parquet", "selection.parquet"):
            return read_table(sound).equals(read_table(path.read_bytes()))
        if path.parent.name != "_commits":
            return False
        before, after = json.loads(sound), json.loads(path.read_bytes())
    except (ValueError, OSError):
        return False
    return all(before[name] == after.get(name) for name in ("unit", "result", "sha256"))


REPAIRABLE = [flip_codes, lose_shard, lose_annotations, commit_is_half, lose_commit]


@pytest.mark.parametrize("damage", REPAIRABLE, ids=lambda damage: damage.__name__)
def test_repair_and_a_build_give_the_same_bytes_again(
    built: Path, copy: Path, damage: Callable[[Path], tuple[str, str]]
) -> None:
    damage(copy)
    repair(copy, verify(copy))
    config = read_settings(BuildConfig, copy / "config.yaml", {"out": str(copy)})
    build(config)
    assert verify(copy).problems == ()
    says_where_it_is = {"config.yaml", "report.html", "_status.json"}
    for path in built.rglob("*"):
        if path.is_file() and path.parent.name != "_commits" and path.name not in says_where_it_is:
            assert (copy / path.relative_to(built)).read_bytes() == path.read_bytes(), path


def test_one_damaged_commit_is_one_problem(copy: Path) -> None:
    commit_is_half(copy)
    assert len(verify(copy).problems) == 1
    name, _ = commit_miscounts(copy)
    found = verify(copy).problems
    assert [problem.file for problem in found][1:] == [name]
    assert len(found) == 2


def test_samples_of_removed_sources_that_are_shown_are_a_problem(copy: Path) -> None:
    rows = pq.read_table(copy / "manifest.parquet").to_pylist()
    source = next(row["source_id"] for row in rows if row["outcome"] == "kept")
    write_tombstone(Store(copy), [source], {})
    assert any("are not hidden" in str(problem) for problem in verify(copy).problems)
    remove_sources(copy, [source])
    assert verify(copy).problems == ()


def test_repair_takes_out_only_what_is_damaged(copy: Path) -> None:
    before = {path.name for path in (copy / "_commits").iterdir()}
    tar, _ = flip_codes(copy)
    said = repair(copy, verify(copy))
    after = {path.name for path in (copy / "_commits").iterdir()}
    (gone,) = before - after
    assert said == [f"_commits/{gone}: taken out; the next build makes it again"]
    assert (copy / tar).exists()
    assert not (copy / "_SUCCESS").exists()
    assert repair(copy, verify(copy)) == []


def test_a_lost_sidecar_is_put_back_without_a_build(copy: Path) -> None:
    name, _ = lose_sidecar(copy)
    assert repair(copy, verify(copy)) == [f"{name}: put back from index.bin"]
    assert verify(copy).problems == ()


def test_what_a_running_build_may_use_is_a_note(copy: Path) -> None:
    (copy / "tmp" / "draft.tar.12").write_bytes(b"half")
    (copy / "parts" / "train-t9_h64_w64-0123-0123456789ab.tar").write_bytes(b"")
    (copy / "_attempts" / f"annotate-{'a' * 24}.0").write_bytes(b"")
    verdict = verify(copy)
    assert verdict.problems == ()
    assert verdict.notes[0].startswith("1 on their way in, 1 uncommitted, 1 attempt markers")


def test_an_unfinished_build_is_verified_as_far_as_it_is(copy: Path) -> None:
    (copy / "_SUCCESS").unlink()
    for name in ("manifest.parquet", "shards.json", "index.bin"):
        (copy / name).unlink()
    verdict = verify(copy)
    assert (verdict.is_finished, verdict.problems) == (False, ())
    assert verdict.notes == (f"not finished: {verdict.num_units} units committed so far",)
    flip_codes(copy)
    assert len(verify(copy).problems) == 1


def test_a_dataset_that_no_build_made_is_verified(code_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(code_shards, tmp_path / "data")
    assert verify(tmp_path / "data").problems == ()
    flip(first(tmp_path / "data", "parts/*.tar"), 512 + 140)
    flip(first(tmp_path / "data", "parts/*.idx"), -1)
    found = [problem.kind for problem in verify(tmp_path / "data").problems]
    assert found.count("damaged") == 2


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset here"):
        verify(tmp_path)


def test_the_command_says_each_problem_in_a_line_and_exits_1(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(copy)]) == 0
    assert "all sound" in capsys.readouterr().out
    flip_codes(copy)
    assert main(["verify", str(copy), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["at_byte"] == 512
    assert main(["verify", str(copy), "--repair"]) == 1
    assert "taken out" in capsys.readouterr().out
    assert main(["verify", str(copy / "nothing")]) == 2


def test_a_dataset_in_an_object_store_is_verified(built: Path, tmp_path: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    root = f"/{tmp_path.name}-verify"
    files.put(f"{built}/", root, recursive=True)
    assert verify(f"memory://{root}").problems == ()
    name = sorted(files.glob(f"{root}/parts/*.tar"))[0]
    data = bytearray(files.cat_file(name))
    data[700] ^= 1
    files.pipe_file(name, bytes(data))
    (problem,) = verify(f"memory://{root}").problems
    assert (problem.file, problem.at_byte) == (name.removeprefix(f"{root}/"), 512)


def test_pixel_shards_are_verified_with_their_dataset(
    copy: Path,
) -> None:
    shutil.copytree(copy, copy / "pixels")
    assert verify(copy).problems == ()
    name, _ = flip_codes(copy / "pixels")
    (problem,) = verify(copy).problems
    assert problem.file == f"pixels/{name}"
    assert repair(copy, verify(copy))[0].startswith("pixels/_commits/")
