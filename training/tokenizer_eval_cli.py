"""The command that judges tokenizers: `tessera tokenizer eval TOKENIZER --data DATA`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizer.settings import add_flags, given_flags, read_settings
from training.evaluate_config import TokenizerEvalConfig

_EXAMPLE = """\
examples:
  tessera tokenizer eval runs/demo/data/tokenizer --data runs/demo/data -o runs/demo/tokenizer_eval
  tessera tokenizer eval runs/demo/data/tokenizer --data runs/demo/data --max-clips 32 --json
  tessera tokenizer eval TOKENIZER --data DATA --features judge:runs/demo/run/judge

DATA is a build (its pixel shards are made) or pixel shards. With -o DIR also evaluation.json,
rate_distortion.png and reconstructions.png are written there.
"""
_SECONDS_BETWEEN_LINES = 5.0


def register(
    commands: Any,
    name: str,
    prepare_pixels: Callable[[str], Path] | None,
    is_build: Callable[[Path], bool],
) -> None:
    """Adds the command as `name`; `prepare_pixels` makes the pixel shards of a build."""
    parser = commands.add_parser(
        name,
        help="how good a tokenizer is: PSNR, SSIM, bits, use of its codebook, speed",
        description="Encodes and decodes held-out clips and says what became of them.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "tokenizer", metavar="TOKENIZER", help="its folder, or a dataset's or run's"
    )
    parser.add_argument("--data", metavar="DIR", required=True, help="a build or pixel shards")
    parser.add_argument("-o", "--out", metavar="DIR", default=None, help="folder for the report")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, no table")
    parser.add_argument(
        "--max-clips",
        metavar="N",
        dest="override:max_clips",
        default=argparse.SUPPRESS,
        help="most clips of a shape, spread evenly over the split (default: all)",
    )
    parser.add_argument(
        "--features",
        metavar="KIND",
        dest="override:features",
        action="append",
        default=argparse.SUPPRESS,
        help="features of a Frechet distance: random[:SEED] (the default), judge:DIR, "
        "inception:FILE; may be given several times",
    )
    add_flags(parser, TokenizerEvalConfig, leave_out=("max_clips", "features"))
    parser.set_defaults(run=_evaluate, prepare_pixels=prepare_pixels, is_build=is_build)


def _evaluate(arguments: argparse.Namespace) -> int:
    from training.pixel_clips import find_pixels
    from training.tokenizer_eval import WRITTEN, evaluate_tokenizer

    config = read_settings(TokenizerEvalConfig, None, given_flags(arguments))

    def pixels_of(data: Path) -> Path:
        return find_pixels(data, arguments.prepare_pixels, arguments.is_build)

    with _Progress() as progress:
        report = evaluate_tokenizer(
            arguments.tokenizer, arguments.data, arguments.out, config, progress.update, pixels_of
        )
    if arguments.json:
        print(json.dumps(report, indent=1))
        return 0
    _print_tables(report)
    if arguments.out is not None:
        for name in WRITTEN:
            print(Path(arguments.out) / name)
    return 0


class _Progress:
    """A bar on a terminal, a line now and then elsewhere; on stderr, from the first clips on."""

    def __enter__(self) -> _Progress:
        self._bar: Any = None
        self._said = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            if self._bar is None:
                self._start()
            self._bar.update(self._task, completed=done, total=total)
        elif done < total and time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            print(f"{done} of {total} clips", file=sys.stderr, flush=True)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), transient=True)
        self._bar.start()
        self._task = self._bar.add_task("evaluating", total=None)


def _print_tables(report: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    console.print(_quality(report))
    for name, bucket in report["buckets"].items():
        console.print(_pictures(name, bucket))
        console.print(_codes(name, bucket))
    for each in report["features"]:
        console.print(f"FD-{each['name']}: {each['about']}; weights {each['sha256'][:12]}")


def _quality(report: dict[str, Any]) -> Any:
    """A column per shape, and one for all of them where there are several."""
    buckets = report["buckets"]
    columns = dict(buckets) if len(buckets) == 1 else {**buckets, "all": report["overall"]}
    tokenizer = report["tokenizer"]["fingerprint"][:12]
    clips, split = report["overall"]["num_clips"], report["data"]["split"]
    table = _table(f"Tokenizer {tokenizer} on {clips} clips of split {split}")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    found = list(columns.values())
    table.add_row("clips", *(str(each["num_clips"]) for each in found))
    for key, label, digits in (
        ("psnr", "PSNR, dB", 2),
        ("psnr_mean_color", "PSNR of the mean colour, dB", 2),
        ("temporal_psnr", "PSNR of frame differences, dB", 2),
        ("ssim", "SSIM", 4),
        ("ms_ssim", "MS-SSIM", 4),
    ):
        table.add_row(label, *(_shown(each[key], digits) for each in found))
    missing = "no weights" if report["lpips"] == "no weights" else ""
    table.add_row("LPIPS", *(missing or _shown(each["lpips"], 4) for each in found))
    for name in sorted({name for each in found for name in each["frechet"]}):
        table.add_row(
            f"{name} (mean colour)", *(_distance(each["frechet"].get(name)) for each in found)
        )
    for kind in ("nominal", "effective"):
        table.add_row(
            f"{kind} bits per pixel",
            *(f"{each['after_levels'][-1][f'{kind}_bits_per_pixel']:.4f}" for each in found),
        )
    for kind in ("encode", "decode"):
        rates = [each.get("clips_per_second") for each in found]
        table.add_row(f"clips/s, {kind}", *(_shown(each and each[kind], 1) for each in rates))
    return table


def _pictures(name: str, bucket: dict[str, Any]) -> Any:
    """A line per scale: what the picture is after it."""
    table = _table(f"{name}, the picture after each scale")
    for column in ("scale", "grid", "codes", "PSNR, dB", "SSIM", "nominal bpp", "effective bpp"):
        table.add_column(column, justify="right")
    for level, after in zip(bucket["levels"], bucket["after_levels"]):
        table.add_row(
            str(after["num_scales"]),
            "x".join(str(side) for side in level["grid"]),
            str(level["tokens_per_clip"]),
            _shown(after["psnr"], 2),
            _shown(after["ssim"], 4),
            f"{after['nominal_bits_per_pixel']:.4f}",
            f"{after['effective_bits_per_pixel']:.4f}",
        )
    return table


def _codes(name: str, bucket: dict[str, Any]) -> Any:
    """A line per scale: how it uses the codebook, and what it leaves of the latents."""
    table = _table(f"{name}, the codes of each scale")
    for column in ("scale", "tokens", "used", "dead", "perplexity", "bits a code", "latents left"):
        table.add_column(column, justify="right")
    for number, level in enumerate(bucket["levels"], start=1):
        table.add_row(
            str(number),
            str(level["num_tokens"]),
            f"{level['usage']:.1%}",
            str(level["num_dead"]),
            _shown(level["perplexity"], 1),
            _shown(level["entropy_bits"], 2),
            f"{level['residual']:.1%}",
        )
    return table


def _table(title: str) -> Any:
    from rich.table import Table

    return Table(title=title, title_justify="left")


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _distance(found: dict[str, Any] | None) -> str:
    return "" if found is None else f"{found['decoded']:.4g} ({found['mean_color']:.4g})"
