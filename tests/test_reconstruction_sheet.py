"""The picture of reconstructions and the rate-distortion plot: what they show is what was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.rate_distortion import Curve, Point, draw_curves
from training.reconstruction_sheet import Shown, draw_reconstructions


def clip(value: int, num_frames: int = 9, side: int = 64) -> np.ndarray:
    frames = np.full((num_frames, side, side, 3), 30, dtype=np.uint8)
    frames[..., 0] = value
    return frames


def shown(num_scales: int, num_frames: int = 9, side: int = 64) -> Shown:
    after = [clip(100 + index, num_frames, side) for index in range(num_scales)]
    kept = Shown.of(clip(200, num_frames, side), after, psnr=21.5, place=3)
    return kept.described({"uri": "films/a cat.mp4", "start_seconds": 1.25}, "the worst clip")


def color_count(picture: Image.Image, value: int) -> int:
    return int((np.asarray(picture) == (value, 30, 30)).all(axis=2).sum())


def test_sources_reconstructions_and_every_scale_are_in_the_picture() -> None:
    picture = draw_reconstructions([shown(3), shown(3)], "Title", "subtitle")
    assert color_count(picture, 200) == 2 * 4 * 128 * 128
    assert color_count(picture, 102) == 2 * (4 * 128 * 128 + 256 * 256)
    assert color_count(picture, 100) == color_count(picture, 101) == 2 * 256 * 256


@pytest.mark.parametrize(("num_frames", "side"), [(1, 64), (2, 7), (5, 300)])
def test_images_and_odd_sizes_are_drawn(num_frames: int, side: int) -> None:
    picture = draw_reconstructions([shown(1, num_frames, side)], "One")
    assert color_count(picture, 200) > num_frames * 100 * 100


def test_many_scales_stay_beside_each_other() -> None:
    few, many = (draw_reconstructions([shown(n)], "T") for n in (4, 10))
    assert many.width < 1.2 * few.width
    assert all(color_count(many, 100 + index) > 100 * 100 for index in range(10))


def test_a_picture_without_clips_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one clip"):
        draw_reconstructions([], "T")


def curve(name: str, ssim: float | None = 0.5, spread: float = 0.0) -> Curve:
    points = [
        Point(
            num_scales=scale,
            nominal_bits_per_pixel=0.02 * scale,
            effective_bits_per_pixel=0.015 * scale,
            psnr=15.0 + scale,
            ssim=ssim,
            psnr_spread=spread,
        )
        for scale in (1, 2, 3)
    ]
    return Curve(name, tuple(points))


def test_a_plot_is_written_and_has_a_panel_per_measure(tmp_path: Path) -> None:
    assert draw_curves([curve("a"), curve("b", spread=0.3)], tmp_path / "two.png", "T", "s", 12.0)
    assert draw_curves([curve("a", ssim=None)], tmp_path / "one.png", "T")
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "one.png") as one:
        assert two.width > 1.5 * one.width
        assert len(two.convert("RGB").getcolors(1 << 20) or ()) > 20


def test_without_matplotlib_there_is_no_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert not draw_curves([curve("a")], tmp_path / "plot.png", "T")
    assert not (tmp_path / "plot.png").exists()
