"""Documentation that lies fails: every command shown parses, every file and key named exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipeline.cli import _parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *(ROOT / "docs").glob("*.md")],
    key=lambda path: str(path),
)
_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def shown_commands(page: Path) -> list[str]:
    """The `$ tessera ...` lines of a page, comments cut, continued lines joined."""
    found = []
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ tessera"):
                found.append(line[2:])
    return found


COMMANDS = [(page, command) for page in PAGES for command in shown_commands(page)]


def test_the_readme_begins_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = _BLOCK.search(text)
    assert first is not None
    assert [line.split("  ")[0] for line in first[1].splitlines()] == ["$ make demo", "$ make test"]
    assert text.index("```console") < 300


def test_every_package_has_a_readme_that_shows_commands() -> None:
    for package in ("pipeline", "tokenizer", "training"):
        assert shown_commands(ROOT / package / "README.md"), package


@pytest.mark.parametrize(
    ("page", "command"), COMMANDS, ids=[f"{page.parent.name}/{c}" for page, c in COMMANDS]
)
def test_every_command_shown_is_one_that_the_program_takes(page: Path, command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    if "--help" in words:
        words.remove("--help")
        words = words or ["build", "x.yaml"]
    arguments = _parser().parse_args(words)
    assert callable(arguments.run)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


PACKAGES = (
    "pipeline",
    "pipeline/inspection",
    "pipeline/shards",
    "pipeline/sources",
    "pipeline/upkeep",
)


@pytest.mark.parametrize("package", [*PACKAGES, "tokenizer", "training"])
def test_every_room_of_a_package_is_in_its_map(package: str) -> None:
    described = (ROOT / package / "__init__.py").read_text(encoding="utf-8")
    rooms = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__", "__main__"}
    rooms |= {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    missing = {room for room in rooms if not re.search(rf"\b{room}\b", described)}
    assert not missing
