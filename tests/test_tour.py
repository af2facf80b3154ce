"""The README's tour, run: each command that it shows, in order, on a small folder."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHORT = {
    "build": ["--executor", "inline"],
    "tokenizer train": ["--trainer.num_steps", "4", "--trainer.global_batch_size", "4"],
    "train": ["--trainer.num_steps", "4", "--trainer.global_batch_size", "4"],
    "sample": ["--max_prompts", "2"],
    "evaluate": ["--judge.num_steps", "4", "--num_samples", "8", "--num_shown", "2"],
    "stats": [],
}


def tour() -> list[list[str]]:
    """The commands of the section "step by step", as words without `tessera`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("step by step", 1)[1]
    block = re.search(r"```console\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [shlex.split(line.removeprefix("$ "))[1:] for line in block[1].splitlines()]


@pytest.mark.slow
def test_the_commands_of_the_readme_run_one_after_the_other(
    small_videos: Path, tmp_path: Path
) -> None:
    ran = []
    for words in tour():
        name = " ".join(words[:2]) if words[0] == "tokenizer" else words[0]
        own = [
            word.replace("runs/demo/videos", str(small_videos)).replace("runs/demo", str(tmp_path))
            for word in words
        ]
        command = [sys.executable, "-m", "pipeline", *own, *SHORT[name]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        ran.append(name)
    assert ran == ["build", "tokenizer train", "build", "train", "sample", "evaluate", "stats"]
    assert (tmp_path / "data" / "_SUCCESS").exists()
    assert (tmp_path / "data" / "report.html").exists()
    assert len(list((tmp_path / "run" / "samples").glob("*.mp4"))) == 2
    assert (tmp_path / "run" / "samples" / "contact_sheet.png").exists()
    summary = json.loads((tmp_path / "run" / "evaluation.json").read_text())["summary"]
    assert summary["method"] == "arpg"
    assert summary["bits_per_clip"] > 0
    assert 0 <= summary["copy_share"] <= 1
