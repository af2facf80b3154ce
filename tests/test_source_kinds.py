"""Kinds of sources: the same files make the same shards, however a build is given them."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.build import build
from pipeline.clip import clips_from_parquet
from pipeline.commit import Store
from pipeline.config import BuildConfig, ClipSettings, SelectSettings, TokenizeSettings
from pipeline.plan import read_plan
from tests.conftest import moving_square, write_mp4
from tests.web import Web, serving

CAPTIONS: dict[str, dict] = {
    "cat/a.mp4": {
        "label": "cat",
        "license": "CC0",
        "clips": [
            {"start_seconds": 0.0, "end_seconds": 1.2, "caption": "first", "label": "cat",
             "attributes": {"city": "Oslo"}},
            {"start_seconds": 1.2, "end_seconds": 2.5, "caption": "then", "label": "cat",
             "attributes": {"city": "Oslo"}},
        ],
    },
    "dog/b.mp4": {"caption": "a dog", "label": "dog"},
    "dog/c.png": {"caption": "a still", "label": "dog"},
}  # fmt: skip


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films and a picture, each with its sidecar."""
    folder = tmp_path_factory.mktemp("films")
    first = np.concatenate([moving_square(30, 1), moving_square(30, 2)])
    write_mp4(folder / "cat" / "a.mp4", first)
    write_mp4(folder / "dog" / "b.mp4", moving_square(30, 3))
    Image.fromarray(moving_square(1, 9)[0]).save(folder / "dog" / "c.png")
    for name, facts in CAPTIONS.items():
        (folder / name).with_suffix(".json").write_text(json.dumps(facts))
    return folder


def tar_of(folder: Path, tar: Path, only: str = "") -> Path:
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as file:
        for path in sorted(folder.rglob("*.*")):
            name = path.relative_to(folder).as_posix()
            if name.startswith(only):
                file.add(path, name)
    return tar


def rows_of_files() -> list[dict]:
    """What the sidecars say, as rows of a manifest."""
    rows = []
    for name, facts in CAPTIONS.items():
        for span in facts.get("clips") or [facts]:
            row = {"file": name, "license": facts.get("license")} | span
            rows.append(row | row.pop("attributes", {}))
    return rows


def write_table(path: Path) -> Path:
    rows = rows_of_files()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict.fromkeys(columns) | row for row in rows]), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    return path


def config(sources: list[str], out: Path, tokenizer: Path) -> BuildConfig:
    return BuildConfig(
        sources=tuple(sources),
        out=str(out),
        executor="inline",
        clips=ClipSettings(buckets=("9x32x32", "1x32x32")),
        select=SelectSettings(drop={}, val_share=0.3),
        tokenize=TokenizeSettings(tokenizer=str(tokenizer), batch_size=4),
    )


def shards(root: Path) -> dict[str, str]:
    """Shards, and the tables that say what is in them, by content."""
    files = [*sorted((root / "parts").iterdir()), root / "manifest.parquet", root / "index.bin"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def built(films: Path, random_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "data"
    build(config([str(films)], out, random_tokenizer))
    return out


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    folder = tmp_path / "web"
    folder.mkdir()
    with serving(folder) as web:
        yield web


def as_manifest(ending: str) -> Callable[..., list[str]]:
    def given(films: Path, tmp_path: Path, **_: object) -> list[str]:
        copy = shutil.copytree(films, tmp_path / "copy", ignore=shutil.ignore_patterns("*.json"))
        return [str(write_table(copy / f"all{ending}"))]

    return given


def as_tar(films: Path, tmp_path: Path, **_: object) -> list[str]:
    return [str(tar_of(films, tmp_path / "all.tar"))]


def as_tars_in_braces(films: Path, tmp_path: Path, **_: object) -> list[str]:
    tar_of(films, tmp_path / "00.tar", "cat")
    tar_of(films, tmp_path / "01.tar", "dog")
    return [str(tmp_path / "{00..01}.tar")]


def as_globs(films: Path, **_: object) -> list[str]:
    return [f"{films}/*/a.mp4", f"file://{films}/*/[bc].*"]


def as_web_folder(films: Path, tmp_path: Path, web: Web) -> list[str]:
    shutil.copytree(films, tmp_path / "web" / "films")
    return [f"{web.url}/films"]


def as_web_tar(films: Path, tmp_path: Path, web: Web) -> list[str]:
    tar_of(films, tmp_path / "web" / "all.tar")
    return [f"{web.url}/all.tar?signature=x"]


def as_tar_of_a_simple_server(films: Path, tmp_path: Path, web: Web) -> list[str]:
    web.knows_ranges = False
    return as_web_tar(films, tmp_path, web)


def as_web_manifest(films: Path, tmp_path: Path, web: Web) -> list[str]:
    as_web_folder(films, tmp_path, web)
    write_table(tmp_path / "web" / "films" / "all.csv")
    return [f"{web.url}/films/all.csv"]


def put(films: Path, root: str) -> str:
    files, path = fsspec.core.url_to_fs(root)
    for file in films.rglob("*.*"):
        files.pipe_file(f"{path}/{file.relative_to(films).as_posix()}", file.read_bytes())
    return root


def in_memory(films: Path, tmp_path: Path, **_: object) -> list[str]:
    return [put(films, f"memory://{tmp_path.name}/films")]


GIVEN = [
    as_globs,
    as_manifest(".parquet"),
    as_manifest(".csv"),
    as_manifest(".jsonl"),
    as_tar,
    as_tars_in_braces,
    as_web_folder,
    as_web_tar,
    as_tar_of_a_simple_server,
    as_web_manifest,
    in_memory,
]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(GIVEN)), ids=lambda number: GIVEN[number].__qualname__)
def test_every_kind_gives_the_shards_of_the_folder(
    number: int, films: Path, built: Path, random_tokenizer: Path, tmp_path: Path, web: Web
) -> None:
    sources = GIVEN[number](films=films, tmp_path=tmp_path, web=web)
    build(config(sources, tmp_path / "data", random_tokenizer))
    rows = clips_from_parquet(tmp_path / "data" / "manifest.parquet")
    assert rows == clips_from_parquet(built / "manifest.parquet")
    tars = {name: digest for name, digest in shards(built).items() if "annotate" not in name}
    assert tars.items() <= shards(tmp_path / "data").items()


@pytest.mark.parametrize("kind", ["folder", "glob", "tar"])
def test_an_object_store_gives_the_shards_of_the_folder(
    kind: str, films: Path, built: Path, random_tokenizer: Path, tmp_path: Path, s3: str
) -> None:
    root = f"{s3}/{tmp_path.name}"
    if kind == "tar":
        files, path = fsspec.core.url_to_fs(root)
        files.pipe_file(f"{path}/a.tar", tar_of(films, tmp_path / "a.tar").read_bytes())
    else:
        put(films, f"{root}/films")
    sources = {"folder": f"{root}/films/", "glob": f"{root}/films/*/*.*", "tar": f"{root}/*.tar"}
    build(config([sources[kind]], tmp_path / "data", random_tokenizer))
    assert {name for name in shards(tmp_path / "data") if "annotate" not in name} == {
        name for name in shards(built) if "annotate" not in name
    }


def test_a_file_that_is_reached_three_ways_is_one_source(
    films: Path, built: Path, random_tokenizer: Path, tmp_path: Path, web: Web
) -> None:
    sources = [str(films), *as_tar(films, tmp_path), *as_web_folder(films, tmp_path, web)]
    build(config(sources, tmp_path / "data", random_tokenizer))
    plan = read_plan(Store(tmp_path / "data"))
    assert len(plan) == 9
    assert sum(row.skipped == "duplicate" for row in plan) == 6
    assert {name for name in shards(tmp_path / "data") if name.endswith(".tar")} == {
        name for name in shards(built) if name.endswith(".tar")
    }
