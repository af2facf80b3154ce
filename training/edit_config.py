"""Settings of an edit: what of a clip is kept, and how the rest is made; torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizer.settings import setting
from training.config import SampleConfig

NOT_FLAGS = ("max_prompts", "videos", "stream", "ranks")


@dataclass(frozen=True, kw_only=True)
class EditConfig(SampleConfig):
    out: str | None = setting(None, "folder for the results (default: RUN/edits/SOURCE)")
    prompts: tuple[str, ...] = setting(
        (), "classes or captions of what is made (default: the source's own, if it is a sample)"
    )
    num: int | None = setting(None, "results in all (default: one per prompt)")
    hide: tuple[int, int, int, int] | None = setting(
        None, "make what is inside this rectangle: top, left, bottom, right in pixels of the clip"
    )
    keep: tuple[int, int, int, int] | None = setting(
        None, "make what is outside of this rectangle: top, left, bottom, right"
    )
    mask: str | None = setting(None, "make what is white in this image, which lies on the source")
    first_frames: int | None = setting(
        None,
        "keep these frames, and make the others (with a region: all of the others but the region's "
        "outside); default: the source's frames when it has fewer than the clip",
    )
    start_seconds: float = setting(0.0, "where in the source video the clip begins")
    data: str | None = setting(
        None, "dataset of the sample to edit (default: the one the run was trained on)"
    )
    paste: bool = setting(
        True, "put the source's pixels back where they were kept; false: all as decoded"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        regions = [name for name in ("hide", "keep", "mask") if getattr(self, name) is not None]
        if len(regions) > 1:
            raise ValueError(f"{regions[1]}: only one of {' and '.join(regions)} can be given")
        for name in ("hide", "keep"):
            top, left, bottom, right = getattr(self, name) or (0, 0, 1, 1)
            if not (0 <= top < bottom and 0 <= left < right):
                raise ValueError(
                    f"{name} ({[top, left, bottom, right]}) must be top, left, bottom, right with "
                    "top < bottom and left < right"
                )
        if self.start_seconds < 0:
            raise ValueError(f"start_seconds ({self.start_seconds}) must not be negative")
