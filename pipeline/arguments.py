"""What the commands' parsers share: a command with its help and examples, and checked numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_command(
    commands: Any,
    name: str,
    summary: str,
    description: str,
    examples: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """A parser for `tessera NAME`, whose help shows the examples as they are."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples if "\n" in examples else f"example: {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def at_least(least: float, kind: Callable[[str], float] = int) -> Callable[[str], Any]:
    """For `type=` of an argument: a number that is not smaller."""

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        if not number >= least:
            raise argparse.ArgumentTypeError(f"{text} must be at least {least:g}")
        return number

    return parse
