"""The command `tessera`: videos in, token shards, a trained generator, new videos out.

Each package owns its commands in its `cli` module; those of `training` are loaded by name, because
`pipeline` does not import it. Help loads neither torch nor Ray.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizer.cli
from pipeline import status_cli, submit_cli
from pipeline.config import PHASES, BuildConfig
from pipeline.inspection import cli as inspection_cli
from pipeline.upkeep import cli as upkeep_cli
from pipeline.upkeep import migrate_cli
from tokenizer.flag_parser import FlagParser
from tokenizer.settings import UserError, add_flags, config_file, given_flags, read_settings

if TYPE_CHECKING:
    import numpy as np

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PRESETS = Path(__file__).parent / "presets"

_BUILD_EXAMPLE = """\
examples:
  tessera build build.yaml                       all five phases; run it again to continue
  tessera build build.yaml --until select        stop before a tokenizer is needed
  tessera build build.yaml --dry-run 20          what it will cost, from 20 of the files
  tessera build build.yaml --select.val_share 0.2 --executor inline

phases: plan (list, identify) > annotate (shots, scores, captions) > select (rules, splits)
        > tokenize (decode, encode, shards) > finalize (manifest, index, report)
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; a UserError is one line on stderr and exit code 2."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve a shared machine
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 2
    try:
        return int(arguments.run(arguments) or 0)
    except UserError as error:
        print(f"tessera: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        print(
            f"tessera: {error.filename or 'the output'}: {error.strerror}; free some space and run "
            "the same command again to continue",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("tessera: interrupted; run the same command again to continue", file=sys.stderr)
        return 130


@cache
def _parser() -> argparse.ArgumentParser:
    parser = FlagParser(
        prog="tessera",
        description="Raw video to multi-scale token shards, and token shards to video generators.",
        epilog="`tessera COMMAND --help` shows every setting and an example.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _register_demo(commands)
    _register_build(commands)
    tokenizer_commands = tokenizer.cli.register(commands)
    importlib.import_module("training.cli").register(
        commands, tokenizer_commands, prepare_pixels, opening_frames
    )
    status_cli.register(commands)
    inspection_cli.register(commands)
    submit_cli.register(commands)
    upkeep_cli.register(commands)
    migrate_cli.register(commands)
    return parser


def prepare_pixels(data: str) -> Path:
    """Pixel shards of the build in `data`, made when they are missing; for `tokenizer train`."""
    from pipeline.build import build_pixels

    config_file = Path(data) / "config.yaml"
    if not config_file.exists():
        raise UserError(f"{data}: no build here; run `tessera build CONFIG --until select` first")
    return Path(build_pixels(read_settings(BuildConfig, config_file, {"out": data})))


def opening_frames(
    path: Path, num_frames: int, height: int, width: int, fps: float, start_seconds: float
) -> np.ndarray:
    """The beginning of a video as frames; for `edit`."""
    from pipeline.decode import opening

    return opening.opening_frames(path, num_frames, height, width, fps, start_seconds)


def _register_build(commands: argparse._SubParsersAction) -> None:
    phase_help = "all phases" + ": sources to token shards, resumable"
    for name in ("build", *PHASES):
        parser = commands.add_parser(
            name,
            help=phase_help if name == "build" else f"the build up to phase '{name}'",
            description="Makes a dataset of token shards from videos and images."
            if name == "build"
            else f"Runs the build up to and including its phase '{name}'.",
            epilog=_BUILD_EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "config",
            metavar="CONFIG",
            help="YAML file with the build's settings, or a preset: demo",
        )
        if name == "build":
            parser.add_argument(
                "--until", choices=PHASES, default=PHASES[-1], help="last phase to run"
            )
            parser.add_argument(
                "--dry-run",
                type=int,
                metavar="N",
                help="measure N of the files and predict hours, bytes and shards; writes nothing",
            )
        add_flags(parser, BuildConfig)
        parser.set_defaults(run=_build, phase=None if name == "build" else name)


def _build(arguments: argparse.Namespace) -> int:
    from pipeline.build import build

    path = config_file(arguments.config, PRESETS)
    config = read_settings(BuildConfig, path, given_flags(arguments))
    if getattr(arguments, "dry_run", None) is not None:
        return _dry_run(config, arguments.dry_run)
    build(config, arguments.phase or arguments.until)
    return 0


def _dry_run(config: BuildConfig, num_files: int) -> int:
    from pipeline.build import tokenizer_recipes
    from pipeline.forecast import forecast, forecast_lines
    from pipeline.sources.listing import list_sources

    if num_files < 1:
        raise UserError(f"--dry-run ({num_files}) must be at least 1")
    has_tokenizer = config.tokenize.tokenizer or (Path(config.out) / "tokenizer").exists()
    recipes = tokenizer_recipes(config) if has_tokenizer else ()
    num_cpus = config.num_cpus or os.cpu_count() or 1
    made = forecast(
        config, list_sources(config.sources, config.limits), num_files, recipes, num_cpus
    )
    print("\n".join(forecast_lines(made, config)))
    return 0


def _register_demo(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "demo",
        help="the main job from start to end, on clips that it draws or on yours",
        description="Draws a corpus of moving handwritten digits (or takes your videos), builds "
        "shards, trains a tokenizer and a generator, samples, and judges the samples.",
        epilog="examples:\n  tessera demo\n  tessera demo --videos ~/videos --out runs/mine\n\n"
        "a clip's label is its parent folder: ~/videos/cat/a.mp4 is 'a video of cat'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", default="runs/demo", help="folder of all results")
    parser.add_argument(
        "--videos",
        default=None,
        help="your own videos: one folder per label, or a tar, manifest or URL",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus and the training")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from pipeline.demo import run_demo

    return run_demo(Path(arguments.out), arguments.videos, arguments.seed)
