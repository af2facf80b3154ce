"""Reading a checkpoint that somebody else made: tensors by name, and nothing else happens.

    checkpoint = read_checkpoint("vae_ch160v4096z32.pth")
    checkpoint.tensors["encoder.conv_in.weight"]
    checkpoint.sha256

A `.pth` or `.pt` file is a pickle and raw storages, since torch 1.6 in a zip. The pickle is read by
torch's restricted unpickler only, which knows tensors and containers and calls nothing; a zip's
storages are mapped, not copied, and what tensors claim is held against what the file has.
`.safetensors` holds no code by construction.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizer.settings import UserError

PARTS = (
    *("model", "module", "ema", "vae", "state_dict"),
    *("trainer.var_wo_ddp", "trainer.vae_local"),  # VAR's
)
"""Keys under which a training's checkpoint holds a state dict."""
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
"""What DDP, torch.compile and FSDP put before the keys of what they wrap."""
SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
OLD_FORMAT = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""How files begin that torch wrote before 1.6: its magic number, pickled."""
MAX_FILE_BYTES = 16 << 30
MAX_PICKLE_BYTES = 64 << 20
MAX_TENSORS = 100_000


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A state dict, and where it came from."""

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    part: str | None
    """The key that held it; None when the file is the state dict itself."""
    left_out: tuple[str, ...]
    """The other keys of the file."""


def read_checkpoint(
    path: str | Path, part: str | None = None, prefer: str | None = None
) -> Checkpoint:
    """The state dict of a file, on the CPU, without what wrappers put before all of its keys.

    `part` says which when there are several, `prefer` which it is if the file has that one.

    Raises UserError when the file is missing, too large, truncated, asks for code, holds something
    else than tensors by name, or when `part` is needed or wrong.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: not a checkpoint by its name; known: {', '.join(SUFFIXES)}")
    sha256, size_bytes = _digest(path)
    if path.suffix == ".safetensors":
        content = _read_safetensors(path)
    else:
        content = _opened(_read_pickled(path, mmap=_is_archive(path, size_bytes)))
    if part is None and prefer in content:
        part = prefer
    found, state = _unwrap(path, content, part)
    _check_tensors(path, state, size_bytes)
    others = tuple(str(key) for key in content if found is not None and key != found)
    return Checkpoint(path=path, sha256=sha256, tensors=state, part=found, left_out=others)


def _digest(path: Path) -> tuple[str, int]:
    """SHA-256 (hex) and size of the file."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise UserError(
                f"{path}: {size_bytes >> 30} GiB; a checkpoint has at most {MAX_FILE_BYTES >> 30}"
            )
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), size_bytes
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({error}); fetch it again") from None


def _is_archive(path: Path, size_bytes: int) -> bool:
    """Whether it is a zip (else it is of torch's format before 1.6), of what torch.save writes:
    stored, uncompressed entries with one small pickle; UserError when it is neither."""
    try:
        with path.open("rb") as file:
            if file.read(len(OLD_FORMAT)) == OLD_FORMAT:
                return False
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: not a whole checkpoint ({error}); fetch it again") from None
    pickles = [each.file_size for each in entries if each.filename.endswith("/data.pkl")]
    if (
        len(pickles) != 1
        or pickles[0] > MAX_PICKLE_BYTES
        or any(each.compress_type != zipfile.ZIP_STORED for each in entries)
        or sum(each.file_size for each in entries) > size_bytes
    ):
        raise UserError(f"{path}: not an archive that torch.save writes; nothing of it was read")
    return True


def _read_pickled(path: Path, mmap: bool) -> Mapping[str, Any]:
    """What the restricted unpickler makes of it; a training's `args` may be a plain Namespace."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # the bytes are a stranger's: the unpickler may raise anything
        raise UserError(
            f"{path}: not a checkpoint of plain tensors ({_reason(error)}); nothing was executed"
        ) from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds {type(content).__name__}, not tensors by name")
    return content


def _reason(error: Exception) -> str:
    text = str(error)
    asked = re.search(r"(?:GLOBAL|global:?) ([\w.]+\.[\w.]+)", text)
    if asked:
        return f"it asks for {asked.group(1)}"
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return first.strip()[:160]


def _opened(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """A training's file with what its trainer holds by dotted keys."""
    trainer = content.get("trainer")
    if not isinstance(trainer, Mapping):
        return content
    others = {key: value for key, value in content.items() if key != "trainer"}
    return others | {f"trainer.{key}": value for key, value in trainer.items()}


def _unwrap(
    path: Path, content: Mapping[str, Any], part: str | None
) -> tuple[str | None, dict[str, Tensor]]:
    """The part in use and its tensors."""
    parts = [key for key in PARTS if isinstance(content.get(key), Mapping)]
    if part is None and len(parts) > 1:
        raise UserError(f"{path}: holds {', '.join(parts)}; say which with --part")
    if part is not None and part not in parts:
        raise UserError(f"{path}: has no part {part!r}; it holds {', '.join(parts) or 'none'}")
    found = part or (parts[0] if parts else None)
    state = content if found is None else content[found]
    if isinstance(state.get("sd"), Mapping):  # NAR's beside a model's name and arguments
        state = state["sd"]
    strange = [repr(key) for key, value in state.items() if not _is_plain(key, value)]
    if strange or not state:
        listed = ", ".join(strange[:3]) or "nothing"
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise UserError(f"{path}: not a state dict of tensors by name: it has {listed}{more}")
    return found, _unwrapped_keys(state)


def _unwrapped_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the wrappers that all keys begin with, one after another."""
    state = dict(state)
    while wrapper := next(
        (each for each in WRAPPERS if all(k.startswith(each) for k in state)), ""
    ):
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


def _is_plain(key: Any, value: Any) -> bool:
    return (
        isinstance(key, str)
        and type(value) in (Tensor, torch.nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


def _check_tensors(path: Path, state: Mapping[str, Tensor], size_bytes: int) -> None:
    """UserError when tensors claim more numbers than the file has bytes for."""
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    if len(state) > MAX_TENSORS or claimed > size_bytes:
        raise UserError(
            f"{path}: {len(state)} tensors claim {claimed} bytes of a file of {size_bytes}"
        )
