"""A codebook trained from scratch is used, on drawn and on real clips; a plain one is beside it.

    make health      # prints the figures; minutes

The same is measured over three seeds by `benchmarks/rate_distortion.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.build import build, build_pixels
from pipeline.config import BuildConfig, ClipSettings, SelectSettings
from pipeline.digits import render_clips
from pipeline.shards import open_dataset
from pipeline.shards.dataset_writer import DatasetWriter
from pipeline.shards.format import Bucket, TokenSet
from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.folder import load_tokenizer
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.settings import read_settings
from training.config import DataConfig, TokenizerRun
from training.launch.local import launch
from training.scoring import Score

pytestmark = pytest.mark.health

PRESET = Path(__file__).parent.parent / "training" / "presets" / "demo-tokenizer.yaml"
FILMS = (
    *("bbb_480p_30s.mp4", "bikes_multishot.mp4", "carphone_qcif.mp4", "foreman_hevc_720p.mp4"),
    *("h263_amr_vfr.3gp", "no_duration.webm", "phone_nonutf8_metadata.3gp", "asl_eat.mkv"),
    *("mpeg4_xvid_mp3.avi", "bottles_static_40s.mp4"),
)
FINEST_TOKENS = 20_480
PLAIN = {"learned_by": "gradient", "first_codes": "random", "restart_share": 0.0}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pixel shards of 440 clips of the demo, drawn without a codec: 21,120 tokens of 4 x 4."""
    root = tmp_path_factory.mktemp("digits") / "pixels"
    bucket = Bucket(name="t9_h64_w64", num_frames=9, height=64, width=64, schedule=None)
    token_set = TokenSet(name="frames", kind="frames", dtype="uint8")
    with DatasetWriter(root, [token_set], [bucket]) as writer:
        for number, (frames, _) in enumerate(render_clips(440, seed=0, fps=8, num_frames=9)):
            writer.write(f"{number:04d}", {"frames": frames}, {"key": f"{number:04d}"})
    return root


@pytest.fixture(scope="module")
def films(shared_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pixel shards of real clips, by the pipeline."""
    config = BuildConfig(
        sources=tuple(str(shared_videos / name) for name in FILMS),
        out=str(tmp_path_factory.mktemp("films") / "data"),
        executor="inline",
        clips=ClipSettings(fps=16.0, buckets=("9x64x64",)),
        select=SelectSettings(val_share=0.0),
    )
    build(config, until="select")
    return Path(build_pixels(config))


def trained(
    pixels: Path, out: Path, stride: int, quantizer: QuantizerConfig, num_steps: int
) -> Score:
    """A tokenizer trained by the one loop, scored on all clips that it was trained on."""
    run = replace(
        read_settings(
            TokenizerRun,
            PRESET,
            {
                "trainer.num_steps": num_steps,
                "trainer.tensorboard": False,
                "trainer.preview_every": 0,
                "trainer.device": "cpu",
            },
        ),
        tokenizer=TokenizerConfig(
            autoencoder=AutoencoderConfig(patch=stride, spatial_stride=stride), quantizer=quantizer
        ),
        data=DataConfig(path=str(pixels)),
        out=str(out / "run"),
        result=str(out / "tokenizer"),
    )
    launch(run)
    score = Score(load_tokenizer(out / "tokenizer"), (9, 64, 64))
    for frames in batches(pixels):
        score.add(torch.from_numpy(frames))
    return score


def batches(pixels: Path) -> Iterator[np.ndarray]:
    samples = open_dataset(pixels).samples("train")
    for start in range(0, len(samples), 16):
        yield samples.gather(np.arange(start, min(start + 16, len(samples))))


def say(name: str, score: Score) -> None:
    for level in score.levels():
        print(
            f"{name}, grid {level['grid']}: {level['usage']:.1%} of the codes over "
            f"{level['num_tokens']} tokens, perplexity {level['perplexity']:.0f}, "
            f"residual {level['residual']:.1%}"
        )


def check_health(score: Score) -> None:
    levels = score.levels()
    assert levels[-1]["num_tokens"] >= FINEST_TOKENS
    assert levels[-1]["usage"] >= 0.9
    residuals = [1.0, *(each["residual"] for each in levels)]
    assert all(after < before for before, after in zip(residuals, residuals[1:]))


def test_digits_use_nine_tenths_of_a_thousand_codes_and_every_scale_helps(
    digits: Path, tmp_path: Path
) -> None:
    quantizer = QuantizerConfig(codebook_size=1024)
    score = trained(digits, tmp_path / "healthy", 16, quantizer, num_steps=300)
    say("digits", score)
    check_health(score)
    plain = trained(digits, tmp_path / "plain", 16, replace(quantizer, **PLAIN), num_steps=300)
    say("digits, plain", plain)
    assert plain.levels()[-1]["usage"] < score.levels()[-1]["usage"]


def test_real_clips_use_nine_tenths_of_a_thousand_codes_and_many_at_every_scale(
    films: Path, tmp_path: Path
) -> None:
    quantizer = QuantizerConfig(codebook_size=1024, scales=(1, 2, 4, 8))
    score = trained(films, tmp_path / "healthy", 8, quantizer, num_steps=120)
    say("films", score)
    check_health(score)
    for level in score.levels():
        assert level["perplexity"] >= min(16, level["num_tokens"] / 4)
    plain = trained(films, tmp_path / "plain", 8, replace(quantizer, **PLAIN), num_steps=120)
    say("films, plain", plain)
