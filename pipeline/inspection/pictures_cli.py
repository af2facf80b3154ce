"""The commands that show pictures: `tessera sheet`, `tessera audit` and `tessera report`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tokenizer.settings import UserError


def register(commands: Any) -> None:
    """Adds `sheet`, `audit` and `report`."""
    _register_sheet(commands)
    _register_audit(commands)
    report = commands.add_parser(
        "report",
        help="one HTML file of all that is known of a dataset",
        description="Writes DIR/report.html: what each rule dropped, scores and thresholds, "
        "pictures of kept and dropped clips, codebook, captions, times, errors, settings. "
        "`tessera build` writes it too.",
        epilog="example: tessera report runs/demo/data",
    )
    report.add_argument("directory", metavar="DIR", help="the folder that `tessera build` made")
    report.add_argument(
        "--seconds", type=float, default=30.0, help="time for pictures (default: 30); 0: none"
    )
    report.set_defaults(run=_report)


def _register_sheet(commands: Any) -> None:
    sheet = commands.add_parser(
        "sheet",
        help="frames of the source videos beside the decoded codes, with PSNR",
        description="Draws clips at random and writes one picture: a row per clip, its first, "
        "middle and last frame from the source file and from the codes.",
        epilog="example: tessera sheet runs/demo/data -o sheet.png --clips 12 --split val",
    )
    sheet.add_argument("directory", metavar="DIR", help="a finished dataset")
    sheet.add_argument("-o", "--out", default="sheet.png", help="the picture (default: sheet.png)")
    sheet.add_argument("--clips", type=int, default=8, help="rows (default: 8)")
    sheet.add_argument("--seed", type=int, default=0, help="which clips (default: 0)")
    sheet.add_argument("--split", help="only of this split")
    sheet.add_argument("--tokenizer", metavar="T", help="its folder (default: DIR/tokenizer)")
    sheet.set_defaults(run=_sheet)


def _register_audit(commands: Any) -> None:
    audit = commands.add_parser(
        "audit",
        help="decode a random sample and compare it with the sources; exit 1 when it is bad",
        description="Checks that a tokenizer made the codes of a dataset, that they show what the "
        "source files show, and that the codebook is used. Exit code 1 when a check fails.",
        epilog="example: tessera audit runs/demo/data --tokenizer runs/demo/data/tokenizer",
    )
    audit.add_argument("directory", metavar="DIR", help="a finished dataset")
    audit.add_argument("--tokenizer", metavar="T", required=True, help="the tokenizer's folder")
    audit.add_argument("--samples", type=int, default=64, help="samples to compare (default: 64)")
    audit.add_argument("--seed", type=int, default=0, help="which samples (default: 0)")
    audit.add_argument("--min-psnr", type=float, default=20.0, help="in dB, on average (20)")
    audit.add_argument(
        "--min-usage", type=float, default=0.05, help="share of the codes in use (0.05)"
    )
    audit.add_argument("--json", action="store_true", help="everything, as one JSON object")
    audit.set_defaults(run=_audit)


def _sheet(arguments: argparse.Namespace) -> int:
    from pipeline.inspection.sheet import write_sheet
    from pipeline.shards.format import ShardError

    if arguments.clips < 1:
        raise UserError(f"--clips ({arguments.clips}) must be at least 1")
    try:
        comparisons = write_sheet(
            arguments.directory,
            arguments.out,
            num_clips=arguments.clips,
            seed=arguments.seed,
            split=arguments.split,
            tokenizer=arguments.tokenizer,
        )
    except ShardError as error:
        raise UserError(str(error)) from None
    missing = [each.reason for each in comparisons if each.original is None]
    without = f"; {len(missing)} without source ({', '.join(sorted(set(missing)))})"
    print(f"{arguments.out}: {len(comparisons)} clips{without if missing else ''}")
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    from pipeline.inspection.audit import audit_dataset
    from pipeline.shards.format import ShardError
    from pipeline.upkeep.findings import print_audit

    if arguments.samples < 1:
        raise UserError(f"--samples ({arguments.samples}) must be at least 1")
    try:
        audit = audit_dataset(
            arguments.directory,
            arguments.tokenizer,
            num_samples=arguments.samples,
            seed=arguments.seed,
            min_psnr=arguments.min_psnr,
            min_usage=arguments.min_usage,
        )
    except ShardError as error:
        raise UserError(str(error)) from None
    if arguments.json:
        print(json.dumps(audit.to_json(), indent=1, sort_keys=True))
    else:
        print_audit(audit)
    return 1 if audit.failures else 0


def _report(arguments: argparse.Namespace) -> int:
    from pipeline.inspection.report import REPORT_FILE, write_report
    from pipeline.shards.format import ShardError
    from pipeline.storage import is_remote, light_copy, open_storage

    root = arguments.directory
    try:
        with light_copy(root) as folder:
            write_report(folder, gallery_seconds=arguments.seconds)
            if is_remote(root):
                open_storage(root).put(REPORT_FILE, folder / REPORT_FILE)
    except ShardError as error:
        raise UserError(str(error)) from None
    print(f"{str(root).rstrip('/')}/{REPORT_FILE}")
    return 0
