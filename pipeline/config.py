"""The settings of a build: one YAML file, every key a flag.

Each phase's fingerprint covers the sections it reads, so a changed setting makes new work for just
the phases that it affects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pipeline.decode import DecoderRecipe, resolve_library
from pipeline.decode.decoder import DecodeLimits, DecodeSettings
from pipeline.rules import Rule, parse_rules
from pipeline.scores import PICTURE_SCORES, VERSIONS
from pipeline.shots.settings import ShotSettings
from tokenizer.settings import section, setting

PHASES = ("plan", "annotate", "select", "tokenize", "finalize")
FILE_SCORES = ("width", "height", "duration_seconds", "fps", *PICTURE_SCORES)
SCORES = (*VERSIONS, "num_frames", "duration_seconds", "width", "height")
_BUCKET = re.compile(r"([0-9]+)x([0-9]+)x([0-9]+)")
_TOKEN_SET = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_TAKEN = ("codes", "frames", "latents", "json")


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    fps: float = setting(8.0, "frames per second of a clip, resampled by presentation time")
    buckets: tuple[str, ...] = setting(
        ("9x64x64", "1x64x64"),
        "shapes as FRAMESxHEIGHTxWIDTH; a shot is cut into windows of the longest that fits, "
        "with the nearest aspect; a shape of 1 frame takes images",
    )
    crop_bars: bool = setting(
        True, "leave black borders out of the crop where they are certain, never anything dark"
    )

    def __post_init__(self) -> None:
        if not 0 < self.fps <= 240:
            raise ValueError(f"fps ({self.fps}) must be above 0 and at most 240")
        if not self.buckets:
            raise ValueError("buckets must name at least one shape")
        for bucket in self.buckets:
            parse_bucket(bucket)


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    label: Literal["folder", "none"] = setting(
        "folder", "the label of a file without one in its sidecar: its parent folder, or none"
    )
    template: str | None = setting(
        "a video of {label}", "caption of a clip that has a label but no caption; null for none"
    )
    coca: bool = setting(False, "caption what is left without one by open_clip's CoCa")
    coca_model: str = setting("coca_ViT-B-32", "open_clip's name of the CoCa model")
    coca_weights: str | None = setting(None, "file with the CoCa weights (.safetensors or .pt)")
    coca_device: str = setting("cpu", "device of the captioner: cpu or cuda")

    def __post_init__(self) -> None:
        if self.template is not None and "{label}" not in self.template:
            raise ValueError(f"template ({self.template!r}) must contain {{label}}")


@dataclass(frozen=True, kw_only=True)
class AnnotateSettings:
    sources_per_unit: int = setting(8, "files that are scanned and committed together")
    timeout_seconds: float = setting(
        1200.0,
        "a process that takes longer for one file, fetched, decoded and scored, is killed; more "
        "than limits.timeout_seconds, which is for decoding",
    )
    memory_bytes: int = setting(
        4 << 30, "memory that a process may take for one file, beyond what it has at its start"
    )

    def __post_init__(self) -> None:
        if self.sources_per_unit < 1:
            raise ValueError(f"sources_per_unit ({self.sources_per_unit}) must be at least 1")
        if self.memory_bytes < 256 << 20:
            raise ValueError(f"memory_bytes ({self.memory_bytes}) must be at least 268435456")
        if self.timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds ({self.timeout_seconds}) must be above 0")


def _default_rules() -> dict[str, str]:
    return {
        "too_dark": "brightness < 8",
        "too_bright": "brightness > 247",
        "too_blurred": "sharpness < 2",
        "too_static": "motion < 0.5",
    }


@dataclass(frozen=True, kw_only=True)
class ScreenSettings:
    """Which files are dropped whole before they are decoded, by header and key frames."""

    drop: dict[str, str] = setting(
        default_factory=dict,
        help="rules as in select.drop, such as {too_small: 'height < 240'}, for files: "
        "width, height, duration_seconds, fps as the header has them; brightness, sharpness as the "
        "median of the key frames, where there are 3 at least that cover half of the file",
    )
    max_key_frames: int = setting(256, "key frames that are looked at, at most")

    def __post_init__(self) -> None:
        if self.max_key_frames < 3:
            raise ValueError(f"max_key_frames ({self.max_key_frames}) must be at least 3")
        _ = self.rules

    @property
    def rules(self) -> dict[str, Rule]:
        """The parsed rules; raises ValueError naming the rule that is wrong."""
        return parse_rules(self.drop, FILE_SCORES)


@dataclass(frozen=True, kw_only=True)
class SelectSettings:
    drop: dict[str, str] = setting(
        default_factory=_default_rules,
        help="rules in order, name: 'score < bound'; the first that holds drops the clip; scores: "
        + ", ".join(SCORES),
    )
    val_share: float = setting(0.1, "share of what is held out as split 'val', by hash")
    hold_out: Literal["source", "caption"] = setting(
        "source",
        "what is held out whole: files, so that no video is on both sides; or captions, so that "
        "no prompt is, though a video with several may be",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.val_share < 1:
            raise ValueError(f"val_share ({self.val_share}) must lie in [0, 1)")
        _ = self.rules

    @property
    def rules(self) -> dict[str, Rule]:
        """The parsed rules; raises ValueError naming the rule that is wrong."""
        return parse_rules(self.drop, SCORES)


@dataclass(frozen=True, kw_only=True)
class TokenizeSettings:
    tokenizer: str | None = setting(
        None, "folder of the tokenizer; default: OUT/tokenizer, where `tokenizer train` puts it"
    )
    further: dict[str, str] = setting(
        help="further token sets of the same clips: name and folder of each one's tokenizer, such "
        "as '{grid: runs/grid/tokenizer}'; train on one by data.token_set",
        default_factory=dict,
    )
    samples_per_shard: int = setting(1024, "samples in a shard; a shard is the unit of work")
    batch_size: int = setting(32, "clips per encoder batch, padded to exactly this many")
    num_encoders: int = setting(1, "encoder actors")
    device: str = setting("cpu", "device of the encoder: cpu or cuda")
    threads: int = setting(1, "torch threads of an encoder on the CPU")
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "of the autoencoder; auto: bfloat16 on cuda, else float32; the quantizer is float32"
    )
    compile: Literal["auto", "off", "on"] = setting(
        "auto", "torch.compile of the autoencoder; auto: on cuda, unless there are tiles"
    )
    tile: int | None = setting(
        None,
        "frames are encoded in squares of so many pixels, in their memory; a multiple of the "
        "tokenizer's spatial_stride, for causal tokenizers with norm rms (default: whole frames)",
    )
    clips_per_decode: int = setting(16, "clips of one file that a decode task takes at most")
    decode_ahead_bytes: int = setting(256 << 20, "decoded frames in flight per encoder, in bytes")

    def __post_init__(self) -> None:
        for name in ("samples_per_shard", "batch_size", "num_encoders", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        for name in self.further:
            if not _TOKEN_SET.fullmatch(name):
                raise ValueError(
                    f"further: {name!r} must be 1 to 32 small letters, digits, '_' or '-', a "
                    "letter first"
                )
            if name in _TAKEN:
                raise ValueError(f"further: the name {name!r} is taken; choose another")
        if self.tile is not None and self.tile < 1:
            raise ValueError(f"tile ({self.tile}) must be at least 1")
        if self.clips_per_decode < 1:
            raise ValueError(f"clips_per_decode ({self.clips_per_decode}) must be at least 1")
        if self.decode_ahead_bytes < 1 << 20:
            raise ValueError(f"decode_ahead_bytes ({self.decode_ahead_bytes}) must be >= 1048576")

    @property
    def autoencoder_precision(self) -> str:
        """What `precision` means on this device."""
        if self.precision != "auto":
            return self.precision
        return "bfloat16" if self.device.startswith("cuda") else "float32"

    @property
    def is_compiled(self) -> bool:
        """What `compile` means on this device."""
        is_worth_it = self.device.startswith("cuda") and self.tile is None
        return self.compile == "on" or (self.compile == "auto" and is_worth_it)


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """`tessera build CONFIG`: where the videos are, what a clip is, what is kept, how it runs."""

    sources: tuple[str, ...] = setting(
        help="folders, files, globs and ranges {00..99} of videos and images, WebDataset tars "
        "(.tar), manifests (.csv, .jsonl, .parquet); on a disk or as URLs (docs/sources.md)"
    )
    out: str = setting(help="the dataset folder to make or continue")
    reuse: tuple[str, ...] = setting(
        (), "datasets whose scans and codes are copied where they are what would be made anew"
    )
    decoder: Literal["pyav", "decord", "torchcodec", "auto"] = setting(
        "pyav", "library that decodes videos; auto: torchcodec where it has a GPU, else pyav"
    )
    executor: Literal["ray", "inline"] = setting(
        "ray", "ray: processes that may die, many machines; inline: a plain loop, for debugging"
    )
    ray_address: str | None = setting(
        None, "a running cluster; default: RAY_ADDRESS, else a local Ray is started"
    )
    num_cpus: int | None = setting(None, "CPUs of a local Ray; default: all")
    limits: DecodeLimits = section(DecodeLimits)
    decode: DecodeSettings = section(DecodeSettings)
    screen: ScreenSettings = section(ScreenSettings)
    shots: ShotSettings = section(ShotSettings)
    clips: ClipSettings = section(ClipSettings)
    annotate: AnnotateSettings = section(AnnotateSettings)
    captions: CaptionSettings = section(CaptionSettings)
    select: SelectSettings = section(SelectSettings)
    tokenize: TokenizeSettings = section(TokenizeSettings)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError(
                "sources must name at least one folder, file, glob, manifest, tar or URL"
            )
        if not self.out:
            raise ValueError("out must name a folder")
        if self.num_cpus is not None and self.num_cpus < 1:
            raise ValueError(f"num_cpus ({self.num_cpus}) must be at least 1")


def decoder_recipe(config: BuildConfig) -> DecoderRecipe:
    """The build's decoder, with what `auto` means on this machine."""
    return DecoderRecipe(resolve_library(config.decoder), config.limits, config.decode)


def parse_bucket(text: str) -> tuple[int, int, int]:
    """(num_frames, height, width) of "9x64x64"; raises ValueError."""
    match = _BUCKET.fullmatch(text)
    if match is None or min(int(part) for part in match.groups()) < 1:
        raise ValueError(f"buckets: {text!r} must read FRAMESxHEIGHTxWIDTH, such as 9x64x64")
    num_frames, height, width = (int(part) for part in match.groups())
    return num_frames, height, width
