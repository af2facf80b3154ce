"""A command line whose errors are one line that names what was probably meant; torch-free."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any


class FlagParser(argparse.ArgumentParser):
    """argparse with errors as everywhere else: one line, exit code 2; flags are given in full."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As in argparse, but the parser of a command says itself which flag it does not know."""
        found, others = super().parse_known_args(args, namespace)
        flags = [each.partition("=")[0] for each in others if each.startswith("--")]
        if flags and self._subparsers is None:
            near = difflib.get_close_matches(flags[0], self._option_string_actions, n=1)
            self.error(f"unknown flag {flags[0]}" + (f"; did you mean {near[0]}?" if near else ""))
        return found, others
