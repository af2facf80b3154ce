"""Settings: frozen dataclasses, filled by YAML files and overridden by flags.

A settings class is a `@dataclass(frozen=True, kw_only=True)` whose fields carry their sentence in
`field(metadata={"help": ...})` (written with `setting(...)`). `read_settings` builds it from a YAML
file and dotted overrides, and refuses what it does not know:

    config = read_settings(BuildConfig, "build.yaml", {"select.min_motion": "0.2"})

    build.yaml: unknown key 'selct'; did you mean 'select'?

A class checks its own values in `__post_init__` by raising `ValueError("key: what is wrong")`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


class UserError(Exception):
    """Something that the person at the keyboard can mend; shown as one line, exit code 2."""


def setting(default: Any = dataclasses.MISSING, help: str = "", **kwargs: Any) -> Any:
    """A dataclass field with its sentence; mutable defaults are given as a factory by `kwargs`."""
    if isinstance(default, (dict, list)):
        raise TypeError("use tuples or default_factory for a setting's default")
    if default is not dataclasses.MISSING:
        kwargs["default"] = default
    return dataclasses.field(metadata={"help": help}, **kwargs)


def section(cls: type, help: str = "") -> Any:
    """A nested settings class whose default is `cls()`."""
    return dataclasses.field(default_factory=cls, metadata={"help": help})


def read_settings(
    cls: type[T],
    path: str | Path | None,
    overrides: Mapping[str, Any] | None = None,
) -> T:
    """`cls` from a YAML file (or defaults only) with dotted `overrides` on top.

    Override values are strings in YAML syntax ("0.2", "[a, b]", "null") or ready values. Raises
    UserError naming the file, the key and the nearest valid key, type or value.
    """
    values: dict[str, Any] = {}
    where = "settings"
    if path is not None:
        where = str(path)
        values = _read_yaml(Path(path))
    for dotted, raw in (overrides or {}).items():
        value = parse_override(cls, dotted, raw)
        _assign(values, dotted.split("."), value, dotted)
    return from_dict(cls, values, where)


def config_file(name: str, presets: Path) -> Path:
    """The YAML file that CONFIG on a command line means: a path, or the name of a preset."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    preset = presets / f"{name}.yaml"
    if preset.exists():
        return preset
    known = sorted(each.stem for each in presets.glob("*.yaml"))
    raise UserError(f"{name}: no such file, and not a preset; presets: {', '.join(known)}")


def from_dict(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """`cls` from nested dictionaries, checked likewise; `where` begins each error."""
    return _build(cls, values, where, "")


def to_dict(settings: Any) -> dict[str, Any]:
    """Plain nested dictionaries, lists and scalars: what YAML and JSON can hold."""
    return {
        field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)
    }


def save_settings(settings: Any, path: str | Path) -> None:
    """Writes settings so that `read_settings` gives them back."""
    Path(path).write_text(dump_settings(settings), encoding="utf-8")


def dump_settings(settings: Any) -> str:
    """Settings as the YAML that `read_settings` reads."""
    return yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True)


def add_flags(
    parser: argparse.ArgumentParser,
    cls: type,
    leave_out: tuple[str, ...] = (),
    show_defaults: bool = True,
) -> None:
    """Adds `--section.key VALUE` for every key of `cls`, with its sentence and default."""
    for prefix, members in _sections(cls, ""):
        title = f"settings: {prefix.rstrip('.')}" if prefix else "settings"
        group = parser.add_argument_group(title)
        for field, annotation in members:
            name = prefix + field.name
            if name in leave_out:
                continue
            help_text = field.metadata.get("help", "")
            note = _default_note(field, help_text) if show_defaults else ""
            group.add_argument(
                f"--{name}",
                dest=f"override:{name}",
                metavar=_metavar(annotation),
                default=argparse.SUPPRESS,
                help=(help_text + note).replace("%", "%%"),
            )

    positional = [each.metavar or each.dest for each in parser._actions if not each.option_strings]
    own = [each for each in parser._actions if each.option_strings and ":" not in each.dest]
    flags = [f"[{each.option_strings[0]}]" for each in own if each.dest != "help"]
    words = [parser.prog, *map(str, positional), *flags, "[--KEY VALUE ...]"]
    parser.usage = " ".join(words).replace("%", "%%")


def given_flags(arguments: argparse.Namespace) -> dict[str, str]:
    """The overrides that `add_flags` collected on this command line."""
    return {
        key.removeprefix("override:"): value
        for key, value in vars(arguments).items()
        if key.startswith("override:")
    }


def parse_yaml(text: str | bytes) -> Any:
    """Plain values of YAML, by libyaml where PyYAML has it: eight times as quick."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML: {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def parse_override(cls: type, dotted: str, raw: Any) -> Any:
    """A flag's text as YAML; where text is wanted, text that YAML would read otherwise stays."""
    if not isinstance(raw, str):
        return raw
    try:
        value = parse_yaml(raw)
    except yaml.YAMLError:
        if _wants_text(cls, dotted):
            return raw
        raise UserError(f"--{dotted}: {raw!r} is not a valid value") from None
    if _wants_text(cls, dotted) and value is not None and not isinstance(value, str):
        return raw
    annotation = _annotation(cls, dotted)
    if annotation is not None:
        _convert(annotation, value, "flags", dotted)
    return value


def _wants_text(cls: Any, dotted: str) -> bool:
    annotation = _annotation(cls, dotted)
    return annotation is str or (
        typing.get_origin(annotation) in (typing.Union, types.UnionType)
        and set(typing.get_args(annotation)) <= {str, type(None)}
    )


def _annotation(cls: Any, dotted: str) -> Any:
    """The type of the value at a dotted key; None when there is no such key."""
    for key in dotted.split("."):
        if not dataclasses.is_dataclass(cls):
            return None
        cls = _type_hints(typing.cast(type, cls)).get(key)
    return cls


def _assign(values: dict[str, Any], keys: list[str], value: Any, dotted: str) -> None:
    for key in keys[:-1]:
        child = values.setdefault(key, {})
        if not isinstance(child, dict):
            raise UserError(f"--{dotted}: '{key}' is a value, not a section")
        values = child
    values[keys[-1]] = value


def _build(cls: type[T], values: Mapping[str, Any], where: str, prefix: str) -> T:
    if not isinstance(values, Mapping):
        shown = prefix.rstrip(".") or "settings"
        raise UserError(f"{where}: {shown} must be a section of keys, not {_shown(values)}")
    hints = _type_hints(typing.cast(type, cls))
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            hint = (
                f"did you mean '{prefix}{near[0]}'?" if near else f"valid keys: {', '.join(fields)}"
            )
            raise UserError(f"{where}: unknown key '{prefix}{key}'; {hint}")
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], where, prefix + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: '{prefix}{name}' is required: {field.metadata.get('help')}")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise UserError(f"{where}: {prefix}{error}") from None


def _convert(annotation: Any, value: Any, where: str, key: str) -> Any:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        choices = typing.get_args(annotation)
        if value is None and type(None) in choices:
            return None
        inner = [choice for choice in choices if choice is not type(None)]
        if len(inner) == 1:
            return _convert(inner[0], value, where, key)
        for choice in inner:
            try:
                return _convert(choice, value, where, key)
            except UserError:
                continue
    elif origin is typing.Literal:
        allowed = typing.get_args(annotation)
        if value in allowed and not (isinstance(value, bool) and True not in allowed):
            return value
        near = difflib.get_close_matches(str(value), [str(each) for each in allowed], n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        listed = ", ".join(str(each) for each in allowed)
        raise UserError(f"{where}: {key} ({value!r}) must be one of {listed}{hint}")
    elif origin is tuple:
        item_types = typing.get_args(annotation)
        if isinstance(value, (list, tuple)):
            if len(item_types) == 2 and item_types[1] is Ellipsis:
                return tuple(
                    _convert(item_types[0], each, where, f"{key}[{index}]")
                    for index, each in enumerate(value)
                )
            if len(value) == len(item_types):
                return tuple(
                    _convert(kind, each, where, f"{key}[{index}]")
                    for index, (kind, each) in enumerate(zip(item_types, value))
                )
    elif origin is dict:
        if isinstance(value, Mapping):
            kind = typing.get_args(annotation)[1]
            return {str(k): _convert(kind, v, where, f"{key}.{k}") for k, v in value.items()}
    elif dataclasses.is_dataclass(annotation):
        return _build(typing.cast(type, annotation), value, where, key + ".")
    elif annotation is bool:
        if isinstance(value, bool):
            return value
    elif annotation is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif annotation is float:
        number = _number(value)
        if number is not None and not math.isfinite(number):
            raise UserError(f"{where}: {key} ({value}) must be a finite number")
        if number is not None:
            return number
    elif annotation is str:
        if isinstance(value, str):
            return value
    elif annotation is Any:
        return value
    hint = f"; write [{value}]" if origin is tuple and isinstance(value, str) else ""
    raise UserError(f"{where}: {key} must be {_type_text(annotation)}, not {_shown(value)}{hint}")


def _number(value: Any) -> float | None:
    """A value as a float; text too, since YAML 1.1 reads 1e-3 as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


@cache
def _type_hints(cls: type) -> dict[str, Any]:
    """The types of a class's fields; reading them is most of what a command line costs."""
    return typing.get_type_hints(cls)


def _sections(cls: type, prefix: str) -> list[tuple[str, list[tuple[dataclasses.Field, Any]]]]:
    hints = _type_hints(cls)
    own, nested = [], []
    for field in dataclasses.fields(cls):
        annotation = hints[field.name]
        if dataclasses.is_dataclass(annotation):
            nested += _sections(typing.cast(type, annotation), f"{prefix}{field.name}.")
        else:
            own.append((field, annotation))
    return [(prefix, own), *nested]


def _default_note(field: dataclasses.Field, help_text: str) -> str:
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return " (required)"
    if "default" in help_text:
        return ""
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return f" (default: {'null' if default is None else _plain(default)})"


def _type_text(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _type_text(a) for a in arguments)
    if origin is typing.Literal:
        return "|".join(str(each) for each in arguments)
    if origin is tuple:
        return f"list of {_type_text(arguments[0])}"
    if origin is dict:
        return "mapping"
    if dataclasses.is_dataclass(annotation):
        return "section"
    names = {int: "int", float: "number", str: "text", bool: "true|false"}
    return names.get(annotation, str(annotation))


def _metavar(annotation: Any) -> str:
    """The kind of value in a flag's help: `text`, `int|null`, `[text,...]`, `pyav|decord`."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple:
        return f"[{_metavar(arguments[0])},...]"
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return "|".join("null" if a is type(None) else _metavar(a) for a in arguments)
    if typing.get_origin(annotation) is dict:
        return "{name: text,...}"
    return _type_text(annotation)


def _shown(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"
