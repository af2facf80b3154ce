"""Manifests: tables of files, with the rules of sidecars; what is wrong is a line with its row."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.captions import parse_facts
from pipeline.sources import rows
from pipeline.sources.file import SourceFile
from pipeline.sources.listing import list_sources
from tokenizer.settings import UserError


@pytest.fixture(autouse=True)
def clips(tmp_path: Path) -> None:
    for name in ("a.mp4", "sub/b.mp4", "c.jpg"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def table(tmp_path: Path, content: str | bytes, name: str = "all.csv") -> str:
    path = tmp_path / "set" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def listed(tmp_path: Path, content: str | bytes, name: str = "all.csv") -> list[SourceFile]:
    return list_sources([table(tmp_path, content, name)])


def said(file: SourceFile) -> dict:
    return json.loads(file.facts) if file.facts else {}


@pytest.mark.parametrize("column", ["path", "file", "uri", "url", "video", "image", "FileName"])
def test_the_usual_names_of_the_column_are_known(tmp_path: Path, column: str) -> None:
    (file,) = listed(tmp_path, f"id,{column}\n7,a.mp4\n")
    assert (file.uri, file.location) == ("a.mp4", str(tmp_path / "set" / "a.mp4"))
    assert (file.kind, file.size_bytes) == ("video", 5)
    assert said(file) == {"attributes": {"id": "7"}}


def test_every_other_column_is_an_attribute_if_it_is_plain(tmp_path: Path) -> None:
    row = {"file": "a.mp4", "text": "a cat", "label": 3, "license": "CC0", "consent": "yes"}
    row |= {"fps": 23.5, "loud": True, "none": None, "boxes": [1, 2], "attributes": {"x": "y"}}
    (file,) = listed(tmp_path, json.dumps(row), "all.jsonl")
    facts = parse_facts(file.facts, "")
    assert (facts.license, facts.consent) == ("CC0", "yes")
    assert facts.for_span(0, 1) == ("a cat", "3", {"fps": "23.5", "loud": "true", "x": "y"})


def test_rows_of_one_file_describe_its_spans(tmp_path: Path) -> None:
    content = "file,caption,start_seconds,end_seconds,license\n"
    content += "a.mp4,one,0,1.5,CC0\nc.jpg,still,,,\na.mp4,two,1.5,3,CC0\na.mp4,all,,,\n"
    first, second = listed(tmp_path, content)
    facts = parse_facts(first.facts, "")
    captions = [facts.for_span(start, start + 1)[0] for start in (0, 2, 9)]
    assert (captions, facts.license) == (["one", "two", "all"], "CC0")
    assert said(second) == {"caption": "still"}


def test_the_same_rows_are_the_same_whatever_the_table(tmp_path: Path) -> None:
    content = [
        {"path": "a.mp4", "caption": "one, two\n three", "label": None, "start_seconds": 0.5,
         "end_seconds": 1.0, "town": "Zürich"},
        {"path": "sub/b.mp4", "caption": None, "label": "x", "start_seconds": None,
         "end_seconds": None, "town": None},
    ]  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, content[0])
    writer.writeheader()
    writer.writerows(content)
    binary = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(content), binary)
    lines = "\n".join(json.dumps(row) for row in content)
    kinds = [("a.csv", text.getvalue().encode()), ("a.parquet", binary.getvalue())]
    kinds += [("a.jsonl", lines.encode()), ("b.csv", b"\xef\xbb\xbf" + kinds[0][1])]
    first, *others = [listed(tmp_path, data, name) for name, data in kinds]
    assert all(each == first for each in others)
    assert [file.uri for file in first] == ["a.mp4", "sub/b.mp4"]


def test_a_large_parquet_is_read_in_batches(tmp_path: Path) -> None:
    number = 3 * rows._BATCH + 5
    paths = [f"{index:05d}.mp4" for index in range(number)]
    pq.write_table(pa.table({"path": paths}), tmp_path / "set" / "all.parquet")
    table_rows = rows.table_rows(tmp_path / "set" / "all.parquet", "all", ".parquet")
    assert [(where, row["path"]) for where, row in table_rows] == [
        (f"all, row {index + 1}", path) for index, path in enumerate(paths)
    ]


def test_a_row_whose_file_is_missing_is_an_error_of_that_file_alone(tmp_path: Path) -> None:
    missing, there = listed(tmp_path, "path\na.mp4\n_gone.mp4\n")
    assert (missing.uri, missing.error, there.problem) == ("_gone.mp4", "open", "")
    assert "_gone.mp4" in missing.problem
    with pytest.raises(UserError, match=r"gone\.mp4"):
        listed(tmp_path, "path\ngone.mp4\nlost.mp4\n")


def test_a_place_outside_of_the_manifests_folder_keeps_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "d.mp4").write_bytes(b"d")
    rows = [
        "path",
        str(tmp_path / "set" / "a.mp4"),
        str(tmp_path / "d.mp4"),
        f"file://{tmp_path}/set/c.jpg",
    ]
    assert [file.uri for file in listed(tmp_path, "\n".join(rows))] == [
        "a.mp4",
        "c.jpg",
        str(tmp_path / "d.mp4").lstrip("/"),
    ]
    (file,) = listed(tmp_path, "path\n../d.mp4\n")
    assert (file.uri, file.location) == ("d.mp4", str(tmp_path / "d.mp4"))


ELSEWHERE = ["/etc/x.mp4", "file:///etc/x.mp4", "local:///etc/x.mp4", "../../x.mp4"]


@pytest.mark.parametrize("place", ELSEWHERE)
def test_a_manifest_behind_a_url_names_no_files_of_this_machine(place: str, tmp_path: Path) -> None:
    with fsspec.open(f"memory://{tmp_path.name}/all.csv", "w") as file:
        file.write(f"path\n{place}\n")
    with pytest.raises(UserError, match=r"line 2, column path: .* lies elsewhere"):
        list_sources([f"memory://{tmp_path.name}/all.csv"])


HEADER = "path,caption,start_seconds,end_seconds,label\n"
WRONG = [
    ("all.csv", "name,caption\na.mp4,x\n", "no column names the files.*columns: name, caption"),
    ("all.csv", "path,url\na.mp4,b\n", "path and url could both name.*columns: path, url"),
    ("all.csv", "path,Path\na,b\n", "two columns are called 'path'"),
    ("all.csv", "path\n", "names no file"),
    ("all.csv", "", "names no file"),
    ("all.csv", HEADER + "a.mp4,x\n", "line 2: 2 cells, where the header has 5"),
    ("all.csv", HEADER + "a.mp4,x,,,\n,y,,,\n", "line 3, column path: None names no file"),
    ("all.csv", HEADER + "a.mp4,x,zero,1,\n", "line 2: .*start_seconds must be a number"),
    ("all.csv", HEADER + "a.mp4,x,1,,\n", "line 2: .*end_seconds must be a number"),
    ("all.csv", HEADER + "a.mp4,x,2,1,\n", r"line 2: .*end_seconds \(1\) must be after"),
    ("all.csv", HEADER + f"a.mp4,{'x' * 100_001},,,\n", "line 2: caption is longer than"),
    ("all.csv", HEADER + f"a.mp4,{'x' * 200_000},,,\n", "line 2: field larger"),
    ("all.csv", HEADER + "a.mp4,one,,,\na.mp4,two,,,\n", "line 3: an earlier row has another cap"),
    ("all.csv", HEADER + 'a.mp4,"one,,,\n', "line 2: unexpected end of data"),
    ("all.csv", "path\nhttp://a::b.mp4\n", "is no path or URL"),
    ("all.csv", "path\na\0.mp4\n", "is no path or URL"),
    ("all.csv", "path\nhttp://[b/a.mp4\n", "line 2, column path: .*not a URL"),
    ("all.csv", "path\nx.tar\n", "is a tar; name tars in sources"),
    ("all.csv", f"path\n{'a' * 5000}.mp4\n", "is no path or URL"),
    ("all.csv", b"path\ncaf\xe9.mp4\n", "line 2: not UTF-8"),
    ("all.csv", ",".join(map(str, range(2000))), "2000 columns; the limit is 1000"),
    ("all.jsonl", '{"path": "a.mp4"}\n[1]\n', "line 2: must be a mapping"),
    ("all.jsonl", '{"path": "a.mp4"}\n{"path": \n', "line 2: Expecting value"),
    ("all.jsonl", '{"path": "a.mp4"}\n\n{"file": "c.jpg"}\n', "line 3, column path: None names no"),
    ("all.jsonl", '{"path": 7}', "line 1, column path: 7 names no file"),
    ("all.jsonl", '{"path": "a.mp4", "caption": []}', "line 1: caption must be text"),
    ("all.jsonl", '{"path": "a.mp4", "clips": 3, "start_seconds": 0}', "clips must be a list"),
    ("all.jsonl", '{"path": "a.mp4", "clips": 3}', "line 1: clips must be a list"),
    ("all.jsonl", '{"path": "a.mp4", "attributes": [1]}', "line 1: attributes must be a mapping"),
    ("all.jsonl", '{"path": "a.mp4", "caption": "\\ud800"}', "line 1: .*surrogate"),
    ("all.jsonl", "[" * 100_000, "line 1: nested too deeply"),
    ("all.parquet", "path\na.mp4\n", "not a sound parquet file"),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG)
def test_what_is_wrong_is_one_line_with_its_row(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        listed(tmp_path, content, name)
    assert str(caught.value).startswith(str(tmp_path / "set" / name))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_line_without_end_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 1000)
    for name in ("all.csv", "all.jsonl"):
        with pytest.raises(UserError, match="line 1: longer than 1000 bytes"):
            listed(tmp_path, "x" * 1000, name)


def sound_tables() -> list[tuple[str, bytes]]:
    content = [{"path": f"{number}.mp4", "caption": "a cat", "n": number} for number in range(9)]
    binary = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(content), binary, write_page_checksum=True)
    lines = "".join(json.dumps(row) + "\n" for row in content)
    text = "path,caption\n" + "".join(f'{row["path"]},"{row["caption"]}"\n' for row in content)
    return [
        ("f.parquet", binary.getvalue()),
        ("f.jsonl", lines.encode()),
        ("f.csv", text.encode()),
    ]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_tables_are_read_or_are_errors_of_one_line(tmp_path: Path, data) -> None:
    name, sound = data.draw(st.sampled_from(sound_tables()))
    content = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    problem = ""
    try:
        listed(tmp_path, bytes(content), name)
    except UserError as error:
        problem = str(error)
    assert "\n" not in problem


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-9, 9) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["caption", "start_seconds", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)
KEYS = ["caption", "text", "label", "license", "clips", "attributes", "start_seconds", "x", "url"]


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), max_size=3))
def test_any_rows_are_a_manifest_or_an_error_of_one_line(tmp_path: Path, said) -> None:
    content = "".join(json.dumps({"path": "a.mp4", "end_seconds": 2} | row) + "\n" for row in said)
    problem = ""
    try:
        for file in listed(tmp_path, content, "all.jsonl"):
            parse_facts(file.facts, "").for_span(0.0, 1.0)
    except UserError as error:
        problem = str(error)
    assert "\n" not in problem
