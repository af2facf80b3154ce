"""A whole build on real, odd and broken videos: it finishes, names every file, and stays small."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.clip import clips_from_parquet
from pipeline.decode.errors import DecodeErrorKind
from pipeline.sources.endings import media_kind

pytestmark = [pytest.mark.corpus, pytest.mark.ray, pytest.mark.slow]

MAX_BYTES = 4 << 30
EXPECTED = {
    "e3b0c44298fc1c14": {"error:open"},  # zero_byte.mp4
    "5ddbb90ebe8eedbe": {"error:too_large"},  # bomb_16384x8192.mp4
    "cd38a806e4a87690": {"error:no_video"},  # audio_only.mp4
    "8ba80982ec0b5b53": {"kept", "error:corrupt"},  # truncated_faststart.mp4
    "53705221cac65086": {"kept"},  # nasa_13013.mp4
}
"""What some files come to, by the begin of their SHA-256."""


@pytest.fixture(scope="module")
def built(
    shared_videos: Path, random_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """The dataset that the command makes of the folder, and the peak memory of all processes."""
    out = tmp_path_factory.mktemp("real") / "data"
    command = [
        *(sys.executable, "-m", "pipeline", "build", "demo"),
        *("--sources", json.dumps([str(shared_videos)]), "--out", str(out)),
        *("--tokenize.tokenizer", str(random_tokenizer)),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(_memory_bytes, _below(process.pid))))
        time.sleep(0.5)
    assert process.returncode == 0, process.stderr and process.stderr.read()
    return out, peak


def test_every_file_is_kept_dropped_or_an_error_with_its_reason(
    built: tuple[Path, int], shared_videos: Path
) -> None:
    outcomes = defaultdict(set)
    for row in clips_from_parquet(built[0] / "manifest.parquet"):
        outcomes[row.uri].add(row.outcome)
    with open(shared_videos / "MANIFEST.csv", newline="") as file:
        listed = {row["file"]: row["sha256"][:16] for row in csv.DictReader(file)}
    listed = {name: digest for name, digest in listed.items() if media_kind(name)}
    assert set(listed) <= set(outcomes)
    kinds = {f"error:{kind}" for kind in DecodeErrorKind.__args__}
    for name in listed:
        for outcome in outcomes[name]:
            assert outcome == "kept" or outcome.startswith("dropped:") or outcome in kinds
    for name, digest in listed.items():
        assert outcomes[name] >= EXPECTED.get(digest, set()), name


def test_all_its_processes_together_stay_below_four_gigabytes(built: tuple[Path, int]) -> None:
    assert 100 << 20 < built[1] < MAX_BYTES


def _below(pid: int) -> Iterator[int]:
    """The process and all that descend from it."""
    children = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children[int(fields[1])].append(int(path.parent.name))
    family = [pid]
    for each in family:
        family += children[each]
    return iter(family)


def _memory_bytes(pid: int) -> int:
    """Proportional set size: shared pages are counted once over all processes."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    lines = [line for line in text.splitlines() if line.startswith("Pss:")]
    return 1024 * int(lines[0].split()[1]) if lines else 0
