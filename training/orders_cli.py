"""The commands `tessera orders ...`: in which step each cell is generated, printed and drawn."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizer.scales import PRESETS, Schedule, image_and_clip, preset_schedule, single_grid
from tokenizer.settings import UserError, add_flags, given_flags, read_settings, section
from training.method_config import MethodConfig

_SHOW = """\
examples:
  tessera orders show nar --shape 5x16x16
  tessera orders show par --shape 5x16x16 --method.regions '[1, 4, 4]' -o par.png
  tessera orders show arpg --shape 1x16x16 --method.num_steps 32 -o arpg.gif
  tessera orders show next_scale --schedule infinitystar-256 --frames 5
  tessera orders show next_scale --schedule 1,2,4,8 --method.inner nar
  tessera orders show next_scale --schedule runs/demo/data
  tessera orders show raster --schedule tokenizers/var --clip 1x256x256
"""

_LIST = """\
examples:
  tessera orders list --shape 5x16x16
  tessera orders list --schedule var-256
"""

_DEFAULT_SHAPE = "5x16x16"


@dataclass(frozen=True, kw_only=True)
class OrderSettings:
    """The flags of an order: those of `tessera train`."""

    method: MethodConfig = section(MethodConfig)


def register(commands: Any) -> None:
    """Adds the group `orders`."""
    parser = commands.add_parser(
        "orders",
        help="in which step each cell is generated, printed and drawn",
        description="Orders of generation: what each step generates, and what it is fed.",
    )
    parser.set_defaults(run=lambda arguments: parser.print_help() or 2)
    group = parser.add_subparsers(title="commands", metavar="COMMAND")
    show = _add(group, "show", "print and draw the order of a method on a grid", _SHOW)
    show.add_argument(
        "method", metavar="METHOD", help="next_scale, raster, par, nar or arpg (see orders list)"
    )
    _add_schedule(show)
    show.add_argument(
        "-o", "--out", metavar="FILE", help="draw the order as .png, or generation as .gif or .mp4"
    )
    show.add_argument(
        "--seed", type=int, default=0, help="random orders: show that of sample 0 of this seed"
    )
    add_flags(show, OrderSettings, leave_out=("method.name",))
    show.set_defaults(run=_show)
    listed = _add(group, "list", "the methods on a grid side by side: steps, rows, heads", _LIST)
    _add_schedule(listed)
    listed.add_argument("-o", "--out", metavar="FILE", help="draw them side by side as .png")
    listed.set_defaults(run=_list)


def _add(group: Any, name: str, help: str, epilog: str) -> argparse.ArgumentParser:
    return group.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape", metavar="TxHxW", help=f"one grid of so many cells (default: {_DEFAULT_SHAPE})"
    )
    parser.add_argument(
        "--schedule",
        metavar="SCALES",
        help="instead a published schedule, the sides of square scales (1,2,4), or that of a "
        f"dataset's or tokenizer's folder; published: {', '.join(PRESETS)}",
    )
    parser.add_argument(
        "--frames", type=int, metavar="N", help="latent frames of those scales (default: 1)"
    )
    parser.add_argument(
        "--ratio", type=float, metavar="R", help="height / width of a published one (default: 1)"
    )
    parser.add_argument(
        "--bucket", metavar="NAME", help="a dataset's shape of clips (default: the longest)"
    )
    parser.add_argument("--clip", metavar="TxHxW", help="a tokenizer's clip: frames and pixels")


def _show(arguments: argparse.Namespace) -> int:
    from training.methods import METHODS
    from training.order import check_steps
    from training.order_report import describe, drawn_steps, title_of

    flags = {**given_flags(arguments), "method.name": arguments.method}
    method = read_settings(OrderSettings, None, flags).method
    out = _picture(arguments, (".png", ".gif", ".mp4"))
    layout = METHODS[method.name](_schedule(arguments), 0, method, False)
    check_steps(method.num_steps, layout.order)
    steps = drawn_steps(layout.order, arguments.seed)
    print(describe(layout, method, steps))
    if out is not None:
        from training.order_picture import Drawing, save_film, save_orders

        drawing = Drawing(title_of(method), layout.order, steps)
        is_still = out.suffix == ".png"
        written = save_orders([drawing], out) if is_still else save_film(drawing, out)
        print(f"drawn: {written}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from training.order_report import compare, drawn_steps, fitting, title_of

    out = _picture(arguments, (".png",))
    schedule = _schedule(arguments)
    print(compare(schedule))
    if out is not None:
        from training.order_picture import Drawing, save_orders

        drawings = [
            Drawing(title_of(method), order, drawn_steps(order, 0))
            for method, order in fitting(schedule)
        ]
        print(f"drawn: {save_orders(drawings, out)}")
    return 0


def _picture(arguments: argparse.Namespace, kinds: tuple[str, ...]) -> Path | None:
    """Where to draw, or None; UserError for another kind of file."""
    if arguments.out is None:
        return None
    out = Path(arguments.out)
    if out.suffix not in kinds:
        raise UserError(f"--out {out}: drawn as {' or '.join(kinds)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    return out


def _schedule(arguments: argparse.Namespace) -> Schedule:
    """What the flags name; UserError for those that do not belong together."""
    given = {name for name in _FLAGS if getattr(arguments, name) is not None}
    name = arguments.schedule
    kind = "a plain grid" if name is None else _kind(name)
    belongs, make = _KINDS[kind]
    for flag in sorted(given - belongs - {"schedule"}):
        fits = [each for each, (flags, _) in _KINDS.items() if flag in flags]
        raise UserError(f"--{flag} is for {', '.join(fits)}; this is {kind}")
    return make(arguments)


def _kind(name: str) -> str:
    if name in PRESETS:
        return "a published schedule"
    if name.replace(",", "").isdigit():
        return "the sides of scales"
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(
            f"--schedule {name}: neither a folder, nor sides like 1,2,4, nor one of "
            f"{', '.join(PRESETS)}"
        )
    return "a dataset" if (folder / "_SUCCESS").exists() else "a tokenizer"


def _of_shape(arguments: argparse.Namespace) -> Schedule:
    return single_grid(*_three("shape", arguments.shape or _DEFAULT_SHAPE))


def _of_preset(arguments: argparse.Namespace) -> Schedule:
    ratio = 1.0 if arguments.ratio is None else arguments.ratio
    return preset_schedule(arguments.schedule, _frames(arguments), ratio)


def _of_sides(arguments: argparse.Namespace) -> Schedule:
    sides = [int(side) for side in arguments.schedule.split(",") if side]
    if not sides or 0 in sides or sides != sorted(sides):
        raise UserError(f"--schedule {arguments.schedule}: sides are positive and grow, like 1,2,4")
    return image_and_clip(_frames(arguments), sides)


def _of_dataset(arguments: argparse.Namespace) -> Schedule:
    from pipeline.shards import open_dataset

    buckets = open_dataset(arguments.schedule).buckets
    coded = {name: each.schedule for name, each in buckets.items() if each.schedule is not None}
    if not coded:
        raise UserError(f"--schedule {arguments.schedule}: a dataset without codes")
    name = arguments.bucket or max(coded, key=lambda each: coded[each].num_tokens)
    if name not in coded:
        raise UserError(f"--bucket {name}: not in {arguments.schedule}; it has {', '.join(coded)}")
    return coded[name]


def _of_tokenizer(arguments: argparse.Namespace) -> Schedule:
    from tokenizer.config import TokenizerConfig
    from tokenizer.folder import CONFIG_FILE, find_tokenizer, read_description
    from tokenizer.settings import from_dict

    folder = find_tokenizer(arguments.schedule)
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"--schedule {arguments.schedule}: neither a dataset nor a tokenizer")
    if arguments.clip is None:
        raise UserError("--clip is required for a tokenizer: its frames and pixels, like 9x64x64")
    where = str(folder / CONFIG_FILE)
    config = from_dict(TokenizerConfig, read_description(folder)["config"], where)
    return config.schedule_for(*_three("clip", arguments.clip))


def _frames(arguments: argparse.Namespace) -> int:
    frames = 1 if arguments.frames is None else arguments.frames
    if frames < 1:
        raise UserError(f"--frames ({frames}) must be at least 1")
    return frames


def _three(flag: str, text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"--{flag} {text}: must be three positive numbers, like 5x16x16")
    t, h, w = (int(part) for part in parts)
    return t, h, w


_FLAGS = ("shape", "schedule", "frames", "ratio", "bucket", "clip")
_KINDS: dict[str, tuple[set[str], Callable[[argparse.Namespace], Schedule]]] = {
    "a plain grid": ({"shape"}, _of_shape),
    "a published schedule": ({"frames", "ratio"}, _of_preset),
    "the sides of scales": ({"frames"}, _of_sides),
    "a dataset": ({"bucket"}, _of_dataset),
    "a tokenizer": ({"clip"}, _of_tokenizer),
}
"""Which flags go with which source of a schedule."""
