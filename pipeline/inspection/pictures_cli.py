"""The commands that show pictures: `tessera sheet`, `tessera audit` and `tessera report`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pipeline.arguments import add_command, at_least
from pipeline.quantities import counted


def register(commands: Any) -> None:
    """Adds `sheet`, `audit` and `report`."""
    sheet = add_command(
        commands,
        "sheet",
        "frames of the source videos beside the decoded codes, with PSNR",
        "Draws clips at random and writes one picture: a row per clip, its first, middle and last "
        "frame from the source file and from the codes.",
        "tessera sheet runs/demo/data -o sheet.png --clips 12 --split val",
        _sheet,
    )
    sheet.add_argument("directory", metavar="DIR", help="a finished dataset")
    sheet.add_argument("-o", "--out", default="sheet.png", help="the picture (default: sheet.png)")
    sheet.add_argument("--clips", type=at_least(1), default=8, help="rows (default: 8)")
    sheet.add_argument("--seed", type=at_least(0), default=0, help="which clips (default: 0)")
    sheet.add_argument("--split", help="only of this split")
    sheet.add_argument("--tokenizer", metavar="T", help="its folder (default: the dataset's own)")
    sheet.add_argument("--token-set", metavar="NAME", help="codes to show (default: the primary)")
    audit = add_command(
        commands,
        "audit",
        "decode a random sample and compare it with the sources; exit 1 when it is bad",
        "Checks that a tokenizer made the codes of a dataset, that they show what the source files "
        "show, and that the codebook is used. Exit code 1 when a check fails.",
        "tessera audit runs/demo/data --tokenizer runs/demo/data/tokenizer",
        _audit,
    )
    audit.add_argument("directory", metavar="DIR", help="a finished dataset")
    audit.add_argument("--tokenizer", metavar="T", required=True, help="the tokenizer's folder")
    audit.add_argument(
        "--samples", type=at_least(1), default=64, help="samples to compare (default: 64)"
    )
    audit.add_argument("--seed", type=at_least(0), default=0, help="which samples (default: 0)")
    audit.add_argument("--min-psnr", type=float, default=20.0, help="in dB, on average (20)")
    audit.add_argument(
        "--min-usage", type=float, default=0.05, help="share of the codes in use (0.05)"
    )
    audit.add_argument("--json", action="store_true", help="everything, as one JSON object")
    report = add_command(
        commands,
        "report",
        "one HTML file of all that is known of a dataset",
        "Writes DIR/report.html: what each rule dropped, scores and thresholds, pictures of kept "
        "and dropped clips, codebook, captions, times, errors, settings. `tessera build` writes it "
        "too.",
        "tessera report runs/demo/data",
        _report,
    )
    report.add_argument("directory", metavar="DIR", help="the folder that `tessera build` made")
    report.add_argument(
        "--seconds",
        type=at_least(0, float),
        default=30.0,
        help="time for pictures (default: 30); 0: none",
    )


def _sheet(arguments: argparse.Namespace) -> int:
    from pipeline.inspection.sheet import write_sheet

    comparisons = write_sheet(
        arguments.directory,
        arguments.out,
        num_clips=arguments.clips,
        seed=arguments.seed,
        split=arguments.split,
        tokenizer=arguments.tokenizer,
        token_set=arguments.token_set,
    )
    missing = [each.reason for each in comparisons if each.original is None]
    without = f"; {len(missing)} without source ({', '.join(sorted(set(missing)))})"
    print(f"{arguments.out}: {counted(len(comparisons), 'clip')}{without if missing else ''}")
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    from pipeline.inspection.audit import audit_dataset
    from pipeline.upkeep.findings import print_audit

    audit = audit_dataset(
        arguments.directory,
        arguments.tokenizer,
        num_samples=arguments.samples,
        seed=arguments.seed,
        min_psnr=arguments.min_psnr,
        min_usage=arguments.min_usage,
    )
    if arguments.json:
        print(json.dumps(audit.to_json(), indent=1, sort_keys=True))
    else:
        print_audit(audit)
    return 1 if audit.failures else 0


def _report(arguments: argparse.Namespace) -> int:
    from pipeline.inspection.report import REPORT_FILE, write_report
    from pipeline.storage import is_remote, light_copy, open_storage

    root = arguments.directory
    with light_copy(root) as folder:
        write_report(folder, gallery_seconds=arguments.seconds)
        if is_remote(root):
            open_storage(root).put(REPORT_FILE, folder / REPORT_FILE)
    print(f"{str(root).rstrip('/')}/{REPORT_FILE}")
    return 0
