"""Caption: clips that no sidecar or template describes are captioned by a model (open_clip CoCa).

The last part of `annotate`: eight frames of each such clip go to a captioner in an actor, in units
that mirror the annotate units. Clips that today's rules drop are not captioned; they would be if
the rules changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from pipeline.annotate import accounts, worker_facts
from pipeline.clip import Clip, central_crop
from pipeline.commit import Store, fingerprint_of, unit_id
from pipeline.config import BuildConfig, CaptionSettings, decoder_recipe
from pipeline.decode.decoder import ClipRequest
from pipeline.feed import make_chunks
from pipeline.plan import PlannedSource
from pipeline.select import outcome_of
from pipeline.shards.format import canonical_json
from pipeline.tokenize import ClipUnit, DecodedClips, Finish
from tokenizer.settings import UserError, to_dict

if TYPE_CHECKING:
    from pipeline.coca import Captioner

CAPTION_VERSION = 1  # raise it when the same clips and weights give other captions
FRAMES_PER_CLIP = 8
FRAME_SIZE = 224
_BATCH = 8


def check_weights(settings: CaptionSettings) -> str | None:
    """sha256 of the captioner's weights; None when CoCa is off; UserError when they are missing."""
    if not settings.coca:
        return None
    if settings.coca_weights is None:
        raise UserError(
            "captions.coca is on but captions.coca_weights names no file; "
            f"give the weights of {settings.coca_model}, or turn it off"
        )
    try:
        with open(settings.coca_weights, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{settings.coca_weights}: the weights of {settings.coca_model} cannot be read "
            f"({error.strerror}); give another file with --captions.coca_weights"
        ) from None


class CaptionJob:
    """What a captioning worker needs; picklable, without torch until `load_model`."""

    def __init__(self, config: BuildConfig, root: str, weights_sha256: str) -> None:
        self.config = config
        self.store = Store(root)
        self.driver_pid = os.getpid()
        self.recipe = decoder_recipe(config)
        self.fingerprint = fingerprint_of(
            {
                "version": CAPTION_VERSION,
                "model": config.captions.coca_model,
                "weights": weights_sha256,
                "decoder": self.recipe.facts(),
                "limits": to_dict(config.limits),
            }
        )

    def units(
        self, clips: Sequence[Clip], plan: Sequence[PlannedSource], clips_per_unit: int = 256
    ) -> list[ClipUnit]:
        """Units of the clips that are worth a caption and have none, in plan order."""
        rules = self.config.select.rules
        wanted = [
            clip
            for clip in clips
            if not clip.outcome and clip.caption is None and outcome_of(clip, rules) == "kept"
        ]
        files = {row.source_id: row for row in reversed(plan)}
        units = []
        for start in range(0, len(wanted), clips_per_unit):
            group = wanted[start : start + clips_per_unit]
            chunks = make_chunks(
                group,
                [_request(clip) for clip in group],
                files,
                self.recipe,
                self.config.tokenize.clips_per_decode,
            )
            identity = unit_id("caption", [clip.clip_id for clip in group], self.fingerprint)
            units.append(ClipUnit(identity, tuple(group), tuple(chunks)))
        return units

    def load_model(self) -> Captioner:
        from pipeline.coca import load_captioner

        settings = self.config.captions
        assert settings.coca_weights is not None
        return load_captioner(
            Path(settings.coca_weights), settings.coca_model, settings.coca_device
        )

    def process(self, unit: ClipUnit, decoded: DecodedClips, model: Captioner) -> Finish:
        """Captions a unit in this process; the result publishes and commits it."""
        captions: dict[str, str] = {}
        failed: list[str] = []
        waiting: list[tuple[Clip, np.ndarray]] = []
        for clip, (frames, error, _) in zip(unit.clips, decoded, strict=True):
            if frames is None:
                failed.append(f"error:{error}")
                continue  # tokenize will meet the same error and name the clip
            waiting.append((clip, frames))
            if len(waiting) == _BATCH:
                captions |= _caption(waiting, model)
                waiting = []
        if waiting:
            captions |= _caption(waiting, model)
        by = f"coca:{model.model_id}:{model.weights_sha256}"
        return partial(self._finish, unit, captions, failed, by)

    def _finish(self, unit: ClipUnit, captions: dict[str, str], failed: list[str], by: str) -> None:
        def write(file: IO[bytes]) -> None:
            file.write(canonical_json({"captions": captions, "by": by}))

        part = self.store.write_part(unit.id, ".json", write)
        result = {
            "phase": "caption",
            "fingerprint": self.fingerprint,
            "parts": [asdict(part)],
            **accounts(Counter(kept=len(captions)) + Counter(failed)),
        }
        self.store.commit(unit.id, result, worker_facts() | {"driver_pid": self.driver_pid})

    def captioned(self, clips: Sequence[Clip], units: Sequence[ClipUnit]) -> list[Clip]:
        """The clips with the captions of the committed units filled in."""
        captions: dict[str, tuple[str, str]] = {}
        for unit in units:
            (part,) = self.store.read(unit.id)["result"]["parts"]
            record = json.loads(self.store.storage.read(part["path"]))
            captions |= {key: (text, record["by"]) for key, text in record["captions"].items()}
        return [
            replace(clip, caption=captions[clip.clip_id][0], caption_by=captions[clip.clip_id][1])
            if clip.clip_id in captions
            else clip
            for clip in clips
        ]


def _caption(waiting: list[tuple[Clip, np.ndarray]], model: Captioner) -> dict[str, str]:
    texts = model.caption([frames for _, frames in waiting])
    return {clip.clip_id: text for (clip, _), text in zip(waiting, texts, strict=True)}


def _request(clip: Clip) -> ClipRequest:
    """Eight frames spread over the clip, the central square at the captioner's size."""
    x, y, width, height = central_crop(clip.source_width, clip.source_height, 1.0)
    num_frames = FRAMES_PER_CLIP if clip.kind == "video" else 1
    return ClipRequest(
        start_pts=clip.start_pts,
        end_pts=clip.end_pts,
        fps=num_frames / clip.duration_seconds if num_frames > 1 else clip.fps,
        num_frames=num_frames,
        crop=(x, y, width, height),
        height=FRAME_SIZE,
        width=FRAME_SIZE,
    )
