"""A folder of samples, which any number of processes fill and any of them may leave at any time.

    SAMPLES/plan.json                       what is sampled: weights, settings, prompts
    SAMPLES/codes/000032-000064.npz         a chunk: codes [n, l], number [n], prompt [n]
    SAMPLES/000000_a_red_3_moving_left.mp4  videos of the first ones (GIF where PyAV is absent)
    SAMPLES/frames/000000_a_red_3_moving_left/000.png      with --stream: frames as they are made
    SAMPLES/contact_sheet.png               a row per class or prompt
    SAMPLES/samples.json                    what is there; written last

Sample i shows prompt i modulo their number. A chunk is named by its samples [first, end), is
written aside, flushed and renamed, and its bytes follow from the plan: whoever makes it makes the
same one, so nothing has to be locked, and what is there need not be made again.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import UInt8

from tokenizer.settings import UserError
from training.pictures import save_png
from training.sample_plan import Plan

PLAN_FILE = "plan.json"
REPORT_FILE = "samples.json"
_FORMAT = 2


class SampleFolder:
    """The files of a plan."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan

    @classmethod
    def finished(cls, path: Path) -> SampleFolder:
        """The folder that `tessera sample` has left; UserError where it has not ended."""
        plan = _plan_of(path)
        if plan is None:
            raise UserError(
                f"{path}: no folder of samples (no {PLAN_FILE}); "
                "`tessera sample RUN --out DIR` makes one"
            )
        folder = cls(path, plan)
        left = sum(map(len, folder.missing()))
        if left or not (path / REPORT_FILE).exists():
            raise UserError(
                f"{path}: not finished, {left} of {plan.num} samples are missing; run the same "
                "`tessera sample` again"
            )
        return folder

    def begin(self) -> None:
        """Makes the folder, or goes on with it; UserError when it holds other samples."""
        try:
            (self.path / "codes").mkdir(parents=True, exist_ok=True)
            earlier = _plan_of(self.path)
            if earlier is not None:
                self._make_room(earlier)
            _publish(self.path / PLAN_FILE, _json({"format": _FORMAT, **asdict(self.plan)}))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None

    def missing(self) -> list[range]:
        """The chunks that are not there yet."""
        codes = self.path / "codes"
        there = {each.name for each in codes.iterdir()} if codes.is_dir() else set()
        return [chunk for chunk in self.plan.chunks if _chunk_name(chunk) not in there]

    def has_codes(self, chunk: range) -> bool:
        return (self.path / "codes" / _chunk_name(chunk)).exists()

    def write_codes(self, chunk: range, codes: np.ndarray) -> None:
        """Publishes the codes [n, l] of a chunk, as uint16 where they fit."""
        kind = np.uint16 if codes.max() < 2**16 else np.uint32
        number = np.array(chunk, dtype=np.int64)
        prompt = (number % len(self.plan.prompts)).astype(np.int32)
        _publish(
            self.path / "codes" / _chunk_name(chunk),
            lambda file: np.savez(file, codes=codes.astype(kind), number=number, prompt=prompt),
        )

    def codes(self, numbers: range | list[int]) -> np.ndarray:
        """int64 [n, l]: the codes of samples whose chunks are there; UserError for damage."""
        chunks, opened, rows = self.plan.chunks, dict[range, np.ndarray](), []
        starts = [chunk.start for chunk in chunks]
        for number in numbers:
            chunk = chunks[bisect_right(starts, number) - 1]
            if chunk not in opened:
                opened[chunk] = self._read(chunk)
            rows.append(opened[chunk][number - chunk.start])
        return np.stack(rows)

    def _read(self, chunk: range) -> np.ndarray:
        path = self.path / "codes" / _chunk_name(chunk)
        try:
            with np.load(path, allow_pickle=False) as content:
                codes = content["codes"].astype(np.int64)
        except (ValueError, KeyError, EOFError, BadZipFile):
            codes = None
        if codes is None or len(codes) != len(chunk):
            raise UserError(f"{path}: damaged; remove it and run the same `tessera sample` again")
        return codes

    def video_of(self, number: int) -> Path:
        """Where the video of a sample is written."""
        return self.path / f"{number:06d}_{slug(self.plan.prompt_of(number))}.mp4"

    def has_video(self, number: int) -> bool:
        path = self.video_of(number)
        return path.exists() or path.with_suffix(".gif").exists()

    def write_frames(self, number: int, first: int, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
        """Frames of a sample from the `first` on, a PNG each."""
        from PIL import Image

        folder = self.path / "frames" / self.video_of(number).stem
        folder.mkdir(parents=True, exist_ok=True)
        metadata = self.made_by() | {
            "sample": str(number),
            "prompt": self.plan.prompt_of(number) or "",
        }
        for at, pixels in enumerate(frames, start=first):
            save_png(Image.fromarray(pixels), folder / f"{at:03d}.png", metadata)

    def made_by(self) -> dict[str, str]:
        """What every picture says about itself."""
        return {
            "generated": "true",
            "model": self.plan.model,
            "step": str(self.plan.step),
            "seed": str(self.plan.settings["seed"]),
        }

    def finish(self, report: Mapping[str, Any]) -> None:
        """Writes what is there, by which a reader knows that it is all."""
        content = {
            **self.made_by(),
            "settings": self.plan.settings,
            "prompts": self.plan.prompts,
            "num": self.plan.num,
            "chunks": [f"codes/{_chunk_name(chunk)}" for chunk in self.plan.chunks],
            **report,
        }
        _publish(self.path / REPORT_FILE, _json(content))

    def report(self) -> dict[str, Any]:
        """What `finish` wrote."""
        return json.loads((self.path / REPORT_FILE).read_text(encoding="utf-8"))

    def _make_room(self, earlier: Plan) -> None:
        """Removes what this plan does not go on with; UserError where that must not be."""
        other = self.plan.differences(earlier, has_videos=bool(self._videos()))
        if other and earlier.is_counted:
            raise UserError(
                f"{self.path}: holds {earlier.num} samples, made with {'; '.join(other)}; "
                "give another folder with --out, or remove this one"
            )
        if not other:
            is_counted = self.plan.is_counted or earlier.is_counted
            self.plan = replace(self.plan, is_counted=is_counted)
        (self.path / REPORT_FILE).unlink(missing_ok=True)
        wanted = set() if other else {_chunk_name(chunk) for chunk in self.plan.chunks}
        for path in (self.path / "codes").iterdir():
            if path.name not in wanted and re.fullmatch(r"\.?\d+-\d+\.npz.*", path.name):
                path.unlink()
        for path in self._videos() + self._frames() if other else ():
            path.unlink()

    def _videos(self) -> list[Path]:
        files = self.path.iterdir()
        return [each for each in files if re.fullmatch(r"\d{6}_[a-z0-9_]+\.(mp4|gif)", each.name)]

    def _frames(self) -> list[Path]:
        files = (self.path / "frames").glob("*/*.png")
        names = re.compile(r"\d{6}_[a-z0-9_]+/\d{3,}\.png")
        return [each for each in files if names.fullmatch(f"{each.parent.name}/{each.name}")]


def _plan_of(path: Path) -> Plan | None:
    """The plan of a folder of samples, None where there is none."""
    try:
        content = json.loads((path / PLAN_FILE).read_text(encoding="utf-8"))
        if content.pop("format") != _FORMAT:
            raise ValueError("another version")
        return Plan(**content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"{path / PLAN_FILE}: not a plan of samples that this program can go on with; give "
            "another folder"
        ) from None


def _chunk_name(chunk: range) -> str:
    return f"{chunk.start:06d}-{chunk.stop:06d}.npz"


def _publish(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """The file whole or not at all, whenever this process ends."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _json(content: Mapping[str, Any]) -> Callable[[IO[bytes]], object]:
    return lambda file: file.write((json.dumps(content, indent=1) + "\n").encode())


def slug(prompt: str | None) -> str:
    """A prompt as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "_", (prompt or "sample").lower()).strip("_")[:60] or "sample"
