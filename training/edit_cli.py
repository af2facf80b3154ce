"""The command that edits: `tessera edit RUN SOURCE`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.settings import add_flags, given_flags
from training.edit_config import NOT_FLAGS, EditConfig

if TYPE_CHECKING:
    from training.edit_source import Decode

_EXAMPLE = """\
examples:
  tessera edit runs/demo/run clip.mp4 --hide '[16, 16, 48, 48]'          fill a hole
  tessera edit runs/demo/run clip.mp4 --keep '[16, 0, 48, 64]' --num 4   beyond the frame, 4 times
  tessera edit runs/demo/run clip.mp4 --mask mask.png --prompts '["a red 3 moving left"]'
  tessera edit runs/demo/run clip.mp4 --first_frames 5                   another end
  tessera edit runs/demo/run photo.jpg --prompts '["a red 3 moving left"]'
  tessera edit runs/demo/run SAMPLE_KEY --hide '[0, 0, 32, 64]'          a clip of the dataset

writes a video per result, edit.png (source, what is made, results) and edit.json
"""


def register(commands: Any, decode: Decode | None = None) -> None:
    """Adds `edit`; `decode` reads videos."""
    parser = commands.add_parser(
        "edit",
        help="make a part of a clip anew: a region, its surroundings, its end",
        description="Keeps what is known of a clip and samples the rest: a region of it or what "
        "lies around, under the same class or caption or another, or the frames that follow.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="RUN", help="folder of a run of `tessera train`")
    parser.add_argument("source", metavar="SOURCE", help="video, image, or key of a sample")
    add_flags(parser, EditConfig, leave_out=NOT_FLAGS)
    parser.set_defaults(run=_edit, decode=decode)


def _edit(arguments: argparse.Namespace) -> int:
    from training.edit_files import write_edit
    from training.run import sample_settings

    run = Path(arguments.folder)
    config = sample_settings(EditConfig, run, given_flags(arguments))
    write_edit(run, arguments.source, config, arguments.decode)
    return 0
