"""`tessera orders`: what is printed and drawn is the order that generators follow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import main
from tests.generators import VARIANTS, Variant
from tokenizer.scales import image_and_clip, single_grid
from training.method_config import MethodConfig
from training.methods import METHODS
from training.order_picture import Drawing, colors_of, save_film, save_orders
from training.order_report import compare, describe, drawn_steps, title_of


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["orders", *argv]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a wrong command prints."""
    assert main(["orders", *argv]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    return captured.err


@pytest.mark.parametrize(
    ("argv", "steps"),
    [
        (["raster"], "1,280 steps"),
        (["par"], "323 steps"),
        (["par", "--method.regions", "[1, 4, 4]"], "95 steps"),
        (["nar"], "35 steps"),
        (["nar", "--method.frame_causal", "true"], "155 steps"),
        (["arpg", "--method.num_steps", "32"], "32 steps"),
        (["next_scale", "--schedule", "var-256"], "10 steps"),
        (["next_scale", "--schedule", "infinitystar-256", "--frames", "5"], "22 steps"),
        (
            ["next_scale", "--schedule", "1,2,4", "--frames", "3", "--method.inner", "nar"],
            "19 steps",
        ),
    ],
)
def test_an_order_is_shown_with_its_steps(
    capsys: pytest.CaptureFixture[str], argv: list[str], steps: str
) -> None:
    shape = [] if "--schedule" in argv else ["--shape", "5x16x16"]
    assert steps in shown(capsys, "show", *argv, *shape)


def test_a_small_grid_is_printed_cell_by_cell(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "show", "par", "--shape", "1x4x4")
    for row in ("1 5 2 5", "6 7 6 7", "3 5 4 5"):
        assert f"   {row}\n" in text


def test_what_each_step_is_fed_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "show", "par", "--shape", "1x4x4").splitlines()
    table = [line.split("  ") for line in lines]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in table]
    assert ["1-3", "1 token", "2-4", "1"] in rows
    assert ["4", "1 token + 3 transitions", "8", "4"] in rows
    assert ["5-6", "4 tokens", "12-16", "4"] in rows


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: each.name)
def test_every_method_can_be_described_and_its_rows_add_up(variant: Variant) -> None:
    layout = METHODS[variant.method.name](variant.schedule, 0, variant.method, False)
    steps = drawn_steps(layout.order, seed=3)
    assert np.bincount(steps)[1:].tolist() == list(layout.order.sizes)
    text = describe(layout, variant.method, steps)
    assert f"sampling feeds {layout.num_rows} rows in {layout.order.num_steps} pass" in text


def test_a_random_order_is_shown_as_the_sampler_draws_it() -> None:
    from training.sampler import _sequences

    method = MethodConfig(name="arpg", num_steps=4)
    order = METHODS["arpg"](single_grid(1, 3, 4), 0, method, False).order
    (sequence,) = _sequences(order, 5, [0]).numpy()
    assert drawn_steps(order, 5)[sequence].tolist() == order.step.tolist()


def test_methods_are_compared_and_those_that_do_not_fit_say_why() -> None:
    text = compare(image_and_clip(1, (1, 2, 4)))
    assert "needs codes on one grid" in text
    (row,) = (line.split() for line in text.splitlines() if line.startswith("next_scale  "))
    assert row == ["next_scale", "3", "16", "21", "1"]
    assert "par regions=1x2x2" in compare(single_grid(5, 16, 16))


def test_a_title_names_what_differs_from_the_defaults() -> None:
    assert title_of(MethodConfig(name="nar")) == "nar"
    assert title_of(MethodConfig(name="par")) == "par regions=1x2x2"
    assert title_of(MethodConfig(name="nar", frame_causal=True)) == "nar frame_causal"


def test_a_picture_shows_every_cell_in_the_colour_of_its_step(tmp_path: Path) -> None:
    order = METHODS["nar"](single_grid(2, 8, 8), 0, MethodConfig(name="nar"), False).order
    path = save_orders([Drawing("nar", order, order.step_of_cell)], tmp_path / "nar.png")
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    found = {tuple(color) for color in np.unique(pixels, axis=0).tolist()}
    for color in colors_of(np.arange(1, order.num_steps + 1), order.num_steps).tolist():
        assert any(np.abs(np.subtract(color, other)).max() <= 3 for other in found)


def test_a_film_ends_with_the_whole_picture(tmp_path: Path) -> None:
    order = METHODS["nar"](single_grid(1, 3, 3), 0, MethodConfig(name="nar"), False).order
    drawing = Drawing("nar", order, order.step_of_cell)
    still, film = save_orders([drawing], tmp_path / "a.png"), save_film(drawing, tmp_path / "a.gif")
    with Image.open(film) as frames:
        assert frames.n_frames == order.num_steps + 2
        frames.seek(frames.n_frames - 1)
        last = np.asarray(frames.convert("RGB")).astype(int)
    first = np.asarray(Image.open(still).convert("RGB")).astype(int)
    cells = (slice(80, 260), slice(30, 230))  # the film's panel is wider, for its longer subtitle
    assert np.abs(last[cells] - first[cells]).mean() < 4


def test_pictures_are_written_by_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("order.png", "order.gif"):
        out = str(tmp_path / "pictures" / name)
        assert out in shown(capsys, "show", "nar", "--shape", "1x2x3", "--out", out)
        assert Path(out).is_file()
    out = str(tmp_path / "all.png")
    assert out in shown(capsys, "list", "--shape", "1x4x4", "--out", out)


def test_the_schedule_may_be_that_of_a_dataset_or_a_tokenizer(
    capsys: pytest.CaptureFixture[str], code_shards: Path
) -> None:
    text = shown(capsys, "show", "next_scale", "--schedule", str(code_shards))
    assert "10 cells" in text
    tokenizer = str(code_shards / "tokenizer")
    again = shown(capsys, "show", "next_scale", "--schedule", tokenizer, "--clip", "5x16x16")
    assert again == text


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["magic"], "must be one of next_scale, raster, par"),
        (["nar", "--shape", "5x16"], "--shape 5x16: must be three positive numbers"),
        (["nar", "--shape", "5x0x16"], "must be three positive numbers"),
        (["nar", "--schedule", "var-256"], "needs codes on one grid"),
        (["par", "--method.regions", "[1, 3, 3]"], "3 regions do not divide 16 cells of axis h"),
        (["next_scale", "--schedule", "var-257"], "neither a folder, nor sides like 1,2,4"),
        (["next_scale", "--schedule", "4,2"], "sides are positive and grow"),
        (["next_scale", "--schedule", "var-256", "--frames", "0"], "--frames (0) must be at least"),
        (["next_scale", "--schedule", "var-256", "--ratio", "99"], "ratio (99) is height / width"),
        (["nar", "--frames", "3"], "--frames is for a published schedule, the sides of scales"),
        (["nar", "--schedule", "1,2", "--shape", "1x2x2"], "--shape is for a plain grid"),
        (["nar", "--out", "order.txt"], "drawn as .png or .gif or .mp4"),
    ],
)
def test_a_wrong_flag_is_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], expected: str
) -> None:
    assert expected in refused(capsys, "show", *argv)


def test_a_folder_that_is_neither_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, code_shards: Path
) -> None:
    assert "neither a dataset nor a tokenizer" in refused(
        capsys, "show", "raster", "--schedule", str(tmp_path)
    )
    assert "--clip is required" in refused(
        capsys, "show", "raster", "--schedule", str(code_shards / "tokenizer")
    )
    assert "--bucket 7: not in" in refused(
        capsys, "show", "raster", "--schedule", str(code_shards), "--bucket", "7"
    )


def test_an_order_is_shown_without_torch() -> None:
    code = (
        "import sys; from training.__main__ import main; "
        "assert main(['orders', 'show', 'nar']) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
