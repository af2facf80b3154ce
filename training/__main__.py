"""`python -m training COMMAND`: the commands of this package where nothing else is installed."""

from __future__ import annotations

import sys
from functools import cache

from tokenizer.flag_parser import FlagParser
from tokenizer.settings import UserError
from training import cli


def main(argv: list[str] | None = None) -> int:
    """Runs a command; a UserError is one line on stderr and exit code 2."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except UserError as error:
        print(f"training: {error}", file=sys.stderr)
        return 2


@cache
def _parser() -> FlagParser:
    parser = FlagParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    cli.register(commands, commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
