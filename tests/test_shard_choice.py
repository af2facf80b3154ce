"""Which samples of a dataset are seen, and with what: filters, captions, removals, companions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shards import Bucket, Samples, ShardError, TokenSet, open_dataset
from pipeline.shards.dataset_writer import DatasetWriter
from pipeline.shards.where import matching_rows
from tokenizer.scales import image_and_clip
from tokenizer.settings import UserError

SCHEDULE = image_and_clip(3, (1, 2))
CODES = TokenSet(name="codes", kind="codes", dtype="uint16", codebook_size=512)
BITS = TokenSet(name="packed", kind="codes", dtype="bits", codebook_size=5000)
WIDE = TokenSet(name="wide", kind="codes", dtype="uint32", codebook_size=2**20)
LATENTS = TokenSet(name="latents", kind="latents", dtype="float16")
CLIP = Bucket(
    name="t9_h64_w64",
    num_frames=9,
    height=64,
    width=64,
    schedule=SCHEDULE,
    schedules={"packed": SCHEDULE, "wide": SCHEDULE},
)
NUM_SAMPLES = 23
PER_SHARD = 5


def sample_arrays(number: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(number)
    return {
        "codes": np.full(SCHEDULE.num_tokens, number, dtype=np.uint16),
        "packed": random.integers(0, 5000, SCHEDULE.num_tokens),
        "wide": random.integers(0, 2**20, SCHEDULE.num_tokens).astype(np.uint32),
        "latents": random.normal(size=(3, 8, 8, 4)).astype(np.float16),
    }


def write(root: Path, sets: list[TokenSet], order: list[int], split: str = "train") -> Path:
    with DatasetWriter(root, sets, [CLIP], samples_per_shard=PER_SHARD) as writer:
        for number in order:
            arrays = {each.name: sample_arrays(number)[each.name] for each in sets}
            metadata = {"number": number, "caption": "as built", "clip_id": f"id{number}"}
            writer.write(f"clip_{number:04d}", arrays, metadata, split=split)
    return root


def write_manifest(root: Path, **columns: list[Any]) -> Path:
    count = len(next(iter(columns.values())))
    shards = [f"parts/train-t9_h64_w64-{i // PER_SHARD:06d}.tar" for i in range(count)]
    rows = [i % PER_SHARD for i in range(count)]
    ids = [f"id{i}" for i in range(count)]
    table = pa.table({"shard": shards, "row": rows, "clip_id": ids, **columns})
    pq.write_table(table, root / "manifest.parquet")
    return root


def numbers(samples: Samples) -> list[int]:
    return samples.gather(np.arange(len(samples)))[:, 0].tolist()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data", [CODES], list(range(NUM_SAMPLES)))


def test_a_filter_keeps_the_samples_that_match(data: Path) -> None:
    motion = [None if i % 4 == 0 else float(i) for i in range(NUM_SAMPLES)]
    label = [None if i % 5 == 0 else ("cat", "dog", "emu")[i % 3] for i in range(NUM_SAMPLES)]
    write_manifest(data, motion=motion, label=label)
    dataset = open_dataset(data, where="motion > 6.5 and label in ('cat', 'dog')")
    expected = [i for i in range(7, NUM_SAMPLES) if i % 4 and i % 5 and i % 3 != 2]
    samples = dataset.samples("train")
    assert numbers(samples) == expected
    assert samples.shard_counts.sum() == len(expected) == len(samples)
    assert [each["number"] for each in samples.metadata([2, 0])] == [expected[2], expected[0]]
    assert dataset.fingerprint != open_dataset(data).fingerprint
    nothing = open_dataset(data, where="motion > 100")
    with pytest.raises(UserError, match="no sample of split 'train' in bucket t9_h64_w64 is left"):
        nothing.samples("train")


VALUES = st.one_of(st.none(), st.integers(-5, 5).map(float))
LABELS = st.one_of(st.none(), st.sampled_from(["a", "b", "c"]))
COMPARISON = st.one_of(
    st.builds("{} {} {}".format, st.sampled_from(["x", "y"]),
              st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), st.integers(-5, 5)),
    st.sampled_from(["label == 'a'", "label in ('a', 'b')", "label not in ('a',)", "-1 < x <= 3",
                     "x + y > 1", "x == -y", "x * 2 < y - 1", "'a' != label"]),
)  # fmt: skip
EXPRESSION = st.recursive(
    COMPARISON,
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("(not {})".format, inner),
    ),
    max_leaves=6,
)


def slowly(expression: str, row: dict[str, Any]) -> bool | None:
    """The expression on one row in three-valued logic, by Python's own tree."""
    import ast

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.BoolOp):
            found = [value(each) for each in node.values]
            decisive = isinstance(node.op, ast.Or)
            if decisive in found:
                return decisive
            return None if None in found else not decisive
        if isinstance(node, ast.UnaryOp):
            inner = value(node.operand)
            if inner is None:
                return None
            return not inner if isinstance(node.op, ast.Not) else -inner
        if isinstance(node, ast.BinOp):
            left, right = value(node.left), value(node.right)
            if left is None or right is None:
                return None
            return {ast.Add: left + right, ast.Sub: left - right, ast.Mult: left * right}[
                type(node.op)
            ]
        if isinstance(node, ast.Compare):
            sides = [value(each) for each in (node.left, *node.comparators)]
            results = []
            for left, op, right in zip(sides, node.ops, sides[1:]):
                known = left is not None and right is not None
                name = type(op).__name__
                results.append(eval(_PYTHON[name], {}, {"a": left, "b": right}) if known else None)
            return False if False in results else (None if None in results else True)
        if isinstance(node, ast.Tuple):
            return tuple(value(each) for each in node.elts)
        return row[node.id] if isinstance(node, ast.Name) else node.value  # type: ignore[attr-defined]

    return value(ast.parse(expression, mode="eval").body)


_PYTHON = {
    "Lt": "a < b",
    "LtE": "a <= b",
    "Gt": "a > b",
    "GtE": "a >= b",
    "Eq": "a == b",
    "NotEq": "a != b",
    "In": "a in b",
    "NotIn": "a not in b",
}


@given(rows=st.lists(st.tuples(VALUES, VALUES, LABELS), min_size=1, max_size=12), text=EXPRESSION)
@settings(max_examples=60, deadline=None)
def test_a_filter_means_what_it_means_row_by_row(
    rows: list[tuple[Any, Any, Any]], text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    schema = pa.schema(
        {
            "shard": pa.string(),
            "row": pa.int64(),
            "x": pa.float64(),
            "y": pa.float64(),
            "label": pa.string(),
        }
    )
    table = [
        {"shard": f"{i % 2}.tar", "row": i, "x": x, "y": y, "label": label}
        for i, (x, y, label) in enumerate(rows)
    ]
    path = tmp_path_factory.getbasetemp() / "filtered.parquet"
    pq.write_table(pa.Table.from_pylist(table, schema=schema), path)
    found = matching_rows(path, text)
    expected = [row["row"] for row in table if slowly(text, row) is True]
    assert sorted(int(row) for each in found.values() for row in each) == expected
    assert all(shard == f"{row % 2}.tar" for shard, each in found.items() for row in each)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("movement > 1", "no column 'movement'; there are clip_id, label, motion, row, shard"),
        ("motion >", "not an expression"),
        ("motion.real > 1", "'motion.real' is not allowed"),
        ("__import__('os').system('true')", "is not allowed"),
        ("(lambda: 1)()", "is not allowed"),
        ("motion ** 2 > 1", "is not allowed"),
        ("label in motion", "`in` needs at most"),
        ("label > 3", "where"),
        ("label and motion", "where"),
        ("not " * 2000 + "motion > 1", "where"),
        ("(" * 300 + "motion" + ")" * 300 + " > 1", "not an expression"),
    ],
)
def test_what_is_no_filter_is_refused(data: Path, where: str, message: str) -> None:
    write_manifest(data, motion=[1.0] * NUM_SAMPLES, label=["a"] * NUM_SAMPLES)
    with pytest.raises(UserError, match=message):
        open_dataset(data, where=where)


def test_a_filter_without_a_manifest_and_rows_out_of_range_are_errors(data: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.parquet, which `where` reads"):
        open_dataset(data, where="motion > 1")
    table = pa.table({"shard": ["parts/train-t9_h64_w64-000000.tar"], "row": [5], "motion": [2.0]})
    pq.write_table(table, data / "manifest.parquet")
    with pytest.raises(ShardError, match="name rows behind the 5 of parts/train"):
        open_dataset(data, where="motion > 1").samples("train")


@pytest.mark.parametrize("column", ["clip_id", "key"])
def test_captions_of_a_parquet_replace_those_of_the_shards(
    data: Path, tmp_path: Path, column: str
) -> None:
    chosen = [3, 17]
    names = [f"id{i}" if column == "clip_id" else f"clip_{i:04d}" for i in chosen]
    path = tmp_path / "new.parquet"
    pq.write_table(pa.table({column: names, "caption": ["three", "seventeen"]}), path)
    dataset = open_dataset(data, captions=path)
    found = dataset.samples("train").metadata([17, 4, 3])
    assert [each["caption"] for each in found] == ["seventeen", "as built", "three"]
    assert [each.get("caption_by") for each in found] == ["new.parquet", None, "new.parquet"]
    assert dataset.fingerprint != open_dataset(data).fingerprint


def test_captions_that_are_none_or_fit_nothing_are_refused(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.parquet"
    with pytest.raises(UserError, match="no such file"):
        open_dataset(data, captions=path)
    pq.write_table(pa.table({"name": ["a"], "caption": ["b"]}), path)
    with pytest.raises(UserError, match="captions need clip_id or key, and caption"):
        open_dataset(data, captions=path)
    pq.write_table(pa.table({"clip_id": ["a", "a"], "caption": ["b", "c"]}), path)
    with pytest.raises(UserError, match="the same clip_id has several captions"):
        open_dataset(data, captions=path)
    write_manifest(data, motion=[1.0] * NUM_SAMPLES)
    pq.write_table(pa.table({"clip_id": ["a"], "caption": ["b"]}), path)
    with pytest.raises(UserError, match="no clip_id in it is one of"):
        open_dataset(data, captions=path)
    path.write_bytes(b"PAR1 no parquet")
    with pytest.raises(UserError, match="not a parquet"):
        open_dataset(data, captions=path)


def bury(data: Path, rows: Any, version: int = 1) -> None:
    text = json.dumps({"version": version, "source_ids": ["s"], "rows": rows})
    (data / "_removed").mkdir(exist_ok=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    (data / "_removed" / f"{name}.json").write_text(text)


def test_removed_samples_are_left_out_from_the_moment_they_are(data: Path) -> None:
    before = open_dataset(data)
    bury(data, {"parts/train-t9_h64_w64-000001.tar": [0, 3]})
    bury(data, {"parts/train-t9_h64_w64-000001.tar": [3], "parts/gone.tar": [1]})
    dataset = open_dataset(data)
    assert numbers(dataset.samples("train")) == [i for i in range(NUM_SAMPLES) if i not in (5, 8)]
    assert dataset.fingerprint != before.fingerprint
    write_manifest(data, motion=[float(i) for i in range(NUM_SAMPLES)])
    assert numbers(open_dataset(data, where="motion < 7").samples()) == [0, 1, 2, 3, 4, 6]


@pytest.mark.parametrize(
    ("rows", "version"), [({}, 2), ([1], 1), ({"a": [-1]}, 1), ({"a": "x"}, 1), ({"a": [[1]]}, 1)]
)
def test_a_damaged_tombstone_is_an_error(data: Path, rows: Any, version: int) -> None:
    bury(data, rows, version)
    with pytest.raises(ShardError, match="_removed/"):
        open_dataset(data)


@pytest.mark.parametrize("token_set", [CODES, BITS, WIDE, LATENTS])
def test_every_token_set_of_a_sample_is_read_as_it_was_written(
    tmp_path: Path, token_set: TokenSet
) -> None:
    data = write(tmp_path / "data", [CODES, BITS, WIDE, LATENTS], list(range(NUM_SAMPLES)))
    wanted = [20, 3, 3, 11]
    found = open_dataset(data).samples("train").gather(wanted, token_set.name)
    expected = np.stack([sample_arrays(number)[token_set.name] for number in wanted])
    assert np.array_equal(found, expected)
    packed = {"packed": np.uint16, "wide": np.uint32, "latents": np.float16, "codes": np.uint16}
    assert found.dtype == packed[token_set.name]


def test_a_companion_gives_its_token_set_of_the_same_samples(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(NUM_SAMPLES).tolist()
    codes = write(tmp_path / "codes", [CODES], list(range(NUM_SAMPLES)))
    latents = write(tmp_path / "latents", [LATENTS], [*order, 77], split="other")
    samples = open_dataset(codes, companions=[latents]).samples("train")
    wanted = [22, 0, 7, 0]
    expected = np.stack([sample_arrays(number)["latents"] for number in wanted])
    assert np.array_equal(samples.gather(wanted, "latents"), expected)
    assert samples.gather(wanted)[:, 0].tolist() == wanted
    with pytest.raises(UserError, match="no token set 'depth'; there are codes, latents"):
        samples.gather(wanted, "depth")


def test_a_companion_without_some_samples_is_refused_with_their_number(tmp_path: Path) -> None:
    codes = write(tmp_path / "codes", [CODES], list(range(NUM_SAMPLES)))
    latents = write(tmp_path / "latents", [LATENTS], list(range(2, NUM_SAMPLES - 1)))
    with pytest.raises(UserError, match=r"3 of 23 samples .* are not in it \(the first is clip_00"):
        open_dataset(codes, companions=[latents]).samples("train")
    with pytest.raises(UserError, match="two datasets both have a token set 'codes'"):
        open_dataset(codes, companions=[codes]).samples("train")
