"""PySceneDetect's AdaptiveDetector on our small frames: hard cuts, for comparison.

The package is optional (`pip install 'tessera[scenedetect]'`) and decodes nothing here: its
detector sees the frames of the one pass that everything else is found in.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.shots.settings import ShotSettings
from tokenizer.settings import UserError


def package_version() -> str:
    """The installed version; UserError where there is none."""
    return _package().__version__


def find_cuts(frames: np.ndarray, seconds: np.ndarray, settings: ShotSettings) -> Sequence[int]:
    """Indices of the frames that begin a shot, of uint8 (n, h, w, 3) RGB frames."""
    package = _package()
    fps = 1 / float(np.median(np.diff(seconds))) if len(seconds) > 1 else 25.0
    detector = importlib.import_module("scenedetect.detectors").AdaptiveDetector(
        min_scene_len=max(1, round(settings.min_seconds * fps))
    )
    cuts: list[int] = []
    for index, frame in enumerate(frames):
        found = detector.process_frame(
            package.FrameTimecode(index, fps), np.ascontiguousarray(frame[..., ::-1])
        )
        cuts += [each.frame_num for each in found]
    return cuts


def _package() -> Any:
    if importlib.util.find_spec("scenedetect") is None:
        raise UserError(
            "shots.detect is pyscenedetect, which is not installed; pip install "
            "'tessera[scenedetect]', or use --shots.detect adaptive"
        )
    return importlib.import_module("scenedetect")
