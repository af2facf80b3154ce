"""The command `tessera convert`: a published generator as a run's folder."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tokenizer.settings import UserError, add_flags, given_flags, parse_override, section
from training.config import GeneratorRun, ModelConfig
from training.method_config import MethodConfig
from training.models import MODELS, model_settings

LAYOUTS = ("var", "llamagen", "par", "nar-image", "nar-video", "arpg")

_EXAMPLES = """\
examples:
  tessera tokenizer convert vae_ch160v4096z32.pth -o tokenizers/var
  tessera convert var_d16.pth -o runs/var --tokenizer tokenizers/var
  tessera sample runs/var --prompts '["207"]'       guided and drawn as in the paper

  tessera tokenizer convert vq_ds16_c2i.pt -o tokenizers/llamagen
  tessera convert c2i_L_4x.pt -o runs/par --tokenizer tokenizers/llamagen --shape 1 384 384
  tessera convert nar_l.pt -o runs/nar --tokenizer tokenizers/llamagen --classes imagenet.txt

VAR-d36-s: --schedule var-512 for its tokenizer. LlamaGen and PAR: what ends in 384 is for images of
384 x 384. What shapes do not tell is the published setting, or a flag: --model.heads of an
unpublished width, --model.head_blocks of NAR, --method.regions of PAR. Samples are guided and drawn
as the preset of the paper says for its size of it (see training/presets); other sizes may want
another --guidance.scale, ARPG takes --num_steps.
"""


@dataclass(frozen=True, kw_only=True)
class _Told:
    """The settings that a checkpoint decides."""

    model: ModelConfig = section(ModelConfig)
    method: MethodConfig = section(MethodConfig)


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "convert",
        help="a published generator (VAR, LlamaGen, PAR, NAR, ARPG) as a run",
        description=(
            "Loads a published checkpoint, whole or not at all, and writes it as a run that "
            "`tessera sample` takes. Sizes are read from the file; those given here must be the "
            "same."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="a .pth, .pt or .safetensors file")
    parser.add_argument("-o", "--out", required=True, metavar="RUN", help="where the run goes")
    parser.add_argument(
        "--tokenizer", required=True, metavar="DIR", help="the tokenizer it was trained on"
    )
    parser.add_argument("--layout", choices=LAYOUTS, help="of the file (default: by its keys)")
    parser.add_argument("--part", metavar="KEY", help="model, ema, ... of a file that has several")
    parser.add_argument(
        "--shape",
        nargs=3,
        type=int,
        metavar=("FRAMES", "HEIGHT", "WIDTH"),
        help="of what it generates (default: an image of the tokenizer's scales)",
    )
    parser.add_argument(
        "--classes", metavar="TXT", help="names of the classes, one a line (default: numbers)"
    )
    parser.add_argument(
        "--size",
        metavar="NAME",
        help=f"refuse a file that is not of this published size: {', '.join(MODELS)}",
    )
    add_flags(parser, _Told, show_defaults=False)
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    from training.compat.published import convert

    asked = model_settings(arguments.size) if arguments.size else {}
    for key, text in given_flags(arguments).items():
        asked[key] = parse_override(GeneratorRun, key, text)
    published = convert(
        arguments.file,
        arguments.out,
        arguments.tokenizer,
        asked=asked,
        layout=arguments.layout,
        part=arguments.part,
        shape=tuple(arguments.shape) if arguments.shape else None,
        classes=_names(arguments.classes) if arguments.classes else None,
    )
    record = published.record
    if published.left_out:
        print(f"left out: {', '.join(published.left_out)}")
    print(f"sha256   {record.source['sha256']}")
    print(f"layout   {record.source['layout']}, {record.num_parameters:,} parameters")
    print(f"written  {arguments.out}  (tessera sample {arguments.out})")
    return 0


def _names(path: str) -> list[str]:
    """The lines of a file; empty ones at its end do not count."""
    try:
        return Path(path).read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as names, one a line ({error})") from None
