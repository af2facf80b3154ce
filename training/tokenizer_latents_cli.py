"""The command that measures latents: `tessera tokenizer latents TOKENIZER --data DATA`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizer.settings import add_flags, given_flags, read_settings
from training.evaluate_config import LatentsConfig

_EXAMPLE = """\
examples:
  tessera tokenizer latents tokenizers/var --data runs/demo/data

`tessera tokenizer train` measures by itself; this is for tokenizers that came from elsewhere, and
for other data. Codes and fingerprint stay what they are.
"""


def register(
    commands: Any,
    name: str,
    prepare_pixels: Callable[[str], Path] | None,
    is_build: Callable[[Path], bool],
) -> None:
    """Adds the command as `name`; `prepare_pixels` makes the pixel shards of a build."""
    parser = commands.add_parser(
        name,
        help="measure the mean and size of each channel of a tokenizer's latents",
        description=(
            "Measures mean and standard deviation of each channel of the latents over clips, and "
            "keeps them in the tokenizer's folder, for models of latents."
        ),
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "tokenizer", metavar="TOKENIZER", help="its folder, or a dataset's or run's"
    )
    parser.add_argument("--data", metavar="DIR", required=True, help="a build or pixel shards")
    add_flags(parser, LatentsConfig)
    parser.set_defaults(run=_measure, prepare_pixels=prepare_pixels, is_build=is_build)


def _measure(arguments: argparse.Namespace) -> int:
    from training.pixel_clips import find_pixels
    from training.tokenizer_latents import measure_folder

    def pixels_of(data: Path) -> Path:
        return find_pixels(data, arguments.prepare_pixels, arguments.is_build)

    config = read_settings(LatentsConfig, None, given_flags(arguments))
    statistics = measure_folder(arguments.tokenizer, arguments.data, config, pixels_of)
    print(f"latents  {statistics}")
    return 0
