"""Commands of training, and some on tokenizers; torch-free until one runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenizer.config import TokenizerConfig
from tokenizer.presets import PRESETS as MODELS
from tokenizer.settings import (
    UserError,
    add_flags,
    config_file,
    from_dict,
    given_flags,
    read_settings,
    to_dict,
)
from training import (
    bench_cli,
    convert_cli,
    edit_cli,
    evaluate_cli,
    orders_cli,
    run_cli,
    tokenizer_eval_cli,
    tokenizer_latents_cli,
)
from training.config import GeneratorRun, SampleConfig, TokenizerRun
from training.models import MODELS as GENERATORS
from training.models import model_settings
from training.run_cli import tell

if TYPE_CHECKING:
    from training.edit_source import Decode

Config = TypeVar("Config", "GeneratorRun", "TokenizerRun")
PRESETS = Path(__file__).parent / "presets"

_TRAIN = """\
examples:
  tessera train demo --data runs/demo/data --out runs/demo/run
  tessera train demo --data DATA --out RUN --method.name raster --method.num_steps null
  tessera train --model nar-l --data DATA --out runs/nar --condition.kind class
  tessera train --out runs/demo/run                 continue an interrupted run
  tessera train demo --data DATA --out RUN --launch.kind ray --launch.workers 2
  torchrun --nproc-per-node 2 -m training train demo --data DATA --out RUN
"""

_SAMPLE = """\
examples:
  tessera sample runs/demo/run
  tessera sample runs/demo/run --prompts '["a red 3 moving left"]' --num 4 --guidance.scale 2
  tessera sample runs/raster --stream true      frames as PNGs while the rest is generated
  tessera sample RUN --num 10000 --ranks 4 --out SAMPLES    again after a kill: it goes on
"""

_TOKENIZER = """\
examples:
  tessera build demo --sources '[videos]' --out DATA --until select
  tessera tokenizer train demo-tokenizer --data DATA
  tessera build demo --sources '[videos]' --out DATA
  tessera tokenizer train --model small --data DATA --out RUN --result RUN/tokenizer
  tessera tokenizer train --out RUN                 continue an interrupted run
  tessera tokenizer train --model tokenizers/var --begin.folder tokenizers/var --data DATA --out RUN
"""


def register(
    commands: argparse._SubParsersAction,
    tokenizer_commands: argparse._SubParsersAction,
    prepare_pixels: Callable[[str], Path] | None = None,
    decode: Decode | None = None,
) -> None:
    """Adds the commands; `prepare_pixels` makes the pixel shards of a build that has none yet,
    `decode` reads the videos to edit."""
    train = _add(commands, "train", "train a generator on token shards", _TRAIN)
    train.add_argument(
        "--model",
        metavar="NAME",
        help=f"blocks, sizes and method of a paper: {', '.join(GENERATORS)}; flags come on top",
    )
    _add_training(train, GeneratorRun, "the dataset folder that `tessera build` made")
    train.set_defaults(run=_train)

    sample = _add(commands, "sample", "sample videos from a trained generator", _SAMPLE)
    sample.add_argument("folder", metavar="RUN", help="folder of a run of `tessera train`")
    add_flags(sample, SampleConfig)
    sample.set_defaults(run=_sample)

    convert_cli.register(commands)
    edit_cli.register(commands, decode)
    evaluate_cli.register(commands, prepare_pixels)
    orders_cli.register(commands)
    run_cli.register(commands)
    bench_cli.register(commands)

    prefix = "" if tokenizer_commands is not commands else "tokenizer-"
    tokenizer = _add(
        tokenizer_commands, f"{prefix}train", "train a tokenizer on pixel shards", _TOKENIZER
    )
    tokenizer.add_argument(
        "--model",
        metavar="NAME",
        help=f"autoencoder and quantizer by name: {', '.join(MODELS)} (see tokenizer/README.md), "
        "or those of a tokenizer's folder; flags of theirs come on top",
    )
    _add_training(tokenizer, TokenizerRun, "a build (its pixel shards are made) or pixel shards")
    tokenizer.set_defaults(run=_train_tokenizer, prepare_pixels=prepare_pixels)

    for name, module in (("eval", tokenizer_eval_cli), ("latents", tokenizer_latents_cli)):
        module.register(tokenizer_commands, f"{prefix}{name}", prepare_pixels, _is_build)


def _add(
    commands: argparse._SubParsersAction, name: str, help: str, epilog: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_training(parser: argparse.ArgumentParser, settings: type, data_help: str) -> None:
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help="YAML file with the settings, or a preset (default: the settings of the run in OUT)",
    )
    parser.add_argument("--data", metavar="DIR", default=None, help=data_help)
    add_flags(parser, settings, leave_out=("data.path",))


def _train(arguments: argparse.Namespace) -> int:
    chosen = model_settings(arguments.model) if arguments.model else {}
    config = _settings(arguments, GeneratorRun, chosen)
    if config.out is None:
        raise UserError("out is required: the folder of the run, for example --out runs/generator")
    _start(config)
    return 0


def _train_tokenizer(arguments: argparse.Namespace) -> int:
    from training.pixel_clips import find_pixels

    config = _settings(arguments, TokenizerRun, _of_model(arguments.model))
    if config.data.path is None:
        raise UserError("--data is required: a folder of `tessera build`")
    data = Path(config.data.path)
    if _is_build(data):
        out = config.out or str(data / "tokenizer_run")
        result = config.result or _where_the_build_looks(data, Path(out), config)
    elif config.out is None:
        raise UserError(f"out is required: {data} is no build that would look for a tokenizer")
    else:
        out, result = config.out, config.result or str(Path(config.out) / "tokenizer")
    pixels = find_pixels(data, arguments.prepare_pixels, _is_build)
    config = replace(config, out=out, result=result, data=replace(config.data, path=str(pixels)))
    _start(config)
    return 0


def _of_model(name: str | None) -> dict[str, Any]:
    """The settings that a model's name, or the folder of a tokenizer, stands for, by dotted key."""
    if name is None:
        return {}
    values = to_dict(MODELS[name] if name in MODELS else _config_in(name))
    of_pixels = "image" if values["architecture"] == "image" else "autoencoder"
    return {
        f"tokenizer.{section}.{key}": value
        for section in (of_pixels, "quantizer")
        for key, value in values[section].items()
    } | {"tokenizer.architecture": values["architecture"]}


def _config_in(name: str) -> TokenizerConfig:
    """The settings of the tokenizer in a folder; UserError when there is none."""
    from tokenizer.folder import CONFIG_FILE, find_tokenizer, read_description

    folder = find_tokenizer(name)
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"--model {name}: neither a tokenizer's folder nor a model's name; names: "
            f"{', '.join(MODELS)}"
        )
    where = str(folder / CONFIG_FILE)
    return from_dict(TokenizerConfig, read_description(folder)["config"], where)


def _where_the_build_looks(data: Path, out: Path, config: TokenizerRun) -> str:
    """DATA/tokenizer; UserError when codes there need the tokenizer that training would replace."""
    from training.checkpoint import latest_checkpoint, read_state

    folder = data / "tokenizer"
    checkpoint = latest_checkpoint(out)
    is_done = checkpoint is not None and read_state(checkpoint)["step"] >= config.trainer.num_steps
    if is_done or not (data / "shards.json").is_file():
        return str(folder)
    raise UserError(
        f"{data}: its codes need the tokenizer in {folder}, which would be replaced; name another "
        f"folder with --result, or --result {folder} to build {data} anew afterwards"
    )


def _sample(arguments: argparse.Namespace) -> int:
    from training.run import sample_settings
    from training.sample_ranks import write_samples

    run = Path(arguments.folder)
    write_samples(run, sample_settings(SampleConfig, run, given_flags(arguments)))
    return 0


def _settings(
    arguments: argparse.Namespace, cls: type[Config], chosen: Mapping[str, Any] | None = None
) -> Config:
    """What to run: a file or preset, else the run's own settings; then `chosen`, then flags."""
    overrides = {**(chosen or {}), **given_flags(arguments)}
    if arguments.data is not None:
        overrides["data.path"] = json.dumps(arguments.data)
    path = config_file(arguments.config, PRESETS) if arguments.config else None
    if path is None and "out" in overrides:
        own = Path(overrides["out"]) / "config.yaml"
        path = own if own.exists() else None
    return read_settings(cls, path, overrides)


def _start(config: GeneratorRun | TokenizerRun) -> None:
    from training.launch.start import start

    tell(config, start(config))


def _is_build(folder: Path) -> bool:
    """Whether `folder` is a build that can make pixel shards, and not pixel shards themselves."""
    return (folder / "config.yaml").exists() and (folder / "selection.parquet").exists()
