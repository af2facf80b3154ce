"""Captioning inside a build: what has no other caption gets CoCa's, and the manifest says so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.build import build
from pipeline.clip import clips_from_parquet
from pipeline.config import BuildConfig, CaptionSettings


@pytest.mark.slow
def test_clips_without_a_caption_are_captioned_by_the_weights_named(
    coca_weights: Path,
    write_film: Callable[[Path, int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline import coca

    monkeypatch.setattr(coca, "MAX_TOKENS", 4)
    folder = tmp_path / "videos"
    write_film(folder / "plain.mp4", 1)
    write_film(folder / "described.mp4", 2)
    (folder / "described.txt").write_text("a square on its way")
    config = BuildConfig(
        sources=(str(folder),),
        out=str(tmp_path / "data"),
        executor="inline",
        captions=CaptionSettings(label="none", coca=True, coca_weights=str(coca_weights)),
    )
    build(config, "select")
    rows = clips_from_parquet(tmp_path / "data" / "selection.parquet")
    kept = {row.uri: row for row in rows if row.outcome == "kept"}
    digest = hashlib.sha256(coca_weights.read_bytes()).hexdigest()
    assert kept["described.mp4"].caption_by == "sidecar"
    assert kept["described.mp4"].caption == "a square on its way"
    assert kept["plain.mp4"].caption_by == f"coca:coca_ViT-B-32:{digest}"
    assert kept["plain.mp4"].caption is not None
    monkeypatch.setattr("pipeline.coca.load_captioner", lambda *_: pytest.fail("loaded again"))
    build(config, "select")
