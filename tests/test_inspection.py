"""What `stats` and `inspect` say, and that a hostile shard is one clear line."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import commit_sum
from pipeline.cli import main
from pipeline.commit import Store
from pipeline.inspection.members import open_shard
from pipeline.inspection.summary import summarize, to_json
from pipeline.removal import write_tombstone
from pipeline.shards.dataset_writer import DatasetWriter
from pipeline.shards.format import Bucket, ShardError, canonical_json
from pipeline.shards.format import TokenSet as Set
from pipeline.statistics import Tally, merge
from pipeline.storage import open_storage
from tokenizer.scales import image_and_clip
from tokenizer.settings import UserError

SCHEDULE = image_and_clip(3, sizes=(1, 2, 4))
CODEBOOK_SIZE = 64
NUM_SHARDS, SAMPLES_PER_SHARD = 3, 5


def tessera(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What a command of this area returns and prints."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main(list(arguments))
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), error.getvalue())


def sample_metadata(index: int) -> dict[str, Any]:
    return {
        "key": f"{index:04d}_0_9_0",
        "uri": f"videos/{index}.mp4",
        "num_frames": 9,
        "fps": 8.0,
        "height": 64,
        "width": 64,
        "start_seconds": 0.0,
        "end_seconds": 1.125,
        "label": str(index % 3),
        "caption": f"a red {index % 3} moving left",
        "caption_by": "template",
        "scores": {"brightness": 100.0 + index, "motion": 0.5 + index / 10},
        "split": "val" if index < SAMPLES_PER_SHARD else "train",
        "bucket": "t9_h64_w64",
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset of three shards, made with the pipeline's own writer and commits."""
    root = tmp_path_factory.mktemp("dataset")
    token_set = Set(name="codes", kind="codes", dtype="uint16", codebook_size=CODEBOOK_SIZE)
    bucket = Bucket(name="t9_h64_w64", num_frames=9, height=64, width=64, schedule=SCHEDULE)
    num_samples = NUM_SHARDS * SAMPLES_PER_SHARD
    rows = [sample_metadata(index) | {"outcome": "kept"} for index in range(num_samples)]
    per_shard: dict[int, Any] = {}
    with DatasetWriter(root, [token_set], [bucket], samples_per_shard=SAMPLES_PER_SHARD) as writer:
        for index in range(num_samples):
            metadata = sample_metadata(index)
            codes = np.random.default_rng(index).integers(0, 32, SCHEDULE.num_tokens)
            codes = codes.astype(np.uint16)
            writer.write(metadata["key"], {"codes": codes}, metadata, split=metadata["split"])
            tally = per_shard.setdefault(index // SAMPLES_PER_SHARD, Tally())
            scales = SCHEDULE.scale_of_token
            tally.add_sample(metadata, codes, scales, CODEBOOK_SIZE, codes.nbytes)
            tally.add_outcome("kept")
    store = Store(root)
    store.prepare()
    parts = [f"parts/val-{bucket.name}-000000.tar"]
    parts += [f"parts/train-{bucket.name}-{number:06d}.tar" for number in range(NUM_SHARDS - 1)]
    for number, path in enumerate(parts):
        part = {"path": path, "size_bytes": (root / path).stat().st_size}
        result = {"parts": [part], "statistics": per_shard[number].to_json()}
        store.commit(f"tokenize-{number}", result, {"host": "here"})
    for index in range(20, 24):
        motion = {"brightness": 90.0, "motion": 0.1}
        outcome = "dropped:too_static"
        rows.append(sample_metadata(index) | {"outcome": outcome, "scores": motion})
    nothing = {"caption": None, "scores": {}, "outcome": "error:open", "uri": "videos/<b>.mp4"}
    rows.append(sample_metadata(24) | nothing)
    for row in rows:
        row |= {name: row["scores"].get(name) for name in ("brightness", "motion")}
        del row["scores"]
    pq.write_table(pa.Table.from_pylist(rows), root / "manifest.parquet")
    return root


def first_shard(dataset: Path) -> Path:
    return next((dataset / "parts").glob("val-*.tar"))


def test_stats_count_every_clip_and_every_code(dataset: Path) -> None:
    values = to_json(summarize(dataset))
    totals = [values[name] for name in ("n_in", "n_kept", "n_dropped", "n_error")]
    assert totals == [20, 15, 4, 1]
    assert values["failures"] == [{"uri": "videos/<b>.mp4", "outcome": "error:open"}]
    assert values["shards"] == 3
    assert values["tokens"] == 15 * SCHEDULE.num_tokens == 15 * 63
    assert values["considered"]["motion"]["count"] == 19
    assert values["considered"]["motion"]["min"] == 0.1
    assert values["numbers"]["motion"]["min"] == 0.5
    codes = np.concatenate(
        [
            open_shard(path).read(key).arrays["codes.npy"]
            for path in sorted((dataset / "parts").glob("*.tar"))
            for key in open_shard(path).keys
        ]
    )
    overall = values["codebook"][0]
    counts = np.bincount(codes, minlength=CODEBOOK_SIZE)
    shares = counts[counts > 0] / len(codes)
    assert overall["num_used"] == (counts > 0).sum()
    assert overall["entropy_bits"] == pytest.approx(-(shares * np.log2(shares)).sum())
    assert [row["num_tokens"] for row in values["codebook"][1:]] == [
        *(15, 60, 240, 30, 120, 480),
    ]


def test_every_key_of_the_json_is_documented(dataset: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "inspection.md").read_text(encoding="utf-8")
    described = page[page.index("### As JSON") : page.index("### In SQL")]
    values = to_json(summarize(dataset))
    keys = {*values, *values["codebook"][0], *values["numbers"]["motion"], *values["by"]}
    assert {key for key in keys if f"`{key}`" not in described} == set()


@pytest.mark.slow
def test_stats_and_inspect_load_neither_torch_nor_ray(dataset: Path) -> None:
    code = (
        "import sys\n"
        "from pipeline.cli import main\n"
        "status = max(main(['stats', sys.argv[1]]), main(['inspect', sys.argv[2]]))\n"
        "heavy = {'torch', 'ray', 'av'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(status)\n"
    )
    command = [sys.executable, "-c", code, str(dataset), str(first_shard(dataset))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "15 samples in 3 shards" in done.stdout


def test_stats_print_tables(dataset: Path) -> None:
    shown = tessera("stats", str(dataset))
    assert shown.returncode == 0, shown.stderr
    for text in ("15 samples in 3 shards", "dropped:too_static", "perplexity", "brightness"):
        assert text in shown.stdout
    by_label = tessera("stats", str(dataset), "--by", "label").stdout
    assert [line.split()[:2] for line in by_label.splitlines()[-3:]] == [
        ["0", "5"],
        ["1", "5"],
        ["2", "5"],
    ]
    assert json.loads(tessera("stats", str(dataset), "--json").stdout)["samples"] == 15


def test_stats_of_an_unfinished_build_count_what_is_committed(dataset: Path) -> None:
    (dataset / "_SUCCESS").unlink()
    try:
        summary = summarize(dataset)
    finally:
        (dataset / "_SUCCESS").touch()
    assert not summary.is_finished
    assert summary.statistics["samples"] == 15


def test_a_finished_dataset_answers_from_its_statistics_alone(
    dataset: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "data", ignore=shutil.ignore_patterns("*.tar"))
    expected = to_json(summarize(dataset)) | {"path": str(copy)}
    shutil.rmtree(copy / "_commits")
    records = [json.loads(path.read_bytes()) for path in (dataset / "_commits").iterdir()]
    total = merge(*(record["result"]["statistics"] for record in records))
    (copy / "statistics.json").write_bytes(canonical_json(total))
    assert to_json(summarize(copy)) == expected
    for wrong, message in (
        (merge(total, total), "of 30 samples, but the shards hold 15"),
        (total | {"version": 1}, "version 1 is not 2"),
        ([], "damaged"),
    ):
        (copy / "statistics.json").write_bytes(canonical_json(wrong))
        with pytest.raises(UserError, match=message):
            summarize(copy)


def test_shards_without_a_build_are_counted_at_least(dataset: Path, tmp_path: Path) -> None:
    skipped = shutil.ignore_patterns("_commits", "manifest.parquet")
    copy = shutil.copytree(dataset, tmp_path / "data", ignore=skipped)
    values = to_json(summarize(copy))
    assert (values["shards"], values["samples"], values["tokens"]) == (3, 15, 0)


def test_removed_samples_are_counted(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "data", ignore=shutil.ignore_patterns("*.tar"))
    shards = json.loads((copy / "shards.json").read_text())["shards"]
    rows = {shards[0]["path"]: [1, 4], shards[1]["path"]: [0], "parts/erased.tar": [7]}
    stone = copy / write_tombstone(Store(copy), [], rows)
    assert to_json(summarize(copy))["removed"] == 3
    stone.write_text("[]")
    result = tessera("stats", str(copy))
    assert result.returncode == 2
    assert "damaged tombstone" in result.stderr


@pytest.mark.parametrize("name", ["statistics.json", "shards.json", "manifest.parquet"])
def test_damaged_files_of_a_dataset_are_named_errors(
    dataset: Path, tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "data", ignore=shutil.ignore_patterns("*.tar"))
    records = [json.loads(path.read_bytes()) for path in (copy / "_commits").iterdir()]
    total = merge(*(record["result"]["statistics"] for record in records))
    (copy / "statistics.json").write_bytes(canonical_json(total))
    sound = (copy / name).read_bytes()
    draw = np.random.default_rng(0)
    refusals = []
    for case in range(150):
        damaged = bytearray(sound)
        for place in draw.integers(0, len(sound), 1 + case % 3):
            damaged[place] = int(draw.integers(0, 256))
        (copy / name).write_bytes(damaged[: len(sound) if case % 5 else int(draw.integers(9000))])
        try:
            to_json(summarize(copy))
        except (UserError, ShardError) as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert [refusal for refusal in refusals if name not in refusal or "\n" in refusal] == []


@pytest.mark.slow
def test_several_processes_sum_as_one(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(dataset)
    names = storage.names("_commits")
    alone = commit_sum.sum_commits(storage, names)
    monkeypatch.setattr(commit_sum, "_COMMITS_PER_PROCESS", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert commit_sum.sum_commits(storage, names) == alone
    assert len(alone.shard_bytes) == NUM_SHARDS


def test_stats_of_something_else_is_one_line(tmp_path: Path) -> None:
    for target, message in ((tmp_path / "no", "no such folder"), (tmp_path, "not a dataset")):
        result = tessera("stats", str(target))
        assert result.returncode == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_lost_commit_is_named(dataset: Path) -> None:
    commit = dataset / "_commits" / "tokenize-1.json"
    hidden = commit.rename(dataset / "hidden.json")
    try:
        with pytest.raises(UserError, match=r"no commit for shard parts/.* \(1 of 3 missing\)"):
            summarize(dataset)
    finally:
        hidden.rename(commit)


def test_inspect_lists_a_shard_and_shows_a_sample_scale_by_scale(dataset: Path) -> None:
    path = first_shard(dataset)
    listed = tessera("inspect", str(path))
    assert listed.returncode == 0, listed.stderr
    assert "5 samples" in listed.stdout
    assert "codes.npy uint16[63]" in listed.stdout
    shown = tessera("inspect", str(path), "0001_0_9_0")
    assert '"caption": "a red 1 moving left"' in shown.stdout
    rows = [line.split() for line in shown.stdout.splitlines() if " to " in line]
    assert [row[4] for row in rows] == [
        *("1x1x1", "1x2x2", "1x4x4", "2x1x1", "2x2x2", "2x4x4"),
    ]
    missing = tessera("inspect", str(path), "nobody")
    assert missing.returncode == 2
    assert "no sample 'nobody'" in missing.stderr


def test_inspect_unpacks_codes_that_were_packed_into_bits(tmp_path: Path) -> None:
    bits = Set(name="codes", kind="codes", dtype="bits", codebook_size=300)
    bucket = Bucket(name="t9_h64_w64", num_frames=9, height=64, width=64, schedule=SCHEDULE)
    codes = np.random.default_rng(0).integers(0, 300, SCHEDULE.num_tokens)
    with DatasetWriter(tmp_path / "data", [bits], [bucket]) as writer:
        writer.write("a", {"codes": codes}, {})
    shown = tessera("inspect", str(next((tmp_path / "data" / "parts").glob("*.tar"))), "a")
    assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines() if " to " in line]
    assert [int(row[-1]) for row in rows if row[4] == "1x1x1"] == [codes[0]]
    assert len(rows) == len(SCHEDULE.scales)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npy_that_claims(shape: tuple[int, ...]) -> bytes:
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(8)


def tar_of(path: Path, *members: tuple[tarfile.TarInfo | str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, payload in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return path


def link(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("a.codes.npy")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


JSON = ("a.json", b"{}")
HOSTILE: dict[str, tuple[tuple[tuple[tarfile.TarInfo | str, bytes], ...], str]] = {
    "a path outside": ((("../../a.json", b"{}"),), "has a path"),
    "an absolute path": ((("/tmp/a.json", b"{}"),), "has a path"),
    "a hidden file": (((".a.json", b"{}"),), "an empty tar"),
    "a symbolic link": (((link(tarfile.SYMTYPE), b""),), "not a plain file"),
    "a hard link": (((link(tarfile.LNKTYPE), b""),), "not a plain file"),
    "a device": (((link(tarfile.CHRTYPE), b""),), "not a plain file"),
    "no extension": ((("a", b"{}"),), "no members named KEY.EXTENSION"),
    "a terminal escape": ((("a\x1b[2J.json", b"{}"),), "is no name for a member"),
    "a member twice": ((JSON, JSON), "in it twice"),
    "scattered members": ((JSON, ("b.json", b"{}"), ("a.x", b"")), "not beside each other"),
    "a pickle": ((("a.codes.npy", npy(np.array([{}], dtype=object))),), "not a plain number"),
    "a huge shape": ((("a.codes.npy", npy_that_claims((10**15,))),), "bytes, not"),
    "a negative shape": ((("a.codes.npy", npy_that_claims((-4, -1))),), "not"),
    "no array": ((("a.codes.npy", b"\x93NUMPY"),), "not a sound .npy"),
    "a strange version": (
        (("a.codes.npy", b"\x93NUMPY\x09\x00" + bytes(9)),),
        "not a sound|version",
    ),
    "broken json": ((("a.json", b"{"),), "not valid JSON"),
    "nested json": ((("a.json", b"[" * 200_000),), "not valid JSON|must be"),
    "json of a list": ((("a.json", b"[]"),), "must be an object"),
    "large json": ((("a.json", b" " * (1 << 21)),), "at most"),
    "an empty tar": ((), "an empty tar"),
}


def read_all(path: Path) -> None:
    shard = open_shard(path)
    for key in shard.keys:
        shard.read(key)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_shard_is_a_typed_error(name: str, tmp_path: Path) -> None:
    members, message = HOSTILE[name]
    path = tar_of(tmp_path / "shard.tar", *members)
    with pytest.raises(ShardError, match=message) as error:
        read_all(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept_bytes", [0, 100, 512, 700, 2000])
def test_a_truncated_shard_is_a_typed_error(dataset: Path, tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "short.tar"
    path.write_bytes(first_shard(dataset).read_bytes()[:kept_bytes])
    with pytest.raises(ShardError, match=r"short\.tar"):
        open_shard(path)


def test_a_compressed_or_foreign_file_is_a_typed_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.json"))
    (tmp_path / "b.tar").write_bytes(np.random.default_rng(0).bytes(5000))
    for name in ("a.tar", "b.tar", "missing.tar", "."):
        with pytest.raises(ShardError):
            open_shard(tmp_path / name)
    result = tessera("inspect", str(tmp_path / "b.tar"))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1


def test_damaged_bytes_never_raise_anything_else(dataset: Path, tmp_path: Path) -> None:
    sound = first_shard(dataset).read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "damaged.tar"
    for _ in range(200):
        damaged = bytearray(sound)
        for place in generator.integers(0, len(sound), 3):
            damaged[place] = int(generator.integers(0, 256))
        path.write_bytes(damaged)
        with contextlib.suppress(ShardError):
            read_all(path)
