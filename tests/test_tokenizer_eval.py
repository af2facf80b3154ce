"""`tessera tokenizer eval`: what it reports is measured and written; bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.cli import main
from pipeline.shards.dataset_writer import DatasetWriter
from pipeline.shards.format import Bucket, TokenSet
from tokenizer.autoencoder_config import AutoencoderConfig, ImageAutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.folder import load_tokenizer, save_tokenizer
from tokenizer.metrics import psnr
from tokenizer.model import Tokenizer
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import UserError
from training.evaluate_config import TokenizerEvalConfig
from training.pictures import read_metadata
from training.tokenizer_eval import evaluate_tokenizer

SHAPES = {"t5_h32_w32": (5, 32, 32), "t1_h32_w32": (1, 32, 32)}
NUM_VAL = {"t5_h32_w32": 5, "t1_h32_w32": 3}


def clips(count: int, shape: tuple[int, int, int], seed: int) -> np.ndarray:
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, min(shape[0], 2), 3, 3, generator=draw)
    full = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")
    return (full * 255).byte().permute(0, 2, 3, 4, 1).contiguous().numpy()


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset") / "pixels"
    buckets = [
        Bucket(name=name, num_frames=t, height=h, width=w, schedule=None)
        for name, (t, h, w) in SHAPES.items()
    ]
    token_set = TokenSet(name="frames", kind="frames", dtype="uint8")
    with DatasetWriter(root, [token_set], buckets) as writer:
        for name, shape in SHAPES.items():
            for number, clip in enumerate(clips(8, shape, seed=len(name))):
                split = "val" if number < NUM_VAL[name] else "train"
                key = f"{name}_{number}"
                said = {"key": key, "uri": f"films/{key}.mp4", "start_seconds": float(number)}
                writer.write(key, {"frames": clip}, said, split=split, bucket=name)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = TokenizerConfig(
        autoencoder=AutoencoderConfig(channels=(8,)),
        quantizer=QuantizerConfig(codebook_size=16, codebook_dim=4, scales=(1, 2), num_phi=1),
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(config)
    tokenizer.quantizer.codebook.set_codes(torch.randn(16, 4))
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def report(folder: Path, pixels: Path, out: Path) -> dict[str, Any]:
    config = TokenizerEvalConfig(batch_size=2, features=("random", "random:1"), num_shown=3)
    heard: list[tuple[int, int]] = []
    report = evaluate_tokenizer(
        folder, pixels, out, config, lambda done, total: heard.append((done, total))
    )
    assert heard == [(2, 8), (4, 8), (5, 8), (7, 8), (8, 8)]
    return report


def test_the_report_on_disk_is_the_one_returned(report: dict[str, Any], out: Path) -> None:
    assert json.loads((out / "evaluation.json").read_text()) == report
    assert (
        report["tokenizer"]["fingerprint"]
        == load_tokenizer(report["tokenizer"]["path"]).fingerprint
    )
    assert report["lpips"] == "no weights"
    assert set(report["buckets"]) == set(SHAPES)
    for name, bucket in report["buckets"].items():
        assert bucket["num_clips"] == NUM_VAL[name]
        assert set(bucket["frechet"]) == {"FD-random3d-0", "FD-random3d-1"}


def test_the_figures_of_a_split_are_those_of_its_clips(
    report: dict[str, Any], folder: Path, pixels: Path
) -> None:
    tokenizer = load_tokenizer(folder)
    total = 0.0
    for name, shape in SHAPES.items():
        frames = torch.from_numpy(clips(8, shape, seed=len(name))[: NUM_VAL[name]])
        decoded = tokenizer.decode(tokenizer.encode(frames), tokenizer.schedule_for(*shape))
        expected = float(psnr(decoded, frames).mean())
        assert report["buckets"][name]["psnr"] == pytest.approx(expected, abs=1e-3)
        total += expected * NUM_VAL[name]
    assert report["overall"]["psnr"] == pytest.approx(total / 8, abs=1e-3)
    assert report["overall"]["num_clips"] == 8


def test_bits_of_all_shapes_are_all_bits_over_all_pixels(report: dict[str, Any]) -> None:
    clip, image = (report["buckets"][name] for name in SHAPES)
    bits = 5 * clip["tokens_per_clip"] * 4 + 3 * image["tokens_per_clip"] * 4
    last = report["overall"]["after_levels"][-1]
    assert last["nominal_bits_per_pixel"] == pytest.approx(bits / (5 * 5 * 1024 + 3 * 1024))
    assert 0 < last["effective_bits_per_pixel"] <= last["nominal_bits_per_pixel"]


def test_pictures_are_drawn_and_say_what_made_them(report: dict[str, Any], out: Path) -> None:
    made_by = read_metadata(out / "reconstructions.png")
    assert made_by["tokenizer"] == report["tokenizer"]["fingerprint"]
    with (
        Image.open(out / "reconstructions.png") as sheet,
        Image.open(out / "rate_distortion.png") as plot,
    ):
        assert min(sheet.size) > 400
        assert min(plot.size) > 400
    assert not [each for each in out.iterdir() if each.name.endswith((".partial", ".writable"))]


def test_clips_are_spread_over_the_split_and_all_splits_can_be_meant(
    folder: Path, pixels: Path
) -> None:
    config = TokenizerEvalConfig(split="all", max_clips=4, batch_size=4)
    report = evaluate_tokenizer(folder, pixels, config=config)
    assert {each["num_clips"] for each in report["buckets"].values()} == {4}


def test_the_command_prints_tables_or_json(
    folder: Path, pixels: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["tokenizer", "eval", str(folder), "--data", str(pixels), "--max-clips", "2"]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["overall"]["num_clips"] == 4
    assert main([*command, "-o", str(tmp_path / "out"), "--features", "random:5"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "PSNR, dB",
        "LPIPS",
        "no weights",
        "FD-random3d-5",
        "regression only",
        "perplexity",
    ):
        assert word in shown, word
    assert "FVD" not in shown
    assert "FID" not in shown
    assert (tmp_path / "out" / "reconstructions.png").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--split", "test"], "no clips in split 'test'; there are train, val, or all"),
        (["--max-clips", "0"], "max_clips (0) must be at least 1"),
        (["--features", "i3d"], "must be one of random, judge:DIR, inception:FILE"),
        (["--features", "judge:/nowhere"], "no judge here"),
        (["--lpips.vgg", "/nowhere.pth"], "lpips"),
    ],
)
def test_wrong_input_is_one_line(
    folder: Path,
    pixels: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    assert main(["tokenizer", "eval", str(folder), "--data", str(pixels), *arguments]) == 2
    line = capsys.readouterr().err.strip()
    assert expected in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"tokenizer": "/nowhere"}, "/nowhere: no tokenizer here"),
        ({"features": ("judge:/nowhere",)}, "no judge here"),
        ({"out": "/proc/nowhere"}, "/proc/nowhere: cannot be written"),
    ],
)
def test_pixels_are_made_when_all_else_is_known_to_be_there(
    folder: Path, arguments: dict[str, Any], expected: str
) -> None:
    def never(data: Path) -> Path:
        raise AssertionError("pixels were made for nothing")

    config = TokenizerEvalConfig(features=arguments.get("features", ()))
    tokenizer, out = arguments.get("tokenizer", folder), arguments.get("out")
    with pytest.raises(UserError, match=expected):
        evaluate_tokenizer(tokenizer, "/no/data", out, config, pixels_of=never)


def test_a_wrong_tokenizer_is_named_before_wrong_data(
    folder: Path, pixels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tokenizer", "eval", "/nowhere", "--data", "/no/data"]) == 2
    assert "/nowhere: no tokenizer here" in capsys.readouterr().err
    assert main(["tokenizer", "eval", str(folder), "--data", "/no/data"]) == 2
    assert "/no/data" in capsys.readouterr().err


def test_codes_and_shapes_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    bucket = Bucket(name="t4_h32_w32", num_frames=4, height=32, width=32, schedule=None)
    token_set = TokenSet(name="frames", kind="frames", dtype="uint8")
    with DatasetWriter(tmp_path / "odd", [token_set], [bucket]) as writer:
        writer.write("a", {"frames": clips(1, (4, 32, 32), 0)[0]}, {"key": "a"}, split="val")
    with pytest.raises(UserError, match="nearest are 1 and 5"):
        evaluate_tokenizer(folder, tmp_path / "odd")


@pytest.mark.slow
def test_an_image_tokenizer_is_judged_by_the_same_command(pixels: Path, tmp_path: Path) -> None:
    made_of = TokenizerConfig(
        architecture="image",
        image=ImageAutoencoderConfig(
            channels=32, channel_multipliers=(1, 1), num_blocks=1, z_channels=4
        ),
        quantizer=QuantizerConfig(codebook_size=16, codebook_dim=4, scales=(1, 4, 16), num_phi=1),
    )
    torch.manual_seed(0)
    tokenizer = Tokenizer(made_of)
    tokenizer.quantizer.codebook.set_codes(torch.randn(16, 4))
    save_tokenizer(tokenizer, tmp_path / "image")
    config = TokenizerEvalConfig(max_clips=2)
    report = evaluate_tokenizer(tmp_path / "image", pixels, tmp_path / "out", config)
    clip = report["buckets"]["t5_h32_w32"]
    assert [each["tokens_per_clip"] for each in clip["levels"]] == [5, 5 * 16, 5 * 256]
    assert len(clip["after_levels"]) == 3
