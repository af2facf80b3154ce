"""docs/decoding.md, run: its example works, its tables name what there is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from pipeline.decode import Library
from pipeline.decode.decoder import DecodeLimits, DecodeSettings, Probe
from pipeline.decode.errors import DecodeErrorKind
from pipeline.isolation import Death

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "decoding.md").read_text(encoding="utf-8")


def test_the_example_runs(
    write_film: Callable[[Path, int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_film(tmp_path / "film.mp4", 3)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["some"].pixels.shape == (3, 128, 128, 3)
    shapes, *seconds = capsys.readouterr().out.splitlines()
    assert shapes.endswith(", 128, 128, 3)")
    assert float(seconds[0]) == 0


def test_every_class_that_a_file_may_end_in_is_in_the_table() -> None:
    section = PAGE[PAGE.index("| class | when |") : PAGE.index("`decode.damage` says")]
    named = {
        name
        for row in section.splitlines()[2:]
        for name in re.findall(r"`(\w+)`", row.split("|")[1] if row else "")
    }
    deaths = get_args(get_type_hints(Death)["kind"])
    assert named == {*get_args(DecodeErrorKind), *deaths}


def test_settings_and_facts_that_the_page_names_exist() -> None:
    known = {f"decode.{field.name}" for field in fields(DecodeSettings)}
    known |= {f"limits.{field.name}" for field in fields(DecodeLimits)}
    assert set(re.findall(r"`((?:decode|limits)\.\w+)", PAGE)) <= known
    facts = {field.name for field in fields(Probe)}
    table = PAGE[PAGE.index("| what | what is shown") : PAGE.index("## Damage")]
    for row in table.splitlines()[2:]:
        cells = row.split("|")
        if len(cells) > 3:
            named = set(re.findall(r"`(\w+)", cells[3])) - {"image", "blended", "dropped"}
            assert named <= facts
    for library in get_args(Library):
        assert f"`{library}`" in PAGE or f"decoder: {library}" in PAGE
