"""Sheet and audit: codes are decoded beside their sources, and a bad dataset is found out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.build import build, build_pixels
from pipeline.cli import main
from pipeline.config import BuildConfig, SelectSettings, TokenizeSettings
from pipeline.inspection.audit import audit_dataset
from pipeline.inspection.reconstruction import BEST_PSNR, compare
from pipeline.inspection.sheet import write_sheet
from tokenizer.settings import UserError


@pytest.fixture(scope="module")
def settings(
    small_videos: Path, random_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> BuildConfig:
    """A finished build with codes of a tokenizer that has learned nothing."""
    out = tmp_path_factory.mktemp("audit") / "data"
    tokenize = TokenizeSettings(
        tokenizer=str(random_tokenizer), samples_per_shard=8, batch_size=4, threads=1
    )
    config = BuildConfig(
        sources=(str(small_videos),),
        out=str(out),
        executor="inline",
        num_cpus=2,
        select=SelectSettings(val_share=0.3),
        tokenize=tokenize,
    )
    build(config)
    return config


@pytest.fixture(scope="module")
def built(settings: BuildConfig) -> Path:
    return Path(settings.out)


@pytest.fixture(scope="module")
def pixels(settings: BuildConfig, built: Path) -> Path:
    """Pixel shards of the same build, with the plan that names their sources."""
    folder = Path(build_pixels(settings))
    shutil.copy(built / "plan.parquet", folder)
    return folder


@pytest.mark.usefixtures("another_process")
def test_pixel_shards_show_exactly_what_their_sources_show(pixels: Path) -> None:
    comparisons = compare(pixels, num_samples=6, seed=1)
    assert {each.psnr for each in comparisons} == {BEST_PSNR}
    assert len({each.metadata["key"] for each in comparisons}) == 6


def test_codes_are_decoded_by_their_own_tokenizer_and_encode_to_themselves(built: Path) -> None:
    comparisons = compare(built, num_samples=100, seed=0)
    assert len(comparisons) == 19  # all there are: 6 files of 3 clips, and a still
    assert {each.bucket for each in comparisons} == {"t9_h64_w64", "t1_h64_w64"}
    for each in comparisons:
        assert each.original is not None
        assert each.decoded.shape == each.original.shape
        error = np.mean((each.decoded.astype(float) - each.original) ** 2, axis=(1, 2, 3))
        assert each.psnr == pytest.approx(np.mean(10 * np.log10(255**2 / error)))
        assert each.agreement is not None
        assert each.agreement > 0.98


def test_a_seed_draws_the_same_samples_and_a_split_only_its_own(built: Path) -> None:
    def keys(**choice: object) -> list[str]:
        return [each.metadata["key"] for each in compare(built, num_samples=4, **choice)]  # type: ignore[arg-type]

    assert keys(seed=5) == keys(seed=5) != keys(seed=6)
    splits = {each.metadata["split"] for each in compare(built, num_samples=50, split="val")}
    assert splits == {"val"}
    with pytest.raises(UserError, match="no samples in split 'test'"):
        keys(split="test")


def test_a_sheet_is_one_picture_with_a_row_per_clip(built: Path, tmp_path: Path) -> None:
    few, more = tmp_path / "few.png", tmp_path / "more.png"
    write_sheet(built, few, num_clips=2, seed=3)
    write_sheet(built, more, num_clips=5, seed=3)
    heights = [Image.open(path).size[1] for path in (few, more)]
    assert heights[1] - heights[0] == 3 * 158
    write_sheet(built, tmp_path / "again.png", num_clips=2, seed=3)
    assert few.read_bytes() == (tmp_path / "again.png").read_bytes()
    with pytest.raises(UserError, match="cannot be written"):
        write_sheet(built, tmp_path / "no" / "sheet.png", num_clips=1)


def test_a_source_that_is_gone_is_said_and_the_codes_are_shown(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(built, tmp_path / "data", ignore=shutil.ignore_patterns("plan.*"))
    picture = tmp_path / "sheet.png"
    assert main(["sheet", str(copy), "-o", str(picture), "--clips", "2"]) == 0
    assert "2 clips; 2 without source (unknown: no plan.parquet)" in capsys.readouterr().out
    pixels = np.asarray(Image.open(picture))
    assert (pixels == (232, 229, 222)).all(axis=2).any()  # the empty place
    assert pixels.std() > 1
    tokenizer = str(copy / "tokenizer")
    assert main(["audit", str(copy), "--tokenizer", tokenizer, "--samples", "3"]) == 1
    assert "0 of 3 (others: unknown: no plan.parquet)" in capsys.readouterr().out


def test_a_source_that_was_changed_is_not_compared(
    settings: BuildConfig, small_videos: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(settings.out, tmp_path / "data")
    film = next(iter(sorted((small_videos / "even").glob("*.mp4"))))
    content = film.read_bytes()
    try:
        film.write_bytes(content + b"more")
        reasons = {each.reason for each in compare(copy, num_samples=50)}
    finally:
        film.write_bytes(content)
    assert reasons == {"", "changed"}


def test_an_audit_finds_low_psnr_and_an_unused_codebook(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = str(built / "tokenizer")
    audit = audit_dataset(built, tokenizer, num_samples=4, min_psnr=60.0, min_usage=0.99)
    failed = [each.partition(":")[0] for each in audit.failures]
    assert "PSNR" in failed
    assert "codes in use, whole dataset" in failed
    command = ["audit", str(built), "--tokenizer", tokenizer, "--samples", "4", "--json"]
    assert main([*command, "--min-psnr", "60"]) == 1
    values = json.loads(capsys.readouterr().out)
    assert values["passed"] is False
    assert len(values["samples"]) == 4
    easy = audit_dataset(built, tokenizer, num_samples=4, min_psnr=1.0, min_usage=0.0)
    assert [each for each in easy.failures if "one flat colour" not in each] == []


def test_an_audit_refuses_another_tokenizer(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from tokenizer.folder import save_tokenizer
    from tokenizer.model import Tokenizer
    from tokenizer.presets import PRESETS

    torch.manual_seed(1)
    save_tokenizer(Tokenizer(PRESETS["tiny"]), tmp_path / "other")
    other = str(tmp_path / "other")
    assert main(["audit", str(built), "--tokenizer", other, "--samples", "2"]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert "PSNR" not in shown
    with pytest.raises(UserError, match="another tokenizer"):
        compare(built, num_samples=1, tokenizer=other)
    assert main(["audit", str(built), "--tokenizer", str(tmp_path / "none")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
