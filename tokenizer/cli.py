"""The commands `tessera tokenizer ...`; without the other packages, `python -m tokenizer ...`.

Torch is imported when a command runs, not for its help. Training is registered on the same group by
the package `training`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tokenizer.settings import UserError, to_dict

_INFO_EXAMPLE = """\
examples:
  tessera tokenizer info runs/demo/tokenizer
  tessera tokenizer info runs/demo/data/tokenizer --shape 17 64 96
"""


def register(commands: argparse._SubParsersAction) -> argparse._SubParsersAction:
    """Adds the group `tokenizer` and returns it, so that others can add commands to it."""
    parser = commands.add_parser(
        "tokenizer",
        help="tokenizers: pixels to multi-scale codes and back",
        description="Trains and inspects tokenizers, which turn clips into multi-scale codes.",
    )
    parser.set_defaults(run=lambda arguments: _show_help(parser))
    group = parser.add_subparsers(title="commands", metavar="COMMAND")
    _register_info(group)
    return group


def main(argv: list[str] | None = None) -> int:
    """`python -m tokenizer`: this package's commands alone."""
    parser = argparse.ArgumentParser(prog="python -m tokenizer", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _register_info(commands)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"tessera: {error}", file=sys.stderr)
        return 2


def _show_help(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return 2


def _register_info(group: argparse._SubParsersAction) -> None:
    parser = group.add_parser(
        "info",
        help="settings, size and schedule of a tokenizer",
        description="Prints what a tokenizer's folder holds.",
        epilog=_INFO_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", metavar="DIR", help="folder with tokenizer.json")
    parser.add_argument(
        "--shape",
        nargs=3,
        type=int,
        metavar=("FRAMES", "HEIGHT", "WIDTH"),
        help="show the schedule of clips of this shape (default: the smallest full pyramids)",
    )
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    import yaml

    from tokenizer.model import load_tokenizer, read_description

    directory = Path(arguments.directory)
    made_by = read_description(directory).get("made_by", {})
    tokenizer = load_tokenizer(directory)
    config = tokenizer.config
    side = config.quantizer.scales[-1] * config.autoencoder.spatial_stride
    default = (1 + 2 * config.autoencoder.temporal_stride, side, side)
    num_frames, height, width = arguments.shape or default
    schedule = tokenizer.schedule_for(num_frames, height, width)
    print(f"fingerprint  {tokenizer.fingerprint}")
    print(f"made by      {', '.join(f'{name} {version}' for name, version in made_by.items())}")
    print("parameters")
    parts = {
        "encoder": tokenizer.autoencoder.encoder,
        "decoder": tokenizer.autoencoder.decoder,
        "quantizer": tokenizer.quantizer,
    }
    for name, part in parts.items():
        print(f"  {name:<10} {sum(each.numel() for each in part.parameters()):>12,}")
    codebook = tokenizer.quantizer.codebook
    print(f"  {'codebook':<10} {codebook.size:>12,} codes of {codebook.dim} channels")
    print(f"schedule of {num_frames} frames of {height} x {width}: {schedule.num_tokens} codes")
    for index, scale in enumerate(schedule.scales):
        print(
            f"  scale {index:<3} latent frames [{scale.t0}, {scale.t1})  "
            f"{scale.t} x {scale.h} x {scale.w} = {scale.num_tokens} codes"
        )
    print("settings")
    print(
        "\n".join(
            f"  {line}" for line in yaml.safe_dump(to_dict(config), sort_keys=False).splitlines()
        )
    )
    return 0
