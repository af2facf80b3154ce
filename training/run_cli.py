"""The commands for a run that is there: `tessera resume` and `tessera export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.settings import UserError, add_flags, given_flags, read_settings
from training.config import GeneratorRun, TokenizerRun
from training.loop_config import TrainingRun

if TYPE_CHECKING:
    from training.launch.job import RunConfig
    from training.trainer import Trained

_RESUME = """\
examples:
  tessera resume runs/demo/run                                what a kill or a signal cut short
  tessera resume runs/demo/run --trainer.num_steps 800        further than it was to go
  tessera resume runs/demo/run --launch.kind torchrun --launch.workers 2
  torchrun --nproc-per-node 4 -m training resume runs/demo/run    on other ranks than before
"""

_EXPORT = """\
examples:
  tessera export runs/demo/run -o exported             then: tessera sample exported
  tessera export runs/demo/run -o exported --weights trained --dtype bfloat16
  tessera export DATA/tokenizer_run -o tokenizers/mine    a tokenizer, as `tessera build` takes it

The folder has all that sampling needs: model.safetensors, settings, vocabulary and tokenizer.
"""


def register(commands: Any) -> None:
    resume = commands.add_parser(
        "resume",
        help="continue a run from its latest checkpoint, with the settings it has",
        description="Continues a run of `tessera train` or `tessera tokenizer train`, on any number"
        " of ranks. Settings that do not contradict its checkpoints may be changed by flags.",
        epilog=_RESUME,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    resume.add_argument("folder", metavar="RUN", help="the folder of the run")
    add_flags(resume, TrainingRun, show_defaults=False)
    resume.set_defaults(run=_resume)

    export = commands.add_parser(
        "export",
        help="the weights of a run in one safetensors file, with all that sampling needs",
        description="Writes the weights after a run's latest checkpoint in one piece.",
        epilog=_EXPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("folder", metavar="RUN", help="the folder of the run")
    export.add_argument("-o", "--out", required=True, metavar="DIR", help="where it goes")
    export.add_argument(
        "--checkpoint", metavar="NAME", help="like step_00000400 (default: the latest)"
    )
    export.add_argument(
        "--weights",
        choices=("averaged", "trained"),
        default="averaged",
        help="the averaged weights, where the run has them, or those that are trained "
        "(default: averaged)",
    )
    export.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of a generator's weights (default: float32)",
    )
    export.set_defaults(run=_export)


def tell(config: RunConfig, trained: Trained | None) -> None:
    """Says where a run ended, and what comes next."""
    if trained is None:
        return
    if not trained.is_finished:
        print(f"stopped after step {trained.step}; go on with: tessera resume {config.out}")
    elif isinstance(config, GeneratorRun):
        print(f"trained {trained.step} steps; run: {config.out}; next: tessera sample {config.out}")
    else:
        print(f"trained {trained.step} steps; tokenizer: {config.result}")


def _resume(arguments: argparse.Namespace) -> int:
    from training.checkpoint import latest_checkpoint, read_state
    from training.launch.start import start

    folder = Path(arguments.folder)
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        raise UserError(f"{folder}: no run with a checkpoint to resume; `tessera train` begins one")
    task = read_state(checkpoint).get("identity", {}).get("task")
    flags, path = {"out": str(folder), **given_flags(arguments)}, folder / "config.yaml"
    config: RunConfig
    if task == "tokenizer":
        config = read_settings(TokenizerRun, path, flags)
    else:
        config = read_settings(GeneratorRun, path, flags)
    tell(config, start(config))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from training.export import export

    exported = export(
        Path(arguments.folder),
        Path(arguments.out),
        checkpoint=arguments.checkpoint,
        is_averaged=arguments.weights == "averaged",
        dtype=arguments.dtype,
    )
    print(f"step {exported.step}, {exported.num_parameters:,} parameters: {exported.folder}")
    return 0
