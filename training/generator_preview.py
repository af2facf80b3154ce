"""What a generator makes while it learns: a few clips, always of the same prompts and seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tokenizer.settings import from_dict, to_dict
from training.config import SampleConfig
from training.pictures import contact_sheet, save_png
from training.run import OpenedRun
from training.samples import chosen_prompts, generate
from training.tasks.task import Preview

FOLDER = "previews"


def preview_generator(opened: OpenedRun, count: int, run: Path) -> Preview:
    """Samples as the run's settings draw them; also `RUN/previews/step_00000400.png`."""
    drawn = to_dict(opened.config.sampling)
    if not opened.is_guidable:
        drawn["guidance"]["scale"] = 1.0
    settings = from_dict(SampleConfig, drawn | {"num": count, "batch_size": count}, "sampling")
    prompts = chosen_prompts(opened, settings)
    prompts = [prompts[number % len(prompts)] for number in range(count)]
    made = generate(opened, prompts, settings)
    rows = [(_label(prompt), [frames]) for prompt, frames in zip(prompts, made.frames)]
    sheet = contact_sheet(rows, title=f"step {opened.step}")
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    save_png(sheet, folder / f"step_{opened.step:08d}.png", _made_by(opened))
    picture = np.asarray(sheet.convert("RGB"))
    return Preview(pictures={"samples": picture}, values={"preview_seconds": made.seconds})


def _made_by(opened: OpenedRun) -> dict[str, str]:
    made = {"step": opened.step, "method": opened.record.method, "dataset": opened.record.dataset}
    return {"generated": "true", **{name: str(value) for name, value in made.items()}}


def _label(prompt: str | None) -> str:
    text = prompt or ""
    return text if len(text) <= 40 else text[:37] + "..."
