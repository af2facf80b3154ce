"""SQL over a dataset: three tables, and nothing else of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.inspection.sql import query
from tokenizer.settings import UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sql") / "data"
    (root / "_commits").mkdir(parents=True)
    outcomes = ["kept"] * 6 + ["dropped:too_static"] * 3 + ["error:open"]
    motion = [float(index) for index in range(9)] + [None]
    pq.write_table(pa.table({"outcome": outcomes, "motion": motion}), root / "manifest.parquet")
    for number in range(3):
        record = {
            "unit": f"tokenize-{number}",
            "result": {
                "phase": "tokenize",
                "n_in": 10,
                "parts": [{"path": f"parts/{number}.tar", "size_bytes": 7}],
            },
            "run": {"host": "here", "seconds": 1.5},
        }
        (root / "_commits" / f"tokenize-{number}.json").write_text(json.dumps(record))
    return root


def test_a_question_is_answered(dataset: Path) -> None:
    sql = "select outcome, count(*) as n, avg(motion) from manifest group by outcome order by n"
    result = query(dataset, sql)
    assert result.columns == ["outcome", "n", "avg(motion)"]
    assert result.rows == [
        ("error:open", 1, None),
        ("dropped:too_static", 3, 7.0),
        ("kept", 6, 2.5),
    ]
    work = query(dataset, "with c as (from commits) select sum(seconds), max(shard) from c")
    assert work.rows == [(4.5, "parts/2.tar")]


def test_the_command_prints_a_table_or_json(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sql = "select count(*) as clips, 'a' || chr(27) as text from manifest"
    assert main(["stats", str(dataset), "--sql", sql]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["clips", "text"]
    assert main(["stats", str(dataset), "--sql", sql, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"clips": 10, "text": "a\x1b"}]


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_csv('/etc/passwd')",
        "select * from read_text('{root}/manifest.parquet')",
        "select * from '{root}/manifest.parquet'",
        "select * from glob('/*')",
        "select * from read_parquet('http://127.0.0.1:9/x.parquet')",
        "copy manifest to '{root}/stolen.csv'",
        "copy (select 1) to '{root}/stolen.parquet'",
        "attach '{root}/stolen.db'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "set memory_limit = '900GB'",
        "create table t as select 1",
        "select 1; copy manifest to '{root}/stolen.csv'",
        "pragma enable_external_access",
        "export database '{root}/stolen'",
        "select * from sniff_csv('/etc/passwd')",
        "select",
        "",
        "\x00",
    ],
)
def test_nothing_else_is_reached(dataset: Path, sql: str) -> None:
    before = sorted(dataset.parent.rglob("*"))
    with pytest.raises(UserError) as error:
        query(dataset, sql.format(root=dataset))
    assert str(error.value).startswith("--sql")
    assert "\n" not in str(error.value)
    assert sorted(dataset.parent.rglob("*")) == before


def test_a_question_that_takes_too_long_or_too_much_is_stopped(dataset: Path) -> None:
    with pytest.raises(UserError, match=r"stopped after 0\.5 s"):
        query(dataset, "select count(*) from range(1000000000000) a, manifest", seconds=0.5)
    greedy = "select list(a.range order by hash(a.range)) from range(100000000) a"
    with pytest.raises(UserError, match="Out of Memory"):
        query(dataset, greedy, memory_bytes=64 << 20)


def test_what_is_not_there_is_one_line(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no shards\.json; the build is not finished"):
        query(dataset, "select * from shards")
    with pytest.raises(UserError, match="is it a dataset"):
        query(tmp_path, "select * from manifest")
    with pytest.raises(UserError, match="does not exist"):
        query(dataset, "select * from clips")
