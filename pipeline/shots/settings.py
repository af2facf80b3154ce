"""What counts as a shot: the settings of the detectors, and their version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenizer.settings import setting

VERSION = 2
"""Grows whenever the same frames and settings give other shots or transitions."""


@dataclass(frozen=True, kw_only=True)
class ShotSettings:
    """Where a take ends: hard cuts, and fades and dissolves that belong to no take."""

    detect: Literal["adaptive", "pyscenedetect", "transnetv2"] = setting(
        "adaptive",
        "what finds hard cuts: adaptive, our own; pyscenedetect, its AdaptiveDetector; transnetv2, "
        "the network, which finds gradual transitions too",
    )
    min_change: float = setting(
        9.0, "smallest change that is a cut: mean difference of hue (0-180), saturation and value"
    )
    min_ratio: float = setting(3.0, "how many times the mean of the changes around it a cut is")
    reach_frames: int = setting(2, "changes on each side that a cut is compared with")
    reach_seconds: float = setting(0.25, "how far those may lie from the cut where frames repeat")
    min_seconds: float = setting(0.2, "a cut that comes sooner after another one is not counted")
    fades: bool = setting(
        True, "look for fades to, from and through black or white; their frames are dropped:fade"
    )
    dissolves: bool = setting(
        True, "look for dissolves; their frames belong to no shot and are dropped:dissolve"
    )
    max_transition_seconds: float = setting(2.2, "longest fade or dissolve that is looked for")
    min_dissolve_change: float = setting(
        14.0, "how different the two pictures of a dissolve are at least, in levels (rms, 0-255)"
    )
    shortest_seconds: float = setting(
        0.0,
        "a shot shorter than this is dropped:too_short whole; it is never merged with its "
        "neighbour, which would put a cut inside a clip",
    )
    longest_seconds: float | None = setting(
        None, "a longer shot is split into the fewest equal parts that are not; null: never"
    )
    transnet_weights: str | None = setting(
        None, "file with the weights of TransNetV2 (.safetensors or .pth), for detect: transnetv2"
    )
    transnet_threshold: float = setting(0.5, "probability from which TransNetV2 is believed")

    def __post_init__(self) -> None:
        if not 0 < self.min_change <= 255:
            raise ValueError(f"min_change ({self.min_change}) must lie in (0, 255]")
        if self.min_ratio < 1:
            raise ValueError(f"min_ratio ({self.min_ratio}) must be at least 1")
        if self.reach_frames < 1:
            raise ValueError(f"reach_frames ({self.reach_frames}) must be at least 1")
        if not 0 < self.max_transition_seconds <= 10:
            raise ValueError(
                f"max_transition_seconds ({self.max_transition_seconds}) must lie in (0, 10]"
            )
        if not 0 < self.transnet_threshold < 1:
            raise ValueError(f"transnet_threshold ({self.transnet_threshold}) must lie in (0, 1)")
        for name in ("reach_seconds", "min_seconds", "min_dissolve_change", "shortest_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be below 0")
        if self.longest_seconds is not None and self.longest_seconds <= 0:
            raise ValueError(f"longest_seconds ({self.longest_seconds}) must be above 0")
        if self.longest_seconds is not None and self.longest_seconds < self.shortest_seconds:
            raise ValueError(
                f"longest_seconds ({self.longest_seconds}) must be at least shortest_seconds "
                f"({self.shortest_seconds})"
            )
        if self.detect == "transnetv2" and self.transnet_weights is None:
            raise ValueError(
                "transnet_weights must name a file where detect is transnetv2; docs/shots.md says "
                "which"
            )
