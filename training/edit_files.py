"""An edit as files: a video per result, and a picture of source, mask and results.

EDITS/000_a_red_3.mp4    one per result (GIF where PyAV is absent; PNG of a single frame)
EDITS/edit.png           source, what was made, results, frame under frame
EDITS/edit.json          settings, codes, what was given
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenizer.settings import UserError, to_dict
from training.edit_config import EditConfig
from training.edit_source import Decode, open_source
from training.editing import Edited, edit
from training.pictures import contact_sheet, save_png, write_video
from training.run import OpenedRun, pick_device
from training.sample_folder import slug
from training.samples import bucket_of, check_settings, open_to_sample

if TYPE_CHECKING:
    from PIL import Image

_HIDDEN = (232, 70, 130)
_SHEET_RESULTS = 12


def write_edit(run_dir: Path, source: str, config: EditConfig, decode: Decode | None) -> Edited:
    """Edits `source` by a run and prints a line; UserError before any work."""
    run = open_to_sample(run_dir, config, pick_device(config.device))
    check_settings(run, config)
    opened = open_source(run, source, bucket_of(run, config), config, decode)
    edited = edit(run, opened, config)
    out = Path(config.out) if config.out else run_dir / "edits" / slug(opened.name)
    made_by = _made_by(run, config, opened.name)
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = [
            _write_clip(frames, out / f"{number:03d}_{slug(prompt)}.mp4", config.fps, made_by)
            for number, (prompt, frames) in enumerate(
                zip(edited.results.prompts, edited.results.frames)
            )
        ]
        save_png(_sheet(edited), out / "edit.png", made_by)
        record = made_by | {
            "settings": to_dict(config),
            "cells_given": edited.num_given,
            "cells_given_late": edited.num_unseen,
            "num_steps": edited.results.num_steps,
            "results": [
                {"file": file.name, "prompt": prompt, "codes": codes.tolist()}
                for file, prompt, codes in zip(files, edited.results.prompts, edited.results.codes)
            ],
        }
        (out / "edit.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    if edited.num_unseen:
        print(_warning(edited, run.config.method.name), file=sys.stderr)
    print(f"{_line(edited)}; {out / 'edit.png'}")
    return edited


def _made_by(run: OpenedRun, config: EditConfig, source: str) -> dict[str, str]:
    return {
        "generated": "true",
        "model": run.fingerprint,
        "step": str(run.step),
        "seed": str(config.seed),
        "source": source,
    }


def _write_clip(frames: np.ndarray, path: Path, fps: float, made_by: dict[str, str]) -> Path:
    if len(frames) > 1:
        return write_video(frames, path, fps, made_by)
    from PIL import Image

    return save_png(Image.fromarray(frames[0]), path.with_suffix(".png"), made_by)


def _sheet(edited: Edited) -> Image.Image:
    rows = [("source", [edited.source]), ("made", [_shaded(edited)])]
    for prompt, frames in zip(edited.results.prompts, edited.results.frames[:_SHEET_RESULTS]):
        rows.append((prompt or "result", [frames]))
    return contact_sheet(
        rows, title="Edited clips", subtitle=_line(edited), frames_per_clip=9, frame_size=96
    )


def _shaded(edited: Edited) -> np.ndarray:
    """The source, coloured where it was hidden and dark where more was made."""
    made = edited.source // 3
    hidden = (edited.source * 0.25 + np.array(_HIDDEN) * 0.75).astype(np.uint8)
    shaded = np.where(edited.made[..., None], made, edited.source)
    return np.where(edited.known[..., None], shaded, hidden)


def _warning(edited: Edited, method: str) -> str:
    return (
        f"note: {edited.num_unseen} of the {edited.num_given} given codes come late in the order "
        f"of {method}, and what is made before them does not see them; a run of arpg sees all"
    )


def _line(edited: Edited) -> str:
    results = edited.results
    given = f"{edited.num_given} of {results.codes.shape[1]} codes given"
    count = f"{len(results.prompts)} result" + "s" * (len(results.prompts) != 1)
    return f"{count}, {given}, {results.num_steps} steps, {results.seconds:.2f} s"
