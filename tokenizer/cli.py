"""The commands `tessera tokenizer ...`; without the other packages, `python -m tokenizer ...`.

Torch is imported when a command runs, not for its help. Training is registered on the same group by
the package `training`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from math import log2, prod
from typing import Any

from tokenizer.autoencoder_config import ImageAutoencoderConfig
from tokenizer.config import TokenizerConfig
from tokenizer.flag_parser import FlagParser
from tokenizer.layouts import LAYOUTS, PUBLISHED, settings_of
from tokenizer.quantizer_config import QuantizerConfig
from tokenizer.scales import PRESETS as SCHEDULES
from tokenizer.settings import UserError, add_flags, given_flags, parse_override, section, to_dict

_INFO_EXAMPLE = """\
examples:
  tessera tokenizer info runs/demo/tokenizer
  tessera tokenizer info runs/demo/data/tokenizer --shape 17 64 96
"""

_CONVERT_EXAMPLE = """\
examples:
  tessera tokenizer convert vae_ch160v4096z32.pth -o tokenizers/var
  tessera tokenizer convert vae_ch160v4096z32.pth -o tokenizers/var-512 --schedule var-512
  tessera tokenizer convert vq_ds16_c2i.pt -o tokenizers/llamagen --published llamagen-vq16
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
    _register_convert(group)
    return group


def main(argv: list[str] | None = None) -> int:
    """`python -m tokenizer`: this package's commands alone."""
    parser = FlagParser(prog="python -m tokenizer", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _register_info(commands)
    _register_convert(commands)
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
    parser.add_argument(
        "directory", metavar="TOKENIZER", help="its folder, or a dataset's or run's"
    )
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

    from tokenizer import latents
    from tokenizer.folder import find_tokenizer, load_tokenizer, read_description

    directory = find_tokenizer(arguments.directory)
    description = read_description(directory)
    made_by = description.get("made_by", {})
    tokenizer = load_tokenizer(directory)
    config = tokenizer.config
    side = config.quantizer.scales[-1] * config.spatial_stride
    default = (1 if config.architecture == "image" else 1 + 2 * config.temporal_stride, side, side)
    num_frames, height, width = arguments.shape or default
    schedule = tokenizer.schedule_for(num_frames, height, width)
    print(f"fingerprint  {tokenizer.fingerprint}")
    print(f"made by      {_printable(', '.join(f'{name} {made_by[name]}' for name in made_by))}")
    measured = latents.read_statistics(directory) if latents.KEY in description else "not measured"
    print(f"latents      {measured}")
    print("parameters")
    numbers: dict[str, int] = {}
    for name, value in tokenizer.weights().items():
        part = ".".join(name.split(".")[:2])
        numbers[part] = numbers.get(part, 0) + value.numel()
    for part, number in {**numbers, "total": sum(numbers.values())}.items():
        print(f"  {part:<25} {number:>12,}")
    print(f"schedule of {num_frames} frames of {height} x {width}: {schedule.num_tokens} codes")
    bits, pixels = (
        schedule.num_tokens * log2(tokenizer.codebook_size),
        prod((num_frames, height, width)),
    )
    print(
        f"  {tokenizer.codebook_size:,} different codes: {bits:,.0f} bits a clip, "
        f"{bits / pixels:.4f} a pixel, {pixels / schedule.num_tokens:,.0f} pixels a code"
    )
    for number, scale in enumerate(schedule.scales, start=1):
        print(
            f"  scale {number:<3} latent frames [{scale.t0}, {scale.t1})  "
            f"{scale.t} x {scale.h} x {scale.w} = {scale.num_tokens} codes"
        )
    print("settings")
    settings = to_dict(config)
    del settings["image" if config.in_use is config.autoencoder else "autoencoder"]
    lines = yaml.safe_dump(settings, sort_keys=False).splitlines()
    print("\n".join(f"  {line}" for line in lines))
    return 0


def _printable(text: str) -> str:
    """Text of a file from elsewhere, which must not steer the terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _register_convert(group: argparse._SubParsersAction) -> None:
    parser = group.add_parser(
        "convert",
        help="a published checkpoint (VAR, LlamaGen) as a tokenizer's folder",
        description=(
            "Loads a published checkpoint, whole or not at all, and writes it as a folder that "
            "every command takes. Sizes are read from the file; those given here must be the same."
        ),
        epilog=_CONVERT_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="a .pth, .pt or .safetensors file")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="where the folder goes")
    parser.add_argument("--layout", choices=LAYOUTS, help="of the file (default: by its keys)")
    parser.add_argument("--part", metavar="KEY", help="model, ema, ... of a file that has several")
    parser.add_argument(
        "--published", choices=PUBLISHED, help="refuse a file that is not of these sizes"
    )
    parser.add_argument(
        "--schedule", choices=SCHEDULES, metavar="NAME", help="scales by name, such as var-512"
    )
    add_flags(parser, _PublishedSettings, show_defaults=False)
    parser.set_defaults(run=_convert)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PublishedSettings:
    """The sections of a tokenizer that a checkpoint decides."""

    image: ImageAutoencoderConfig = section(ImageAutoencoderConfig)
    quantizer: QuantizerConfig = section(QuantizerConfig)


def _convert(arguments: argparse.Namespace) -> int:
    from tokenizer.published import convert

    asked: dict[str, Any] = {}
    if arguments.published:
        asked |= settings_of(arguments.published)
    if arguments.schedule:
        asked["quantizer.scales"] = SCHEDULES[arguments.schedule].sides
    for key, text in given_flags(arguments).items():
        asked[key] = parse_override(TokenizerConfig, key, text)
    published = convert(
        arguments.file, arguments.out, asked, layout=arguments.layout, part=arguments.part
    )
    if published.left_out:
        print(f"left out: {', '.join(published.left_out)}")
    print(f"sha256   {published.source['sha256']}")
    print(f"written  {arguments.out}  (tessera tokenizer info {arguments.out})")
    return 0
