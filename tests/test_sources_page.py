"""docs/sources.md, run: its lists are listed, its tables are read, its words are true."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from pipeline.config import BuildConfig
from pipeline.sources.braces import expand_braces
from pipeline.sources.endings import IMAGE_ENDINGS, VIDEO_ENDINGS
from pipeline.sources.file import SourceFile
from pipeline.sources.listing import list_sources
from pipeline.sources.location import is_url
from pipeline.sources.manifest import FILE_COLUMNS
from tests.test_source_tars import write_tar
from tokenizer.settings import from_dict

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "sources.md").read_text(encoding="utf-8")


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[number]


@pytest.fixture
def collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = ["films/cat.mp4", "films/dog.mp4", "stills/sunrise.png", "takes/1/clip-1.mp4"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "shards").mkdir()
    for number in range(2):
        write_tar(tmp_path / "shards" / f"{number:02d}.tar", {f"{number}.webm": b"x"})
    (tmp_path / "web.csv").write_text(block("csv"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_entry_that_the_page_shows_lists_something(collection: Path) -> None:
    config = from_dict(BuildConfig, yaml.safe_load(block("yaml")) | {"out": "data"}, "page")
    for entry in config.sources:
        assert list_sources([entry]), entry
    assert len(list_sources(config.sources)) == 6


def test_every_url_that_the_page_shows_is_one() -> None:
    for entry in yaml.safe_load(block("yaml", 1))["sources"]:
        assert all(is_url(each) for each in expand_braces(entry))


def test_both_tables_of_the_page_say_the_same(collection: Path) -> None:
    (collection / "web.jsonl").write_text(block("jsonl"))

    def told(files: list[SourceFile]) -> list[dict]:
        return [json.loads(file.facts) for file in files]

    of_csv, of_jsonl = (told(list_sources([name])) for name in ("web.csv", "web.jsonl"))
    assert of_csv[0] == of_jsonl[0]
    assert of_csv[1] == of_jsonl[1]


def test_the_page_names_what_the_program_knows() -> None:
    for ending in VIDEO_ENDINGS + IMAGE_ENDINGS:
        assert ending in PAGE
    row = next(line for line in PAGE.splitlines() if line.startswith("| one of"))
    for column in FILE_COLUMNS:
        assert set(column.split("_")) <= set(re.findall(r"[a-z]+", row.lower())), column
